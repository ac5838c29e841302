"""The cells of `cached_embedding.py`: who takes turns with whom, and on which table."""

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

import _harness
import _workers
import numpy as np

import tfrec_efficient as tfrec
from _cached import traces

ROWS, DIM = 10_000_000, 64
STEPS = 20  # of a rival in its turn
ROW_BYTES = 4 * (2 * DIM + 1)
_WORKER = Path(__file__).with_name("worker.py")
_ROCKS = Path(__file__).with_name("rocks.py")
_ROCKS_PACKAGES = (("rocksdict==0.3.29", "numpy"),)
# Beyond the rows: three batches of ids and slots, transfers, and what TensorFlow takes for a step.
_BUFFERS = 256 << 20

STEP_CELLS = {
    "step_zipf1.2": ("zipf1.2", False),
    "step_zipf1.05": ("zipf1.05", False),
    "step_uniform": ("uniform", False),
    "step_zipf1.2_drift": ("zipf1.2", True),
    "step_zipf1.05_drift": ("zipf1.05", True),
}
PEER_CELLS = {f"peers_{skew}": skew for skew in traces.SKEWS}
CELLS = (*STEP_CELLS, "hits", "sparse", *PEER_CELLS)


def run(name, rounds):
    """Measures a cell and returns its record."""
    if name in STEP_CELLS:
        return step(*STEP_CELLS[name], rounds)
    if name in PEER_CELLS:
        return peers(PEER_CELLS[name], rounds)
    return {"hits": hits, "sparse": sparse}[name]()


@contextlib.contextmanager
def _trace(rows, skew, drifts, batches):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace"
        traces.Trace(rows, skew, drifts).write(path, batches)
        yield Path(folder), path


def _cell(folder, trace, rows, cache_rows, **more):
    return {
        "trace": str(trace),
        "batch": traces.BATCH,
        "hotness": traces.HOTNESS,
        "rows": rows,
        "dim": DIM,
        "cache_rows": cache_rows,
        "path": str(folder / "table"),
        "policy": "lookahead",
        "steps": STEPS,
        "limit": "none",
        "budget": int(1.05 * cache_rows * ROW_BYTES) + _BUFFERS,
        **more,
    }


def step(skew, drifts, rounds):
    """A tenth of the rows in memory, by a limit of the process, against all of them."""
    cache_rows = ROWS // 10
    with _trace(ROWS, skew, drifts, _steps(rounds)) as (folder, trace):
        cell = _cell(folder, trace, ROWS, cache_rows)
        asked = {"cached": {"limit": "rlimit"}, "memory": {}}
        timings, answers, _ = _turns(
            {
                name: ([sys.executable, _WORKER], {**cell, "rival": name, **more})
                for name, more in asked.items()
            },
            rounds,
        )
    return {**_as_record(timings, "cached"), **_of_stats(answers["cached"], cache_rows)}


def _steps(rounds):
    """So many that few batches come twice, with those that fill the cache."""
    return (rounds + _harness.WARM_UP + 10) * STEPS


def _fill(worker, cache_rows):
    """Trains until each row that comes needs the place of another one, as from then on."""
    while worker.measure(0)["stats"]["used_rows"] < cache_rows:
        pass


def _turns(rivals, rounds):
    """Timings, all answers after the warm-up, and what each said of itself."""
    with contextlib.ExitStack() as stack:
        workers, answers = {}, {name: [] for name in rivals}
        for name, (command, cell) in rivals.items():
            workers[name] = _workers.Worker(command, cell)
            stack.callback(workers[name].close)
        _fill(workers["cached"], rivals["cached"][1]["cache_rows"])

        def turn(name):
            def measure(batch):
                answer = workers[name].measure(batch)
                answers[name].append(answer)
                return {clock: answer[clock] for clock in ("wall", "cpu")}

            return measure

        timings = _harness.take_turns({name: turn(name) for name in rivals}, rounds)
        return timings, answers, {name: worker.about for name, worker in workers.items()}


def _as_record(timings, ours):
    return {
        "rivals": {
            name: {
                "wall_ms": statistics.median(timing.wall),
                "cpu_ms": statistics.median(timing.cpu),
                "ratio": _harness.quartiles(
                    a / b for a, b in zip(timings[ours].wall, timing.wall, strict=True)
                ),
            }
            for name, timing in timings.items()
        },
        "rounds": len(timings[ours].wall),
    }


def _of_stats(answers, cache_rows):
    """What happened in the rounds that count."""
    first, last = (answers[i]["stats"] for i in (_harness.WARM_UP - 1, -1))
    steps = STEPS * (len(answers) - _harness.WARM_UP)
    delta = {name: last[name] - first[name] for name in first}
    return {
        "hit_rate": delta["hits"] / delta["lookups"],
        "rows_read": delta["rows_read"] / steps,
        "rows_written": delta["rows_written"] / steps,
        "stall_ms": delta["stall_nanoseconds"] / 1e6 / steps,
        "slab_bytes": cache_rows * (ROW_BYTES - 4),
        "bookkeeping_bytes": last["bytes"],
        "resident_bytes": last["rss"],
    }


