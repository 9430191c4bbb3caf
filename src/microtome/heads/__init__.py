"""Floor 4, heads: Where do attention heads look, and what kind of head is each?"""
