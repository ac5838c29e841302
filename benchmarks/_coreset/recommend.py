"""The claims of `coreset.py --recommend`: what a coreset is worth to a model of clicks."""

import functools
import itertools
import statistics
import time
import warnings

import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec
from _coreset import quality

FRACTIONS = (0.2, 0.4, 0.6, 0.8)
FLIPPED = 0.2  # of the labels to train on
BATCH, EPOCHS, WARMUP_EPOCHS = 1024, 8, 2


def make_selectors(fraction, seed, folder):
    """The selectors by name, not made yet; None for all of the data.

    What Prune4Rel finds is kept in `folder`: a smaller choice is the beginning of a larger one.
    It does not balance: of two classes of about the same size, four fifths of the data in equal
    numbers would be nearly all rows of the smaller one, with all of its wrong labels.
    """
    prune4rel = functools.partial(
        tfrec.Prune4Rel, balanced=False, directory=folder / "prune4rel", verbose=0
    )
    return {
        **quality.make_selectors(fraction, seed),
        "prune4rel": lambda: prune4rel(fraction),
    }


METHODS = ("all", "uniform", "small_loss", "label_quality", "prune4rel")


def ratings(seed):
    """Users, items and clicks of MovieLens-1M; the last fifth of each user's ratings is held out.

    A rating of 4 or more is a click.

    Returns:
        Ids, labels of which a share is wrong, and right labels to train on; ids and labels to test.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* of the 1,000,209 ratings")  # half of them are enough
        found = tfrec.data.datasets.movielens_1m().ratings
    clicks = (found["rating"] >= 4).astype(np.int64)
    train, test = tfrec.data.temporal_split(found["user_id"], found["timestamp"])
    ids = [
        {"user": found["user_id"][rows], "item": found["item_id"][rows]} for rows in (train, test)
    ]
    # Not the stream of `Uniform`, which would choose those that are wrong.
    is_flipped = np.random.default_rng([seed, 1]).random(len(train)) < FLIPPED
    labels = np.where(is_flipped, 1 - clicks[train], clicks[train])
    return ids[0], labels, clicks[train], ids[1], clicks[test]


def network(users, items, dim=16):
    """A factorization machine: the features are both rows and their product."""
    ids = {name: keras.Input((), dtype="int64", name=name) for name in ("user", "item")}
    user = tfrec.EmbeddingBag(users, dim, combiner=None)(ids["user"])
    item = tfrec.EmbeddingBag(items, dim, combiner=None)(ids["item"])
    x = keras.layers.Dropout(0.5)(keras.layers.Concatenate()([user, item, user * item]))
    return keras.Model(ids, keras.layers.Dense(1, "sigmoid")(x))


def fit(model, ids, labels, epochs, **options):
    """Trains a model."""
    model.compile(keras.optimizers.Adam(2e-3), "bce")
    model.fit(ids, labels, batch_size=BATCH, epochs=epochs, **options)


def area_under_curve(labels, guesses):
    """How often the guess for a click is above that for none; equal ones count half."""
    _, place, counts = np.unique(guesses, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    clicks = int(labels.sum())
    above = ranks[labels == 1].sum() - clicks * (clicks + 1) / 2
    return float(above / (clicks * (len(labels) - clicks)))


class Area(keras.callbacks.Callback):
    """The area under the curve of the ratings that were held out, after each epoch."""

    def __init__(self, ids, labels):
        super().__init__()
        self.ids, self.labels, self.of_epochs = ids, labels, []

    def on_epoch_end(self, epoch, logs=None):
        guesses = self.model.predict(self.ids, batch_size=8192, verbose=0)[:, 0]
        self.of_epochs.append(area_under_curve(self.labels, guesses))


def warm_up(ids, labels, sizes, seed, folder):
    """What a short training makes of all rows; trained where that is not in `folder` yet."""
    keras.utils.set_random_seed(seed)
    model = network(*sizes)
    weights = folder / "model.weights.h5"
    if not weights.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fit(model, ids, labels, WARMUP_EPOCHS, verbose=2)
        model.save_weights(weights)
    else:
        model.load_weights(weights)
    dataset = tf.data.Dataset.from_tensor_slices((ids, labels))
    return tfrec.coreset.warmup_scores(
        model, dataset, batch_size=8192, directory=folder / "scores", verbose=0
    )


def run(method, fraction, seed, folder):
    """Chooses with one method, trains on the choice, and returns the record."""
    folder = folder / f"warmup_recommend_{seed}"
    ids, labels, right, test_ids, test_labels = ratings(seed)
    sizes = [1 + int(max(ids[name].max(), test_ids[name].max())) for name in ("user", "item")]
    kept = np.arange(len(labels))
    scores = warm_up(ids, labels, sizes, seed, folder)
    begun = time.process_time()
    selector = make_selectors(fraction, seed, folder)[method]()
    if selector:
        kept = np.sort(scores.fit(selector).indices_)
    choosing = time.process_time() - begun

    keras.utils.set_random_seed(1000 + seed)
    model = network(*sizes)
    area = Area(test_ids, test_labels)
    begun = time.process_time()
    x = {name: values[kept] for name, values in ids.items()}
    fit(model, x, labels[kept], EPOCHS, callbacks=[area], verbose=0)
    return {
        "auc": area.of_epochs,
        "noise_of_choice": float((labels[kept] != right[kept]).mean()),
        "noise_of_data": float((labels != right).mean()),
        "clicks": float(labels[kept].mean()),
        "confidence": float(scores.confidences[kept].mean()),
        "rows": len(kept),
        "users": len(np.unique(ids["user"][kept])),
        "items": len(np.unique(ids["item"][kept])),
        "choosing_cpu_seconds": choosing,
        "training_cpu_seconds": time.process_time() - begun,
        "threshold": getattr(selector, "similarity_threshold_", None),
        "mean_degree": getattr(selector, "mean_degree_", None),
        "capped": getattr(selector, "capped_", None),
    }


def cells(methods, fractions, seeds):
    """Names of cells, and the arguments of `run`; all of the data counts for one fraction."""
    for seed, fraction, method in itertools.product(range(seeds), fractions, methods):
        if method == "all" and fraction != fractions[0]:
            continue
        share = 1.0 if method == "all" else fraction
        yield f"recommend_{method}_{share}_{seed}", (method, share, seed)


def mean_and_error(values):
    """In words; the standard error where there are several."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
    return f"{statistics.mean(values):.4f} +- {error:.4f}"


