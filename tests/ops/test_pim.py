import dataclasses

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.testing import run_op_test
from tfrec_efficient.testing.ops import implementation as use
from tfrec_efficient.testing.ops import implementations

TABLE = [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]]
ROWS = tfrec.PimDevice("rows", ranks=3)
COLUMNS = tfrec.PimDevice("columns", ranks=4, slices=4, pads_slices=True)
TABLES = tfrec.PimDevice("tables", ranks=4, slices=2, pads_slices=True, placement="table_aware")


def pooled(table, ids, weights=None, combiner="sum", padding_id=None, hot_ids=None):
    return tfrec.ops.pim_gather_reduce(
        table, ids, weights, combiner, padding_id, device=ROWS, hot_ids=hot_ids
    )[0]


# What the combiners do is the work of `gather_reduce`, whose own tests have all of them.
@pytest.mark.slow
@pytest.mark.parametrize("combiner", ["mean", "sum", "sqrtn"])
def test_op(combiner):
    weights = [[1.0, 0.5, 2.0], [3.0, -1.0, 0.25]]
    ids = [[0, 1, 1], [3, 2, 9]]
    run_op_test(
        pooled,
        differentiable={"table": TABLE, "weights": weights},
        arguments={"ids": ids, "combiner": combiner, "padding_id": 9},
        expected=tfrec.ops.gather_reduce(
            tf.constant(TABLE, tf.float64), ids, weights, combiner, padding_id=9
        ),
        bad_arguments=[
            ({"ids": [[0, 1, 4], [0, 0, 0]]}, "`ids[0, 2]=4`"),
            ({"ids": [[0, 1, 9], [-1, 0, 0]]}, "must be in `[0, 4)` or `padding_id=9`"),
            ({"table": [1.0, 2.0]}, "`table` must have rank 2"),
            ({"weights": [[1, 1, 1], [1, np.nan, 1.0]]}, "finite. Received: `weights[1, 1]=nan`"),
            ({"combiner": "max"}, "`combiner` must be"),
            ({"padding_id": 0.5}, "`padding_id` must be None or an integer"),
            ({"hot_ids": [[1]]}, "`hot_ids` must have rank 1. Received: shape (1, 1)"),
            ({"hot_ids": [2, 1]}, "`hot_ids` must rise and not be negative. Received: "),
            ({"hot_ids": [-1, 1]}, "Received: `hot_ids[0]=-1`"),
        ],
    )


@pytest.mark.parametrize("device", [COLUMNS, TABLES], ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_where_sums_are_taken_in_one_order_the_bits_are_the_same(implementation, device, dtype):
    rng = np.random.default_rng(0)
    table = tf.Variable(tf.cast(rng.normal(size=(50, 24)), dtype))
    ids, weights = rng.integers(0, 50, (20, 9)), rng.normal(size=(20, 9))
    for combiner in ("sum", "mean", "sqrtn"):
        expected = tfrec.ops.gather_reduce(table, ids, weights, combiner)
        actual, _ = tfrec.ops.pim_gather_reduce(table, ids, weights, combiner, device=device)
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("hot_ids", [None, [0, 3, 17]])
def test_gradients_have_the_same_bits_for_every_placement(implementation, hot_ids):
    rng = np.random.default_rng(1)
    table = tf.Variable(rng.normal(size=(50, 8)).astype("float32"))
    ids = rng.integers(0, 50, (20, 9))
    upstream = tf.constant(rng.normal(size=(20, 8)), tf.float32)

    def gradient(look_up):
        with tf.GradientTape() as tape:
            result = look_up()
        return tape.gradient(result, table, output_gradients=upstream)

    casting = tfrec.ops.cast_indices(ids)
    expected = gradient(lambda: tfrec.ops.gather_reduce(table, ids, combiner="mean"))
    for given in (None, casting):
        actual = gradient(
            lambda given=given: tfrec.ops.pim_gather_reduce(
                table, ids, combiner="mean", casting=given, device=ROWS, hot_ids=hot_ids
            )[0]
        )
        np.testing.assert_array_equal(actual.indices, expected.indices)
        np.testing.assert_array_equal(actual.values, expected.values)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`casting` must be what"):
        gradient(
            lambda: tfrec.ops.pim_gather_reduce(table, ids, casting=casting[::-1], device=ROWS)[0]
        )


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    bags=st.lists(st.lists(st.integers(0, 19), max_size=40), min_size=1, max_size=5),
    dtype=st.sampled_from(["float16", "bfloat16", "float32", "float64"]),
    ids_dtype=st.sampled_from(["int32", "int64"]),
    ranks=st.integers(1, 9),
    hot=st.sampled_from([None, [2, 3, 5]]),
    layout=st.sampled_from(["ragged", "sparse"]),
    seed=st.integers(0, 99),
)
def test_sums_by_groups_are_within_a_unit_for_each_addition(
    bags, dtype, ids_dtype, ranks, hot, layout, seed
):
    values = np.random.default_rng(seed).normal(size=(20, 5))
    table = tf.cast(values, dtype)
    exact = tf.cast(table, tf.float64).numpy()
    ids = tf.ragged.constant(bags, dtype=ids_dtype, ragged_rank=1)
    ids = ids if layout == "ragged" else ids.to_sparse()
    device = tfrec.PimDevice("test", ranks=ranks)
    expected = np.stack([exact[bag].sum(0) if bag else np.zeros(5) for bag in bags])
    magnitude = np.stack([np.abs(exact[bag]).sum(0) if bag else np.zeros(5) for bag in bags])
    wide = np.finfo("float64" if dtype == "float64" else "float32").eps
    rounding = {"float16": 2**-11, "bfloat16": 2**-8}.get(dtype, 0)
    most = np.array([len(bag) + 1 for bag in bags])[:, np.newaxis]
    for name in implementations():
        with use(name):
            output, _ = tfrec.ops.pim_gather_reduce(table, ids, device=device, hot_ids=hot)
            error = np.abs(tf.cast(output, tf.float64).numpy() - expected)
            assert np.all(error <= most * wide * magnitude + rounding * np.abs(expected) + 1e-7)


