"""`keep`, `select` and `with_index`: what a coreset does to a `tf.data.Dataset`."""

import functools
import hashlib
import json
import os
import reprlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.coreset._files import load_manifest
from tfrec_efficient.coreset._files import replace
from tfrec_efficient.coreset._samples import check_integer
from tfrec_efficient.coreset.coreset_selector import CoresetSelector
from tfrec_efficient.coreset.scores._examples import check_examples
from tfrec_efficient.coreset.scores._fingerprint import fingerprint
from tfrec_efficient.coreset.scores.forgetting_counter import ForgettingCounter
from tfrec_efficient.coreset.scores.warmup_scores import warmup_scores

Transform = Callable[[tf.data.Dataset], tf.data.Dataset]

# Less is more likely a mistake of units than a wish: the smallest share in the papers is 1 %.
_SUSPICIOUS_SHARE = 0.01
# Of the buffer through which the warm-up is shuffled.
_BUFFER_BYTES = 2**30
_BUFFER_EXAMPLES = 1_000_000
# A position above this is no position: a byte for each would fill a terabyte.
_MOST = 2**40


def keep(
    indices_or_path: Any,
    samples: int | None = None,
    fingerprints: Any = None,
    warn: bool = True,
) -> Transform:
    """Keeps the elements of a dataset at some positions, in the order of the dataset.

    Apply it to the dataset of single examples that was scored, before anything that changes their
    order or draws random numbers; `shuffle`, `repeat`, augment and `batch` afterwards. An element
    that is dropped costs a look at a table.

    Args:
        indices_or_path: Integers of shape `(chosen,)`: positions from 0, in any order. Or the name
            of an `.npy` file that `CoresetSelector.save` wrote; its manifest tells `samples` and
            fingerprints then.
        samples: int. How many elements the dataset must have. Defaults to None, for as many as
            `fingerprints`, or any number.
        fingerprints: int64 of shape `(samples,)`: hashes of all elements, as `warmup_scores` makes
            them. Every element that is kept is then checked as it passes. Defaults to None.
        warn: bool. Whether to warn where less than 1 % is kept, or everything. Defaults to True.

    Returns:
        A function for `tf.data.Dataset.apply`. What it returns knows its cardinality.

    Raises:
        ValueError: An argument breaks a rule above; positions are repeated or out of range; a file
            is of another format; or the dataset is infinite or has another cardinality.
        tf.errors.InvalidArgumentError: An element that is kept is not the one that was scored.
        tf.errors.FailedPreconditionError: A dataset of unknown cardinality turns out to have
            another number of elements.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> dataset = tf.data.Dataset.from_tensor_slices((list("abcde"), range(5)))
    >>> kept = dataset.apply(tfrec.coreset.keep([3, 1]))
    >>> [x.decode() for x, _ in kept.as_numpy_iterator()]
    ['b', 'd']
    """
    chosen_fingerprints = None
    if isinstance(indices_or_path, (str, os.PathLike)):
        if samples is not None or fingerprints is not None:
            raise ValueError(
                "`samples` and `fingerprints` must be None for a path, whose manifest has them. "
                f"Received: samples={samples}, fingerprints={fingerprints}"
            )
        indices, samples, chosen_fingerprints = _read(Path(indices_or_path))
    else:
        indices = _positions("indices_or_path", np.asarray(indices_or_path))
        if samples is not None:
            samples = check_integer("samples", samples, 1)
        if fingerprints is not None:
            fingerprints = np.asarray(fingerprints)
            samples = len(fingerprints) if samples is None and fingerprints.ndim else samples
            if fingerprints.shape != (samples,) or fingerprints.dtype != np.int64:
                raise ValueError(
                    f"`fingerprints` must be int64 of shape {(samples,)}. "
                    f"Received: {fingerprints.dtype} of shape {fingerprints.shape}"
                )
    if samples is not None:
        _check_range(indices, samples)
    if fingerprints is not None:
        chosen_fingerprints = fingerprints[indices]

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        return _keep(dataset, indices, samples, chosen_fingerprints, warn)

    return transform


