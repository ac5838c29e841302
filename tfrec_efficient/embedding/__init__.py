"""Layers over embedding tables."""

from tfrec_efficient.embedding.embedding_bag import EmbeddingBag as EmbeddingBag
