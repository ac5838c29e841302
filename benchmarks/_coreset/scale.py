"""The claims of `coreset.py --scale`: speed, memory, and how much a choice covers."""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _harness
import _workers
import numpy as np

import tfrec_efficient as tfrec
from tfrec_efficient.coreset.by_neighbourhood import _neighbourhoods

_PEER_PACKAGES = (("apricot-select==0.6.1", "scikit-learn"), ("submodlib-py==0.0.3",))
_PEER = Path(__file__).with_name("peer.py")
CELLS = ("order", "objective", "peers", "million_own", "million_full")


def clusters(size, dim=128, per=30, spread=0.5, seed=0):
    """Embeddings around random centres, `per` of them around each, and confidences."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(1, size // per), dim), np.float32)
    embeddings = centres[rng.integers(0, len(centres), size)]
    for begin in range(0, size, 65_536):
        block = embeddings[begin : begin + 65_536]
        block += spread * rng.standard_normal(block.shape, np.float32)
    return embeddings, rng.uniform(0.3, 1, size)


def threshold_for(embeddings, degree):
    return _neighbourhoods.SimilaritySample(embeddings).threshold_for(degree)


def as_published(embeddings, confidences, threshold, picks):
    """The steps of the authors' program: for each pick it computes the norms of all rows, too."""
    return one_product_per_pick(embeddings, confidences, threshold, picks, normalize=True)


def one_product_per_pick(rows, confidences, threshold, picks, normalize=False):
    """Their rule with one product of matrix and vector for each pick, of rows of unit length."""
    coverage = np.zeros(len(rows), np.float32)
    left, chosen = np.ones(len(rows), bool), []
    confidences = confidences.astype(np.float32)
    for _ in range(picks):
        gains = np.tanh(coverage + confidences) - np.tanh(coverage)
        gains[~left] = -1
        best = int(gains.argmax())
        chosen.append(best)
        left[best] = False
        cosines = rows @ rows[best]
        if normalize:
            norms = np.linalg.norm(rows, axis=1)
            cosines /= norms * norms[best]
        similarities = 0.5 + 0.5 * cosines
        coverage += np.where(similarities > threshold, similarities, 0) * confidences[best]
    return chosen


def exact_rule(units, confidences, threshold, picks):
    """The same rule in double, with a gain that is not rounded to zero."""
    coverage, left, chosen = np.zeros(len(units)), np.ones(len(units), bool), []
    tail = np.log(-np.expm1(-2 * confidences))
    for _ in range(picks):
        a, b = -2 * coverage, -2 * (coverage + confidences)
        gains = a + tail - np.log1p(np.exp(a)) - np.log1p(np.exp(b))
        gains[~left] = -np.inf
        best = int(gains.argmax())
        chosen.append(best)
        left[best] = False
        similarities = (0.5 + 0.5 * (units @ units[best])).astype(np.float32)
        coverage += (
            np.where(similarities > np.float32(threshold), similarities, 0) * (confidences[best])
        )
    return chosen


def order(rounds):
    """20,000 samples, 4,000 picks: the same order as the slow rule, and how much sooner."""
    embeddings, confidences = clusters(20_000)
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    found = {}
    for degree in (1.1, 23.3):
        threshold = threshold_for(embeddings, degree)
        selector = tfrec.Prune4Rel(4000, threshold, "own", balanced=False, verbose=0)
        picked = selector.fit(embeddings, confidences).indices_
        wide = embeddings.astype(np.float64)
        wide /= np.linalg.norm(wide, axis=1, keepdims=True)
        same = picked == np.array(exact_rule(wide, confidences, threshold, 4000))
        rivals = {
            "own": _harness.timed(lambda _, s=selector: s.fit(embeddings, confidences)),
            "one_product": _harness.timed(
                lambda _, t=threshold: one_product_per_pick(units, confidences, t, 4000)
            ),
            "as_published": _harness.timed(
                lambda _, t=threshold: as_published(embeddings, confidences, t, 4000)
            ),
        }
        timings = _take_turns(rivals, rounds)
        found[f"{degree}"] = {"same_order": float(same.mean()), **timings}
    return found


def _take_turns(rivals, rounds):
    """Medians and quartiles in seconds, and how many times as long as ours each takes."""
    walls = {name: [] for name in rivals}
    cpus = {name: [] for name in rivals}
    for turn in range(rounds + 1):
        for name, measure in rivals.items():
            measured = measure(turn)
            if turn:  # the first warms up
                walls[name].append(measured["wall"] / 1000)
                cpus[name].append(measured["cpu"] / 1000)
    ours = next(iter(rivals))
    return {
        name: {
            "seconds": _harness.quartiles(walls[name]),
            "cpu_seconds": statistics.median(cpus[name]),
            "ratio": _harness.quartiles(
                b / a for a, b in zip(walls[ours], walls[name], strict=True)
            ),
        }
        for name in rivals
    }


def objective(_):
    """12,000 samples, 2,400 picks: the mean utility of `full`, of `own`, and of chance."""
    found = {}
    embeddings, confidences = clusters(12_000, per=30, spread=0.5)
    size = len(embeddings)
    for degree, scale in ((14.9, 1.0), (32.6, 1.0), (42.5, 100.0)):
        threshold = threshold_for(embeddings, degree)
        of_gain, degrees = {}, {}
        for gain in ("full", "own"):
            selector = tfrec.Prune4Rel(2400, threshold, gain, False, scale, 4096, verbose=0)
            of_gain[gain] = selector.fit(embeddings, confidences).objective_ / size
            degrees[gain] = _mean_degree(embeddings, selector.indices_, threshold)
        chance = np.random.default_rng(1).permutation(size)[:2400]
        coverage = _neighbourhoods.neighbourhood_coverage(
            embeddings, confidences, chance, threshold
        )
        of_gain["random"] = float(np.tanh(coverage / scale).mean())
        found[f"degree {degree}, scale {scale:g}"] = {"mean": of_gain, "degree": degrees}
    return found


