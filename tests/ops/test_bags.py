import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.testing.ops import implementation as use
from tfrec_efficient.testing.ops import implementations

COMBINERS = ("sum", "mean", "sqrtn")
TABLE = [[1.0, 10.0], [2.0, 20.0], [4.0, 40.0], [8.0, 80.0]]


def as_ragged(bags, dtype):
    return tf.ragged.constant(bags, dtype=dtype, ragged_rank=1)


def as_sparse(bags, dtype):
    return as_ragged(bags, dtype).to_sparse()


@pytest.mark.parametrize("ids_dtype", ["int32", "int64"])
@pytest.mark.parametrize("layout", [as_ragged, as_sparse])
@pytest.mark.parametrize("combiner", COMBINERS)
def test_ragged_and_sparse_agree_with_stock_tensorflow(implementation, layout, combiner, ids_dtype):
    bags, weights = [[0, 1, 1], [], [3], []], [[1.0, 2.0, 0.5], [], [4.0], []]
    table = tf.constant(TABLE)
    for w in (None, layout(weights, "float32")):
        oracle = tf.nn.safe_embedding_lookup_sparse(
            table,
            as_sparse(bags, "int64"),
            None if w is None else as_sparse(weights, "float32"),
            combiner,
        )
        result = tfrec.ops.gather_reduce(table, layout(bags, ids_dtype), w, combiner)
        np.testing.assert_allclose(result, oracle, rtol=1e-6)


@pytest.mark.parametrize(
    ("row_splits", "culprit"),
    [
        ([1, 2, 3], "row_splits[0]=1"),
        ([0, 2, 1, 3], "row_splits[2]=1"),
        ([0, 2], "row_splits[1]=2"),
        ([0, 9], "row_splits[1]=9"),
        ([0, -5, 3], "row_splits[1]=-5"),
    ],
)
def test_bad_row_splits(implementation, row_splits, culprit):
    splits = tf.constant(row_splits, tf.int64)
    ids = tf.RaggedTensor.from_row_splits([0, 1, 2], splits, validate=False)
    with pytest.raises(tf.errors.InvalidArgumentError, match="`row_splits` must start at 0") as e:
        tfrec.ops.gather_reduce(TABLE, ids)
    assert culprit in str(e.value)


def test_flat_positions_in_errors_of_ragged_ids(implementation):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"`ids.values\[2\]=4`"):
        tfrec.ops.gather_reduce(TABLE, tf.ragged.constant([[0], [1, 4]]))


@pytest.mark.parametrize(
    ("ids", "weights", "message"),
    [
        (as_ragged([[0]], "int64"), [[1.0]], "`weights` must be a tf.RaggedTensor"),
        (as_sparse([[0]], "int64"), [[1.0]], "`weights` must be a tf.sparse.SparseTensor"),
        ([[0]], as_ragged([[1.0]], "float32"), "`weights` must be a dense tensor"),
        (as_ragged([[0, 1], []], "int64"), as_ragged([[1.0], [2.0]], "float32"), "the row splits"),
        (as_ragged([[0, 1]], "int64"), as_ragged([[1.0], [2.0]], "float32"), "the row splits"),
        (as_sparse([[0, 1], []], "int64"), as_sparse([[1.0], [2.0]], "float32"), "the indices and"),
        (as_sparse([[0, 1], []], "int64"), as_sparse([[1.0], []], "float32"), "the indices and"),
        (as_sparse([[0], [1]], "int64"), as_ragged([[1.0], [2.0]], "float32"), "tf.sparse.Sparse"),
        (as_ragged([[0], [1]], "int64"), tf.ragged.constant([[[1.0]], [[2.0]]]), "ragged rank 1"),
        (tf.ragged.constant([[[0], [1]]]), None, "ragged rank 1"),
        (tf.SparseTensor([[1, 0], [0, 0]], [1, 1], [2, 1]), None, "use `tf.sparse.reorder`"),
        (tf.SparseTensor([[0, 0, 0]], [1], [1, 1, 1]), None, "Sparse `ids` must have rank 2"),
    ],
)
def test_layouts_that_do_not_fit(implementation, ids, weights, message):
    in_graph = tf.function(lambda: tfrec.ops.gather_reduce(TABLE, ids, weights))
    for run in (lambda: tfrec.ops.gather_reduce(TABLE, ids, weights), in_graph):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match=message):
            run()


@pytest.mark.parametrize("rows", [0, 3])
def test_nothing_to_look_up(implementation, rows):
    table = tf.zeros((rows, 5))
    assert tfrec.ops.gather_reduce(table, tf.zeros((0, 4), tf.int64)).shape == (0, 5)
    assert (
        tfrec.ops.gather_reduce(table, tf.zeros((2, 0), tf.int32)).numpy().tolist() == [[0] * 5] * 2
    )
    empty = tf.ragged.constant([[], []], dtype=tf.int64, ragged_rank=1)
    assert tfrec.ops.gather_reduce(table, empty, combiner="sqrtn").numpy().tolist() == [[0] * 5] * 2
    no_bags = tf.RaggedTensor.from_row_splits(tf.zeros([0], tf.int64), tf.zeros([1], tf.int64))
    assert tfrec.ops.gather_reduce(table, no_bags).shape == (0, 5)
    with tf.GradientTape() as tape:
        tape.watch(table)
        result = tfrec.ops.gather_reduce(table, tf.zeros((2, 0), tf.int32))
    assert tape.gradient(result, table).values.shape == (0, 5)


