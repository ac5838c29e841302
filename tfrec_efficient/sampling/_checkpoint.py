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
        self.is_required = False
        self.error: ValueError | None = None

    def save_own_variables(self, store: Any) -> None:
        for name, array in self.selector.export_state().items():
            store[name] = array

    def load_own_variables(self, store: Any) -> None:
        state = {name: np.array(store[name]) for name in store.keys()}  # noqa: SIM118 - no dict
        try:
            if "about" in state:
                self.selector.import_state(state)
                return
            if self.is_required:
                raise ValueError(
                    "`path` must be a file that was saved while a `fit` with a selector ran. "
                    f"Received: one with no state of {type(self.selector).__name__}"
                )
        except ValueError as error:
            self.error = error
            raise
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
    state = vars(model)[_NAME]
    state.is_required = True
    try:
        model.load_weights(path)
    except ValueError as error:
        raise state.error or error from None  # not in the many words of Keras
