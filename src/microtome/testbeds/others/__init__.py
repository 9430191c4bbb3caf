"""Networks that are not transformers, reached by module path, and a game whose board is known after every move."""