def test_partial_sums_are_added_in_the_order_in_which_groups_appear(implementation):
    # In float32, 1 + 1e8 - 1e8 is 0, and 1 + (1e8 - 1e8) is 1.
    table = tf.constant([[1.0], [1e8], [0.0], [0.0], [-1e8]])
    three = tfrec.PimDevice("test", ranks=3)
    for ids, expected in (([[0, 1, 4]], 1.0), ([[1, 0, 4]], 1.0)):
        output, _ = tfrec.ops.pim_gather_reduce(table, ids, device=three)  # 1 and 4 share a rank
        assert output.numpy().tolist() == [[expected]]
    output, _ = tfrec.ops.pim_gather_reduce(
        table, [[0, 1, 4]], device=dataclasses.replace(three, ranks=1)
    )
    assert output.numpy().tolist() == [[0.0]]


def test_reports_in_a_graph_are_those_of_eager_code(implementation):
    table = tf.Variable(tf.ones((40, 16)))
    ids = tf.constant(np.random.default_rng(0).integers(0, 40, (7, 5)))

    def step(ids):
        output, report = tfrec.ops.pim_gather_reduce(table, ids, device=ROWS)
        return output, report + report

    for spec in (None, [tf.TensorSpec([None, None], tf.int64)]):
        _, eager = step(ids)
        _, traced = tf.function(step, input_signature=spec)(ids)
        np.testing.assert_array_equal(traced.counts, eager.counts)
        np.testing.assert_allclose(traced.seconds, eager.seconds, rtol=1e-12)
    assert tfrec.ops.pim_gather_reduce(table, ids, device=ROWS, with_report=False)[1] is None


@pytest.mark.parametrize("hot", [None, [1, 2, 30]])
@pytest.mark.parametrize("slices", [1, 2, 8])
@pytest.mark.parametrize("placement", ["row_interleave", "table_aware"])
def test_bytes_of_ranks_add_up_for_every_placement(implementation, placement, slices, hot):
    device = tfrec.PimDevice("test", 8, placement, slices)
    ids = np.random.default_rng(0).zipf(1.3, (30, 10)) % 50
    forward, _, _ = tfrec.ops.pim_reports(
        (50, 128), "float32", ids, device=device, hot_ids=hot, table_number=3
    )
    assert int(tf.reduce_sum(forward.bytes_read)) == ids.size * 512
    assert int(tf.reduce_sum(forward.lookups)) == ids.size * slices
    assert int(tf.reduce_max(forward.bytes_read)) >= ids.size * 512 / 8


