"""Floor 4, development: how does what is in a network come about in training?"""
