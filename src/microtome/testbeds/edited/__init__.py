"""Networks that were tampered with, each beside the one it was: what was done to them is known."""
