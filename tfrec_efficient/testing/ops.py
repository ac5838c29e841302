"""`run_op_test`: the same checks on the native op and on its reference."""

import os
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf


def implementations() -> tuple[str, ...]:
    """The implementations to test here: `"native"` and `"python"`, or what `TFREC_OPS` forces.

    `"native"` is left out only where `TFREC_OPS=python` asks for it.
    """
    forced = os.environ.get("TFREC_OPS")
    return (forced,) if forced else ("native", "python")


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Runs the body with `TFREC_OPS` set to `name`."""
    before = os.environ.get("TFREC_OPS")
    os.environ["TFREC_OPS"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["TFREC_OPS"]
        else:
            os.environ["TFREC_OPS"] = before


def run_op_test(
    op: Callable[..., Any],
    differentiable: Mapping[str, Any],
    arguments: Mapping[str, Any],
    expected: Any,
    bad_arguments: Sequence[tuple[Mapping[str, Any], str]] = (),
    tolerance: float = 1e-5,
) -> None:
    """Checks an op in its native form and in its reference.

    For each of the two: the result equals `expected`, in float32 and float64, eagerly and inside
    a `tf.function`, where its static shape must fit; the gradient with regard to every
    differentiable argument equals the numerical one, in float64; and each bad input raises
    ValueError or `tf.errors.InvalidArgumentError` with the expected words, eagerly and inside a
    `tf.function`. Both implementations must give the same dtypes and static shapes.

    Args:
        op: The op, called as `op(**differentiable, **arguments)`.
        differentiable: Float arrays by argument name, to be differentiated.
        arguments: All other arguments by name.
        expected: The right result for these arguments.
        bad_arguments: Pairs of arguments that replace some of the above, and words that the
            error message must contain.
        tolerance: Relative and absolute tolerance. Defaults to 1e-5.

    Raises:
        AssertionError: A check failed.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> from tfrec_efficient.testing import run_op_test
    >>> run_op_test(
    ...     tfrec.ops.gather_reduce,
    ...     differentiable={"table": [[1.0], [2.0]]},
    ...     arguments={"ids": [[0, 1, 1]]},
    ...     expected=[[5.0]],
    ...     bad_arguments=[({"ids": [[2]]}, "`ids` must be in")],
    ... )
    """
    wide = {name: tf.constant(value, tf.float64) for name, value in differentiable.items()}
    specs: dict[str, list[tf.TensorSpec]] = {}
    for name in implementations():
        with implementation(name):
            for dtype in (tf.float64, tf.float32):
                inputs = {argument: tf.cast(value, dtype) for argument, value in wide.items()}
                spec = _check_result(op, {**inputs, **arguments}, expected, tolerance, name)
                specs.setdefault(name, []).append(spec)
            _check_gradient(op, wide, arguments, name)
            for bad, words in bad_arguments:
                _check_error(op, {**wide, **arguments, **bad}, words, name)
                _check_error(tf.function(op), {**wide, **arguments, **bad}, words, name)
    assert len({tuple(spec) for spec in specs.values()}) == 1, (
        f"The implementations differ in dtype or static shape: {specs}"
    )


def _check_result(
    op: Callable[..., Any], arguments: Mapping[str, Any], expected: Any, tolerance: float, name: str
) -> tf.TensorSpec:
    static_shapes = []

    @tf.function
    def in_a_graph(tensors: Mapping[str, tf.Tensor]) -> Any:
        result = op(**{**arguments, **tensors})
        static_shapes.append(result.shape)
        return result

    tensors = {key: value for key, value in arguments.items() if tf.is_tensor(value)}
    for result in (op(**arguments), in_a_graph(tensors)):
        np.testing.assert_allclose(
            result, expected, tolerance, tolerance, err_msg=f"implementation: {name}"
        )
    assert static_shapes[0].is_compatible_with(result.shape), (
        f"{name} promises the static shape {static_shapes[0]}. Received: {result.shape}"
    )
    return tf.TensorSpec(static_shapes[0], result.dtype)


def _check_gradient(
    op: Callable[..., Any], wide: Mapping[str, tf.Tensor], arguments: Mapping[str, Any], name: str
) -> None:
    def of_tensors(*tensors: tf.Tensor) -> Any:
        return op(**dict(zip(wide, tensors, strict=True)), **arguments)

    analytic, numeric = tf.test.compute_gradient(of_tensors, list(wide.values()))
    for argument, exact, approximate in zip(wide, analytic, numeric, strict=True):
        np.testing.assert_allclose(
            exact, approximate, 1e-4, 1e-6, err_msg=f"gradient of `{argument}`, {name}"
        )


def _check_error(
    op: Callable[..., Any], arguments: Mapping[str, Any], words: str, name: str
) -> None:
    try:
        op(**arguments)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        assert words in str(error), f"Expected {words!r} in the error of {name}: {error}"
    else:
        raise AssertionError(f"{name} must refuse the input with {words!r}: {arguments}")
