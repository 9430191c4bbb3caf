"""Floor 4, attribution: How much does each part contribute to what the model says?"""
