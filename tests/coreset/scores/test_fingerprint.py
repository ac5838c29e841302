"""Two examples share a fingerprint only if they are the same."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tfrec_efficient.coreset.scores._fingerprint import fingerprint

# ---- FarmHash's Fingerprint64 of up to 16 bytes, in plain Python.

K0, K2, MASK = 0xC3A5C85C97CB3127, 0x9AE16A3B2F90404F, 2**64 - 1


def rotated(value, count):
    return (value >> count | value << (64 - count)) & MASK


def mixed(u, v, factor):
    a = (u ^ v) * factor & MASK
    a ^= a >> 47
    b = (v ^ a) * factor & MASK
    return (b ^ b >> 47) * factor & MASK


def farmhash(text):
    size, factor = len(text), (K2 + 2 * len(text)) & MASK
    if size >= 8:
        a = (int.from_bytes(text[:8], "little") + K2) & MASK
        b = int.from_bytes(text[-8:], "little")
        c = rotated(b, 37) * factor + a & MASK
        return mixed(c, (rotated(a, 25) + b) * factor & MASK, factor)
    if size >= 4:
        a, b = (int.from_bytes(part, "little") for part in (text[:4], text[-4:]))
        return mixed(size + (a << 3), b, factor)
    if size:
        y, z = text[0] + (text[size // 2] << 8), size + (text[-1] << 2)
        a = y * K2 & MASK ^ z * K0 & MASK
        return (a ^ a >> 47) * K2 & MASK
    return K2


def expected(*parts):
    digests = b"".join(farmhash(part).to_bytes(8, "little") for part in parts)
    return int(np.frombuffer(farmhash(digests).to_bytes(8, "little"), "<i8")[0])


@pytest.mark.parametrize("size", range(17))
def test_the_number_is_that_of_farmhash(size):
    array = np.random.default_rng(size).integers(0, 256, size).astype("uint8")
    assert int(fingerprint(array)) == expected(array.tobytes())
    assert int(fingerprint(array, np.int64(-7))) == expected(
        array.tobytes(), np.int64(-7).tobytes()
    )


def test_a_text_counts_by_its_bytes():
    # As one behind an empty one.
    text = farmhash(b"").to_bytes(8, "little") + farmhash("Grüße".encode()).to_bytes(8, "little")
    assert int(fingerprint("Grüße", 3)) == expected(text, np.int32(3).tobytes())


PARTS = st.one_of(
    st.integers(-9, 9).map(tf.constant),
    st.floats(width=32).map(tf.constant),
    st.booleans().map(tf.constant),
    st.text(max_size=3).map(tf.constant),
    st.lists(st.integers(-9, 9), max_size=3).map(lambda part: tf.constant(part, tf.int64)),
    st.lists(st.text(max_size=2), max_size=2).map(lambda part: tf.constant(part, tf.string)),
)


def bits(part):
    """The bytes of numbers, and texts as they are; nothing is nothing, of whatever dtype."""
    array = part.numpy()
    return (np.ravel(array).tolist() if part.dtype == tf.string else array.tobytes()) or None


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(st.tuples(PARTS, PARTS), st.tuples(PARTS, PARTS))
def test_different_elements_have_different_fingerprints(one, other):
    is_same = int(fingerprint(*one)) == int(fingerprint(*other))
    assert is_same == all(bits(a) == bits(b) for a, b in zip(one, other, strict=True))


ELEMENTS = {
    "nested": ({"a": tf.ones((2, 3)), "b": (tf.constant("x"), tf.constant(True))}, tf.constant(1)),
    "half precision": (tf.ones(3, tf.bfloat16), tf.ones((2, 2), tf.float16)),
    "empty": (tf.zeros((0, 3)), tf.zeros(0, tf.string)),
    "ragged": (tf.ragged.constant([[1, 2], [3]]), tf.constant(1)),
    "sparse": (tf.sparse.from_dense([[0, 5], [6, 0]]), tf.constant(1)),
}


@pytest.mark.parametrize("kind", ELEMENTS)
def test_it_is_the_same_eagerly_in_graphs_and_in_datasets(kind):
    element = ELEMENTS[kind]
    number = int(fingerprint(*element))
    assert int(tf.function(lambda: fingerprint(*element))()) == number
    dataset = tf.data.Dataset.from_tensors(element).repeat(2).map(fingerprint)
    assert dataset.element_spec == tf.TensorSpec((), tf.int64)
    assert [int(value) for value in dataset] == [number] * 2


def test_every_part_counts_and_so_does_its_place():
    base = ({"a": [1, 2], "b": 3.0}, "x")
    others = [({"a": [1, 3], "b": 3.0}, "x"), ({"a": [2, 1], "b": 3.0}, "x"),
              ({"a": [1, 2], "b": 4.0}, "x"), ({"a": [1, 2], "b": 3.0}, "y")]  # fmt: skip
    convert = [tf.nest.map_structure(tf.constant, element) for element in (base, *others)]
    assert len({int(fingerprint(*element)) for element in convert}) == 5
    assert int(fingerprint(1, 2)) != int(fingerprint(2, 1))
    ragged = [tf.ragged.constant(rows) for rows in ([[1, 2], [3]], [[1], [2, 3]])]
    assert int(fingerprint(ragged[0])) != int(fingerprint(ragged[1]))


def test_ten_thousand_examples_have_as_many_fingerprints():
    numbers = tf.data.Dataset.range(10_000).map(fingerprint).batch(1000).as_numpy_iterator()
    assert len(np.unique(np.concatenate(list(numbers)))) == 10_000
