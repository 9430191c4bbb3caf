"""Which parts of a network cause its behaviour? Methods that intervene, with their guard and their protocol."""
