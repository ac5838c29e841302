import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec
from tfrec_efficient.testing import run_dataset_transform_test

CLICKS = np.array([[[7, 2], [2, 7]], [[0, 0], [9, 1]]])  # two batches
# Four lookups in each: the position is in the lowest two bits.
CASTINGS = np.array([[[9, 10], [28, 31]], [[0, 1], [7, 38]]])


def dataset_of(elements):
    return tf.data.Dataset.from_tensor_slices(elements)


def test_adds_the_casting_of_each_batch(implementation):
    run_dataset_transform_test(
        tfrec.data.cast_indices({"clicks": "casting"}),
        dataset_of({"clicks": CLICKS, "other": [1.0, 2.0]}),
        expected=[
            {"clicks": CLICKS[0], "other": 1.0, "casting": CASTINGS[0]},
            {"clicks": CLICKS[1], "other": 2.0, "casting": CASTINGS[1]},
        ],
        keeps_element_spec=False,
    )


def test_padding_is_left_out(implementation):
    run_dataset_transform_test(
        tfrec.data.cast_indices({"clicks": "casting"}, padding_id=2),
        dataset_of({"clicks": CLICKS}),
        expected=[
            {"clicks": CLICKS[0], "casting": np.array([[28, 31], [-1, -1]])},
            {"clicks": CLICKS[1], "casting": CASTINGS[1]},
        ],
        keeps_element_spec=False,
    )


@pytest.mark.parametrize("parts", [0, 1, 2])
def test_labels_and_weights_of_examples_stay(implementation, parts):
    rest = (np.float32([1, 2]), np.float32([3, 4]))[:parts]
    features = {"a": CLICKS, "b": CLICKS}
    expected = [
        (
            {**{name: CLICKS[i] for name in "ab"}, "a_cast": CASTINGS[i], "b_cast": CASTINGS[i]},
            *(part[i] for part in rest),
        )
        for i in range(2)
    ]
    run_dataset_transform_test(
        tfrec.data.cast_indices({"a": "a_cast", "b": "b_cast"}),
        dataset_of((features, *rest) if rest else features),
        expected=expected if rest else [element for (element,) in expected],
        keeps_element_spec=False,
    )


def test_ragged_and_sparse_features(implementation):
    ragged = tf.ragged.constant([[7, 2], [], [2]], dtype=tf.int64)
    for ids in (ragged, ragged.to_sparse()):
        dataset = tf.data.Dataset.from_tensors({"clicks": ids})
        element = next(iter(dataset.apply(tfrec.data.cast_indices({"clicks": "casting"}))))
        assert element["casting"].numpy().tolist() == [2 << 2 | 1, 2 << 2 | 2, 7 << 2]
    batched = tf.data.Dataset.from_tensor_slices({"clicks": ragged}).ragged_batch(2)
    castings = batched.apply(tfrec.data.cast_indices({"clicks": "casting"}))
    assert castings.element_spec["casting"] == tf.TensorSpec([None], tf.int64)
    assert [e["casting"].numpy().tolist() for e in castings] == [[2 << 1 | 1, 7 << 1], [2]]


def test_batches_of_unknown_size_keep_their_other_dimensions(implementation):
    dataset = tf.data.Dataset.from_tensor_slices({"clicks": np.zeros((5, 3), "int32")}).batch(2)
    dataset = dataset.apply(tfrec.data.cast_indices({"clicks": "casting"}))
    assert dataset.element_spec["casting"] == tf.TensorSpec([None, 3], tf.int64)
    assert [element["casting"].shape[0] for element in dataset] == [2, 2, 1]


@pytest.mark.parametrize(
    ("features", "elements", "message"),
    [
        (
            {"views": "new"},
            {"clicks": CLICKS},
            r"`features` must map .* elements with \['clicks'\]",
        ),
        ({"clicks": "clicks"}, {"clicks": CLICKS}, r"Received: features={'clicks': 'clicks'} for"),
        ({"clicks": "new"}, CLICKS, "begin with, a dict of features. Received: "),
        ({"clicks": "new"}, (CLICKS, {"clicks": CLICKS}), "begin with, a dict of features"),
        ({"clicks": "new"}, {"clicks": [[0.5]]}, "`ids` must have dtype int32 or int64"),
    ],
)
def test_what_cannot_be_cast(implementation, features, elements, message):
    with pytest.raises(ValueError, match=message):
        dataset_of(elements).apply(tfrec.data.cast_indices(features))


def test_a_bad_padding_id_and_a_negative_id(implementation):
    dataset = dataset_of({"clicks": [[[3, -1]]]})
    with pytest.raises(ValueError, match="`padding_id` must be None or an integer"):
        dataset.apply(tfrec.data.cast_indices({"clicks": "new"}, padding_id=0.5))
    with pytest.raises(tf.errors.InvalidArgumentError, match="`ids` must not be negative"):
        list(dataset.apply(tfrec.data.cast_indices({"clicks": "new"})))
