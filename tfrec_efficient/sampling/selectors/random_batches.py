"""`RandomBatches`: the baseline that prefers nothing."""

from tfrec_efficient.sampling._draw import Draws
from tfrec_efficient.sampling._memory import LabelHistory
from tfrec_efficient.sampling.batch_selector import BatchSelector


class RandomBatches(BatchSelector):
    """Draws every batch evenly, without replacement within the batch.

    This is what the other selectors are compared with. Unlike shuffling, an epoch shows some
    samples twice and others not at all. Predictions are kept for `plot` and `hardest`.

    Args:
        batch_size: Samples in a batch, over all replicas.
        from_logits: See `BatchSelector`. Defaults to False.
        seed: See `BatchSelector`. Defaults to 0.
        log_dir: See `BatchSelector`. Defaults to None.

    References:
        - "Random Batch" in Song et al., CIKM 2020, section 4.
    """

    def make_memory(self, size: int) -> LabelHistory:
        return LabelHistory(size, window=10)

    def select(self, epoch: int) -> Draws:
        return Draws()