def _mean_degree(embeddings, chosen, threshold):
    ones = np.ones(len(chosen))
    similar = _neighbourhoods.neighbourhood_coverage(
        embeddings[chosen], ones, np.arange(len(chosen)), threshold
    )
    return float(similar.mean())


def peers(rounds):
    """5,000 samples, 1,000 picks over one graph: seconds, and the utility that was reached."""
    embeddings, confidences = clusters(5000)
    size = len(embeddings)
    threshold = threshold_for(embeddings, 15)
    graph = _neighbourhoods.exact_graph(embeddings, threshold, size, None, 0)
    weights = graph.similarities * np.repeat(confidences, np.diff(graph.row_splits))

    def choose(_):
        return tfrec.ops.choose_over_graph(
            graph.row_splits, graph.neighbours, graph.similarities, confidences,
            np.zeros(size, np.int32), [], np.zeros(size), np.full(size, np.inf), 1.0, 1000,
        )  # fmt: skip

    def utilities(picked):
        chosen = np.isin(np.repeat(np.arange(size), np.diff(graph.row_splits)), picked)
        coverage = np.bincount(graph.neighbours[chosen], weights[chosen], size)
        return {"tanh": np.tanh(coverage).sum(), "inverse": (coverage / (1 + coverage)).sum()}

    reached = {"tfrec_efficient": utilities(choose(0)[0].numpy())}
    rivals = {"tfrec_efficient": _harness.timed(choose)}
    workers = []
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder, "problem.npz")
        np.savez(problem, splits=graph.row_splits, neighbours=graph.neighbours, weights=weights)
        command = _workers.peer_command(_PEER_PACKAGES, _PEER)
        try:
            for name in ("apricot", "submodlib"):
                cell = {"peer": name, "problem": str(problem), "picks": 1000}
                workers.append(_workers.Worker(command, cell))
                reached[name] = utilities(workers[-1].about["picked"])
                rivals[name] = workers[-1].measure
            timings = _take_turns(rivals, rounds)
        finally:
            for worker in workers:
                worker.close()
    return {name: {**timings[name], "objective": reached[name]} for name in rivals}


def million(gain):
    """A million samples, 100,000 picks, in a process of its own for its memory."""
    program = Path(__file__).parents[1] / "coreset.py"
    run = subprocess.run(
        [sys.executable, program, "--million", gain], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def choose_of_a_million(gain):
    """Prints what one choice of 100,000 of a million samples took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "embeddings.npy")
        embeddings, confidences = clusters(1_000_000)
        np.save(path, embeddings)
        del embeddings
        embeddings = np.load(path, mmap_mode="r")
        selector = tfrec.Prune4Rel(100_000, gain=gain, balanced=False, verbose=2)
        cpu, wall = time.process_time(), time.perf_counter()
        selector.fit(embeddings, confidences)
        about = {
            "seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
            "objective": selector.objective_ / len(embeddings),
            "threshold": selector.similarity_threshold_,
            "mean_degree": selector.mean_degree_,
        }
    print(json.dumps(about))


def run(name, rounds):
    """Measures one cell."""
    if name.startswith("million"):
        return million(name.removeprefix("million_"))
    return {"order": order, "objective": objective, "peers": peers}[name](rounds)


def report(cells):
    """Prints the cells that there are, by name."""
    for degree, found in cells.get("order", {}).items():
        print(
            f"20,000 samples, 4,000 picks, degree {degree}: {found['own']['seconds'][0]:.2f} s "
            f"(CPU {found['own']['cpu_seconds']:.2f} s); one product per pick takes "
            f"{_spread(found['one_product']['ratio'])} as long, the steps of the authors' program "
            f"{_spread(found['as_published']['ratio'])}; "
            f"{found['same_order']:.2%} of the picks in the same order"
        )
    for setting, found in cells.get("objective", {}).items():
        means = ", ".join(f"{name} {value:.4f}" for name, value in found["mean"].items())
        print(f"12,000 samples, 2,400 picks, {setting}: mean utility {means}")
    for name, found in cells.get("peers", {}).items():
        print(
            f"5,000 samples, 1,000 picks, {name:16} {1000 * found['seconds'][0]:9.1f} ms "
            f"({_spread(found['ratio'])}); utility {found['objective']['tanh']:.3f}, "
            f"as x / (1 + x) {found['objective']['inverse']:.3f}"
        )
    for gain in ("own", "full"):
        if found := cells.get(f"million_{gain}"):
            print(
                f"1,000,000 samples, 100,000 picks, {gain}: {found['seconds'] / 60:.1f} minutes "
                f"(CPU {found['cpu_seconds'] / 60:.1f}), {found['peak_gb']:.2f} GB at most, "
                f"degree {found['mean_degree']:.1f}, mean utility {found['objective']:.4f}"
            )


def _spread(quartiles):
    median, low, high = quartiles
    return f"{median:.1f}x ({low:.1f}-{high:.1f})"
