"""The base class of the selectors of a coreset."""

import abc
import json
import os
from pathlib import Path
from typing import Any
from typing import ClassVar
from typing import Self

import numpy as np

from tfrec_efficient.coreset._files import replace
from tfrec_efficient.coreset._files import save_array
from tfrec_efficient.coreset._samples import Samples
from tfrec_efficient.coreset._samples import check_samples


class CoresetSelector(abc.ABC):
    """Chooses which samples to train on, from what a short training has learned about all of them.

    A selector has the shape of an estimator of scikit-learn: `fit` takes arrays with one row a
    sample, and leaves what it found in attributes that end in an underscore. What of the arrays a
    selector needs is in `requires`; `warmup_scores` makes all of them.

    A subclass is one method, `_choose`.

    Args:
        size_or_fraction: How many samples to choose: an int from 1 to their number, or a float in
            `(0, 1]` for that share of them, rounded to the nearest whole number.
        balanced: bool. Whether all classes of `labels` give as many samples, as far as they have
            them. Then `fit` needs `labels`. Defaults to False.

    Attributes:
        indices_: int64 of shape `(chosen,)`: positions of the chosen samples, in the order in which
            they were chosen. The first k of them are the choice of k samples.
        samples_: int. How many samples there were to choose from.
    """

    requires: ClassVar[tuple[str, ...]] = ()

    def __init__(self, size_or_fraction: float, balanced: bool = False) -> None:
        is_integer = isinstance(size_or_fraction, (int, np.integer))
        is_number = is_integer or isinstance(size_or_fraction, (float, np.floating))
        in_range = is_number and (
            size_or_fraction >= 1 if is_integer else 0 < size_or_fraction <= 1
        )
        if isinstance(size_or_fraction, bool) or not in_range:
            raise ValueError(
                "`size_or_fraction` must be an integer of at least 1, or a float in `(0, 1]`. "
                f"Received: size_or_fraction={size_or_fraction}"
            )
        if not isinstance(balanced, bool):
            raise ValueError(f"`balanced` must be True or False. Received: balanced={balanced}")
        self.size_or_fraction = int(size_or_fraction) if is_integer else float(size_or_fraction)
        self.balanced = balanced
        self.indices_: np.ndarray
        self.samples_: int

    @abc.abstractmethod
    def _choose(self, samples: Samples, count: int) -> np.ndarray:
        """Returns the positions of `count` of the samples, in the order of their choice.

        The arrays that `requires` names are there and have been checked, and `labels`, too, where
        the selector is balanced.
        """

    def fit(
        self,
        embeddings: Any = None,
        confidences: Any = None,
        labels: Any = None,
        probabilities: Any = None,
        forgetting_events: Any = None,
    ) -> Self:
        """Chooses the coreset. Those arrays that `requires` does not name may be left out.

        Args:
            embeddings: Real numbers of shape `(samples, dim)`: what the layer before the last one
                makes of each sample. May be memory-mapped.
            confidences: Numbers in `[0, 1]` of shape `(samples,)`: how far the model believes in
                each sample, such as the probability that it gives to the label.
            labels: Integers from 0 of shape `(samples,)`: the classes, right or wrong.
            probabilities: Numbers in `[0, 1]` of shape `(samples, classes)`.
            forgetting_events: Integers from 0 of shape `(samples,)`: how often a sample went from
                right to wrong in training; see `ForgettingCounter`.

        Returns:
            The selector.

        Raises:
            ValueError: An array breaks a rule above, one that is needed is missing, or there are
                fewer samples than asked for.
        """
        samples = check_samples(
            (*self.requires, *(["labels"] if self.balanced else [])),
            embeddings=embeddings,
            confidences=confidences,
            labels=labels,
            probabilities=probabilities,
            forgetting_events=forgetting_events,
        )
        count = self._count(len(samples))
        self.indices_ = np.asarray(self._choose(samples, count), np.int64)
        self.samples_ = len(samples)
        return self

    def _count(self, size: int) -> int:
        asked = self.size_or_fraction
        count = asked if isinstance(asked, (int, np.integer)) else round(size * asked)
        if not 1 <= count <= size:
            raise ValueError(
                f"`size_or_fraction` must ask for 1 to {size} samples, which are all that there "
                f"are. Received: size_or_fraction={asked}"
            )
        return int(count)

    def save(self, path: str | os.PathLike[str], fingerprints: Any = None) -> None:
        """Saves the choice as `path`, an `.npy` file, and a manifest of JSON beside it.

        Args:
            path: Name of the file, which must end in `.npy`. The manifest has the same name, and
                ends in `.json`.
            fingerprints: int64 of shape `(samples,)`: a hash of each sample, as `warmup_scores`
                makes it. Those of the chosen ones are saved in the order of `indices_`, so that
                `keep` can tell when it is used on other data. Defaults to None.

        Raises:
            ValueError: `fit` has not run, or an argument breaks a rule above.
        """
        if not hasattr(self, "indices_"):
            raise ValueError("Call `fit` before `save`: there is no choice yet.")
        path = Path(path)
        if path.suffix != ".npy":
            raise ValueError(f"`path` must end in `.npy`. Received: path={path}")
        chosen = None
        if fingerprints is not None:
            fingerprints = np.asarray(fingerprints)
            if fingerprints.shape != (self.samples_,) or fingerprints.dtype != np.int64:
                raise ValueError(
                    f"`fingerprints` must be int64 of shape {(self.samples_,)}. "
                    f"Received: {fingerprints.dtype} of shape {fingerprints.shape}"
                )
            chosen = [int(value) for value in fingerprints[self.indices_]]
        manifest = {
            "format": "tfrec_efficient.coreset",
            "version": 1,
            "selector": type(self).__name__,
            "config": self.get_config(),
            "samples": self.samples_,
            "chosen": len(self.indices_),
            "fingerprints": chosen,
        }
        text = json.dumps(manifest) + "\n"
        # The manifest comes last, and that of another choice goes first: where there is one, it is
        # of these indices, and they are whole.
        path.with_suffix(".json").unlink(missing_ok=True)
        save_array(path, self.indices_)
        replace(path.with_suffix(".json"), lambda temporary: temporary.write_text(text))

    def get_config(self) -> dict[str, Any]:
        """The arguments of the constructor, for JSON."""
        return {"size_or_fraction": self.size_or_fraction, "balanced": self.balanced}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Makes a selector from what `get_config` returned."""
        return cls(**config)
