"""Floor 4, circuits: which parts of a network do a task, and what is left when only these are kept."""
