"""Causal claims: algorithms stated as causal models, and tried on a network by intervention."""
