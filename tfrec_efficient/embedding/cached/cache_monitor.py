"""`CacheMonitor`: how well the rows in memory serve, while a model trains."""

from typing import Any

import keras

from tfrec_efficient.embedding.cached.cached_embedding import CachedEmbedding
from tfrec_efficient.embedding.cached.cached_embedding import cached_layers
from tfrec_efficient.ops.row_store import TableStats


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class CacheMonitor(keras.callbacks.Callback):
    """Adds hit rate, bytes moved and stall time of each `CachedEmbedding` to the logs.

    They are in the progress bar and in `History`, and in TensorBoard where this callback comes
    before that one. All are those of the training steps of the epoch so far:

    - `hit_rate`: the share of lookups whose row was in memory when the step asked for it.
    - `moved_mb`: megabytes that were read from and written to the files, in each step.
    - `stall_ms`: milliseconds for which each step waited for rows.

    With more than one such layer, names begin with that of the layer.

    Raises:
        ValueError: The model has no `CachedEmbedding`.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> monitor = tfrec.embedding.CacheMonitor()
    >>> # model.fit(dataset, callbacks=[monitor])
    """

    def __init__(self) -> None:
        super().__init__()
        self._layers: list[CachedEmbedding] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._layers = cached_layers(self.model)
        if not self._layers:
            raise ValueError(
                "CacheMonitor needs a model with a `CachedEmbedding`. "
                f"Received: {self.model.name!r}, which has none"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps = 0
        self._sums = {layer.name: dict.fromkeys(_COUNTED, 0) for layer in self._layers}
        self._before = self._now()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        if self._layers:
            self._before = self._now()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps += 1
        now = self._now()
        for name, stats in now.items():
            for key in _COUNTED:
                self._sums[name][key] += getattr(stats, key) - getattr(self._before[name], key)
        self._before = now
        self._add_to(logs)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._add_to(logs)

    def _now(self) -> dict[str, TableStats]:
        return {layer.name: layer.stats() for layer in self._layers}

    def _add_to(self, logs: dict[str, Any] | None) -> None:
        if logs is None or self._steps == 0:
            return
        for layer in self._layers:
            sums = self._sums[layer.name]
            row_bytes = 4 * self._before[layer.name].width
            moved = (sums["rows_read"] + sums["rows_written"]) * row_bytes
            prefix = "" if len(self._layers) == 1 else f"{layer.name}_"
            logs[f"{prefix}hit_rate"] = sums["hits"] / max(1, sums["lookups"])
            logs[f"{prefix}moved_mb"] = moved / 1e6 / self._steps
            logs[f"{prefix}stall_ms"] = sums["stall_nanoseconds"] / 1e6 / self._steps

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "CacheMonitor":
        return cls(**config)


_COUNTED = ("hits", "lookups", "rows_read", "rows_written", "stall_nanoseconds")
