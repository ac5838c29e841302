"""Fair timings: rivals take turns, and what is reported is the ratio within a turn."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from collections.abc import Mapping

import keras
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Timing:
    """What one rival needed in each round, in milliseconds."""

    wall: list[float]
    cpu: list[float]


def take_turns(rivals: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Times every rival once a round, after two rounds that do not count."""
    timings = {name: Timing([], []) for name in rivals}
    for turn in range(rounds + 2):
        for name, run in rivals.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn >= 2:
                timings[name].wall.append(wall * 1e3)
                timings[name].cpu.append(cpu * 1e3)
    return timings


def ratios(ours: Timing, theirs: Timing) -> tuple[float, float, float]:
    """Median, first and third quartile of theirs / ours, round by round."""
    low, median, high = statistics.quantiles(
        [b / a for a, b in zip(ours.wall, theirs.wall, strict=True)], n=4
    )
    return median, low, high


def print_table(title: str, ours: str, timings: Mapping[str, Timing]) -> None:
    """Prints every rival's median, and how many times as long as ours it takes."""
    print(f"\n{title}")
    print(f"{'':44}{'wall ms':>9}{'CPU ms':>9}{'ratio':>8}  {'quartiles':<12}")
    for name, timing in timings.items():
        median, low, high = ratios(timings[ours], timing)
        wall, cpu = statistics.median(timing.wall), statistics.median(timing.cpu)
        spread = "" if name == ours else f"{low:.2f}-{high:.2f}"
        print(f"{name:44}{wall:9.2f}{cpu:9.2f}{median:7.2f}x  {spread:<12}")


def print_machine() -> None:
    """Prints what a figure depends on: processor, load, versions, date."""
    with open("/proc/cpuinfo") as lines:
        models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{len(models)} x {models[0] if models else platform.machine()}, load {load}; "
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}; {time.strftime('%Y-%m-%d')}"
    )
