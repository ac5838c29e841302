"""Puts a selector's state into what Keras saves of the model, while `fit` runs."""

import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

# The attribute of the model, and so the name of the group in the file.
_NAME = "batch_selector"


class _State(keras.Layer):
    """Of a layer's class, because Keras saves layers that it finds among a model's attributes."""

    def __init__(self, selector: Any) -> None:
        super().__init__(name="batch_selector_state")
        self.selector = selector

    def save_own_variables(self, store: Any) -> None:
        for name, array in self.selector.export_state().items():
            store[name] = array

    def load_own_variables(self, store: Any) -> None:
        state = {name: np.array(store[name]) for name in store.keys()}  # noqa: SIM118 - no dict
        if "about" in state:
            self.selector.import_state(state)
            return
        warnings.warn(
            f"The checkpoint has no state of {type(self.selector).__name__}, which begins anew.",
            stacklevel=2,
        )


def attach(model: keras.Model, selector: Any) -> None:
    """Has Keras save and load the state of `selector` with `model`."""
    # Past __setattr__, or the state would count as one of the model's layers.
    vars(model)[_NAME] = _State(selector)


def attached(model: keras.Model) -> Any:
    """The selector whose state Keras saves with `model`, or None."""
    state = vars(model).get(_NAME)
    return state.selector if isinstance(state, _State) else None


def detach(model: keras.Model) -> None:
    """Undoes `attach`."""
    vars(model).pop(_NAME, None)


def load(selector: Any, path: Path) -> None:
    """Reads the state of `selector` from a file with a model or its weights."""
    # Nothing of the model is wanted; Keras loads into models that have a layer.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Flatten()])
    attach(model, selector)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The checkpoint has no state")
        model.load_weights(path)
