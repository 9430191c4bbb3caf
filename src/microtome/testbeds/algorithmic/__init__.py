"""Small transformers trained on tasks whose right answers, and the steps to them, are known exactly."""
