"""Codes that are solved for rather than read off: greedy pursuits, the lasso, and dictionaries learnt with them."""
