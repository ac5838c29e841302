"""`TableCheckpoint`: flushes the tables of a model while it trains."""

from typing import Any

import keras

from tfrec_efficient.embedding.cached.cached_embedding import cached_layers


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class TableCheckpoint(keras.callbacks.Callback):
    """Makes a checkpoint of each `CachedEmbedding` of a model, every so many steps or epochs.

    For the tables alone. `keras.callbacks.BackupAndRestore` and `ModelCheckpoint` make one, too,
    each time that they save the other weights, and need no help by this callback.

    Args:
        save_freq: `"epoch"`, or an int, in steps. Defaults to `"epoch"`.

    Raises:
        ValueError: `save_freq` is neither.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> checkpoint = tfrec.embedding.TableCheckpoint(save_freq=1000)
    >>> # model.fit(dataset, callbacks=[checkpoint])
    """

    def __init__(self, save_freq: Any = "epoch") -> None:
        is_count = isinstance(save_freq, int) and not isinstance(save_freq, bool)
        if save_freq != "epoch" and not (is_count and save_freq > 0):
            raise ValueError(
                '`save_freq` must be "epoch" or a positive integer. '
                f"Received: save_freq={save_freq!r}"
            )
        super().__init__()
        self.save_freq = save_freq
        self._steps = 0

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._steps += 1
        if self.save_freq != "epoch" and self._steps % self.save_freq == 0:
            self._flush()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self.save_freq == "epoch":
            self._flush()

    def _flush(self) -> None:
        for layer in cached_layers(self.model):
            layer.flush()

    def get_config(self) -> dict[str, Any]:
        return {"save_freq": self.save_freq}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TableCheckpoint":
        return cls(**config)
