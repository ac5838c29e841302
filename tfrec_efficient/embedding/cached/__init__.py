"""Tables that are larger than memory."""

from tfrec_efficient.embedding.cached._export import apply_changes as apply_changes
from tfrec_efficient.embedding.cached.cache_monitor import CacheMonitor as CacheMonitor
from tfrec_efficient.embedding.cached.cache_report import CacheReport as CacheReport
from tfrec_efficient.embedding.cached.cached_embedding import CachedEmbedding as CachedEmbedding
from tfrec_efficient.embedding.cached.dynamic_vocabulary import (
    DynamicVocabulary as DynamicVocabulary,
)
from tfrec_efficient.embedding.cached.frozen_embedding import FrozenEmbedding as FrozenEmbedding
from tfrec_efficient.embedding.cached.frozen_embedding import freeze_model as freeze_model
from tfrec_efficient.embedding.cached.table_checkpoint import TableCheckpoint as TableCheckpoint
