"""`run_dataset_transform_test`: what every `tf.data` transform of this package must keep."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf


def run_dataset_transform_test(
    transform: Callable[[tf.data.Dataset], tf.data.Dataset],
    dataset: tf.data.Dataset,
    expected: list[Any],
    keeps_element_spec: bool = True,
) -> None:
    """Checks a function from dataset to dataset.

    It works through `dataset.apply`; gives the expected elements, the same ones again when it is
    iterated a second time, and the same ones inside a `tf.function`; and gives elements of the
    shapes and dtypes that it promises.

    Args:
        transform: The transform. One with randomness must be seeded to repeat.
        dataset: A finite dataset to apply it to.
        expected: The elements that must come out, nested as the dataset's elements.
        keeps_element_spec: Whether the transform keeps the `element_spec`. Defaults to True.

    Raises:
        AssertionError: A check failed.

    Example:
    >>> import tensorflow as tf
    >>> from tfrec_efficient.testing import run_dataset_transform_test
    >>> run_dataset_transform_test(
    ...     lambda dataset: dataset.filter(lambda x: x % 2 == 0),
    ...     tf.data.Dataset.range(5),
    ...     expected=[0, 2, 4],
    ... )
    """
    transformed = dataset.apply(transform)
    if keeps_element_spec:
        assert transformed.element_spec == dataset.element_spec, (
            f"The element spec must stay {dataset.element_spec}. "
            f"Received: {transformed.element_spec}"
        )
    for _ in range(2):
        elements = list(transformed)
        _check_elements(elements, expected)
        for element in elements:
            _check_spec(element, transformed.element_spec)

    @tf.function
    def in_a_graph() -> tuple[list[Any], tf.Tensor]:
        iterator = iter(transformed)
        elements = [next(iterator) for _ in expected]
        return elements, transformed.reduce(tf.constant(0), lambda total, _: total + 1)

    elements, count = in_a_graph()
    _check_elements(elements, expected)
    assert int(count) == len(expected), (
        f"Inside a tf.function there are {int(count)} elements instead of {len(expected)}."
    )


def _check_elements(received: list[Any], expected: list[Any]) -> None:
    assert len(received) == len(expected), (
        f"Expected {len(expected)} elements. Received: {len(received)}"
    )
    for element, right in zip(received, expected, strict=True):
        tf.nest.assert_same_structure(element, right, expand_composites=True)
        parts = (tf.nest.flatten(x, expand_composites=True) for x in (element, right))
        for a, b in zip(*parts, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def _check_spec(element: Any, spec: Any) -> None:
    for value, promised in zip(tf.nest.flatten(element), tf.nest.flatten(spec), strict=True):
        assert promised.is_compatible_with(value), (
            f"An element does not fit its spec {promised}. Received: {value}"
        )
