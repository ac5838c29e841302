"""`cast_indices`: a dataset transform that sorts lookups before the model asks for it."""

from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfrec_efficient import ops


def cast_indices(
    features: Mapping[str, str], padding_id: int | None = None
) -> Callable[[tf.data.Dataset], tf.data.Dataset]:
    """Adds castings to the features of a batched dataset, for `EmbeddingBag(...)(casting=...)`.

    The backward pass of an embedding layer needs its lookups sorted by id. Sorting needs nothing
    but ids, so here it runs in the input pipeline, while the step before is still running. Apply it
    after `batch`, and `prefetch` behind it. A casting is that of one batch: it does not survive
    `unbatch`, or a `tf.distribute` strategy that splits batches among replicas.

    Args:
        features: The name of the feature to add, by the name of the feature with the ids.
        padding_id: The `padding_id` of the layer, or None. Defaults to None.

    Returns:
        A function for `tf.data.Dataset.apply`. Elements are dicts of features, or tuples that begin
        with one.

    Raises:
        ValueError: A name is missing in the elements, or is to be added and exists, or elements are
            no dicts of features.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> dataset = tf.data.Dataset.from_tensor_slices({"clicks": [[7, 2], [2, 7]]}).batch(2)
    >>> dataset = dataset.apply(tfrec.data.cast_indices({"clicks": "clicks_casting"}))
    >>> next(iter(dataset))["clicks_casting"].numpy().tolist()
    [[9, 10], [28, 31]]

    References:
        - See `tfrec_efficient.ops.cast_indices`.
    """

    def cast(*element: Any) -> Any:
        inputs = element[0]
        if not isinstance(inputs, Mapping):
            raise ValueError(
                "`cast_indices` needs elements that are, or begin with, a dict of features. "
                f"Received: {type(inputs).__name__}"
            )
        missing = [name for name in features if name not in inputs]
        existing = [name for name in features.values() if name in inputs]
        if missing or existing:
            raise ValueError(
                "`features` must map names of features to new names. Received: "
                f"features={dict(features)} for elements with {sorted(inputs)}"
            )
        castings = {
            new: ops.cast_indices(inputs[name], padding_id) for name, new in features.items()
        }
        inputs = {**inputs, **castings}
        return (inputs, *element[1:]) if len(element) > 1 else inputs

    return lambda dataset: dataset.map(cast, num_parallel_calls=tf.data.AUTOTUNE)
