"""Layers over embedding tables."""

from tfrec_efficient.embedding.cached import CachedEmbedding as CachedEmbedding
from tfrec_efficient.embedding.cached import CacheMonitor as CacheMonitor
from tfrec_efficient.embedding.cached import CacheReport as CacheReport
from tfrec_efficient.embedding.cached import DynamicVocabulary as DynamicVocabulary
from tfrec_efficient.embedding.cached import FrozenEmbedding as FrozenEmbedding
from tfrec_efficient.embedding.cached import TableCheckpoint as TableCheckpoint
from tfrec_efficient.embedding.cached import apply_changes as apply_changes
from tfrec_efficient.embedding.cached import freeze_model as freeze_model
from tfrec_efficient.embedding.embedding_bag import EmbeddingBag as EmbeddingBag
from tfrec_efficient.embedding.embedding_bag_collection import (
    EmbeddingBagCollection as EmbeddingBagCollection,
)