def _keep(
    dataset: tf.data.Dataset,
    indices: np.ndarray,
    samples: int | None,
    chosen_fingerprints: np.ndarray | None,
    warn: bool,
) -> tf.data.Dataset:
    found = int(dataset.cardinality())
    if found == tf.data.INFINITE_CARDINALITY:
        raise ValueError("The dataset must be finite; `repeat` it after `keep`. Received: infinite")
    if found >= 0 and samples not in (None, found):
        raise ValueError(
            f"The dataset must have the {samples} elements that were scored, one an example; "
            f"`batch` it after `keep`. Received: {found} elements"
        )
    if found >= 0:
        _check_range(indices, found)
        samples = found
    elif samples is not None:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(samples))
    if warn and samples is not None:
        share = len(indices) / samples
        if share == 1 or share < _SUSPICIOUS_SHARE:
            warnings.warn(
                f"`keep` keeps {len(indices)} of {samples} elements, {share:.2%}. If this is what "
                "you want, `warn=False` switches this warning off.",
                stacklevel=2,
            )

    # Of an unknown number of elements, none after the last one that is kept is looked at.
    is_kept = np.zeros(samples or indices.max() + 1, bool)
    is_kept[indices] = True
    notes: tuple[np.ndarray, ...] = (is_kept,)
    if chosen_fingerprints is not None:
        expected = np.zeros(len(is_kept), np.int64)
        expected[indices] = chosen_fingerprints
        notes = (is_kept, expected, np.arange(len(is_kept)))
    noted = tf.data.Dataset.zip(dataset, tf.data.Dataset.from_tensor_slices(notes))
    # tf.data does not even call a predicate that returns one of its arguments.
    kept = noted.filter(_is_kept).map(_checked)
    return kept.apply(tf.data.experimental.assert_cardinality(len(indices)))


def _is_kept(_: Any, notes: tuple[tf.Tensor, ...]) -> tf.Tensor:
    return notes[0]


def _checked(element: Any, notes: tuple[tf.Tensor, ...]) -> Any:
    if len(notes) == 1:
        return element
    _, expected, position = notes
    message = (
        "The dataset must give the elements that were scored, in the same order; `shuffle` and "
        "augment after `keep`. Order or data have changed since: another element is at position"
    )
    is_same = fingerprint(element) == expected
    with tf.control_dependencies([tf.debugging.Assert(is_same, [message, position])]):
        return tf.nest.map_structure(tf.identity, element, expand_composites=True)


def _positions(name: str, indices: np.ndarray) -> np.ndarray:
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
        raise ValueError(
            f"`{name}` must be at least one integer, in an array of rank 1. "
            f"Received: {indices.dtype} of shape {indices.shape}"
        )
    order = np.argsort(indices, kind="stable")
    if indices[order[0]] < 0:
        raise ValueError(
            f"`{name}` must be at least 0. Received: {name}[{order[0]}]={indices[order[0]]}"
        )
    if indices[order[-1]] > _MOST:
        raise ValueError(
            f"`{name}` must be at most {_MOST}. Received: {name}[{order[-1]}]={indices[order[-1]]}"
        )
    repeated = np.flatnonzero(np.diff(indices[order]) == 0)
    if len(repeated):
        first, second = order[repeated[0]], order[repeated[0] + 1]
        raise ValueError(
            f"`{name}` must not repeat a position. "
            f"Received: {name}[{first}]={name}[{second}]={indices[first]}"
        )
    return indices.astype(np.int64)


def _check_range(indices: np.ndarray, samples: int) -> None:
    if indices.max() >= samples:
        raise ValueError(
            f"Positions to keep must be in `[0, {samples})`, the elements of the dataset. "
            f"Received: {indices.max()}"
        )


