"""Train and serve recommenders fast on the machine you have.

    import tfrec_efficient as tfrec

    tfrec.EmbeddingBag      pools rows of an embedding table; also a drop-in for
                            `keras.layers.Embedding`
    tfrec.ops               the C++ ops below the layers, and their pure-TensorFlow references
    tfrec.data              public data sets and splits
    tfrec.testing           test harnesses for layers, ops and dataset transforms
"""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tfrec_efficient runs on the TensorFlow backend of Keras only. Set the environment "
        "variable KERAS_BACKEND=tensorflow before Keras is imported. "
        f"Received: KERAS_BACKEND={_keras.backend.backend()}"
    )

from tfrec_efficient import data as data
from tfrec_efficient import ops as ops
from tfrec_efficient.embedding.embedding_bag import EmbeddingBag as EmbeddingBag
from tfrec_efficient.version import __version__ as __version__
