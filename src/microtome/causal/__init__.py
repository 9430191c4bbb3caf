"""Floor 4, causal: algorithms as causal models, tried on a network by exchanging, scrubbing and searching."""
