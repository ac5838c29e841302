"""Predicts ratings of MovieLens-100K, and shows the model what it is confused about.

    python examples/recency_bias.py

Prints the test accuracy of both kinds of batches, and the ratings that the model finds hardest, and
writes `recency_bias.svg`: how uncertain the model is about how many samples, epoch by epoch.
"""

import keras

import tfrec_efficient as tfrec

movies = tfrec.data.datasets.movielens_100k()
ids = {"user": movies.ratings["user_id"], "item": movies.ratings["item_id"]}
stars = movies.ratings["rating"].astype("int64") - 1  # five classes
train, test = tfrec.data.temporal_split(ids["user"], movies.ratings["timestamp"])


def make_model():
    """A factorization machine for five classes."""
    inputs = {name: keras.Input((), dtype="int64", name=name) for name in ids}
    rows = [tfrec.EmbeddingBag(2000, 16, combiner=None)(x) for x in inputs.values()]
    x = keras.layers.Concatenate()([*rows, rows[0] * rows[1]])
    model = keras.Model(inputs, keras.layers.Dense(5, "softmax")(keras.layers.Dropout(0.5)(x)))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


x_train, x_test = ({name: values[rows] for name, values in ids.items()} for rows in (train, test))
recency = tfrec.RecencyBias(batch_size=128, epochs=10, warmup_epochs=3)
for selector in (tfrec.sampling.RandomBatches(batch_size=128), recency):
    keras.utils.set_random_seed(0)
    model = make_model()
    data = selector.dataset(x_train, stars[train])
    model.fit(data, epochs=10, callbacks=[selector], shuffle=False, verbose=2)
    _, accuracy = model.evaluate(x_test, stars[test], verbose=0)
    print(f"{type(selector).__name__}: test accuracy {accuracy:.4f}")
print("hardest ratings:", recency.hardest(10).tolist())
recency.plot("recency_bias.svg")
