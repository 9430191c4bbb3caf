"""Networks whose weights are written by hand."""
