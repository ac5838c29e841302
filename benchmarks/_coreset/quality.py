"""The claims of `coreset.py --quality`: what a coreset is worth on CIFAR-10N."""

import itertools
import statistics
import time

import _cifar10n
import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

NOISES = ("random1", "worse")
FRACTIONS = (0.2, 0.4, 0.6, 0.8)
LEARNERS = ("standard", "sop_plus")
BATCH, EPOCHS, WARMUP_EPOCHS = 128, 20, 10


def make_selectors(fraction, seed):
    """The selectors by name, not made yet; None for all of the data."""
    coreset, prune4rel = tfrec.coreset, tfrec.Prune4Rel
    return {
        "all": lambda: None,
        "uniform": lambda: coreset.Uniform(fraction, seed=seed),
        "uniform_balanced": lambda: coreset.Uniform(fraction, balanced=True, seed=seed),
        "prune4rel": lambda: prune4rel(fraction, verbose=0),
        "prune4rel_own": lambda: prune4rel(fraction, gain="own", verbose=0),
        "prune4rel_highest": lambda: prune4rel(fraction, verbose=0),
        # The settings of the authors' scripts.
        "prune4rel_paper": lambda: prune4rel(fraction, 0.975, "own", verbose=0),
        "small_loss": lambda: coreset.SmallLoss(fraction, balanced=True),
        "margin": lambda: coreset.Margin(fraction, balanced=True),
        "k_center_greedy": lambda: coreset.KCenterGreedy(fraction, balanced=True),
        "forgetting": lambda: coreset.Forgetting(fraction, balanced=True),
        "gra_nd": lambda: coreset.GraNd(fraction, balanced=True),
        "moderate": lambda: coreset.Moderate(fraction, balanced=True),
        "prototypes": lambda: coreset.SelfSupervisedPrototypes(fraction, balanced=True, seed=seed),
        "herding": lambda: coreset.Herding(fraction, balanced=True),
        "label_quality": lambda: coreset.LabelQuality(fraction, balanced=True),
    }


METHODS = tuple(make_selectors(1.0, 0))
# Those that rely on the highest probability of a sample, as in the paper, and not on its label's.
_BY_HIGHEST = ("prune4rel_highest", "prune4rel_paper")


def choose(method, fraction, seed, scores, events):
    """The selector of a method, fitted; None for all of the data."""
    selector = make_selectors(fraction, seed)[method]()
    if method in _BY_HIGHEST:
        return selector.fit(scores.embeddings, scores.confidences, scores.labels)
    return scores.fit(selector, events) if selector else None


def network():
    """Three convolutions over blocks of four pixels, small enough for two cores."""
    decay = keras.regularizers.L2(2.5e-4)
    x = inputs = keras.Input((32, 32, 3))
    for filters, size, strides in ((32, 4, 2), (64, 3, 1), (128, 3, 1)):
        x = keras.layers.Conv2D(
            filters, size, strides, "same", use_bias=False, kernel_regularizer=decay
        )(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))
        x = keras.layers.MaxPooling2D()(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, "softmax", kernel_regularizer=decay)(x))


def standardized(images):
    mean, deviation = np.array([125.3, 123.0, 113.9]), np.array([63.0, 62.1, 66.7])
    return ((images - mean) / deviation).astype(np.float32)


def weak(x):
    """Mirrors every other image, and moves each by up to four pixels."""
    count, side = tf.shape(x)[0], x.shape[1]
    is_mirrored = tf.cast(tf.random.uniform([count]) < 0.5, tf.float32)
    moves = [tf.cast(tf.random.uniform([count], -4, 5, tf.int32), tf.float32) for _ in range(2)]
    zero, one = tf.zeros([count]), tf.ones([count])
    # Where each pixel comes from: its column, and its row, as rows of a matrix.
    column = [1 - 2 * is_mirrored, zero, moves[0] + is_mirrored * (side - 1)]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=x,
        transforms=tf.stack([*column, zero, one, moves[1], zero, zero], axis=1),
        output_shape=[side, side],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )


