"""`benchmarks/selector_overhead.py`: rivals take turns, and the state is counted."""

from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_turns_may_be_parts_of_an_epoch(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import selector_overhead

    x = np.random.default_rng(0).random((3840, selector_overhead.FEATURES), np.float32)
    timings, selector = selector_overhead.measure(x, np.arange(3840) % 10, 10, 8, 2, steps=3)
    assert {len(timing.wall) for timing in timings.values()} == {2}
    assert len(selector.log) == 1


def test_rivals_take_turns_epoch_by_epoch(monkeypatch, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import selector_overhead

    order = []
    end = selector_overhead.Turn._end
    monkeypatch.setattr(
        selector_overhead.Turn, "_end", lambda self, *a: (order.append(id(self)), end(self, *a))
    )
    x = np.random.default_rng(0).random((512, selector_overhead.FEATURES), np.float32)
    timings, selector = selector_overhead.measure(x, np.arange(512) % 10, 10, 8, rounds=2)
    assert list(timings) == ["RecencyBias", "fit, arrays", "fit, shuffled tf.data"]
    for timing in timings.values():
        assert len(timing.wall) == len(timing.cpu) == 2
        assert min(timing.wall) > 0
    assert order == order[:3] * 4  # two rounds of warm-up, and two that count
    total, once = selector_overhead.describe_state(selector)
    assert total == pytest.approx(512 * (10 + 1 + 1 + 4), rel=0.01)  # votes, counter, label, ids
    assert once > 0
    assert "state 0.0 MB: ring" in capsys.readouterr().out
