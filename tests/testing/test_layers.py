import keras
import numpy as np
import pytest

from tfrec_efficient.testing import run_layer_test

X = np.ones((2, 3), "float32")


class Scale(keras.layers.Layer):
    """A good citizen, from which each class below takes one virtue away."""

    def __init__(self, factor=2.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), initializer="ones")

    def call(self, x):
        return x * self.scale * self.factor

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


class WithoutConfig(Scale):
    def get_config(self):
        return keras.layers.Layer.get_config(self)


class RenamesItsArgument(Scale):
    def __init__(self, factor=2.0, **kwargs):
        super().__init__(factor, **kwargs)
        self._hidden = self.__dict__.pop("factor")

    def get_config(self):
        return {**keras.layers.Layer.get_config(self), "factor": self._hidden}


class CannotLearn(Scale):
    def call(self, x):
        return x * keras.ops.stop_gradient(self.scale)


class OnlyItsRegularizerLearns(CannotLearn):
    def build(self, shape):
        self.scale = self.add_weight(
            shape=(shape[-1],), initializer="ones", regularizer=keras.regularizers.L2(0.1)
        )


class IgnoresItsDtype(Scale):
    def call(self, x):
        return keras.ops.cast(super().call(x), "float32")


class LiesAboutItsShape(Scale):
    def compute_output_shape(self, shape):
        return (*shape[:-1], shape[-1] + 1)

    def compute_output_spec(self, x):
        return keras.KerasTensor(self.compute_output_shape(x.shape), dtype=self.compute_dtype)


class ForgetsItsWeights(Scale):
    def load_own_variables(self, store):
        pass


def run(layer_class, **kwargs):
    arguments = {"expected_output_shape": (2, 3), "expected_num_weights": 1, **kwargs}
    with keras.saving.custom_object_scope({layer_class.__name__: layer_class}):
        run_layer_test(layer_class, {"factor": 3.0}, X, **arguments)


def test_a_good_citizen_passes():
    run(Scale)


@pytest.mark.parametrize(
    ("layer_class", "message"),
    [
        (WithoutConfig, "`get_config\\(\\)` lacks the argument `factor`"),
        (RenamesItsArgument, "must be kept under its own name"),
        (CannotLearn, "The output must depend on"),
        (OnlyItsRegularizerLearns, "The output must depend on"),
        (IgnoresItsDtype, "must have dtype float16"),
        (LiesAboutItsShape, "symbolic shape"),
        (ForgetsItsWeights, "Not equal to tolerance"),
    ],
)
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_each_vice_is_found(layer_class, message):
    with pytest.raises((AssertionError, ValueError), match=message):
        run(layer_class)


def test_wrong_expectations_are_found():
    with pytest.raises(AssertionError, match="Expected output shape \\(2, 4\\)"):
        run(Scale, expected_output_shape=(2, 4))
    with pytest.raises(AssertionError, match="Expected 2 trainable weights"):
        run(Scale, expected_num_weights=2)
