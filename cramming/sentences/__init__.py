"""Texts as vectors: embedding, search, STS-B, sentence-transformers folders. Not the training of what embeds them."""