def grouped(found):
    """Records by method, fraction and seed."""
    groups = {}
    for (method, fraction, seed), record in found.items():
        groups.setdefault(method, {}).setdefault(fraction, {})[seed] = record
    return groups


def mean_areas(by_fraction, which):
    """The mean area over the seeds by fraction, in rising order; `which` is `last` or `max`."""
    pick = {"last": lambda areas: areas[-1], "best": max}[which]
    return {
        fraction: statistics.mean(pick(record["auc"]) for record in by_seed.values())
        for fraction, by_seed in sorted(by_fraction.items())
    }


def least_share(areas, goal):
    """The least share of the data with which `goal` is reached, on lines between the fractions.

    Args:
        areas: Areas by fraction, in rising order.
        goal: An area.

    Returns:
        The share, or None where no fraction reaches it.
    """
    before = None
    for fraction, area in areas.items():
        if area >= goal:
            if before is None:
                return fraction
            return before[0] + (fraction - before[0]) * (goal - before[1]) / (area - before[1])
        before = fraction, area
    return None


def report(found):
    """Prints the table, and how much of the data can be dropped; `found` as of `quality.report`."""
    groups = grouped(found)
    any_record = next(iter(found.values()))
    fractions = sorted({fraction for by_fraction in groups.values() for fraction in by_fraction})
    print(f"\nMovieLens-1M: {any_record['noise_of_data']:.1%} of the labels are wrong")
    print(f"{'':18}" + "".join(f"{f'{fraction:g} of the data':>44}" for fraction in fractions))
    print(f"{'':18}" + f"{'last AUC':>18}{'best AUC':>18}{'noise':>8}" * len(fractions))
    for method, by_fraction in groups.items():
        line = f"{method:18}"
        for fraction in fractions:
            records = list(by_fraction.get(fraction, {}).values())
            if not records:
                line += " " * 44
                continue
            last = mean_and_error([record["auc"][-1] for record in records])
            best = mean_and_error([max(record["auc"]) for record in records])
            noise_rate = statistics.mean(record["noise_of_choice"] for record in records)
            line += f"{last:>18}{best:>18}{noise_rate:8.1%}"
        print(line.rstrip())
    for which in ("last", "best") if "all" in groups else ():
        whole = mean_areas(groups["all"], which)
        print(f"\nLeast share of the data with the {which} AUC of all of it, and with .005 less:")
        for method, by_fraction in groups.items():
            if method != "all":
                areas = {**mean_areas(by_fraction, which), **whole}
                shares = [least_share(areas, whole[1.0] - less) for less in (0, 0.005)]
                print(f"{method:18}" + "".join(f"{share:8.2f}" for share in shares))


def draw(found, path):
    """Draws the last and the best area against the fraction."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(11, 4.5), layout="constrained")
    for axes, which in zip(figure.subplots(1, 2), ("last", "best"), strict=True):
        for method, by_fraction in grouped(found).items():
            areas = mean_areas(by_fraction, which)
            if method == "all":
                axes.axhline(areas[1.0], color="black", linestyle=":", label="all of the data")
            else:
                axes.plot(areas.keys(), areas.values(), marker=".", label=method)
        axes.set(xlabel="fraction", ylabel=f"{which} AUC", title="MovieLens-1M, clicks")
        axes.grid(True, alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, format="svg")
