import os

import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient.testing import run_op_test
from tfrec_efficient.testing.ops import implementation
from tfrec_efficient.testing.ops import implementations


def square(x, offset):
    if isinstance(offset, str):
        raise ValueError("`offset` must be a number")
    return x * x + tf.cast(offset, x.dtype)


def run(op, expected=5.0, bad=()):
    run_op_test(op, {"x": 2.0}, {"offset": 1.0}, expected, bad)


def test_a_right_op_passes():
    run(square, bad=[({"offset": "one"}, "`offset` must be a number")])


def test_both_implementations_are_run():
    seen = set()

    def op(x, offset):
        seen.add(os.environ["TFREC_OPS"])
        return square(x, offset)

    run(op)
    assert seen == set(implementations())


def test_a_wrong_result_is_found():
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        run(square, expected=6.0)


def test_a_wrong_gradient_is_found():
    @tf.custom_gradient
    def wrong(x):
        return x * x, lambda upstream: upstream

    with pytest.raises(AssertionError, match="gradient of `x`"):
        run(lambda x, offset: wrong(x) + offset)


def test_bad_input_that_is_accepted_is_found():
    with pytest.raises(AssertionError, match="must refuse the input"):
        run(square, bad=[({"offset": 2.0}, "`offset`")])


def test_another_message_is_found():
    with pytest.raises(AssertionError, match="Expected '`x`' in the error"):
        run(square, bad=[({"offset": "one"}, "`x`")])


def test_implementation_restores_the_environment(monkeypatch):
    monkeypatch.setenv("TFREC_OPS", "python")
    with implementation("python"):
        pass
    assert os.environ["TFREC_OPS"] == "python"
    monkeypatch.delenv("TFREC_OPS")
    with pytest.raises(RuntimeError), implementation("python"):
        raise RuntimeError
    assert "TFREC_OPS" not in os.environ
    assert np.all(np.isin(implementations(), ["native", "python"]))


def test_an_op_that_is_wrong_in_float32_is_found():
    def op(x, offset):
        return square(x, offset) if x.dtype == tf.float64 else 0.0 * x

    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        run(op)


if len(implementations()) == 2:

    def test_another_dtype_of_one_implementation_is_found():
        def op(x, offset):
            result = square(x, tf.cast(offset, x.dtype))
            return result if os.environ["TFREC_OPS"] == "native" else tf.cast(result, tf.float64)

        with pytest.raises(AssertionError, match="differ in dtype or static shape"):
            run(op)

    def test_another_static_shape_of_one_implementation_is_found():
        def op(x, offset):
            result = square(x, tf.cast(offset, x.dtype))[tf.newaxis]
            if os.environ["TFREC_OPS"] == "native":
                return result
            return tf.boolean_mask(result, [True])

        with pytest.raises(AssertionError, match="differ in dtype or static shape"):
            run(op, expected=[5.0])
