"""`SelectiveBackprop`: leaves out samples by how small their loss is among all."""

from typing import Any

import numpy as np

from tfrec_efficient.sampling._arguments import check
from tfrec_efficient.sampling._arguments import check_integer
from tfrec_efficient.sampling._draw import Pass
from tfrec_efficient.sampling._memory import LastLoss
from tfrec_efficient.sampling.batch_selector import BatchSelector


class SelectiveBackprop(BatchSelector):
    """Shows a sample with a probability that grows with the share of samples of smaller loss.

    An epoch is a pass in random order over the samples that are kept: each with the probability
    `share ** exponent`, where `share` is that of samples whose last known loss is at most its own.
    Samples that were never seen are kept. Nothing weights the loss against the bias.

    Every `refresh_epochs`-th epoch shows all samples, so that no loss is older than that.

    Args:
        batch_size: Samples in a batch, over all replicas. Defaults to 128.
        exponent: How much larger losses are preferred, at least 0; about `1 / (1 + exponent)` of
            the samples are kept. Defaults to 1.0.
        refresh_epochs: At least 1. Defaults to 3.
        from_logits: Whether the model's output is before the softmax or sigmoid. Defaults to False.
        seed: An integer that decides all draws. Defaults to 0.
        log_dir: Folder for TensorBoard, or None. Defaults to None.

    Raises:
        ValueError: An argument breaks a rule above.

    References:
        - Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019,
          equation 2 and section 4.3: the variant with stale losses, which needs no forward pass of
          its own.
    """

    def __init__(
        self,
        batch_size: int = 128,
        exponent: float = 1.0,
        refresh_epochs: int = 3,
        from_logits: bool = False,
        seed: int = 0,
        log_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, from_logits=from_logits, seed=seed, log_dir=log_dir)
        check("exponent", exponent, exponent >= 0, "at least 0")
        check_integer("refresh_epochs", refresh_epochs, 1)
        self.exponent = exponent
        self.refresh_epochs = refresh_epochs

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "exponent": self.exponent,
            "refresh_epochs": self.refresh_epochs,
        }

    def make_memory(self, size: int) -> LastLoss:
        return LastLoss(size)

    def select(self, epoch: int) -> Pass:
        loss = np.nan_to_num(self.memory.loss, nan=np.inf)
        everything = np.arange(len(loss))
        if (epoch - 1) % self.refresh_epochs == 0:
            return Pass(everything)
        share = np.searchsorted(np.sort(loss), loss, side="right") / len(loss)
        return Pass(everything[self.random(epoch).random(len(loss)) < share**self.exponent])