def peers(skew, rounds):
    """Half a million rows in memory, the page cache included, of five million."""
    rows = ROWS // 2
    with _trace(rows, skew, False, _steps(rounds)) as (folder, trace):
        cell = _cell(folder, trace, rows, rows // 10)
        rivals = {
            "cached": ([sys.executable, _WORKER], {**cell, "rival": "cached"}),
            "variable under swap": (
                [sys.executable, _WORKER],
                {**cell, "rival": "memory"},
            ),
            "RocksDB": (
                _workers.peer_command(_ROCKS_PACKAGES, _ROCKS),
                {**cell, "path": str(folder / "rocks")},
            ),
        }
        with contextlib.ExitStack() as stack:
            for number, (_, of_rival) in enumerate(rivals.values()):
                of_rival["limit"] = "cgroup"
                of_rival["group"] = stack.enter_context(_group(f"tfrec_efficient_{number}"))
            timings, _, _ = _turns(rivals, rounds)
    return _as_record(timings, "cached")


@contextlib.contextmanager
def _group(name):
    """A control group of memory, of version 1, which needs root."""
    folder = Path("/sys/fs/cgroup/memory") / name
    folder.mkdir()
    try:
        yield name
    finally:
        folder.rmdir()


def hits():
    """Hit rates on one trace against those of Belady's choice, which knows all that comes."""
    rows, batches = ROWS, 100
    record = {}
    for skew in traces.SKEWS:
        source = traces.Trace(rows, skew)
        trace = [source.batch() for _ in range(batches)]
        for share in (0.05, 0.1):
            cache_rows = int(share * rows)
            found = {"belady": _belady(trace, cache_rows)}
            for policy in ("lookahead", "lfu", "lru", "static"):
                found[policy] = _hit_rate(trace, rows, cache_rows, policy)
            record[f"{skew} {share:g}"] = found
    return {"hit_rates": record}


def _hit_rate(trace, rows, cache_rows, policy):
    """Of the second half of a trace."""
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        layer = tfrec.CachedEmbedding(
            rows, 4, cache_rows, Path(folder) / "table", tfrec.optimizers.SGD(), policy=policy
        )
        dataset = tf.data.Dataset.from_generator(
            lambda: iter(trace), output_signature=tf.TensorSpec(trace[0].shape, tf.int64)
        )
        if policy == "lookahead":
            dataset = dataset.apply(layer.prefetch(2))
        for number, ids in enumerate(dataset):
            if number == len(trace) // 2:
                before = layer.stats()
            layer(ids)
        after = layer.stats()
        layer.close()
    return (after.hits - before.hits) / (after.lookups - before.lookups)


def _belady(trace, cache_rows):
    """The same, where the row goes that is needed last, and a batch needs its rows at once."""
    distinct = [np.unique(batch, return_counts=True) for batch in trace]
    never = len(trace)
    next_use = np.full(int(max(ids.max() for ids, _ in distinct)) + 1, never)
    following = []
    for number in reversed(range(len(trace))):
        ids = distinct[number][0]
        following.append(next_use[ids].copy())
        next_use[ids] = number
    following.reverse()
    due = np.full(len(next_use), -1)  # when a row in memory is needed next; -1 where it is not
    hit = total = 0
    for number, (ids, counts) in enumerate(distinct):
        if number >= len(trace) // 2:
            hit += int(counts[due[ids] >= 0].sum())
            total += int(counts.sum())
        due[ids] = following[number]
        there = np.flatnonzero(due >= 0)
        excess = len(there) - cache_rows
        if excess > 0:
            others = there[~np.isin(there, ids, assume_unique=True)]
            # Rows of this batch stay until it is done, and then go by the same rule.
            gone = others[np.argsort(-due[others], kind="stable")[:excess]]
            due[gone] = -1
    return hit / total


def sparse():
    """A file of more than 100 GB, of which next to nothing is there."""
    rows = 400_000_000
    with _trace(ROWS, "zipf1.05", False, 2 * STEPS) as (folder, trace):
        cell = _cell(folder, trace, rows, 500_000, rival="cached")
        made = _workers.Worker([sys.executable, _WORKER], cell)
        answers = [made.measure(0), made.measure(1)]
        made.close()
        opened = _workers.Worker([sys.executable, _WORKER], cell)
        about = opened.about
        answers.append(opened.measure(0))
        opened.close()
        file = folder / "table" / "rows.npy"
        return {
            "rows": rows,
            "file_bytes": file.stat().st_size,
            "disk_bytes": 512 * file.stat().st_blocks,
            "opened_seconds": about["opened_seconds"],
            "step_ms": [answer["wall"] for answer in answers],
        }
