"""Floor 4, lenses: What would the model say if it stopped here?"""
