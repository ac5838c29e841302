"""From raw data to batches: public data sets, splits, and castings of ids."""

from tfrec_efficient.data import datasets as datasets
from tfrec_efficient.data.cast_indices import cast_indices as cast_indices
from tfrec_efficient.data.splits import temporal_split as temporal_split