def test_skew_raises_the_maximum_and_copies_of_hot_rows_lower_it(implementation):
    rng = np.random.default_rng(0)
    even = np.arange(1024).reshape(64, 16)
    skewed = np.where(rng.random(even.shape) < 0.5, 8, even)
    device = tfrec.PimDevice("test", 8)

    def busiest(ids, hot=None):
        report = tfrec.ops.pim_reports((1024, 16), "float32", ids, device=device, hot_ids=hot)[0]
        return int(tf.reduce_max(report.bytes_read)), int(tf.reduce_sum(report.bytes_read))

    (even_most, even_sum), (most, in_all) = busiest(even), busiest(skewed)
    assert even_sum == in_all
    assert even_most == even_sum / 8
    assert most > 3 * even_most
    assert busiest(skewed, [8])[0] < 1.2 * even_most


def test_a_cache_answers_what_comes_again(implementation):
    ids = [[0, 1, 0, 1, 0]]
    device = tfrec.PimDevice("test", 1, cache_bytes=64)  # one row
    alternating, _, _ = tfrec.ops.pim_reports((4, 16), "float32", ids, device=device)
    assert alternating.cache_hits.numpy().tolist() == [0]
    larger = dataclasses.replace(device, cache_bytes=128)
    both, _, _ = tfrec.ops.pim_reports((4, 16), "float32", ids, device=larger)
    assert both.cache_hits.numpy().tolist() == [3]
    assert both.bytes_read.numpy().tolist() == [2 * 64]


@pytest.mark.parametrize("rule", ["sgd", "adagrad"])
def test_an_update_has_the_bits_of_row_update(implementation, rule):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(20, 16)).astype("float32")
    gradient = tf.IndexedSlices(
        tf.constant(rng.normal(size=(30, 16)), tf.float32), tf.constant(rng.integers(0, 20, 30))
    )
    tables = [tf.Variable(values) for _ in range(2)]
    slots = [[tf.Variable(tf.ones_like(values))] * (rule == "adagrad") for _ in range(2)]
    others = {"epsilon": 1e-7} if rule == "adagrad" else {}
    tfrec.ops.row_update(tables[0], gradient, rule, 0.1, slots[0], **others)
    report = tfrec.ops.pim_scatter_update(
        tables[1], gradient, rule, 0.1, slots[1], device=ROWS, hot_ids=[0], **others
    )
    np.testing.assert_array_equal(tables[1], tables[0])
    unique = np.unique(gradient.indices)
    copies = 2 if 0 in unique else 0  # of row 0, beyond the first
    assert int(tf.reduce_sum(report.lookups)) == len(unique) + copies
    silent = tfrec.ops.pim_scatter_update(
        tables[1], gradient, rule, 0.1, slots[1], device=ROWS, with_report=False, **others
    )
    assert silent is None


def test_an_update_that_is_refused_changes_nothing(implementation):
    gradient = tf.IndexedSlices(tf.ones((1, 16)), tf.constant([1]))
    table = tf.Variable(tf.ones((4, 16)))
    narrow = dataclasses.replace(COLUMNS, pads_slices=False)
    for device, arguments, words in (
        (narrow, {}, "slices of 64 bytes or more"),
        (ROWS, {"hot_ids": [2, 1]}, r"`hot_ids` must rise and not be negative. Received: `hot_ids"),
        (ROWS, {"hot_ids": [2, 1], "with_report": False}, "`hot_ids` must rise"),
        (ROWS, {"table_number": -1, "with_report": False}, "`table_number` must be an integer"),
    ):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
            tfrec.ops.pim_scatter_update(table, gradient, "sgd", 1.0, device=device, **arguments)
        np.testing.assert_array_equal(table, tf.ones((4, 16)))
    cube = tf.Variable(tf.ones((4, 2, 8)))
    gradient = tf.IndexedSlices(tf.ones((1, 2, 8)), tf.constant([1]))
    with pytest.raises(ValueError, match="`table` must have rank 2"):
        tfrec.ops.pim_scatter_update(cube, gradient, "sgd", 1.0, device=ROWS)
    np.testing.assert_array_equal(cube, tf.ones((4, 2, 8)))


@pytest.mark.parametrize("device", [tfrec.PimDevice("one", ranks=1), TABLES])
def test_hot_ids_rise_whatever_the_placement(implementation, device):
    with pytest.raises(tf.errors.InvalidArgumentError, match="`hot_ids` must rise and not be"):
        tfrec.ops.pim_gather_reduce(
            tf.ones((4, 16)), [[1]], device=device, hot_ids=[2, 1], with_report=False
        )


