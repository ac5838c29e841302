"""Layers over embedding tables."""

from tfrec_efficient.embedding.embedding_bag import EmbeddingBag as EmbeddingBag
from tfrec_efficient.embedding.embedding_bag_collection import (
    EmbeddingBagCollection as EmbeddingBagCollection,
)
