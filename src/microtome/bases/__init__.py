"""Floor 3, bases: ways to write values as parts."""
