"""`DynamicVocabulary`: which keys have a row, where nobody knows how many there are."""

from typing import Any

import keras

from tfrec_efficient.embedding._bag_layer import check_sizes


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class DynamicVocabulary:
    """Lets a `CachedEmbedding` take strings, or any integers, and grow with them.

    A key is counted each time that the layer is called with `training=True`. It has a row of its
    own from the batch on in which it was counted `min_count` times. All other keys share row 0: it
    is trained with those that are not admitted yet, and so is what a new key is worth.

    A key that was in none of the last `max_age` such batches is forgotten at the next checkpoint,
    and counted anew where it comes again. Its row then has initial weights and optimizer state, and
    is free for the next key. Without `max_age`, keys that came once only are kept in memory for
    ever: some 35 bytes each.

    Strings are hashed to 63 bits; of ten million, two collide in one of 200,000 vocabularies.

    Args:
        min_count: int. How often a key is counted before it has a row. Defaults to 1.
        max_age: int or None, in training batches. Defaults to None, for ever.
        max_rows: int or None. Rows of the table, row 0 among them, at most; keys wait then until
            others are forgotten. Defaults to None, without a limit.

    Raises:
        ValueError: An argument is not a positive integer.

    Example:
    >>> import os, tempfile
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> layer = tfrec.CachedEmbedding(
    ...     None,
    ...     output_dim=8,
    ...     cache_rows=100,
    ...     path=os.path.join(tempfile.mkdtemp(), "table"),
    ...     optimizer=tfrec.optimizers.Adagrad(),
    ...     vocabulary=tfrec.embedding.DynamicVocabulary(min_count=2),
    ... )
    >>> layer(np.array([["alice", "bob"], ["alice", "carol"]]), training=True).shape
    TensorShape([2, 8])
    """

    def __init__(
        self, min_count: int = 1, max_age: int | None = None, max_rows: int | None = None
    ) -> None:
        given = {"min_count": min_count, "max_age": max_age, "max_rows": max_rows}
        check_sizes(**{name: size for name, size in given.items() if size is not None})
        self.min_count = min_count
        self.max_age = max_age
        self.max_rows = max_rows

    def rule(self) -> dict[str, int]:
        """The arguments of `ops.row_store.Vocabulary`."""
        return {name: size or 0 for name, size in self.get_config().items()}

    def get_config(self) -> dict[str, Any]:
        return {"min_count": self.min_count, "max_age": self.max_age, "max_rows": self.max_rows}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "DynamicVocabulary":
        return cls(**config)
