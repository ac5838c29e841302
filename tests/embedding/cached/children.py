"""A process that makes calls in children of its own, which tests may kill.

Each line of the input is a call in JSON. Its child is forked from a process that has imported
TensorFlow, which takes seconds, and not used it, after which it could not be forked.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

ROWS, DIM = 300, 4


def table(folder, with_keys=False, rows=ROWS, **arguments):
    """A small layer; with a vocabulary, one that forgets."""
    vocabulary = tfrec.embedding.DynamicVocabulary(min_count=2, max_age=3) if with_keys else None
    arguments = {
        "cache_rows": 40,
        "optimizer": tfrec.optimizers.Adam(0.1),
        "embeddings_initializer": keras.initializers.RandomNormal(seed=3),
        **arguments,
    }
    layer = tfrec.CachedEmbedding(
        None if with_keys else rows, DIM, path=folder, vocabulary=vocabulary, **arguments
    )
    layer.build()
    return layer


def digest(layer):
    """Of all that a checkpoint has to keep."""
    stats = layer.stats()
    # Without the last column: it says at which checkpoint a row changed.
    rows = layer._rows.table.read(np.arange(stats.rows)).numpy()[:, :-1]
    sums = hashlib.sha256(rows.tobytes())
    sums.update(str((stats.rows, int(layer.optimizer.iterations))).encode())
    if layer._rows.vocabulary is not None:
        sums.update(layer._rows.vocabulary.save().numpy().tobytes())
    return sums.hexdigest()


def train_step(layer, ids):
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum((layer(ids, training=True) - 1.0) ** 2)
    tape.gradient(loss, layer.hook.value)


def train_for_ever(folder, log, seed, with_keys):
    """Makes a checkpoint every other step, and logs what it holds before and after it is made."""
    layer = table(folder, with_keys)
    rng = np.random.default_rng(seed)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"opened {digest(layer)}\n".encode())
    while True:
        for _ in range(rng.integers(1, 4)):
            train_step(layer, rng.zipf(1.2, (10, 3)) % ROWS)
        if with_keys:  # what is forgotten is gone before the checkpoint is made
            freed = layer._rows.vocabulary.expire()
            layer._rows.table.reset(freed)
        os.write(file, f"before {digest(layer)}\n".encode())
        layer.flush()
        os.write(file, f"after {digest(layer)}\n".encode())


def digest_after_training(folder, threads):
    """Batches so large that ops share them among threads."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    rows = 20_000
    layer = table(folder, rows=rows, cache_rows=9_000, optimizer=tfrec.optimizers.Adagrad(0.1))
    ids = np.random.default_rng(0).zipf(1.2, (8, 1500, 5)) % rows
    data = tf.data.Dataset.from_tensor_slices(ids)
    for batch in data.apply(layer.prefetch(1)):
        train_step(layer, batch)
    return digest(layer)


def error_of_opening(folder):
    try:
        table(folder)
    except tf.errors.InvalidArgumentError as error:
        return error.message
    return None


def fit_with_backup(folder, store, dies_at=None):
    """Four epochs of seven batches; the process ends before batch number `dies_at`."""
    keras.utils.set_random_seed(0)
    layer = table(store, optimizer=tfrec.optimizers.Adagrad(0.1))
    model = keras.Sequential([keras.Input((3,), dtype="int64"), layer, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01), "mse")
    ids = np.random.default_rng(0).integers(0, ROWS, (7 * 8, 3))
    data = tf.data.Dataset.from_tensor_slices((ids, ids.mean(-1) / ROWS)).batch(8)

    def count(batch, logs=None):
        if int(layer.optimizer.iterations) == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    model.fit(
        data.apply(layer.prefetch(2)),
        epochs=4,
        verbose=0,
        callbacks=[
            keras.callbacks.BackupAndRestore(folder),
            keras.callbacks.LambdaCallback(on_train_batch_begin=count),
        ],
    )
    return [digest(layer), [weight.numpy().tolist() for weight in model.layers[-1].weights]]


def serve(exported, inputs):
    """What a SavedModel says, in a process that knows nothing of the model."""
    tfrec.ops.load_all()
    loaded = tf.saved_model.load(exported)
    return loaded.serve(tf.constant(np.array(inputs))).numpy().tolist()


def answer(request):
    try:
        value = globals()[request["call"]](**request["arguments"])
        return {"value": value}
    except BaseException:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            os.dup2(2, 1)  # the output is the parent's
            Path(request["answer"]).write_text(json.dumps(answer(request)))
            os._exit(0)
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
