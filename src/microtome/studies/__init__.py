"""Floor 6, the main job: from a model to an account, its report, and the catalog of methods."""
