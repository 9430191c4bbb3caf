"""Floor 2, a study on disk."""