def _read(path: Path) -> tuple[np.ndarray, int, np.ndarray | None]:
    """Reads what `CoresetSelector.save` wrote: positions, samples, and hashes of the chosen."""
    manifest = path.with_suffix(".json")
    if path.suffix != ".npy" or not path.exists() or not manifest.exists():
        raise ValueError(
            "A path must be that of an `.npy` file with a manifest of JSON beside it, as "
            f"`CoresetSelector.save` writes them. Received: {path}"
        )
    about = load_manifest(manifest)
    for name, value in {"format": "tfrec_efficient.coreset", "version": 1}.items():
        if about.get(name) != value:
            raise ValueError(
                f"The manifest must have {name}={value}. "
                f"Received: {name}={about.get(name)} in {manifest}"
            )
    indices = _positions("indices", np.load(path, allow_pickle=False))
    count, last = len(indices), indices.max()
    chosen, samples, hashes = (about.get(name) for name in ("chosen", "samples", "fingerprints"))
    for name, is_right, rule in (
        ("chosen", chosen == count, f"{count}, as many as the positions beside it"),
        ("samples", type(samples) is int and samples > last, f"an integer above {last}"),
        (
            "fingerprints",
            hashes is None or (_are_hashes(hashes) and len(hashes) == count),
            f"null or {count} integers of 64 bits",
        ),
    ):
        if not is_right or name not in about:
            received = reprlib.repr(about[name]) if name in about else "nothing"
            raise ValueError(
                f"The manifest of {count} positions must have `{name}` as {rule}. "
                f"Received: {name}={received} in {manifest}"
            )
    return indices, about["samples"], None if hashes is None else np.array(hashes, np.int64)


def _are_hashes(values: Any) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and -(2**63) <= value < 2**63 for value in values
    )


def with_index() -> Transform:
    """Adds to each example `(x, y)` its position, as `(x, y, position)`.

    Learners that remember something of each sample, such as re-labelling ones, need it. Apply it
    after `keep`, so that positions go from 0 to the number of kept ones, and before `shuffle`.

    Returns:
        A function for `tf.data.Dataset.apply`. Positions are scalars, int64.

    Raises:
        ValueError: Elements are no pairs.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> dataset = tf.data.Dataset.from_tensor_slices((list("abcde"), range(5)))
    >>> kept = dataset.apply(tfrec.coreset.keep([3, 1])).apply(tfrec.coreset.with_index())
    >>> [(int(y), int(position)) for _, y, position in kept]
    [(1, 0), (3, 1)]
    """

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        spec = dataset.element_spec
        if not isinstance(spec, tuple) or len(spec) != 2:
            raise ValueError(f"`with_index` needs elements `(x, y)`. Received: {spec}")
        return dataset.enumerate().map(_with_position)

    return transform


def _with_position(position: tf.Tensor, example: Any) -> Any:
    return (*example, position)


