"""Ten million users in 200 MB: a table that does not fit, trained, killed, resumed and exported.

    python examples/cached_embedding.py

A process that may take 200 MB for its model trains a table of 10 million users with 32 weights and
32 accumulators each, 2.6 GB if all of them were in memory, on ratings that are made up. Halfway it
is killed. A second process finds the last checkpoint, goes on, and exports the users that matter.
The files need 3 GB on the disk at most. Takes a few minutes.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

USERS, ITEMS, DIM = 10_000_000, 2_000, 32
BATCH = 4096
BUDGET = 200e6  # bytes
CACHE_ROWS = 100_000  # with 2 * 32 numbers of 4 bytes, and 28 bytes more: 28 MB


def ratings(steps):
    """Batches of users, items and whether they like them; few users make most of the ratings."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        rank = rng.zipf(1.2, BATCH) % USERS
        users = rank * 7_368_787 % USERS  # a prime: hot users lie anywhere
        items = rng.integers(0, ITEMS, BATCH)
        likes = (users % 5 + items % 5 < 4).astype(np.float32)
        yield {"user": users, "item": items}, likes


def make_model(path, cache_rows=CACHE_ROWS):
    """Users and items meet in a small network."""
    users = tfrec.CachedEmbedding(
        USERS,
        DIM,
        cache_rows,
        path,
        tfrec.optimizers.Adagrad(0.1),
        combiner=None,
        name="users",
    )
    user, item = (keras.Input((), dtype="int64", name=name) for name in ("user", "item"))
    of_item = tfrec.EmbeddingBag(ITEMS, DIM, combiner=None)(item)
    both = keras.layers.Concatenate()([users(user), of_item])
    score = keras.layers.Dense(1, "sigmoid")(keras.layers.Dense(32, "relu")(both))
    model = keras.Model({"user": user, "item": item}, score)
    model.compile(tfrec.optimizers.Adagrad(0.1), "bce", metrics=["auc"])
    return model, users


def train(folder, total, dies_at):
    """Trains all batches that were not trained yet, and is killed before one of them."""
    signature = (
        {name: tf.TensorSpec([BATCH], tf.int64) for name in ("user", "item")},
        tf.TensorSpec([BATCH], tf.float32),
    )
    data = tf.data.Dataset.from_generator(ratings, args=[total], output_signature=signature)
    data = data.apply(tf.data.experimental.assert_cardinality(total))
    warm_up(data.take(4))
    used = data_bytes()
    resource.setrlimit(resource.RLIMIT_DATA, (used + int(BUDGET),) * 2)

    model, users = make_model(folder / "users")
    done = int(users.optimizer.iterations)
    print(f"{done} of {total} batches were trained before.", flush=True)
    weights = folder / f"others-{users.stats().checkpoints}.weights.h5"
    if done:
        model.optimizer.build(model.trainable_variables)  # or its state is not loaded
        model.load_weights(weights)

    def save(batch, logs):
        if (done + batch + 1) % (total // 4) == 0:
            number = users.stats().checkpoints + 1
            model.save_weights(folder / f"others-{number}.weights.h5")

    def die(batch, logs):
        if done + batch == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    steps = keras.callbacks.LambdaCallback(on_train_batch_begin=die, on_train_batch_end=save)
    model.fit(
        looking_ahead(data.skip(done), users),
        shuffle=False,
        verbose=2,
        callbacks=[tfrec.embedding.CacheMonitor(), steps],
    )
    print(f"{data_bytes() - used:,} bytes were taken, of {int(BUDGET):,}.")
    print(users.report())
    users.freeze(folder / "frozen", rows=CACHE_ROWS, dtype="int8")
    size = sum(file.stat().st_size for file in (folder / "frozen").iterdir())
    print(f"The {CACHE_ROWS:,} users with the most ratings take {size:,} bytes to serve.")


def warm_up(data):
    """What TensorFlow and Keras take to train any model is not this one's."""
    with tempfile.TemporaryDirectory() as folder:
        model, users = make_model(f"{folder}/users", cache_rows=4 * BATCH)
        model.fit(looking_ahead(data, users), shuffle=False, verbose=0)
        users.close()


def looking_ahead(data, users):
    """Rows of the next batches come to memory while the model works on those before."""
    return data.apply(users.prefetch(2, ids=lambda x, y: x["user"]))


def data_bytes():
    """Memory of this process that no file backs, as the limit counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmData in /proc/self/status")


def main():
    """Trains in a process that is killed, and in one that goes on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=400, help="default: 400")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dies-at", type=int, default=-1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        train(options.folder, options.batches, options.dies_at)
        return
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, f"--batches={options.batches}", f"--folder={folder}"]
        killed = subprocess.run([*command, f"--dies-at={options.batches * 5 // 8}"])
        if killed.returncode != -signal.SIGKILL:
            raise RuntimeError(f"the first process ended with {killed.returncode}")
        print("The first process was killed.", flush=True)
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
