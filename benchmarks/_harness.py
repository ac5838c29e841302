"""Fair timings: rivals take turns, and what is reported is the ratio within a turn."""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

# Each rival sees these batches of ids in turn, so that none profits from meeting the same ids
# again, and every page of a table and of its slots is touched before a round counts.
BATCHES = 4
WARM_UP = BATCHES
FEWEST_ROUNDS = 11

# Of a cell, all rounds together; a cell of slow rivals has fewer rounds, but never fewer than 11.
_CELL_SECONDS = 300


@dataclasses.dataclass
class Timing:
    """What one rival needed in each round, in milliseconds."""

    wall: list[float] = dataclasses.field(default_factory=list)
    cpu: list[float] = dataclasses.field(default_factory=list)
    # CPU time that a rival in a process of its own took while others had their turn.
    idle_cpu: list[float] = dataclasses.field(default_factory=list)


def timed(run: Callable[[int], object]) -> Callable[[int], dict[str, float]]:
    """The rival of this process that runs `run(batch)`, with the clock around it."""

    def measure(batch: int) -> dict[str, float]:
        cpu, wall = time.process_time(), time.perf_counter()
        run(batch)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall": wall * 1e3, "cpu": cpu * 1e3}

    return measure


def take_turns(
    rivals: Mapping[str, Callable[[int], dict[str, float]]], rounds: int
) -> dict[str, Timing]:
    """Times every rival once a round, all on the same batch; the first rounds do not count.

    There is no pause between turns: after one, the scheduler wakes both threads of a rival on one
    core as often as not, and a step of 3 ms is over before it moves one of them.
    """
    timings = {name: Timing() for name in rivals}
    for turn in range(WARM_UP + rounds):
        begun = time.perf_counter()
        for name, measure in rivals.items():
            measured = measure(turn % BATCHES)
            if turn >= WARM_UP:
                for clock, milliseconds in measured.items():
                    getattr(timings[name], clock).append(milliseconds)
        took = time.perf_counter() - begun
        if turn >= WARM_UP + FEWEST_ROUNDS - 1 and took * (turn - WARM_UP + 2) > _CELL_SECONDS:
            break
    return timings


def quartiles(values: Iterable[float]) -> tuple[float, float, float]:
    """Median, first and third quartile."""
    low, median, high = statistics.quantiles(values, n=4)
    return median, low, high


def ratios(ours: Timing, theirs: Timing) -> tuple[float, float, float]:
    """Median, first and third quartile of theirs / ours, round by round."""
    return quartiles(b / a for a, b in zip(ours.wall, theirs.wall, strict=True))


def ratio_of_minima(ours: Timing, theirs: Timing) -> float:
    """Theirs / ours, each at its best: what remains of a ratio when neighbours make noise."""
    return min(theirs.wall) / min(ours.wall)


def print_table(title: str, ours: str, timings: Mapping[str, Timing]) -> None:
    """Prints every rival's median, and how many times as long as ours it takes."""
    print(f"\n{title}")
    print(f"{'':40}{'wall ms':>9}{'least':>9}{'CPU ms':>9}{'ratio':>9}  quartiles")
    for name, timing in timings.items():
        median, low, high = ratios(timings[ours], timing)
        wall, cpu = statistics.median(timing.wall), statistics.median(timing.cpu)
        spread = "" if name == ours else f"{low:.2f}-{high:.2f}"
        times = f"{wall:9.2f}{min(timing.wall):9.2f}{cpu:9.2f}"
        print(f"{name:40}{times}{median:8.2f}x  {spread}".rstrip())
        if timing.idle_cpu and statistics.median(timing.idle_cpu) > 0.1 * wall:
            print(f"{'':40}is not idle between its turns: {max(timing.idle_cpu):.1f} ms of CPU")


def machine() -> dict[str, object]:
    """What a figure depends on: processor, memory pages, load, versions, date."""
    models = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    huge_pages = Path("/sys/kernel/mm/transparent_hugepage")
    return {
        "processors": len(os.sched_getaffinity(0)),
        "model": models[0] if models else platform.machine(),
        "memory_gb": round(meminfo("MemTotal") / 1e9, 1),
        "kernel": platform.release(),
        "huge_pages": {
            name: (huge_pages / name).read_text().strip()
            for name in ("enabled", "defrag")
            if (huge_pages / name).exists()
        },
        "allocator": {
            name: os.environ[name]
            for name in ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_ARENA_MAX")
            if name in os.environ
        },
        "load": list(os.getloadavg()),
        "versions": {
            "Python": platform.python_version(),
            "NumPy": np.__version__,
            "TensorFlow": tf.__version__,
            "Keras": keras.__version__,
        },
        "date": time.strftime("%Y-%m-%d"),
    }


def meminfo(name: str) -> int:
    """An entry of /proc/meminfo, in bytes."""
    return kilobytes("/proc/meminfo", name)


def others_seconds(own: Iterable[int]) -> float:
    """CPU seconds since the start of the machine that other processes than `own` took.

    The difference of two calls tells whether a measurement had the machine for itself.
    """
    # user, nice, system, idle, iowait, irq, softirq, steal
    ticks = [int(count) for count in Path("/proc/stat").read_text().split()[1:9]]
    taken = sum(ticks) - ticks[3] - ticks[4]
    for process in own:
        # Counted after the name, which may hold spaces, the 12th and 13th are user and system.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        taken -= int(fields[11]) + int(fields[12])
    return taken / os.sysconf("SC_CLK_TCK")


def huge_page_bytes(process: int | str = "self") -> int:
    """How much of a process's memory lies in transparent huge pages."""
    return kilobytes(f"/proc/{process}/smaps_rollup", "AnonHugePages")


def kilobytes(path: str, name: str) -> int:
    """A line like `Name: 12 kB` of a file of /proc, in bytes."""
    for line in Path(path).read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"{path} has no line {name}")


def describe_machine(facts: Mapping[str, object]) -> str:
    """One line of what `machine` found."""
    load = ", ".join(f"{value:.1f}" for value in facts["load"])
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return f"{facts['processors']} x {facts['model']}, load {load}; {versions}; {facts['date']}"
