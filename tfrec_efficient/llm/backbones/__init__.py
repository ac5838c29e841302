"""Collaborative-filtering models of sequences: a state for each user, a vector for each item."""

from tfrec_efficient.llm.backbones.cf_backbone import CFBackbone as CFBackbone
from tfrec_efficient.llm.backbones.gru4rec import GRU4Rec as GRU4Rec
from tfrec_efficient.llm.backbones.matrix_factorization import (
    MatrixFactorization as MatrixFactorization,
)
from tfrec_efficient.llm.backbones.nextitnet import NextItNet as NextItNet
from tfrec_efficient.llm.backbones.sasrec import SASRec as SASRec
from tfrec_efficient.llm.backbones.sequences import sequence_dataset as sequence_dataset
