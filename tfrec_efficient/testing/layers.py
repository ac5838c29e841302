"""`run_layer_test`: one call that proves a Keras layer to be a good citizen."""

import json
import tempfile
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

DTYPE_POLICIES = ("float32", "mixed_float16", "mixed_bfloat16", "float64")


def run_layer_test(
    layer_class: type[keras.layers.Layer],
    init_kwargs: Mapping[str, Any],
    inputs: Any,
    expected_output_shape: tuple[int | None, ...],
    expected_num_weights: int,
    dtype_policies: Sequence[str] = DTYPE_POLICIES,
) -> None:
    """Checks that a layer configures, builds, runs, trains and saves as Keras layers do.

    In this order: the config survives JSON and gives a layer of the same config; an explicit
    build makes the expected number of weights; the symbolic shape and dtype equal those of an
    eager call; one step of `fit` changes the weights and gives a finite loss; under each dtype
    policy the output has the compute dtype; a `.keras` file and a SavedModel give back the same
    predictions.

    Args:
        layer_class: The class of the layer.
        init_kwargs: Arguments of its constructor.
        inputs: The one input of the layer, a tensor or an array with a batch dimension.
        expected_output_shape: Shape of the output for `inputs`, batch included.
        expected_num_weights: Number of trainable weights after building.
        dtype_policies: Names of the dtype policies to try. Defaults to `DTYPE_POLICIES`.

    Raises:
        AssertionError: A check failed.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> from tfrec_efficient.testing import run_layer_test
    >>> run_layer_test(
    ...     tfrec.EmbeddingBag,
    ...     {"input_dim": 10, "output_dim": 4},
    ...     inputs=np.array([[1, 2], [3, 4]]),
    ...     expected_output_shape=(2, 4),
    ...     expected_num_weights=1,
    ... )
    """
    _check_config(layer_class, init_kwargs)
    if not tf.is_tensor(inputs):
        inputs = tf.convert_to_tensor(inputs)

    layer = layer_class(**init_kwargs)
    layer.build(tuple(inputs.shape))
    assert layer.built, "`build()` must leave the layer built."
    assert len(layer.trainable_weights) == expected_num_weights, (
        f"Expected {expected_num_weights} trainable weights. "
        f"Received: {[weight.path for weight in layer.trainable_weights]}"
    )
    output = layer(inputs)
    assert tuple(output.shape) == tuple(expected_output_shape), (
        f"Expected output shape {expected_output_shape}. Received: {tuple(output.shape)}"
    )

    model = _model(layer_class, init_kwargs, inputs)
    symbolic = model.outputs[0]
    assert tuple(symbolic.shape)[1:] == tuple(expected_output_shape)[1:], (
        f"The symbolic shape {symbolic.shape} must fit the eager shape {output.shape}."
    )
    assert symbolic.dtype == keras.backend.standardize_dtype(output.dtype)

    _check_fit(model, inputs, output)
    for policy in dtype_policies:
        _check_dtype_policy(layer_class, init_kwargs, inputs, policy)
    _check_saving(model, inputs)


def _check_config(layer_class: Any, init_kwargs: Mapping[str, Any]) -> None:
    layer = layer_class(**init_kwargs)
    config = layer.get_config()
    revived = layer_class.from_config(json.loads(json.dumps(config)))
    assert revived.get_config() == config, (
        f"The config changed in a round trip: {config} became {revived.get_config()}"
    )
    for name in init_kwargs:
        assert name in config, f"`get_config()` lacks the argument `{name}`."
        assert hasattr(layer, name), f"The argument `{name}` must be kept under its own name."


def _model(layer_class: Any, init_kwargs: Mapping[str, Any], inputs: Any) -> keras.Model:
    x = keras.Input(
        inputs.shape[1:],
        dtype=keras.backend.standardize_dtype(inputs.dtype),
        ragged=isinstance(inputs, tf.RaggedTensor),
        sparse=isinstance(inputs, tf.SparseTensor),
    )
    return keras.Model(x, layer_class(**init_kwargs)(x))


def _check_fit(model: keras.Model, inputs: Any, output: Any) -> None:
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(inputs, training=True) ** 2)  # no regularizer has a part in it
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients, strict=True):
        moved = gradient is not None and np.any(_numpy(tf.convert_to_tensor(gradient)))
        assert moved, f"The output must depend on {weight.path}, and its gradient say so."
    before = [_numpy(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(1.0), "mse")
    target = np.ones(output.shape, "float32")
    data = tf.data.Dataset.from_tensors((inputs, target))
    loss = model.fit(data, shuffle=False, verbose=0).history["loss"][0]
    assert np.isfinite(loss), f"A step of `fit` must give a finite loss. Received: {loss}"
    for weight, old in zip(model.trainable_weights, before, strict=True):
        assert not np.array_equal(_numpy(weight), old), (
            f"A step of `fit` did not change {weight.path}."
        )


def _check_dtype_policy(
    layer_class: Any, init_kwargs: Mapping[str, Any], inputs: Any, policy: str
) -> None:
    layer = layer_class(**{**init_kwargs, "dtype": policy})
    output = layer(inputs)
    expected = keras.DTypePolicy(policy)
    received = keras.backend.standardize_dtype(output.dtype)
    assert received == expected.compute_dtype, (
        f"Under the policy {policy} the output must have dtype {expected.compute_dtype}. "
        f"Received: {received}"
    )
    for weight in layer.trainable_weights:
        assert weight.dtype == expected.variable_dtype, (
            f"Under the policy {policy} {weight.path} must have dtype {expected.variable_dtype}. "
            f"Received: {weight.dtype}"
        )


def _check_saving(model: keras.Model, inputs: Any) -> None:
    expected = _numpy(model(inputs))
    # A graph may sum in another order, and what nearly cancels is uncertain by the largest output.
    atol = 1e-6 * float(np.abs(expected).max())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        revived = keras.saving.load_model(path)
        np.testing.assert_allclose(_numpy(revived(inputs)), expected, 1e-6, atol)
        # Keras's own export refuses ragged inputs.
        module = tf.Module()
        module.model = model
        spec = _any_batch(tf.type_spec_from_value(inputs))
        module.serve = tf.function(lambda x: model(x), input_signature=[spec])
        tf.saved_model.save(module, str(Path(folder, "exported")))
        reloaded = tf.saved_model.load(str(Path(folder, "exported")))
        np.testing.assert_allclose(_numpy(reloaded.serve(inputs)), expected, 1e-6, atol)


def _any_batch(spec: Any) -> Any:
    shape = [None, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    return type(spec)(shape, spec.dtype)


def _numpy(output: Any) -> Any:
    if isinstance(output, tf.RaggedTensor):
        output = output.flat_values
    return keras.ops.convert_to_numpy(output)
