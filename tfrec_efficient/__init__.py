"""Train and serve recommenders fast on the machine you have.

What lies where, in the order in which data flows:

- `data`: public data sets, and splits of them.
- `Prune4Rel`: chooses the samples to train on, where labels are wrong.
- `coreset`: the base class of that, other selectors, filters of datasets, re-labelling learners.
- `RecencyBias`: a callback that shows the model what it is confused about.
- `sampling`: the base class of that, and other selectors of batches.
- `EmbeddingBag`: a Keras layer that pools rows of an embedding table.
- `EmbeddingBagCollection`: many features and tables in one op.
- `CachedEmbedding`: a table larger than memory, in files, with the rows in use in memory.
- `embedding`: all of these layers, and what belongs to them.
- `CFProjection`: a Keras layer from collaborative-filtering vectors to tokens of a language model.
- `llm`: that, CF backbones, and a frozen language model that ranks by both.
- `optimizers`: Keras optimizers that update only the rows of a table that have a gradient.
- `PimDevice`: a processing-in-memory device, to emulate.
- `pim`: that, its reports, a layer that runs on it, and a planner.
- `ops`: the C++ ops below the layers, each with a pure-TensorFlow reference.
- `testing`: test harnesses for layers, ops and dataset transforms; imported by name.
"""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfrec_efficient runs on the TensorFlow backend of Keras only. Set the environment "
        "variable KERAS_BACKEND=tensorflow before Keras is imported. "
        f"Received: KERAS_BACKEND={_keras.backend.backend()}"
    )

from tfrec_efficient import coreset as coreset
from tfrec_efficient import data as data
from tfrec_efficient import embedding as embedding
from tfrec_efficient import llm as llm
from tfrec_efficient import ops as ops
from tfrec_efficient import optimizers as optimizers
from tfrec_efficient import pim as pim
from tfrec_efficient import sampling as sampling
from tfrec_efficient.coreset.by_neighbourhood.prune4rel import Prune4Rel as Prune4Rel
from tfrec_efficient.embedding.cached import CachedEmbedding as CachedEmbedding
from tfrec_efficient.embedding.embedding_bag import EmbeddingBag as EmbeddingBag
from tfrec_efficient.embedding.embedding_bag_collection import (
    EmbeddingBagCollection as EmbeddingBagCollection,
)
from tfrec_efficient.llm.cf_projection import CFProjection as CFProjection
from tfrec_efficient.pim.pim_device import PimDevice as PimDevice
from tfrec_efficient.sampling.selectors.recency_bias import RecencyBias as RecencyBias
from tfrec_efficient.version import __version__ as __version__
