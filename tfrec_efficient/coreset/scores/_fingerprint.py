"""A number that tells one example of a dataset from another."""

from typing import Any

import tensorflow as tf


def fingerprint(*element: Any) -> tf.Tensor:
    """Hashes an element of a dataset to 64 bits, of all that it holds.

    It is FarmHash's Fingerprint64 of the fingerprints of the parts, each of which is that of the
    bytes of a part, so it is the same on every machine and in every run. Of a million different
    elements, two share a number with a probability of 3e-8. Bits count, not values: -0.0 is not
    0.0, and neither are the same numbers of another dtype the same. Shapes do not count.

    Args:
        element: The element as `tf.data.Dataset.map` hands it over: its parts, or nested structures
            of them, which may be dense, ragged or sparse, and of any dtype.

    Returns:
        A scalar, int64.
    """
    parts = tf.nest.flatten(element, expand_composites=True)
    digests = [_digest(_row(part)) for part in parts if part is not None]
    return _digest(tf.stack(digests, axis=1))[0]


def _row(part: Any) -> tf.Tensor:
    row = tf.reshape(part, [1, -1])
    # `tf.fingerprint` leaves what it returns of no strings at all uninitialised.
    return tf.concat([[[""]], row], axis=1) if row.dtype == tf.string else row


def _digest(rows: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.fingerprint(rows), tf.int64)
