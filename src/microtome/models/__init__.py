"""Floor 2, access: read and edit any value of a model that stays the user's own."""