def select(
    selector: CoresetSelector,
    model: keras.Model,
    warmup_epochs: int = 10,
    embedding_layer: keras.Layer | str | None = None,
    batch_size: int = 128,
    from_logits: bool = False,
    view: Callable[..., Any] | None = None,
    directory: str | os.PathLike[str] | None = None,
    seed: int = 0,
    verbose: int = 1,
    warn: bool = True,
) -> Transform:
    """Warms a model up on a dataset, scores all examples, and keeps what a selector chooses.

    Applying it does all of the work. It calls `model.fit` with the dataset, shuffled and batched;
    then `warmup_scores`, `selector.fit` and `keep`. The selector's attributes, such as `indices_`,
    tell afterwards what was chosen, and the model is a warmed-up one. Published methods train a new
    one on the coreset.

    With a `directory`, the state after each epoch of the warm-up, the scores, and the choice as
    `coreset.npy` are saved there. A run that was killed goes on after its last whole epoch, or with
    the first example that has no score, when it is called again with a model that was made in the
    same way. The call after a whole run takes up model and scores, and only chooses anew.

    Args:
        selector: A `CoresetSelector`.
        model: A compiled model; see `warmup_scores`.
        warmup_epochs: int. Epochs of training before the scoring; 0 for a model that has learned
            from the data before. Defaults to 10.
        embedding_layer: See `warmup_scores`. Defaults to None.
        batch_size: int. Examples in a step of the training and of the scoring. Defaults to 128.
        from_logits: bool. Whether the output is before the softmax or sigmoid. Defaults to False.
        view: See `warmup_scores`. The training sees the examples without it. Defaults to None.
        directory: Folder for what a later call may take up, or None. Defaults to None.
        seed: int. Decides the order of examples in the training, which are shuffled through a
            buffer of 1 GB, of a million at most. Defaults to 0.
        verbose: 0, 1 or 2: how much progress to show, as in Keras. Defaults to 1.
        warn: bool. See `keep`. Defaults to True.

    Returns:
        A function for `tf.data.Dataset.apply`, on a finite dataset of single examples `(x, y)` or
        `(x, y, sample_weight)` that gives the same ones in the same order each time.

    Raises:
        ValueError: An argument breaks a rule above, or as in `warmup_scores`, `CoresetSelector.fit`
            and `keep`.

    Example:
    >>> import keras
    >>> import numpy as np
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> model = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3, "softmax")])
    >>> model.compile("sgd", "sparse_categorical_crossentropy")
    >>> dataset = tf.data.Dataset.from_tensor_slices((np.eye(5), [0, 1, 2, 0, 1]))
    >>> selector = tfrec.coreset.SmallLoss(0.6)
    >>> kept = dataset.apply(tfrec.coreset.select(selector, model, warmup_epochs=2, verbose=0))
    >>> len(selector.indices_), int(kept.cardinality())
    (3, 3)
    """
    if not isinstance(selector, CoresetSelector):
        raise ValueError(f"`selector` must be a `CoresetSelector`. Received: selector={selector}")
    counts = "forgetting_events" in selector.requires
    warmup_epochs = check_integer("warmup_epochs", warmup_epochs, int(counts))
    seed = check_integer("seed", seed, 0)
    if warmup_epochs and not model.compiled:
        raise ValueError("`model` must be compiled, to be warmed up. Received: one that is not")
    score = functools.partial(
        warmup_scores,
        model,
        embedding_layer=embedding_layer,
        batch_size=batch_size,
        from_logits=from_logits,
        view=view,
    )

    def transform(dataset: tf.data.Dataset) -> tf.data.Dataset:
        check_examples(dataset)
        size = int(dataset.cardinality())
        if size < 0:  # Keras warns at the end of an epoch whose steps it does not know.
            size = int(dataset.reduce(np.int64(0), _count_one))
            dataset = dataset.apply(tf.data.experimental.assert_cardinality(size))
        # What is wrong with arguments or data is better seen before the training than after it.
        found = score(dataset.take(batch_size), verbose=0).fingerprints
        selector._count(size)
        again = dataset.map(fingerprint).take(batch_size).as_numpy_iterator()
        if found.tolist() != [int(value) for value in again]:
            raise ValueError(
                "The dataset must give the same examples in the same order each time; shuffle and "
                "augment after `select`. Received: others in another iteration"
            )
        counter = ForgettingCounter(dataset, batch_size, from_logits) if counts else None
        if warmup_epochs:
            about: dict[str, Any] = {
                "warmup_epochs": warmup_epochs,
                "batch_size": batch_size,
                "seed": seed,
                "samples": size,
            }
            folder = None if directory is None else Path(directory) / "warmup"
            if folder is not None:
                about["examples"] = _digest(dataset)
            _warm_up(model, dataset, about, folder, counter, verbose)
        folder = None if directory is None else Path(directory) / "scores"
        scores = score(dataset, directory=folder, verbose=verbose)
        scores.fit(selector, None if counter is None else counter.events_)
        if directory is not None:
            selector.save(Path(directory) / "coreset.npy", scores.fingerprints)
        kept = keep(selector.indices_, fingerprints=scores.fingerprints, warn=warn)
        return dataset.apply(kept)

    return transform


def _digest(dataset: tf.data.Dataset) -> str:
    """A hash of all examples, in their order."""
    digest = hashlib.sha256()
    for hashes in dataset.map(fingerprint).batch(4096).as_numpy_iterator():
        digest.update(hashes.tobytes())
    return digest.hexdigest()


def _count_one(count: tf.Tensor, _: Any) -> tf.Tensor:
    return count + 1


