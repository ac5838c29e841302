"""The rivals of the cell of many tables: one call for all of them, against a layer for each.

Both end in one tensor of shape `(batch, tables * dim)`, which is what a model goes on with.
"""

import keras
import tensorflow as tf

import tfrec_efficient as tfrec
from _embedding.cells import Cell
from _embedding.rivals import KERAS
from _embedding.rivals import InProcess
from _embedding.rivals import in_process
from _embedding.rivals import initializer
from _embedding.rivals import keras_optimizer
from _embedding.rivals import our_optimizer

OURS = "tfrec.EmbeddingBagCollection"


def _ours(cell: Cell, pattern: tf.Tensor) -> InProcess:
    names = [f"t{i}" for i in range(cell.tables)]
    layer = tfrec.EmbeddingBagCollection(
        tables={name: (cell.rows, cell.dim) for name in names},
        features={name: name for name in names},
        embeddings_initializer=initializer(pattern),
    )
    layer.build()
    tables = list(layer.embeddings.values())
    optimizer = our_optimizer(cell.optimizer)
    return InProcess(
        prepare=tf.unstack,
        pool=lambda *ids: [layer(dict(zip(names, ids, strict=True)))],
        variables=[table.value for table in tables],
        apply=lambda gradients: optimizer.apply(gradients, tables),
    )


def _keras(cell: Cell, pattern: tf.Tensor) -> InProcess:
    start = initializer(pattern)
    layers = [
        keras.layers.Embedding(cell.rows, cell.dim, embeddings_initializer=start)
        for _ in range(cell.tables)
    ]
    for layer in layers:
        layer.build()
    tables = [layer.embeddings for layer in layers]
    optimizer = keras_optimizer(cell.optimizer)

    def pool(*ids):
        rows = [layer(bags) for layer, bags in zip(layers, ids, strict=True)]
        pooled = [row[:, 0] if cell.hotness == 1 else tf.reduce_sum(row, axis=1) for row in rows]
        return [tf.concat(pooled, axis=1)]

    return InProcess(
        prepare=tf.unstack,
        pool=pool,
        variables=[table.value for table in tables],
        apply=lambda gradients: optimizer.apply(gradients, tables),
    )


RIVALS = {
    OURS: in_process("ours", OURS, _ours),
    KERAS: in_process("keras", KERAS, _keras),
}
