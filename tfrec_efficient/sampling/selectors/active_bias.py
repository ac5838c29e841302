"""`ActiveBias`: prefers the samples whose predicted probability varies."""

from typing import Any

import numpy as np

from tfrec_efficient.sampling._arguments import check
from tfrec_efficient.sampling._arguments import check_integer
from tfrec_efficient.sampling._draw import Draws
from tfrec_efficient.sampling._memory import ProbabilityMoments
from tfrec_efficient.sampling.batch_selector import BatchSelector


class ActiveBias(BatchSelector):
    """Prefers samples whose probability of the given label varied over all epochs so far.

    With h the probabilities that the model gave a sample's label in the n times it was drawn, and
    var(h) their variance, the preference is

        sqrt(var(h) + var(h)**2 / (n - 1)) + smoothing.

    As `"sampling"`, chances of being drawn are proportional to it. As `"weighting"`, batches are
    drawn evenly and the loss of a sample is multiplied by it, scaled to a mean of 1 in each batch.

    Args:
        batch_size: Samples in a batch, over all replicas. Defaults to 128.
        mode: `"sampling"` or `"weighting"`. Defaults to `"weighting"`.
        warmup_epochs: Epochs before the first that prefers samples, at least 1. Defaults to 15.
        smoothing: What every sample is preferred by, above 0. Defaults to 0.02.
        from_logits: Whether the model's output is before the softmax or sigmoid. Defaults to False.
        seed: An integer that decides all draws. Defaults to 0.
        log_dir: Folder for TensorBoard, or None. Defaults to None.

    Raises:
        ValueError: An argument breaks a rule above.

    References:
        - Chang, Learned-Miller and McCallum, "Active Bias: Training More Accurate Neural Networks
          by Emphasizing High Variance Samples", NIPS 2017: SGD-SPV (sampling) and SGD-WPV
          (weighting). Song et al. (CIKM 2020) describe the first and compare with the second. Here
          the preference is fixed within an epoch, and samples drawn fewer than twice have that of
          the average sample.
    """

    def __init__(
        self,
        batch_size: int = 128,
        mode: str = "weighting",
        warmup_epochs: int = 15,
        smoothing: float = 0.02,
        from_logits: bool = False,
        seed: int = 0,
        log_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, from_logits=from_logits, seed=seed, log_dir=log_dir)
        rule = 'one of "sampling" and "weighting"'
        check("mode", mode, mode in ("sampling", "weighting"), rule)
        check_integer("warmup_epochs", warmup_epochs, 1)
        check("smoothing", smoothing, smoothing > 0, "above 0")
        self.mode = mode
        self.warmup_epochs = warmup_epochs
        self.smoothing = smoothing
        self.gives_sample_weight = mode == "weighting"

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mode": self.mode,
            "warmup_epochs": self.warmup_epochs,
            "smoothing": self.smoothing,
        }

    def make_memory(self, size: int) -> ProbabilityMoments:
        return ProbabilityMoments(size)

    def select(self, epoch: int) -> Draws:
        if epoch <= self.warmup_epochs:
            return Draws()
        variance, count = self.memory.variance(), self.memory.count
        deviation = np.sqrt(variance + variance**2 / np.maximum(count.astype(float) - 1, 1))
        if (count > 1).any():
            deviation[count < 2] = deviation[count > 1].mean()
        preference = deviation + self.smoothing
        if self.mode == "sampling":
            return Draws(preference)
        return Draws(None, preference, normalize_batch=True)
