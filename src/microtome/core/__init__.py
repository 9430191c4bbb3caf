"""Floor 1, the words: sites, edits, circuits, claims, results, shapes, configurations and errors."""
