"""Measures what `RecencyBias` adds to a training step, and how much memory it takes.

    python benchmarks/selector_overhead.py [--samples 50k|1.28M] [--rounds 7]

A network with two hidden layers trains on made-up samples of 64 features, with 10 classes for 50k
samples and 1000 for 1.28M: by `fit` with its own shuffling of arrays, by a shuffled
`tf.data.Dataset`, and by a selector. They take turns in one process; the figure is the median over
rounds of selector / plain. With 50k samples a turn is an epoch, with all that happens between its
begin and its end, after the warm-up of the selector. With 1.28M a turn is 500 steps, and what
happens once in an epoch is timed for itself and shared out among its 10,000 steps.
"""

import argparse
import dataclasses
import json
import threading
import time

import _harness
import keras
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

BATCH = 128
FEATURES = 64
CLASSES = {"50k": 10, "1.28M": 1000}
SAMPLES = {"50k": 50_000, "1.28M": 1_280_000}
WARM_UP = 2  # rounds that do not count


class Turn(keras.callbacks.Callback):
    """Lets the `fit`s of several threads run in turn, and times each turn.

    It is put before all other callbacks to begin, and its `last` behind them to end. A turn is
    `steps` steps, or an epoch.
    """

    def __init__(self, mine, next_one, steps, rounds):
        super().__init__()
        self.mine, self.next_one, self.steps, self.rounds = mine, next_one, steps, rounds
        self.wall, self.cpu = [], []
        self.done = 0
        self.last = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs: self._end(),
            on_train_batch_end=lambda batch, logs: self._count(),
        )

    def on_epoch_begin(self, epoch, logs=None):
        self._begin()

    def _begin(self):
        self.mine.acquire()
        self._begun = time.perf_counter(), time.process_time()

    def _count(self):
        self.done += 1
        if self.steps and self.done % self.steps == 0:
            self._end()
            if len(self.wall) == self.rounds:
                self.model.stop_training = True
            self._begin()

    def _end(self):
        self.wall.append(1000 * (time.perf_counter() - self._begun[0]))
        self.cpu.append(1000 * (time.process_time() - self._begun[1]))
        self.next_one.release()


def make_model(classes, width):
    """A model whose step takes some milliseconds."""
    layers = [keras.layers.Dense(width, "relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((FEATURES,)), *layers])
    model.add(keras.layers.Dense(classes, "softmax"))
    model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return model


def measure(x, y, classes, width, rounds, steps=None):
    """Returns a `Timing` of turns for each rival, and the selector."""
    turns_asked = WARM_UP + rounds
    epochs = 1 if steps else turns_asked
    selector = tfrec.RecencyBias(BATCH, epochs=epochs + 1, warmup_epochs=1)
    shuffled = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(len(x)).batch(BATCH).prefetch(2)
    arguments = {
        "RecencyBias": {"x": selector.dataset(x, y), "shuffle": False},
        "fit, arrays": {"x": x, "y": y, "batch_size": BATCH},
        "fit, shuffled tf.data": {"x": shuffled, "shuffle": False},
    }
    batons = [threading.Semaphore(0) for _ in arguments]
    turns, threads = {}, []
    for index, (name, given) in enumerate(arguments.items()):
        turn = Turn(batons[index], batons[(index + 1) % len(batons)], steps, turns_asked)
        callbacks = [turn, *([selector] if index == 0 else []), turn.last]
        model = make_model(classes, width)
        turns[name] = turn
        fit = {**given, "epochs": epochs, "verbose": 0, "callbacks": callbacks}
        threads.append(threading.Thread(target=model.fit, kwargs=fit))
    for thread in threads:
        thread.start()
    batons[0].release()
    for thread in threads:
        thread.join()
    timings = {
        name: _harness.Timing(turn.wall[WARM_UP:turns_asked], turn.cpu[WARM_UP:turns_asked])
        for name, turn in turns.items()
    }
    return timings, selector


def describe_state(selector):
    """Prints the bytes of the state, and the time of what happens once an epoch."""
    begun = time.perf_counter()
    selector._plan, selector.memory._entropy = None, None
    plan = selector._planned()
    selector.memory.scores(selector.classes)
    selector.figures(1)
    once = time.perf_counter() - begun
    arrays = {**selector.memory.arrays(), "labels": selector.labels, "batches": plan.ids}
    total = sum(array.nbytes for array in arrays.values())
    parts = ", ".join(f"{name} {array.nbytes / 1e6:.1f}" for name, array in arrays.items())
    print(f"state {total / 1e6:.1f} MB: {parts}")
    print(f"once an epoch {1000 * once:.0f} ms: {1e6 * once / plan.steps:.0f} us a step")
    return total, once


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", choices=list(SAMPLES), default="50k")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=512, help="of the network")
    parser.add_argument("--json", help="file to write")
    asked = parser.parse_args()
    machine = _harness.machine()
    print(_harness.describe_machine(machine))
    size, classes = SAMPLES[asked.samples], CLASSES[asked.samples]
    rng = np.random.default_rng(0)
    x = rng.random((size, FEATURES), np.float32)
    y = rng.integers(0, classes, size)
    whole = -(-size // BATCH)
    steps = 500 if size > 1_000_000 else whole
    of_turn = steps if steps < whole else None
    timings, selector = measure(x, y, classes, asked.width, asked.rounds, of_turn)
    for timing in timings.values():
        timing.wall, timing.cpu = ([t / steps for t in ts] for ts in (timing.wall, timing.cpu))
    title = f"a step, {asked.samples} samples, batch {BATCH}; median of {asked.rounds} turns"
    _harness.print_table(title, "RecencyBias", timings)
    ours = timings["RecencyBias"]
    for name, timing in list(timings.items())[1:]:
        median, low, high = _harness.quartiles(
            100 * (a / b - 1) for a, b in zip(ours.wall, timing.wall, strict=True)
        )
        print(f"wall time over {name}: {median:+.1f} % ({low:+.1f} to {high:+.1f})")
        median, low, high = _harness.quartiles(
            100 * (a / b - 1) for a, b in zip(ours.cpu, timing.cpu, strict=True)
        )
        print(f"CPU time over {name}: {median:+.1f} % ({low:+.1f} to {high:+.1f})")
    state, once = describe_state(selector)
    if asked.json:
        record = {name: dataclasses.asdict(timing) for name, timing in timings.items()}
        with open(asked.json, "w") as file:
            json.dump({**record, "state": state, "once": once, "machine": machine}, file)
