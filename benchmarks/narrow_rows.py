"""Measures what narrow table rows cost in AUC, on MovieLens-100K.

    python benchmarks/narrow_rows.py [--output DIR]

The factorization machine of examples/quickstart.py, with `tfrec.optimizers.Adam`, three seeds, and
tables of float32, of float16 and bfloat16 rounded at random and to the nearest, and of int8 rows
made from the float32 ones after training. One JSON file a cell; a cell that has one is not run
again.
"""

import argparse
import json
import os
import statistics
from pathlib import Path

import _harness
import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

# Table dtype and whether it is rounded at random.
KINDS = {
    "float32": ("float32", True),
    "float16, at random": ("float16", True),
    "float16, to nearest": ("float16", False),
    "bfloat16, at random": ("bfloat16", True),
    "bfloat16, to nearest": ("bfloat16", False),
}
QUANTIZED = "int8, from float32"
EPOCHS = 13


def load():
    """Returns ids, clicks, the rows of training and test, and the size of each vocabulary."""
    movies = tfrec.data.datasets.movielens_100k()
    item = movies.ratings["item_id"]
    names = sorted(set("|".join(movies.items["genres"]).split("|")))
    split = [[1 + names.index(g) for g in genres.split("|")] for genres in movies.items["genres"]]
    genres = np.zeros((len(split), max(map(len, split))), np.int64)
    for row, entries in enumerate(split):
        genres[row, : len(entries)] = entries
    ids = {"user": movies.ratings["user_id"], "item": item, "genres": genres[item - 1]}
    clicks = (movies.ratings["rating"] >= 4).astype("float32")
    rows = tfrec.data.temporal_split(movies.ratings["user_id"], movies.ratings["timestamp"])
    return ids, clicks, rows, {name: int(values.max()) + 1 for name, values in ids.items()}


def make_model(sizes, dtype):
    """The model of the quickstart, with all tables of one dtype."""
    shapes = {"user": (), "item": (), "genres": (None,)}
    ids = {name: keras.Input(shape, dtype="int64", name=name) for name, shape in shapes.items()}

    def look_up(name, dim, combiner=None, **options):
        bag = tfrec.EmbeddingBag(sizes[name], dim, combiner, dtype=dtype, **options)
        return keras.ops.cast(bag(ids[name]), "float32")

    vector = look_up("item", 16) + look_up("genres", 16, "mean", padding_id=0)
    vector *= look_up("user", 16)
    logit = keras.ops.sum(keras.layers.Dropout(0.5)(vector), axis=-1, keepdims=True)
    logit += look_up("user", 1) + look_up("item", 1)
    return keras.Model(ids, keras.ops.sigmoid(logit))


def run(kind, seed):
    """Trains one model; returns test AUCs by epoch, and that of the int8 model made from it."""
    dtype, at_random = KINDS[kind]
    keras.utils.set_random_seed(seed)
    ids, clicks, (train, test), sizes = load()
    model = make_model(sizes, dtype)
    optimizer = tfrec.optimizers.Adam(2e-3, stochastic_rounding=at_random, seed=seed)
    model.compile(optimizer, "bce", metrics=[keras.metrics.AUC(2000, name="auc")])

    def dataset(rows):
        return tf.data.Dataset.from_tensor_slices(
            ({name: values[rows] for name, values in ids.items()}, clicks[rows])
        )

    batches = dataset(train).shuffle(len(train), seed=seed).batch(256).prefetch(2)
    held_out = dataset(test).batch(4096)
    history = model.fit(
        batches, validation_data=held_out, epochs=EPOCHS, shuffle=False, verbose=2
    ).history
    result = {"auc": history["val_auc"], "bytes": table_bytes(model)}
    if kind == "float32":
        for layer in model.layers:
            if isinstance(layer, tfrec.EmbeddingBag):
                layer.quantize("int8")
        guess = np.concatenate([model(x)[:, 0] for x, _ in held_out])
        result["int8_auc"] = float(keras.metrics.AUC(2000)(clicks[test], guess))
        result["int8_bytes"] = table_bytes(model)
    return result


def table_bytes(model):
    """Bytes of all tables, with the scales of int8 ones."""
    return sum(v.value.dtype.size * int(np.prod(v.shape)) for v in model.weights)


def line(values):
    """Mean and standard error."""
    return f"{statistics.mean(values):.4f} +- {np.std(values, ddof=1) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("narrow_rows_output"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(_harness.describe_machine(_harness.machine()))
    cells = {}
    for kind in KINDS:
        for seed in range(arguments.seeds):
            name = "".join(c if c.isalnum() else "_" for c in f"{kind} {seed}")
            path = arguments.output / f"{name}.json"
            if not path.exists():
                result = run(kind, seed)
                path.with_suffix(".tmp").write_text(json.dumps(result))
                os.replace(path.with_suffix(".tmp"), path)
            cells.setdefault(kind, []).append(json.loads(path.read_text()))
    print(f"\n{'tables':24}{'KB':>8}  {'test AUC, last epoch':22}{'best epoch':22}")
    for kind, runs in cells.items():
        last, best = [r["auc"][-1] for r in runs], [max(r["auc"]) for r in runs]
        print(f"{kind:24}{runs[0]['bytes'] / 1024:8.0f}  {line(last):22}{line(best):22}")
    runs = cells["float32"]
    print(
        f"{QUANTIZED:24}{runs[0]['int8_bytes'] / 1024:8.0f}  {line([r['int8_auc'] for r in runs])}"
    )
