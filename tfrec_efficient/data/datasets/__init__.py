"""Public data sets, read from where they are or fetched from where they live."""

from tfrec_efficient.data.datasets.movielens import MovieLens as MovieLens
from tfrec_efficient.data.datasets.movielens import movielens_1m as movielens_1m
from tfrec_efficient.data.datasets.movielens import movielens_100k as movielens_100k