def test_any_id_of_an_empty_table_is_out_of_range(implementation):
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"must be in `\[0, 0\)`"):
        tfrec.ops.gather_reduce(tf.zeros((0, 5)), [[0]])


def test_padding_is_not_checked_counted_or_weighted(implementation):
    ids, weights = [[-1, 0, -1], [-1, -1, -1]], [[np.nan, 2.0, 5.0], [1.0, np.inf, 1.0]]
    result = tfrec.ops.gather_reduce(TABLE, ids, weights, "mean", padding_id=-1)
    assert result.numpy().tolist() == [[1.0, 10.0], [0.0, 0.0]]


def test_smallest_id_is_no_padding(implementation):
    ids = tf.constant([[-(2**63)]], tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be in"):
        tfrec.ops.gather_reduce(TABLE, ids)
    with pytest.raises(ValueError, match="padding_id"):
        tfrec.ops.gather_reduce(TABLE, ids, padding_id=-(2**63))


# ---- What a graph learns late --------------------------------------------------------------------


def test_unknown_rank_is_checked_when_it_is_known(implementation):
    look_up = tf.function(
        tfrec.ops.gather_reduce,
        input_signature=[tf.TensorSpec(None, tf.float32), tf.TensorSpec(None, tf.int64)],
    )
    assert look_up(TABLE, [[0, 1]]).numpy().tolist() == [[3.0, 30.0]]
    with pytest.raises(tf.errors.InvalidArgumentError, match="`ids` must have rank 2"):
        look_up(TABLE, [0, 1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`table` must have rank 2"):
        look_up([1.0, 2.0], [[0, 1]])


def test_unknown_shape_of_weights_is_checked_when_it_is_known(implementation):
    look_up = tf.function(
        lambda ids, weights: tfrec.ops.gather_reduce(TABLE, ids, weights),
        input_signature=[tf.TensorSpec([None, None], tf.int64), tf.TensorSpec([None, None])],
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="`weights` must have the shape"):
        look_up([[0, 1]], [[1.0]])


# ---- Garbage -------------------------------------------------------------------------------------


@st.composite
def garbage(draw):
    """Input of any shape and value: ids out of range, broken row splits, weights of any shape."""
    small = st.integers(-3, 5)
    ids = draw(st.lists(small, max_size=8))
    row_splits = draw(st.lists(small, min_size=1, max_size=5))
    # Quarters add up without rounding, so that both agree on whether weights cancel.
    number = st.integers(-8, 8).map(lambda n: n / 4) | st.sampled_from([np.nan, np.inf])
    weights = draw(st.none() | st.lists(number, min_size=len(ids), max_size=len(ids)))
    return {
        "shape": (draw(st.integers(0, 4)), draw(st.integers(0, 3))),
        "ids": ids,
        "row_splits": row_splits,
        "weights": weights,
        "combiner": draw(st.sampled_from(COMBINERS)),
        "padding_id": draw(st.none() | small),
    }


def outcome(problem, name):
    """The result, or the first sentence of the error."""
    row_splits = tf.constant(problem["row_splits"], tf.int64)
    ids = tf.RaggedTensor.from_row_splits(
        tf.constant(problem["ids"], tf.int64), row_splits, validate=False
    )
    weights = problem["weights"]
    if weights is not None:
        weights = ids.with_flat_values(tf.constant(weights, tf.float32))
    table = tf.ones(problem["shape"])
    with use(name):
        try:
            result = tfrec.ops.gather_reduce(
                table, ids, weights, problem["combiner"], problem["padding_id"]
            )
        except tf.errors.InvalidArgumentError as error:
            message = str(error)
            return message[message.index("`") : message.rindex("`")].replace("-nan", "nan")
    return result.numpy()


def check_native_and_reference_agree(problem):
    native, reference = (outcome(problem, name) for name in ("native", "python"))
    if isinstance(native, str) or isinstance(reference, str):
        assert native == reference
    else:
        np.testing.assert_allclose(native, reference, 1e-5, 1e-6)


if len(implementations()) == 2:  # else TFREC_OPS forces one, and there is nothing to compare

    @hypothesis.given(garbage())
    @hypothesis.settings(max_examples=200, deadline=None)
    def test_garbage_meets_the_same_answer(problem):
        check_native_and_reference_agree(problem)

    @pytest.mark.slow
    @hypothesis.given(garbage())
    @hypothesis.settings(max_examples=10_000, deadline=None)
    def test_garbage_meets_the_same_answer_many_times(problem):
        check_native_and_reference_agree(problem)
