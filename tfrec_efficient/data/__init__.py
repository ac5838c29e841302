"""From raw data to batches: public data sets and splits."""

from tfrec_efficient.data import datasets as datasets
from tfrec_efficient.data.splits import temporal_split as temporal_split
