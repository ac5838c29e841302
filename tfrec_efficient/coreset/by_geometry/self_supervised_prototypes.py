"""`SelfSupervisedPrototypes`: prefers the samples that are least like a cluster of others."""

from typing import Any

import numpy as np

from tfrec_efficient.coreset._by_class import ScoreSelector
from tfrec_efficient.coreset._samples import Samples
from tfrec_efficient.coreset._samples import check_integer
from tfrec_efficient.coreset.by_geometry._distances import squared_distances

# Rounds of k-means; most samples have found their cluster long before.
_ROUNDS = 50


class SelfSupervisedPrototypes(ScoreSelector):
    """Chooses the samples that lie farthest from their prototype, the mean of a cluster.

    Clusters are those of k-means over all embeddings, whatever the labels: k-means++ at first, and
    then at most 50 rounds. Samples near a prototype are easy and alike, those far from one are
    hard. The paper finds that a model learns more from easy ones where the data were few to begin
    with. Distances are Euclidean.

    Args:
        size_or_fraction: How many samples to choose: an int from 1 to their number, or a float in
            `(0, 1]` for that share of them.
        balanced: bool. Whether all classes give as many samples. The clusters are of all classes.
            Defaults to False.
        prototypes: How many clusters, from 1 to the number of samples. The paper has about as many
            as there are classes. Defaults to 100.
        seed: An integer of at least 0 that decides where k-means begins. Defaults to 0.

    Attributes:
        indices_: int64 of shape `(chosen,)`: the chosen samples, in the order of their choice.
        scores_: float64 of shape `(samples,)`: the distance to the nearest prototype; the largest
            are first.

    Raises:
        ValueError: An argument breaks a rule above.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> embeddings = np.array([[0.0], [1.0], [2.0], [40.0], [50.0]])
    >>> selector = tfrec.coreset.SelfSupervisedPrototypes(3, prototypes=2)
    >>> selector.fit(embeddings=embeddings).indices_, selector.scores_
    (array([3, 4, 0]), array([1., 0., 1., 5., 5.]))

    References:
        - Sorscher et al., "Beyond neural scaling laws: beating power law scaling via data pruning",
          NeurIPS 2022, the self-supervised metric. Their embeddings are of a model trained without
          labels, here they are what `fit` is given.
        - Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding", SODA 2007,
          section 2.2.
    """

    largest_first = True
    requires = ("embeddings",)

    def __init__(
        self,
        size_or_fraction: float,
        balanced: bool = False,
        prototypes: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(size_or_fraction, balanced)
        self.prototypes = check_integer("prototypes", prototypes, 1)
        self.seed = check_integer("seed", seed, 0)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "prototypes": self.prototypes, "seed": self.seed}

    def _score(self, samples: Samples) -> np.ndarray:
        embeddings = samples.need("embeddings")
        if self.prototypes > len(embeddings):
            raise ValueError(
                f"`prototypes` must be at most {len(embeddings)}, the number of samples. "
                f"Received: prototypes={self.prototypes}"
            )
        prototypes = self._first_prototypes(embeddings)
        nearest = np.full(len(embeddings), -1)
        squares = np.empty(len(embeddings))
        for _ in range(_ROUNDS):
            before = nearest.copy()
            sums = np.zeros_like(prototypes)
            for rows, to_all in squared_distances(embeddings, prototypes):
                nearest[rows] = to_all.argmin(axis=1)
                squares[rows] = to_all.min(axis=1)
                is_member = nearest[rows] == np.arange(len(prototypes))[:, np.newaxis]
                sums += is_member.astype(np.float64) @ embeddings[rows].astype(np.float64)
            if np.array_equal(nearest, before):
                break
            sizes = np.bincount(nearest, minlength=len(prototypes))[:, np.newaxis]
            # A cluster that lost all its samples stays where it is.
            prototypes = np.where(sizes, sums / np.maximum(sizes, 1), prototypes)
        return np.sqrt(squares)

    def _first_prototypes(self, embeddings: np.ndarray) -> np.ndarray:
        """Samples drawn one by one, with chances as the squared distance to those drawn before.

        They are fewer than `prototypes` where fewer samples are different.
        """
        rng = np.random.default_rng(self.seed)
        drawn = [int(rng.integers(len(embeddings)))]
        squares = np.full(len(embeddings), np.inf)
        while len(drawn) < self.prototypes:
            latest = embeddings[drawn[-1:]].astype(np.float64)
            for rows, to_latest in squared_distances(embeddings, latest):
                np.minimum(squares[rows], to_latest[:, 0], out=squares[rows])
            cumulated = np.cumsum(squares)
            if cumulated[-1] == 0:
                break
            point = rng.random() * cumulated[-1]
            drawn.append(int(np.searchsorted(cumulated[:-1], point, side="right")))
        return embeddings[drawn].astype(np.float64)
