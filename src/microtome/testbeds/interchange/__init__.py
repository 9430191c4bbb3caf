"""Networks trained so that a known causal model, at known heads and MLPs and along known edges, is how they work."""