def _warm_up(
    model: keras.Model,
    dataset: tf.data.Dataset,
    about: dict[str, Any],
    folder: Path | None,
    counter: ForgettingCounter | None,
    verbose: int,
) -> None:
    current = np.zeros((), np.int64)
    steps = -(-about["samples"] // about["batch_size"])

    def shuffled(_: tf.Tensor) -> tf.data.Dataset:
        # An epoch's order hangs on nothing but the seed and its number, so that a resumed run has
        # it, too. This seed is that of the graph of this function, and must not be 0.
        tf.compat.v1.set_random_seed(about["seed"] + 1)
        epoch = tf.numpy_function(lambda: current, [], tf.int64)
        epoch.set_shape([])
        buffer = min(about["samples"], _buffer_size(dataset.element_spec))
        return dataset.shuffle(buffer, seed=epoch, reshuffle_each_iteration=False)

    batches = tf.data.Dataset.from_tensors(0).flat_map(shuffled).batch(about["batch_size"])
    batches = batches.apply(tf.data.experimental.assert_cardinality(steps))

    def begin_epoch(epoch: int, logs: Any) -> None:
        del logs
        current[...] = epoch

    callbacks: list[keras.callbacks.Callback] = [] if counter is None else [counter]
    callbacks.append(keras.callbacks.LambdaCallback(on_epoch_begin=begin_epoch))
    done = 0
    if folder is not None:
        backup = _Backup(folder, about, counter)
        callbacks.append(backup)
        done = backup.epochs_done
    model.fit(
        batches.prefetch(2),
        epochs=about["warmup_epochs"],
        initial_epoch=done,
        callbacks=callbacks,
        shuffle=False,
        verbose=verbose,
    )


def _buffer_size(spec: Any) -> int:
    """How many examples fit into the buffer of the shuffling; 10,000 where no size is known."""
    size = 0
    for part in tf.nest.flatten(spec):
        is_known = isinstance(part, tf.TensorSpec) and part.shape.is_fully_defined()
        size += part.shape.num_elements() * part.dtype.size if is_known else _BUFFER_BYTES // 10_000
    return max(1, min(_BUFFER_EXAMPLES, _BUFFER_BYTES // max(1, size)))


class _Backup(keras.callbacks.Callback):
    """Saves after each epoch all that a warm-up goes on from, and takes it up when one begins.

    Each epoch has a folder of its own, which is there when it is whole.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], counter: ForgettingCounter | None
    ) -> None:
        super().__init__()
        self._folder = folder
        self._about = {"format": "tfrec_efficient.warmup", "version": 1, **about}
        self._counter = counter
        folder.mkdir(parents=True, exist_ok=True)
        self.epochs_done = max(map(_epochs_of, folder.glob("epoch-*")), default=0)
        if self.epochs_done:
            manifest = self._path(self.epochs_done) / "manifest.json"
            found = load_manifest(manifest)
            for name, value in self._about.items():
                if found.get(name) != value:
                    raise ValueError(
                        f"`directory` must be empty, or hold a warm-up with {name}={value}; use "
                        f"another one. Received: {name}={found.get(name)} in {manifest}"
                    )

            if counter is not None and not (self._path(self.epochs_done) / "right.npy").exists():
                raise ValueError(
                    "`directory` must hold a warm-up in which forgetting events were counted, for "
                    "a selector that needs them; use another one. Received: one without in "
                    f"{manifest.parent}"
                )

    def _path(self, epochs: int) -> Path:
        return self._folder / f"epoch-{epochs}"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        del logs
        if not self.epochs_done:
            return
        path = self._path(self.epochs_done)
        if not self.model.optimizer.built:
            self.model.optimizer.build(self.model.trainable_variables)
        self.model.load_weights(path / "model.weights.h5")
        if self._counter is not None:
            self._counter.right_ = np.load(path / "right.npy")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        del logs
        if not self._path(epoch + 1).exists():  # another process may have come as far
            replace(self._path(epoch + 1), self._save)
        for path in self._folder.glob("epoch-*"):
            if _epochs_of(path) <= epoch:
                shutil.rmtree(path, ignore_errors=True)

    def _save(self, path: Path) -> None:
        path.mkdir()
        self.model.save_weights(path / "model.weights.h5")
        if self._counter is not None:
            np.save(path / "right.npy", self._counter.right_)
        (path / "manifest.json").write_text(json.dumps(self._about) + "\n")


def _epochs_of(path: Path) -> int:
    return int(path.name.removeprefix("epoch-"))