def test_a_device_may_have_more_places_than_this_machine_has_memory(implementation):
    ids = np.random.default_rng(0).integers(0, 100, (9, 4))
    vast = tfrec.PimDevice(
        "vast", 3, cache_bytes=1 << 40, dram=tfrec.pim.DramTimings(banks=1 << 20, page_bytes=64)
    )
    forward, backward, _ = tfrec.ops.pim_reports((100, 16), "float32", ids, device=vast)
    unique = len(np.unique(ids))
    assert int(tf.reduce_sum(forward.cache_hits)) == ids.size - unique
    assert int(tf.reduce_sum(forward.activations)) == unique
    assert int(tf.reduce_sum(backward.cache_hits)) > 0
    most = dataclasses.replace(ROWS, ranks=1 << 20)
    output, _ = tfrec.ops.pim_gather_reduce(tf.ones((100, 16)), ids, device=most, with_report=False)
    np.testing.assert_array_equal(output, 4 * tf.ones((9, 16)))


@pytest.mark.skipif(tfrec.ops._loader.native() is None, reason="the C++ ops are not built")
def test_attributes_that_no_device_has_are_refused():
    ops, bags = tfrec.ops._loader.native(), tf.zeros([0], tf.int64)
    placed = {"first_group": 0, "by_table": False, "castings": [], "hot_ids": bags}
    placed |= {"ids": [[[0, 1]]], "row_splits": [bags], "weights": [tf.zeros([0])]}
    placed |= {"weighted": [False], "combiners": ["sum"], "padding_ids": [-1]}
    memory = {"rows_per_page": 1, "pages_per_row": 1, "banks": 1, "cached_rows": 0}
    words = "`groups` must be at most 1048576. Received: "
    for groups in (1 << 62, 1 << 21):
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            ops.tfrec_efficient_pim_events(groups=groups, rows=4, **placed, **memory)
        with pytest.raises(tf.errors.InvalidArgumentError, match=words):
            ops.tfrec_efficient_pim_gather_reduce(
                groups=groups, tables=[tf.ones((4, 8))], table_of=[0], dims=[8], **placed
            )
    with pytest.raises(tf.errors.InvalidArgumentError, match="`rows` must be 0 or more"):
        ops.tfrec_efficient_pim_events(groups=2, rows=-5, **placed, **memory)
    memory |= {"banks": 1 << 62, "cached_rows": 1 << 62}
    events = ops.tfrec_efficient_pim_events(groups=2, rows=4, **placed, **memory)
    assert events[:, 0].numpy().tolist() == [1, 1]


def test_what_reports_refuse(implementation):
    with pytest.raises(ValueError, match="`rule` must be one of .* Received: rule='magic'"):
        tfrec.ops.pim_reports((4, 16), "float32", [[1]], device=ROWS, rule="magic")
    with pytest.raises(ValueError, match="`table_number` must be an integer, 0 or more"):
        tfrec.ops.pim_gather_reduce(
            tf.ones((4, 16)), [[1]], device=ROWS, table_number=0.5, with_report=False
        )
    for ids, words in (([[4]], r"`ids\[0, 0\]=4`"), ([[-1]], "`ids"), ([[0.5]], "dtype int32")):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=words):
            tfrec.ops.pim_reports((4, 16), "float32", ids, device=ROWS)
    with pytest.raises(ValueError, match="slices of 64 bytes or more"):
        tfrec.ops.pim_gather_reduce(
            tf.ones((4, 16)), [[1]], device=dataclasses.replace(COLUMNS, pads_slices=False)
        )


def test_nothing_to_look_up(implementation):
    for ids in (tf.zeros((0, 3), tf.int64), tf.zeros((2, 0), tf.int64)):
        output, report = tfrec.ops.pim_gather_reduce(tf.ones((4, 16)), ids, device=ROWS)
        assert output.shape == (ids.shape[0], 16)
        assert not output.numpy().any()
        assert not report.counts.numpy().any()
        for report in tfrec.ops.pim_reports((4, 16), "float32", ids, device=ROWS):
            assert not report.counts.numpy().any()
            assert float(report.imbalance) == 1


def test_a_saved_model_has_the_op(implementation, tmp_path):
    module = tf.Module()
    module.table = tf.Variable(TABLE)

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int64)])
    def serve(ids):
        return pooled(module.table, ids)

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path))
    assert tf.saved_model.load(str(tmp_path)).serve([[0, 3]]).numpy().tolist() == [[9.0, 90.0]]
