import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec

DTYPES = ("float32", "float16", "int8", "int64")


def save(path, dtype="float32", shape=(4, 3)):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(path, array)
    return array


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 3), (7,), (2, 3, 5), (1, 1)])
def test_an_array_is_a_tensor(tmp_path, dtype, shape):
    array = save(tmp_path / "rows.npy", dtype, shape)
    tensor = tfrec.ops.mapped_rows(str(tmp_path / "rows.npy"), tf.as_dtype(dtype), shape)
    assert tensor.dtype == dtype
    assert tensor.shape == shape
    np.testing.assert_array_equal(tensor, array)


def test_in_graphs(tmp_path):
    array = save(tmp_path / "rows.npy")

    @tf.function
    def pool(path, ids):
        table = tfrec.ops.mapped_rows(path, tf.float32, (4, 3))
        assert table.shape == (4, 3)
        return tfrec.ops.gather_reduce(table, ids)

    path = tf.constant(str(tmp_path / "rows.npy"))
    for _ in range(2):
        result = pool(path, tf.constant([[0, 3], [1, 1]]))
        np.testing.assert_array_equal(result, [array[0] + array[3], 2 * array[1]])


def test_the_file_is_not_read_whole(tmp_path):
    """A sparse file of 40 GB, of which the disk has a few kilobytes."""
    shape = (10**9, 10)
    array = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, shape)
    array[123_456_789] = 7
    del array
    table = tfrec.ops.mapped_rows(str(tmp_path / "rows.npy"), tf.float32, shape)
    assert tfrec.ops.gather_reduce(table, [[123_456_789, 5]]).numpy().tolist() == [[7.0] * 10]


def test_nobody_writes_to_the_file(tmp_path):
    array = save(tmp_path / "rows.npy")
    before = (tmp_path / "rows.npy").read_bytes()
    tensor = tfrec.ops.mapped_rows(str(tmp_path / "rows.npy"), tf.float32, (4, 3))
    np.testing.assert_array_equal(tf.tensor_scatter_nd_update(tensor, [[0]], [[9.0] * 3])[1:],
                                  array[1:])  # fmt: skip
    variable = tf.Variable(tensor)
    variable.assign_add(tf.ones_like(variable))
    assert (tmp_path / "rows.npy").read_bytes() == before


def test_another_file_of_the_same_name(tmp_path):
    path = tmp_path / "rows.npy"
    save(path)
    tfrec.ops.mapped_rows(str(path), tf.float32, (4, 3))
    np.save(tmp_path / "other.npy", np.ones((4, 3), np.float32))
    (tmp_path / "other.npy").rename(path)
    tensor = tfrec.ops.mapped_rows(str(path), tf.float32, (4, 3))
    np.testing.assert_array_equal(tensor, np.ones((4, 3)))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 3), np.float64), "must have the header .*Received: "),
        (np.zeros((3, 4), np.float32), "must have the header"),
        (np.asfortranarray(np.zeros((4, 3), np.float32)), "must have the header"),
        (np.zeros((4, 3), ">f4"), "must have the header"),
    ],
)
def test_other_arrays_are_refused(tmp_path, array, message):
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        tfrec.ops.mapped_rows(str(tmp_path / "rows.npy"), tf.float32, (4, 3))


def test_damaged_files_are_refused(tmp_path):
    path = tmp_path / "rows.npy"

    def mapped():
        return tfrec.ops.mapped_rows(str(path), tf.float32, (4, 3))

    with pytest.raises(tf.errors.InvalidArgumentError, match="must be readable: No such file"):
        mapped()
    save(path)
    whole = path.read_bytes()
    for damaged, message in (
        (b"", "it is empty"),
        (b"text", "must be an .npy file of version 1.0"),
        (whole[:100], "must have"),
        (whole[:-1], "must have 176 bytes. Received: 175"),
        (whole + b"\0", "must have 176 bytes. Received: 177"),
        (b"\x93NUMPY\x02" + whole[7:], "must be an .npy file of version 1.0"),
        (whole[:8] + b"\xff\xff" + whole[10:], "must have the header"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            mapped()


@pytest.mark.parametrize("dtype", ["float64", "int32", "string"])
def test_dtypes_that_are_not_mapped(tmp_path, dtype):
    save(tmp_path / "rows.npy")
    with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)):
        tfrec.ops.mapped_rows(str(tmp_path / "rows.npy"), tf.as_dtype(dtype), (4, 3))
