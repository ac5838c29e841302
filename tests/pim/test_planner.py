import dataclasses

import keras
import numpy as np
import pytest

import tfrec_efficient as tfrec
from tfrec_efficient.pim import DramTimings
from tfrec_efficient.pim import plan

ROWS = {"big": 300_000, "other": 200_000, "small": 500}


@pytest.fixture(scope="module")
def model():
    ids = {name: keras.Input((20,), dtype="int64", name=name) for name in ROWS}
    pooled = [
        tfrec.EmbeddingBag(rows, 32, padding_id=-1, name=f"table_{name}")(ids[name])
        for name, rows in ROWS.items()
    ]
    return keras.Model(ids, keras.layers.Dense(1)(keras.layers.concatenate(pooled)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {name: rng.integers(0, rows, (512, 20)) for name, rows in ROWS.items()}


@pytest.fixture(scope="module")
def device():
    return tfrec.PimDevice("test", ranks=8, link_bandwidth=100e9)


def test_large_tables_are_offloaded_and_a_step_is_faster(model, batch, device):
    planned = plan(model, batch, device, "sgd")
    tables = {table.name: table for table in planned.tables}
    assert list(tables) == ["table_big", "table_other", "table_small"]
    assert tables["table_big"].is_offloaded
    assert tables["table_other"].is_offloaded
    assert tables["table_big"].lookups == 512 * 20
    assert tables["table_big"].megabytes == pytest.approx(300_000 * 32 * 4 / 1e6)
    assert planned.speedup > 1.5
    assert planned.host_seconds == pytest.approx(sum(t.host_seconds for t in planned.tables))
    assert planned.device.ranks == 8


def test_host_time_is_that_of_the_bytes(model, batch, device):
    planned = plan(model, batch, device, "adagrad", host_cache_bytes=0)
    unique = len(np.unique(batch["big"]))
    lookups, row = 512 * 20, 128
    moved = (lookups + 512) * row + (lookups + unique) * row + unique * 5 * row
    assert planned.tables[0].host_seconds == pytest.approx(moved / device.host_bandwidth)
    cached = plan(model, batch, device, "adagrad", host_cache_bandwidth=158e9)
    assert planned.tables[2].host_seconds / cached.tables[2].host_seconds == pytest.approx(10)


def test_seconds_are_those_of_the_chosen_device(model, batch, device):
    planned = plan(model, batch, device, "sgd", host_cache_bytes=0, dense_seconds=0.25)
    held = {table.name for table in planned.tables if table.is_offloaded}
    seconds = 0.25 + sum(t.host_seconds for t in planned.tables if not t.is_offloaded)
    counts = [
        [
            report.counts
            for report in tfrec.ops.pim_reports(
                (rows, 32), "float32", batch[name], device=planned.device, table_number=number
            )
        ]
        for number, (name, rows) in enumerate(ROWS.items())
        if f"table_{name}" in held
    ]
    for of_kind in zip(*counts, strict=True):
        seconds += float(planned.device.report(sum(of_kind), 0).total_seconds)
    assert planned.device_seconds == pytest.approx(seconds)
    assert planned.dense_seconds == 0.25


@pytest.mark.slow
def test_no_other_placement_is_faster(model, batch, device):
    best = plan(model, batch, device, "sgd")
    for slices in (1, 2):  # 128 bytes are two bursts
        for placement in ("row_interleave", "table_aware"):
            held = [table.is_offloaded for table in best.tables]
            other = dataclasses.replace(device, slices=slices, placement=placement)
            seconds = sum(t.host_seconds for t in best.tables if not t.is_offloaded)
            for kind in range(3):
                counts = [
                    tfrec.ops.pim_reports(
                        (rows, 32), "float32", batch[name], device=other, table_number=number
                    )[kind].counts
                    for number, (name, rows) in enumerate(ROWS.items())
                    if held[number]
                ]
                seconds += float(other.report(sum(counts), 0).total_seconds)
            assert best.device_seconds <= seconds * 1.0001


def test_more_ranks_never_hurt_and_few_are_bought(model, batch, device):
    planned = plan(model, batch, device, "sgd")
    assert planned.ranks == (1, 2, 4, 8)
    assert list(planned.seconds_by_ranks) == sorted(planned.seconds_by_ranks, reverse=True)
    saved = [planned.host_seconds - seconds for seconds in planned.seconds_by_ranks]
    bought = planned.ranks.index(planned.ranks_to_buy)
    assert saved[bought] >= 0.9 * saved[-1]
    assert all(less < 0.9 * saved[-1] for less in saved[:bought])


def test_tables_that_do_not_fit_stay(model, batch, device):
    tight = dataclasses.replace(device, rank_bytes=4 << 20)
    planned = plan(model, batch, tight, "sgd")
    reasons = {table.name: table.reason for table in planned.tables}
    assert reasons["table_big"] == "host: does not fit the device"
    assert reasons["table_other"] == "device"


def test_nothing_is_offloaded_to_a_slow_device(model, batch, device):
    slow = dataclasses.replace(device, launch_seconds=1.0)
    planned = plan(model, batch, slow)
    assert not any(table.is_offloaded for table in planned.tables)
    assert planned.ranks_to_buy == 0
    assert planned.speedup == 1
    assert planned.tables[0].reason == "host: the device is no faster"
    assert planned.tables[2].reason == "host: in its cache"
    assert str(planned).endswith("Nothing is worth offloading: buy nothing.")


def test_a_table_that_the_device_is_slow_with_keeps_no_other_back(device):
    rng = np.random.default_rng(0)
    ids = [keras.Input((hotness,), dtype="int64") for hotness in (40, 12)]
    hot, even = tfrec.EmbeddingBag(200_000, 32), tfrec.EmbeddingBag(200_000, 32)
    model = keras.Model(ids, keras.layers.concatenate([hot(ids[0]), even(ids[1])]))
    batch = [rng.integers(0, 200_000, (1024, hotness)) for hotness in (40, 12)]
    batch[0][rng.random((1024, 40)) < 0.9] = 7  # which is in one rank
    slow = dataclasses.replace(device, ranks=64, dram=DramTimings(t_ccd_s=40, t_ccd_l=40))
    planned = plan(model, batch, slow, "sgd", host_cache_bytes=0)
    assert planned.tables[0].host_seconds > planned.tables[1].host_seconds
    assert [table.is_offloaded for table in planned.tables] == [False, True]


def test_slices_need_not_be_powers_of_two(device):
    ids = keras.Input((20,), dtype="int64")
    model = keras.Model(ids, tfrec.EmbeddingBag(100_000, 48)(ids))  # three bursts
    rng = np.random.default_rng(0)
    batch = np.where(rng.random((512, 20)) < 0.9, 7, rng.integers(0, 100_000, (512, 20)))
    three = dataclasses.replace(device, ranks=3)
    assert plan(model, batch, three, "sgd", host_cache_bytes=0).device.slices == 3


def test_an_empty_batch_is_planned(model, device):
    planned = plan(model, {name: np.zeros((0, 20), int) for name in ROWS}, device)
    assert planned.speedup == 1
    assert str(planned).endswith("Nothing is worth offloading: buy nothing.")


def test_a_layer_that_is_called_twice_is_one_table(batch, device):
    table = tfrec.EmbeddingBag(300_000, 32)
    ids = [keras.Input((20,), dtype="int64") for _ in range(2)]
    twice = keras.Model(ids, keras.layers.add([table(x) for x in ids]))
    planned = plan(twice, [batch["big"], batch["other"]], device)
    assert len(planned.tables) == 1
    assert planned.tables[0].lookups == 2 * 512 * 20
    assert "call" not in vars(table)  # what recorded its ids is gone


def test_what_people_read(model, batch, device, tmp_path):
    planned = plan(model, batch, device, "sgd", dense_seconds=1e-3)
    text = str(planned)
    assert [line.split()[0] for line in text.splitlines()[1:4]] == [
        "table_big", "table_other", "table_small"
    ]  # fmt: skip
    assert f"{planned.speedup:.2f} times as fast (modelled; 1.000 ms of both are other" in text
    assert f"Buy {planned.ranks_to_buy} ranks" in text
    figure = planned.plot(tmp_path / "plan.svg")
    assert (tmp_path / "plan.svg").read_text().startswith("<?xml")
    np.testing.assert_allclose(
        figure.axes[1].lines[0].get_ydata(), np.array(planned.seconds_by_ranks) * 1e3
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"rule": "magic"}, "`rule` must be one of .* Received: rule='magic'"),
        ({"dense_seconds": -1.0}, "`dense_seconds` must be a finite number, 0 or more"),
        ({"host_cache_bytes": 0.5}, "`host_cache_bytes` must be an integer, 0 or more"),
        ({"host_cache_bandwidth": 0.0}, "`host_cache_bandwidth` must be a finite number above 0"),
    ],
)
def test_bad_arguments(model, batch, device, arguments, words):
    with pytest.raises(ValueError, match=words):
        plan(model, batch, device, **arguments)


def test_a_model_without_tables(device):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="`model` must have `EmbeddingBag` or `PimEmbeddingBag`"):
        plan(model, np.zeros((2, 3)), device)
