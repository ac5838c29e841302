"""`Uniform`: the baseline that prefers nothing."""

from typing import Any

import numpy as np

from tfrec_efficient.coreset._by_class import ScoreSelector
from tfrec_efficient.coreset._samples import Samples
from tfrec_efficient.coreset._samples import check_integer


class Uniform(ScoreSelector):
    """Chooses at random, every sample with the same chance.

    This is what other selectors have to beat, and with `balanced=True`, where all classes give as
    many samples, it is hard to beat. `fit` takes any of its arrays, to see how many samples there
    are.

    Args:
        size_or_fraction: How many samples to choose: an int from 1 to their number, or a float in
            `(0, 1]` for that share of them.
        balanced: bool. Whether all classes give as many samples. Defaults to False.
        seed: An integer of at least 0 that decides all draws. Defaults to 0.

    Attributes:
        indices_: int64 of shape `(chosen,)`: the chosen samples, in the order of their choice.
        scores_: float64 of shape `(samples,)`: a random number in `[0, 1)`; the smallest are first.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> labels = np.array([0, 0, 0, 0, 0, 0, 1, 1, 2, 2])
    >>> chosen = tfrec.coreset.Uniform(6, balanced=True).fit(labels=labels).indices_
    >>> np.bincount(labels[chosen])
    array([2, 2, 2])
    """

    def __init__(self, size_or_fraction: float, balanced: bool = False, seed: int = 0) -> None:
        super().__init__(size_or_fraction, balanced)
        self.seed = check_integer("seed", seed, 0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "seed": self.seed}

    def _score(self, samples: Samples) -> np.ndarray:
        return np.random.default_rng(self.seed).random(len(samples))
