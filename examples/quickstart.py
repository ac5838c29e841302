"""Trains, exports and serves a click model on MovieLens-100K, in under two minutes on two cores.

    python examples/quickstart.py [SEED] [--selector recency]

A rating of 4 or more is a click. The last fifth of each user's ratings, by time, is the test set.
A user, an item and the item's genres meet in a small factorization machine over `EmbeddingBag`s:

    logit = bias[user] + bias[item] + vector[user] . (vector[item] + mean(vector[genres]))

With `--selector recency` the callback `RecencyBias` chooses what each epoch shows.
"""

import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf
from baseline import click_probability
from learning_curve import draw

import tfrec_efficient as tfrec

seed = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 0
keras.utils.set_random_seed(seed)
output = "quickstart_output"

# ---- Raw features, and the rows to train and to test on.
movies = tfrec.data.datasets.movielens_100k()
raw = {name: movies.ratings[name] for name in ("user_id", "item_id")}
raw["genres"] = movies.items["genres"][raw["item_id"] - 1]  # such as "Comedy|Romance"
clicks = (movies.ratings["rating"] >= 4).astype("float32")
train, test = tfrec.data.temporal_split(raw["user_id"], movies.ratings["timestamp"])

# ---- From raw features to ids, in TensorFlow, so that training and serving share every line.
# Unknown users, items and genres share one row each; id 0 pads the genres.
users = keras.layers.IntegerLookup(vocabulary=movies.users["user_id"])
items = keras.layers.IntegerLookup(vocabulary=movies.items["item_id"])
names = sorted(set("|".join(movies.items["genres"]).split("|")))
kinds = keras.layers.StringLookup(vocabulary=names, mask_token="")


def encode(user_id, item_id, genres):
    """Turns a batch of raw features into the ids that the model takes."""
    genres = tf.strings.split(genres, "|").to_tensor("")
    return {"user": users(user_id), "item": items(item_id), "genres": kinds(genres)}


def batches(rows, selector=None):
    """Returns a dataset of (ids, clicks), in a new order each epoch or as `selector` wants it."""
    samples = {name: values[rows] for name, values in raw.items()}, clicks[rows]
    data = tf.data.Dataset.from_tensor_slices(samples).shuffle(len(rows)).batch(256)
    data = selector.dataset(*samples) if selector else data
    return data.map(lambda x, y: (encode(**x), y)).prefetch(2)


# ---- The model.
shapes = {"user": (), "item": (), "genres": (None,)}
ids = {name: keras.Input(shape, dtype="int64", name=name) for name, shape in shapes.items()}
vector = tfrec.EmbeddingBag(items.vocabulary_size(), 16, combiner=None)(ids["item"])
vector += tfrec.EmbeddingBag(kinds.vocabulary_size(), 16, "mean", padding_id=0)(ids["genres"])
vector *= tfrec.EmbeddingBag(users.vocabulary_size(), 16, combiner=None)(ids["user"])
logit = keras.ops.sum(keras.layers.Dropout(0.5)(vector), axis=-1, keepdims=True)
logit += tfrec.EmbeddingBag(users.vocabulary_size(), 1, combiner=None)(ids["user"])
logit += tfrec.EmbeddingBag(items.vocabulary_size(), 1, combiner=None)(ids["item"])
model = keras.Model(ids, keras.ops.sigmoid(logit))
model.compile(keras.optimizers.Adam(2e-3), "bce", metrics=[keras.metrics.AUC(2000, name="auc")])
selector = tfrec.RecencyBias(256, 13, 4, seed=seed) if "recency" in sys.argv else None
data = {"x": batches(train, selector), "validation_data": batches(test)}
history = model.fit(**data, epochs=13, callbacks=selector, shuffle=False).history

# ---- The honest baseline: how much this user clicks, and how much this item is clicked.
guess = click_probability((raw["user_id"], raw["item_id"]), clicks, train, test)
auc = float(keras.metrics.AUC(2000)(clicks[test], guess))
loss = float(keras.losses.BinaryCrossentropy()(clicks[test], guess))
print(f"baseline: test AUC {auc:.4f}, log loss {loss:.4f}")
print(f"model:    test AUC {history['val_auc'][-1]:.4f}, log loss {history['val_loss'][-1]:.4f}")

# ---- Export with a signature of raw features; serve it in a fresh process and compare.
archive = keras.export.ExportArchive()
for part in (model, users, items, kinds):
    archive.track(part)
spec = {name: tf.TensorSpec([None], values.dtype, name) for name, values in raw.items()}
archive.add_endpoint("predict", lambda x: {"probability": model(encode(**x))[:, 0]}, [spec])
archive.write_out(f"{output}/model", verbose=False)
draw(f"{output}/learning_curve.svg", {"train": history["auc"], "test": history["val_auc"]}, "AUC")
requests = {name: values[test[:1000]] for name, values in raw.items()}
np.savez(f"{output}/requests.npz", **requests)
files = [f"{output}/{name}" for name in ("model", "requests.npz", "predictions.npy")]
subprocess.run([sys.executable, f"{sys.path[0]}/serve.py", *files], check=True)
np.testing.assert_allclose(np.load(files[2]), model(encode(**requests))[:, 0], rtol=1e-5)
print(f"exported {output}/model; a fresh process served it with equal predictions")