def strong(x):
    """Also changes colours and contrast, and blanks a square of sixteen pixels."""
    x = weak(x)
    count, side = tf.shape(x)[0], x.shape[1]
    x *= tf.random.uniform([count, 1, 1, 1], 0.5, 1.5)
    x += tf.random.uniform([count, 1, 1, 3], -0.5, 0.5)
    distance = tf.abs(tf.range(side) - tf.random.uniform([2, count, 1], 0, side, tf.int32))
    blank = (distance[0][:, :, None] < 8) & (distance[1][:, None, :] < 8)
    return tf.where(blank[..., None], 0.0, x)


def compiled(model, epochs, samples):
    steps = epochs * -(-samples // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.05, steps, 0.002)
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.SGD(rate, 0.9, nesterov=True), loss, metrics=["accuracy"])
    return model


def warm_up(noise, seed, folder):
    """What a short training makes of all samples; trained where that is not in `folder` yet."""
    folder = folder / f"warmup_{noise}_{seed}"
    images, labels = _cifar10n.training()
    dataset = tf.data.Dataset.from_tensor_slices((standardized(images), labels[noise]))
    keras.utils.set_random_seed(seed)
    model = network()
    events = folder / "events.npy"
    if not events.exists():
        folder.mkdir(parents=True, exist_ok=True)
        counter = tfrec.coreset.ForgettingCounter(dataset, batch_size=1000)
        batches = dataset.shuffle(len(images), seed=seed).batch(BATCH)
        batches = batches.map(lambda x, y: (weak(x), y)).prefetch(2)
        trained = compiled(network(), EPOCHS, len(images))
        trained.fit(batches, epochs=WARMUP_EPOCHS, callbacks=[counter], shuffle=False, verbose=2)
        model.set_weights(trained.get_weights())  # without those of the optimizer
        model.save_weights(folder / "model.weights.h5")
        np.save(events, counter.events_)
    model.load_weights(folder / "model.weights.h5")
    scores = tfrec.coreset.warmup_scores(
        model, dataset, batch_size=1000, directory=folder / "scores", verbose=0
    )
    return scores, np.load(events)


class Accuracy(keras.callbacks.Callback):
    """The accuracy on the test images after every second epoch."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y, self.of_epochs = x, y, []

    def on_epoch_end(self, epoch, logs=None):
        if epoch % 2 == 0:
            return
        guesses = self.model.predict(self.x, batch_size=1000, verbose=0).argmax(axis=-1)
        self.of_epochs.append(float((guesses == self.y).mean()))


def run(learner, noise, method, fraction, seed, folder):
    """Chooses with one method, trains on the choice, and returns the record."""
    images, labels = _cifar10n.training()
    scores, events = warm_up(noise, seed, folder)
    begun = time.process_time()
    selector = choose(method, fraction, seed, scores, events)
    kept = np.sort(selector.indices_) if selector else np.arange(len(images))
    choosing = time.process_time() - begun

    keras.utils.set_random_seed(1000 + seed)
    model = network()
    if learner == "sop_plus":
        model = tfrec.coreset.SOPPlus(model, len(kept), 10, weak=weak, strong=strong, seed=seed)
    compiled(model, EPOCHS, len(kept))
    dataset = tf.data.Dataset.from_tensor_slices((standardized(images[kept]), labels[noise][kept]))
    if learner == "sop_plus":
        dataset = dataset.apply(tfrec.coreset.with_index())
    batches = dataset.shuffle(len(kept), seed=seed).batch(BATCH)
    if learner == "standard":
        batches = batches.map(lambda x, y: (weak(x), y))
    x_test, y_test = _cifar10n.test()
    accuracy = Accuracy(standardized(x_test), y_test)
    begun = time.process_time()
    model.fit(batches.prefetch(2), epochs=EPOCHS, callbacks=[accuracy], shuffle=False, verbose=0)
    return {
        "accuracy": accuracy.of_epochs,
        "noise_of_choice": float((labels[noise][kept] != labels["clean"][kept]).mean()),
        "noise_of_data": float((labels[noise] != labels["clean"]).mean()),
        "confidence": float(scores.confidences[kept].mean()),
        "label_confidence": float(scores.label_confidences[kept].mean()),
        "classes": np.bincount(labels[noise][kept], minlength=10).tolist(),
        "choosing_cpu_seconds": choosing,
        "training_cpu_seconds": time.process_time() - begun,
        "threshold": getattr(selector, "similarity_threshold_", None),
        "indices": kept.tolist() if seed == 0 and fraction == 0.2 else None,
    }


def cells(learners, noises, methods, fractions, seeds):
    """Names of cells, and the arguments of `run`; all of the data counts for one fraction."""
    for seed, noise, learner, fraction, method in itertools.product(
        range(seeds), noises, learners, fractions, methods
    ):
        if method == "all" and fraction != fractions[0]:
            continue
        share = 1.0 if method == "all" else fraction
        yield f"{learner}_{noise}_{method}_{share}_{seed}", (learner, noise, method, share, seed)


def mean_and_error(values):
    """In per cent; the standard error where there are several."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0
    return f"{100 * statistics.mean(values):.1f} +- {100 * error:.1f}"


