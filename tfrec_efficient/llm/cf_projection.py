"""`CFProjection`: a Keras layer from collaborative-filtering vectors to soft tokens."""

from typing import Any

import keras

from tfrec_efficient.embedding._bag_layer import check_sizes


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class CFProjection(keras.layers.Layer):
    """Maps collaborative-filtering vectors to soft tokens of a language model.

    A soft token is a vector of the width of the model's token embeddings that stands in a prompt
    where a token would. The map of a vector `v` of shape `(..., d)` is

        `Dense(width)(activation(LayerNormalization(Dense(width)(v))))`, of shape `(..., width)`

    with the leaky ReLU (slope 0.01) for the states of users and the GELU for items in the paper.
    With `rms`, what comes out is scaled to that root mean square: a language model reads tokens of
    the size of its own embeddings, and Glorot's initializer gives tokens about twenty times as
    large as those of SmolLM2-135M.

    Args:
        width: int. The width of the language model's token embeddings.
        activation: `"gelu"`, `"leaky_relu"`, or any activation of Keras. Defaults to `"gelu"`.
        rms: float or None. Root mean square of each soft token. None scales nothing, as published.
            Defaults to None.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        vectors: Floating point tensor of shape `(..., d)`, of any width `d`.

    Raises:
        ValueError: `width` is no positive integer or `rms` no positive number.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> tfrec.CFProjection(576)(np.ones((2, 10, 64))).shape
    TensorShape([2, 10, 576])

    References:
        - Kim et al., "Large Language Models meet Collaborative Filtering: An Efficient All-round
          LLM-based Recommender System", KDD 2024, section 4.2 (F_U and F_I). `rms` is ours.
    """

    def __init__(
        self, width: int, activation: Any = "gelu", rms: float | None = None, **kwargs: Any
    ) -> None:
        check_sizes(width=width)
        if rms is not None and not 0 < rms < float("inf"):
            raise ValueError(f"`rms` must be a positive number or None. Received: rms={rms!r}")
        super().__init__(**kwargs)
        self.width = width
        self.activation = _activation(activation)
        self.rms = rms
        self._expand = keras.layers.Dense(
            width, kernel_initializer="glorot_normal", dtype=self.dtype_policy, name="expand"
        )
        self._normalize = keras.layers.LayerNormalization(
            epsilon=1e-5, dtype=self.dtype_policy, name="normalize"
        )
        self._project = keras.layers.Dense(
            width, kernel_initializer="glorot_normal", dtype=self.dtype_policy, name="project"
        )

    def build(self, vectors_shape: Any) -> None:
        hidden_shape = (*vectors_shape[:-1], self.width)
        self._expand.build(vectors_shape)
        self._normalize.build(hidden_shape)
        self._project.build(hidden_shape)
        self.built = True

    def call(self, vectors: Any) -> Any:
        tokens = self._project(self.activation(self._normalize(self._expand(vectors))))
        if self.rms is None:
            return tokens
        # In float32: the squares of small half-precision numbers vanish.
        wide = keras.ops.cast(tokens, "float32")
        square = keras.ops.mean(keras.ops.square(wide), axis=-1, keepdims=True)
        return keras.ops.cast(wide * (self.rms * keras.ops.rsqrt(square + 1e-12)), tokens.dtype)

    def compute_output_shape(self, vectors_shape: Any) -> Any:
        return (*vectors_shape[:-1], self.width)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            width=self.width,
            activation=keras.activations.serialize(self.activation),
            rms=self.rms,
        )
        return config


@keras.saving.register_keras_serializable(package="tfrec_efficient")
def _leaky_relu(x: Any) -> Any:
    # Keras's own default slope is 0.2; the paper's code keeps PyTorch's.
    return keras.ops.leaky_relu(x, negative_slope=0.01)


def _activation(activation: Any) -> Any:
    if activation == "leaky_relu":
        return _leaky_relu
    if activation == "gelu":
        return _gelu
    return keras.activations.get(activation)


@keras.saving.register_keras_serializable(package="tfrec_efficient")
def _gelu(x: Any) -> Any:
    return keras.ops.gelu(x, approximate=False)
