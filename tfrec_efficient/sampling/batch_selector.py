"""`BatchSelector`: the callback that owns the training dataset and decides what it shows next."""

import abc
import contextlib
import dataclasses
import json
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.sampling import _checkpoint
from tfrec_efficient.sampling import _draw
from tfrec_efficient.sampling import _plot
from tfrec_efficient.sampling import _recorder
from tfrec_efficient.sampling._memory import Memory
from tfrec_efficient.sampling._source import UNKNOWN
from tfrec_efficient.sampling._source import Source

# Iterations of the dataset without a `fit` that has the selector as a callback, before a warning.
_SUSPICIOUS = 5


@dataclasses.dataclass
class _Plan:
    """The batches of one epoch: ids of each, and the weight of every sample or None."""

    batches: Any
    sample_weight: np.ndarray | None
    normalize_batch: bool


class BatchSelector(keras.callbacks.Callback, abc.ABC):
    """Chooses the batches of each epoch by what the model predicted in the epochs before.

    It is two things at once: the callback that learns what the training forward passes predict,
    and the owner of the dataset that shows the samples.

        selector = tfrec.RecencyBias(batch_size=128, epochs=100)
        data = selector.dataset(x_train, y_train)
        model.fit(data, epochs=100, callbacks=[selector], shuffle=False)

    Without `shuffle=False`, Keras warns that it will not shuffle a dataset.

    The batches of an epoch are fixed when it begins, by the seed, the number of epochs that the
    selector has seen before, and its memory. Neither prefetching nor a resumed run changes them.

    A subclass implements `make_memory` and `select`, and so is a page of maths;
    `tfrec.sampling.RandomBatches` is the shortest. One whose `select` gives factors of the loss
    sets `gives_sample_weight`.

    Args:
        batch_size: Samples in a batch, over all replicas.
        from_logits: Whether the model's output is before the softmax or sigmoid. Defaults to False.
        seed: An integer that decides all draws. Defaults to 0.
        log_dir: Folder for TensorBoard, or None. Defaults to None.

    Attributes:
        log: A dict of figures for each finished epoch; `plot` draws them.

    Raises:
        ValueError: An argument breaks a rule above.
    """

    # Whether `select` gives factors of the loss.
    gives_sample_weight = False

    def __init__(
        self,
        batch_size: int,
        *,
        from_logits: bool = False,
        seed: int = 0,
        log_dir: str | None = None,
    ) -> None:
        super().__init__()
        check_integer("batch_size", batch_size, 1)
        check_integer("seed", seed, 0)
        self.batch_size = batch_size
        self.from_logits = from_logits
        self.seed = seed
        self.log_dir = log_dir
        self.log: list[dict[str, Any]] = []
        self._source: Source | None = None
        self._memory: Memory | None = None
        self._classes: int | None = None
        self._kind: type | None = None
        self._epochs_done = 0
        self._plan: _Plan | None = None
        self._planning = threading.Lock()  # threads of tf.data ask for the plan, too
        self._recorder: _recorder.Recorder | None = None
        self._is_in_epoch = False
        self._is_begun = False
        self._is_first_epoch = False
        self._begun_alone = 0
        self._steps_read = 0
        self._writer: Any = None
        self._silence = contextlib.ExitStack()

    @abc.abstractmethod
    def make_memory(self, size: int) -> Memory:
        """Returns an empty memory of `size` samples."""

    @abc.abstractmethod
    def select(self, epoch: int) -> _draw.Draws | _draw.Pass:
        """Says what `epoch` shows, from `self.memory` and `self.classes`, and changes nothing.

        Epochs count from 1, over all calls of `fit`. It returns always the same of the two kinds.
        """

    def figures(self, epoch: int) -> dict[str, float]:
        """What else to log of `epoch`, which has just ended: figures by name."""
        del epoch
        return {}

    @property
    def memory(self) -> Any:
        """What is remembered of each sample, as `make_memory` made it."""
        self._of_dataset()
        return self._memory

    @property
    def classes(self) -> int | None:
        """The number of classes of the model's output; None before the first step."""
        return self._classes

    @property
    def labels(self) -> np.ndarray:
        """The class of each sample, of shape `(samples,)`; -1 where it is of none, or not known."""
        return self._of_dataset().labels

    def random(self, epoch: int) -> np.random.Generator:
        """Random numbers for `select`, the same for the same epoch and seed."""
        return np.random.default_rng((self.seed, epoch, 1))

    def get_config(self) -> dict[str, Any]:
        """All constructor arguments, by name."""
        return {
            "batch_size": self.batch_size,
            "from_logits": self.from_logits,
            "seed": self.seed,
            "log_dir": self.log_dir,
        }

    def hardest(self, count: int = 20) -> np.ndarray:
        """Returns the ids of the samples that the model is most wrong about, the worst first."""
        hardness = self.memory.hardness(self.labels)
        order = np.argsort(-hardness, kind="stable")  # NaN, of samples never seen, comes last
        return order[: min(count, int((~np.isnan(hardness)).sum()))]

    def plot(self, path: str | Path) -> None:
        """Draws how scores spread over the epochs, the figures, and the hardest samples.

        Args:
            path: The picture to write, such as `selection.svg`. Needs the `plot` extra.

        Raises:
            RuntimeError: No epoch has ended.
        """
        _plot.draw(self, Path(path))

    def load(self, path: str | Path) -> None:
        """Takes up the state in a `.keras` or `.weights.h5` file that was saved during `fit`.

        `keras.callbacks.BackupAndRestore` needs no such call, `ModelCheckpoint` does.

        Args:
            path: A file that `ModelCheckpoint`, or another callback, had the model save.

        Raises:
            ValueError: `dataset` was not called, or the file is of another selector or dataset, or
                of none.
        """
        self._of_dataset()
        _checkpoint.load(self, Path(path))

    # ---- The dataset.

    def dataset(self, x: Any, y: Any = None, sample_weight: Any = None) -> tf.data.Dataset:
        """Returns the dataset to `fit`, of batches `(x, y)` or `(x, y, sample_weight)`.

        Every iteration is one epoch. Transforms that keep the batches and their order may follow,
        such as `map` with augmentation, or `prefetch`. Labels are numbers of classes, one-hot, or 0
        and 1 for a model with one output; rows that are shares of classes are of no class.

        Args:
            x: An array or a nested structure of arrays with one entry a sample; or a random-access
                source of `len(x)` samples, where `x[ids]` returns those of an integer array as
                `(x, y)` or `(x, y, sample_weight)`; or a `tf.data.Dataset` of such single samples
                and of known size, which is read into memory.
            y: An array of labels, if `x` is of arrays.
            sample_weight: An array of factors of the loss, or None. Defaults to None.

        Raises:
            ValueError: Arguments break a rule above, there are fewer samples than a batch holds, or
                this selector remembers another dataset.
        """
        source = Source(x, y, sample_weight)
        at_most = f"at most the number of samples, {source.size}"
        check("batch_size", self.batch_size, self.batch_size <= source.size, at_most)
        if self._source is None:
            self._memory = self.make_memory(source.size)
        elif not self._source.is_like(source):
            raise ValueError(
                "`x` and `y` must be what this selector remembers; make a new selector for another "
                f"dataset. Received: {source.size} samples after {self._source.size}"
                + (" with other labels" if source.size == self._source.size else "")
            )
        self._source = source

        def epoch(_: tf.Tensor) -> tf.data.Dataset:
            kinds = [tf.int64, tf.int32, tf.float32]
            steps, ids, factors = tf.numpy_function(self._begin, [], kinds)
            for values in (ids, factors):
                values.set_shape([None])

            def fetch(step: tf.Tensor) -> Any:
                begin, end = step * self.batch_size, (step + 1) * self.batch_size
                batch = source.batch(ids[begin:end])
                if not self.gives_sample_weight:
                    return batch
                factor = factors[begin:end]
                if len(batch) == 3:
                    factor *= tf.cast(batch[2], tf.float32)
                return (*batch[:2], factor)

            return tf.data.Dataset.range(steps).map(fetch)

        dataset = tf.data.Dataset.from_tensors(0).flat_map(epoch)
        most = -(-source.size // self.batch_size)
        if isinstance(self._selection(), _draw.Draws):
            return dataset.apply(tf.data.experimental.assert_cardinality(most)).prefetch(2)
        dataset = dataset.prefetch(2)
        # Of a dataset of unknown size, Keras gives all later epochs the size of the first.
        dataset.cardinality = lambda: tf.constant(most, tf.int64)
        return dataset

    def _of_dataset(self) -> Source:
        if self._source is None:
            raise ValueError(
                f"`{type(self).__name__}.dataset` must be called before, and what it returns be "
                "given to `fit`. Received: no dataset"
            )
        return self._source

    def _selection(self) -> _draw.Draws | _draw.Pass:
        selection = self.select(self._epochs_done + 1)
        if selection.sample_weight is not None and not self.gives_sample_weight:
            raise ValueError(
                "`gives_sample_weight` must be True of a selector that gives any. "
                f"Received: {type(self).__name__}.gives_sample_weight=False"
            )
        self._kind = self._kind or type(selection)
        if type(selection) is not self._kind:
            raise ValueError(
                f"`select` must always return {self._kind.__name__}, as it did before. "
                f"Received: {type(selection).__name__}"
            )
        return selection

    def _planned(self) -> _Plan:
        """The batches of the epoch that runs, or else of the next one."""
        with self._planning:
            if self._plan is None:
                source = self._of_dataset()
                selection = self._selection()
                rng = np.random.default_rng((self.seed, self._epochs_done + 1, 0))
                batches = _draw.batches(selection, source.size, self.batch_size, rng)
                sample_weight = selection.sample_weight
                if self.gives_sample_weight and sample_weight is None:
                    sample_weight = np.ones(source.size, np.float32)
                normalize = isinstance(selection, _draw.Draws) and selection.normalize_batch
                self._plan = _Plan(batches, sample_weight, normalize)
            return self._plan

    def _begin(self) -> tuple[np.int64, np.ndarray, np.ndarray]:
        """Begins an iteration of the dataset: its steps, and the ids and weights of all of them."""
        self._is_begun = True
        if self._recorder is None:
            self._begun_alone += 1
            if self._begun_alone == _SUSPICIOUS:
                warnings.warn(
                    f"The dataset of {type(self).__name__} began {_SUSPICIOUS} times with the same "
                    "batches. Is the selector among the callbacks of `fit`?",
                    stacklevel=2,
                )
        plan = self._planned()
        factors = []
        if plan.sample_weight is not None:
            for ids in plan.batches:
                factor = plan.sample_weight[ids]
                factors.append(factor / factor.mean() if plan.normalize_batch else factor)
        ids = np.concatenate(list(plan.batches), dtype=np.int32)
        return np.int64(len(plan.batches)), ids, np.concatenate([*factors, []], dtype=np.float32)

    # ---- The callback.

    def set_model(self, model: keras.Model) -> None:
        """Has the state saved and loaded with `model`."""
        super().set_model(model)
        self._of_dataset()
        before = _checkpoint.attached(model)
        if before is not None:
            before._leave()  # a `fit` was interrupted
        _checkpoint.attach(model, self)  # now, so that other callbacks can load the state

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        del logs
        self._recorder = _recorder.Recorder(
            self.model, self.memory.observes, self.batch_size, self.from_logits, self._leave
        )
        self._is_first_epoch, self._begun_alone = True, 0
        loss = self.model.loss
        expected = getattr(loss, "from_logits", False if isinstance(loss, str) else None)
        if expected not in (None, self.from_logits):
            self._leave()
            raise ValueError(
                f"`from_logits` must be that of the model's loss, {expected}. "
                f"Received: from_logits={self.from_logits}"
            )
        if self.log_dir and self._writer is None:
            self._writer = tf.summary.create_file_writer(self.log_dir)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        del logs
        if epoch and not self._epochs_done:
            warnings.warn(
                f"`initial_epoch` is {epoch}, but {type(self).__name__} remembers no epoch and "
                "begins with its first. `load` takes up the state in a checkpoint.",
                stacklevel=2,
            )
        with self._leaving_on_error():
            self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._recording().clear()
        self._steps_read, self._is_begun, self._is_in_epoch = 0, False, True
        planned = len(self._planned().batches)
        steps = self.params.get("steps")
        most = -(-len(self.labels) // self.batch_size)
        if steps is None and planned < most and self._is_first_epoch:
            raise ValueError(
                "`fit` must know how many steps an epoch may have, or it gives all epochs as many "
                "as the first. Give it the dataset as the selector returned it, and transform "
                "samples in the model or in their source. Received: a dataset of unknown size, "
                f"{planned} steps now and up to {most} later"
            )
        if planned < most or steps is None:
            # Keras warns that an epoch ends early, which is what a selector may wish.
            self._silence.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", "Your input ran out of data", UserWarning)
        self._is_first_epoch = False

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        del logs
        ahead = self.model.steps_per_execution
        if batch < ahead or batch + 1 - self._steps_read + ahead > self._recording().capacity:
            with self._leaving_on_error():
                self._read()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        del epoch
        self._silence.close()
        if self._is_in_epoch:
            with self._leaving_on_error():
                self._read()
                planned = len(self._planned().batches)
                if self._steps_read < planned and not self.model.stop_training:
                    raise ValueError(
                        "`steps_per_epoch` must be None, since an epoch has as many steps as the "
                        f"selector planned, {planned}. Received: {self._steps_read} steps"
                    )
            self._end_epoch()
        if logs is not None:
            logs.update({k: v for k, v in self.log[-1].items() if isinstance(v, float)})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        del logs
        self._leave()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        del logs
        if self._recorder is None:  # not the validation of a `fit`
            self._leave()

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        self.on_test_end(logs)

    def _leave(self) -> None:
        """Leaves the model as it was before `fit`."""
        self._silence.close()
        _checkpoint.detach(self.model)
        if self._recorder is not None:
            self._recorder.detach()
            self._recorder = None
        if self._writer is not None:
            self._writer.flush()

    @contextlib.contextmanager
    def _leaving_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self._leave()
            raise

    def _recording(self) -> _recorder.Recorder:
        assert self._recorder is not None, "callbacks run after set_model"
        return self._recorder

    def _read(self) -> None:
        """Puts into the memory what was recorded since the last time."""
        if not self._is_begun:
            raise ValueError(
                "`fit` must be given the dataset that this selector returned. Received: another one"
            )
        batches, labels = self._planned().batches, self.labels
        recorder = self._recording()
        if recorder.classes is None:
            raise ValueError(
                "The model's `train_step` must call the model or its `compute_loss`, and not "
                "within a `tf.function` of its own, for predictions to be seen. Received: a "
                "`train_step` that does not"
            )
        for values, given in recorder.read():
            if self._steps_read >= len(batches):
                raise ValueError(
                    f"An epoch must have the {len(batches)} steps that the selector planned. "
                    "Received: more; was the dataset repeated?"
                )
            ids = batches[self._steps_read]
            self._steps_read += 1
            known = labels[ids]
            is_same = (
                len(given) == len(ids)
                and ((given == known) | (given == UNKNOWN) | (known == UNKNOWN)).all()
            )
            if not is_same:
                raise ValueError(
                    "Batches must reach the model as the selector made them, in their order and "
                    f"with their labels. Received: {len(given)} other samples in step "
                    f"{self._steps_read}"
                )
            if self.model.stop_training and (values == _recorder.NOT_FINITE).any():
                break  # keras.callbacks.TerminateOnNaN has seen to it
            _recorder.check_values(values, given, ids, recorder.classes)
            if self._classes not in (None, recorder.classes):
                raise ValueError(
                    f"The model must have as many classes as before, {self._classes}. "
                    f"Received: {recorder.classes}"
                )
            self._classes = recorder.classes
            self.memory.append(ids, values)

    def _end_epoch(self) -> None:
        batches = self._planned().batches
        with self._planning:
            self._epochs_done += 1
            self._plan, self._is_in_epoch = None, False
        shown = np.zeros(len(self.labels), bool)
        for ids in batches[: self._steps_read]:
            shown[ids] = True
        scores = self.memory.scores(self._classes)
        counts, _ = np.histogram(scores[~np.isnan(scores)], self.memory.score_edges)
        entry = {
            "epoch": self._epochs_done,
            "scores": counts.tolist(),
            "share_shown": float(shown.mean()),
            **{name: float(value) for name, value in self.figures(self._epochs_done).items()},
        }
        self.log.append(entry)
        if self._writer is not None:
            with self._writer.as_default(step=self._epochs_done):
                tf.summary.histogram(self.memory.score_name, scores[~np.isnan(scores)])
                for name, value in entry.items():
                    if isinstance(value, float):
                        tf.summary.scalar(name, value)

    # ---- The state in a checkpoint.

    def export_state(self) -> dict[str, np.ndarray]:
        """All that decides what comes next, as arrays; called by Keras when it saves the model."""
        if self._is_in_epoch and self._recorder is not None:
            self._read()
            # Callbacks before this one save an epoch that has ended, and that Keras counts as such.
            if self._steps_read == len(self._planned().batches):
                self._end_epoch()
        about = {
            "selector": type(self).__name__,
            "config": {k: v for k, v in self.get_config().items() if k != "log_dir"},
            "samples": len(self.labels),
            "classes": self._classes,
            "epochs_done": self._epochs_done,
            "log": self.log,
            "normalize_batch": self._planned().normalize_batch,
        }
        state = {"about": np.frombuffer(_to_json(about), np.uint8)}
        state |= {f"memory_{name}": array for name, array in self.memory.arrays().items()}
        if self._is_in_epoch:
            # Keras runs an epoch that was cut short again from its beginning, so with its batches.
            plan = self._planned()
            state["plan_ids"] = np.concatenate([np.asarray(ids) for ids in plan.batches])
            if plan.sample_weight is not None:
                state["plan_sample_weight"] = plan.sample_weight
        return state

    def import_state(self, state: dict[str, np.ndarray]) -> None:
        """Sets what `export_state` returned.

        Raises:
            ValueError: It is of another kind of selector, or of other arguments, or of a dataset of
                another size.
        """
        about = json.loads(state["about"].tobytes())
        ours = {
            "selector": type(self).__name__,
            "config": {k: v for k, v in self.get_config().items() if k != "log_dir"},
            "samples": len(self.labels),
        }
        ours = json.loads(_to_json(ours))
        theirs = {name: about[name] for name in ours}
        if ours != theirs:
            raise ValueError(f"The saved selector must be this one, {ours}. Received: {theirs}")
        with self._planning:
            self.memory.restore(
                {name[7:]: array for name, array in state.items() if name.startswith("memory_")}
            )
            self._classes, self._epochs_done = about["classes"], about["epochs_done"]
            self.log = about["log"]
            self._plan, self._is_in_epoch = None, False
            if "plan_ids" in state:
                ids, weight = state["plan_ids"], state.get("plan_sample_weight")
                cuts = range(self.batch_size, len(ids), self.batch_size)
                self._plan = _Plan(np.split(ids, cuts), weight, about["normalize_batch"])


def _to_json(values: Any) -> bytes:
    return json.dumps(values, default=lambda number: number.item()).encode()  # NumPy's numbers


def check(name: str, value: Any, is_right: bool, rule: str) -> None:
    """Raises the error of an argument that breaks its rule."""
    if not is_right:
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value}")


def check_integer(name: str, value: Any, least: int) -> None:
    """Raises the error of an argument that is no integer, or below `least`."""
    is_integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    check(name, value, is_integer and value >= least, f"an integer of at least {least}")


def decayed(pressure: float, epoch: int, warmup_epochs: int, epochs: int) -> float:
    """The selection pressure of `epoch`, counted from 1, that falls to 1 in epoch `epochs`.

    It is `pressure * exp(ln(1 / pressure) / (epochs - warmup_epochs)) ** (epoch - warmup_epochs)`
    (Song et al., equation 7), and 1 in the warm-up and after the last epoch.
    """
    if not warmup_epochs < epoch < epochs:
        return 1.0
    return float(pressure ** ((epochs - epoch) / (epochs - warmup_epochs)))
