"""A small language model trained on stories whose latent variables are known: text, tokenizer, training, scores."""
