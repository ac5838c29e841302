"""One rival of `cached_embedding.py`, in a process of its own.

Started with one line of JSON on standard input that says what to train, and on which file of
batches. Answers with one line, `{"ready": true, ...}`, and then each line `run ROUND` with the wall
and CPU milliseconds of a step, of so many steps on the batches that come next.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

import tfrec_efficient as tfrec

sys.path.insert(0, str(Path(__file__).parents[1]))
from _harness import kilobytes

_LEARNING_RATE = 0.05


def batches(cell):
    """The batches of the file, again and again, with a label for each bag."""
    shape = (cell["batch"], cell["hotness"])
    files = tf.data.FixedLengthRecordDataset([cell["trace"]], 8 * shape[0] * shape[1])
    labels = tf.random.stateless_uniform((shape[0], 1), (0, 0))

    def parse(record):
        return tf.reshape(tf.io.decode_raw(record, tf.int64), shape), labels

    return files.map(parse).repeat()


def limit_memory(cell):
    """Lets this process have no more memory than it has now, and `budget` bytes."""
    if cell["limit"] == "rlimit":
        now = kilobytes("/proc/self/status", "VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (now + cell["budget"],) * 2)
    elif cell["limit"] == "cgroup":
        now = kilobytes("/proc/self/status", "VmRSS")
        group = Path("/sys/fs/cgroup/memory") / cell["group"]
        (group / "memory.limit_in_bytes").write_text(str(now + cell["budget"]))
        (group / "tasks").write_text(str(os.getpid()))


def make_model(cell):
    """The model, its dataset, and what it can say of itself."""
    ids = keras.Input((cell["hotness"],), dtype="int64")
    initial = keras.initializers.RandomUniform(seed=1)
    optimizer = tfrec.optimizers.Adagrad(_LEARNING_RATE)
    if cell["rival"] == "cached":
        layer = tfrec.CachedEmbedding(
            cell["rows"],
            cell["dim"],
            cell["cache_rows"],
            cell["path"],
            optimizer,
            policy=cell["policy"],
            embeddings_initializer=initial,
        )
        layer.build()
        data = batches(cell)
        data = data.apply(layer.prefetch(2)) if cell["policy"] == "lookahead" else data.prefetch(2)
    else:
        layer = tfrec.EmbeddingBag(cell["rows"], cell["dim"], embeddings_initializer=initial)
        data = batches(cell).prefetch(2)
    model = keras.Model(ids, keras.layers.Dense(1)(layer(ids)))
    model.compile(tfrec.optimizers.Adagrad(_LEARNING_RATE), "mse")
    return model, layer, data


def main():
    cell = json.loads(sys.stdin.readline())
    keras.utils.set_random_seed(0)
    # The first step of a process takes hundreds of megabytes that no table has anything to do with.
    small = {**cell, "rival": "memory", "rows": 1000}
    model, _, data = make_model(small)
    model.fit(data.map(lambda x, y: (x % 1000, y)), epochs=1, steps_per_epoch=4, verbose=0)
    limit_memory(cell)
    begun = time.perf_counter()
    model, layer, data = make_model(cell)
    opened = time.perf_counter() - begun
    steps = iter(data)
    print(json.dumps({"ready": True, "opened_seconds": opened}), flush=True)
    model.make_train_function()
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(cell["steps"]):  # not fit(), which would begin the batches anew
            logs = model.train_function(steps)
        float(logs["loss"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer = {"wall": wall * 1e3 / cell["steps"], "cpu": cpu * 1e3 / cell["steps"]}
        if cell["rival"] == "cached":
            stats = layer.stats()
            answer["stats"] = vars(stats) | {"rss": kilobytes("/proc/self/status", "VmRSS")}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
