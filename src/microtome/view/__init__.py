"""Floor 2, pictures: every shape in a terminal, a notebook and a self-contained page."""
