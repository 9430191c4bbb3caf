"""Floor 4, weights: What can be read from the weights alone?"""