def grouped(found):
    """Records by learner, noise, method, fraction and seed."""
    groups = {}
    for (learner, noise, method, fraction, seed), record in found.items():
        of_method = groups.setdefault((learner, noise), {}).setdefault(method, {})
        of_method.setdefault(fraction, {})[seed] = record
    return groups


def report(found):
    """Prints a table for each learner and noise; `found` are records by the arguments of `run`."""
    for (learner, noise), by_method in grouped(found).items():
        any_record = next(iter(next(iter(next(iter(by_method.values())).values())).values()))
        fractions = sorted({f for of_method in by_method.values() for f in of_method})
        print(f"\n{learner}, {noise}: {any_record['noise_of_data']:.1%} of the labels are wrong")
        print(f"{'':18}" + "".join(f"{f'{fraction:g} of the data':>32}" for fraction in fractions))
        print(f"{'':18}" + f"{'last':>12}{'best':>12}{'noise':>8}" * len(fractions))
        for method, by_fraction in by_method.items():
            line = f"{method:18}"
            for fraction in fractions:
                records = list(by_fraction.get(fraction, {}).values())
                if not records:
                    line += " " * 32
                    continue
                last = mean_and_error([record["accuracy"][-1] for record in records])
                best = mean_and_error([max(record["accuracy"]) for record in records])
                noise_rate = statistics.mean(record["noise_of_choice"] for record in records)
                line += f"{last:>12}{best:>12}{noise_rate:8.1%}"
            print(line.rstrip())


def draw(found, path):
    """Draws the last accuracy against the fraction, a picture for each learner and noise."""
    import matplotlib.figure

    groups = grouped(found)
    figure = matplotlib.figure.Figure(figsize=(6 * len(groups), 4.5), layout="constrained")
    every = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((learner, noise), by_method) in zip(every, groups.items(), strict=True):
        for number, (method, by_fraction) in enumerate(by_method.items()):
            fractions = sorted(by_fraction)
            means = [
                100 * np.mean([r["accuracy"][-1] for r in by_fraction[f].values()])
                for f in fractions
            ]
            if method == "all":
                axes.axhline(means[0], color="black", linestyle=":", label="all of the data")
                continue
            line = "-" if "prune4rel" in method or "uniform" in method else "--"
            axes.plot(fractions, means, f"C{number % 10}{line}", marker=".", label=method)
        axes.set(xlabel="fraction", ylabel="last test accuracy (%)", title=f"{learner}, {noise}")
        axes.grid(True, alpha=0.3)
    every[-1].legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, format="svg")


def contact_sheet(record, noise, path, count=30):
    """Draws some of the images that were kept, and of those dropped; wrong labels in red."""
    import matplotlib.figure

    images, labels = _cifar10n.training()
    kept = np.array(record["indices"])
    dropped = np.setdiff1d(np.arange(len(images)), kept)
    rng = np.random.default_rng(0)
    figure = matplotlib.figure.Figure(figsize=(12, 5), layout="constrained")
    halves = figure.subfigures(1, 2)
    for half, title, members in zip(halves, ("kept", "dropped"), (kept, dropped), strict=True):
        wrong = (labels[noise][members] != labels["clean"][members]).mean()
        half.suptitle(f"{title}: {len(members):,} images, {wrong:.1%} of the labels wrong")
        for axes, i in zip(
            half.subplots(5, 6).flat, rng.choice(members, count, replace=False), strict=True
        ):
            axes.imshow(images[i])
            axes.set(xticks=[], yticks=[])
            is_wrong = labels[noise][i] != labels["clean"][i]
            for spine in axes.spines.values():
                spine.set(color="red" if is_wrong else "green", linewidth=2)
    figure.savefig(path, format="png", dpi=80)
