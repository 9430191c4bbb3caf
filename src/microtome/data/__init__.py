"""Floor 2, what is asked of a model: prompts, clean and corrupt pairs, tasks, corpora and metrics."""
