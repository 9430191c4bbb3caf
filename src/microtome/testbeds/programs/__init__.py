"""Programs compiled to weights: networks of which every variable, head and edge is known because we put it there."""
