import keras
import numpy as np
import pytest

import tfrec_efficient as tfrec
from tfrec_efficient.pim import PimEmbeddingBag
from tfrec_efficient.pim import PimMonitor

DEVICE = tfrec.PimDevice.recnmp()


def model_of(*devices):
    inputs = [keras.Input((3,), dtype="int64") for _ in devices]
    pooled = [
        PimEmbeddingBag(10, 16, device, table_number=n, name=f"table_{n}")(x)
        for n, (device, x) in enumerate(zip(devices, inputs, strict=True))
    ]
    x = keras.layers.Dense(1)(keras.layers.concatenate(pooled) if len(pooled) > 1 else pooled[0])
    model = keras.Model(inputs, x)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def fit(model, monitor, epochs=1):
    ids = [np.random.default_rng(0).integers(0, 10, (8, 3)) for _ in model.inputs]
    model.fit(ids, np.ones((8, 1)), batch_size=4, epochs=epochs, verbose=0, callbacks=[monitor])
    return ids


def test_reports_of_all_layers_are_added_up_printed_and_drawn(capsys, tmp_path):
    monitor = PimMonitor(tmp_path / "roofline.svg")
    fit(model_of(DEVICE, DEVICE), monitor, epochs=2)
    assert list(monitor.reports) == ["table_0", "table_1"]
    forward = monitor.reports["table_0"]["forward"]
    assert int(np.sum(forward.lookups)) == 2 * 8 * 3
    printed = capsys.readouterr().out
    assert "RecNMP, modelled; nothing of it was measured:" in printed
    lines = [line.split("  ")[0] for line in printed.splitlines()[3:]]
    kinds = ("forward", "backward", "update")
    assert lines == [f"{name} {kind}" for name in monitor.reports for kind in kinds] + ["all"]
    assert (tmp_path / "roofline.svg").read_text().startswith("<?xml")


def test_each_fit_begins_anew_and_silence_is_possible(capsys):
    model, monitor = model_of(DEVICE), PimMonitor(verbose=0)
    for _ in range(2):
        fit(model, monitor)
        assert int(np.sum(monitor.reports["table_0"]["forward"].lookups)) == 8 * 3
    assert capsys.readouterr().out == ""


def test_layers_of_one_name_are_all_reported():
    inputs = [keras.Input((3,), dtype="int64") for _ in range(2)]
    parts = [
        keras.Sequential(
            [keras.Input((3,), dtype="int64"), PimEmbeddingBag(10, 16, DEVICE, name="x")]
        )
        for _ in inputs
    ]
    model = keras.Model(
        inputs, keras.layers.add([part(x) for part, x in zip(parts, inputs, strict=True)])
    )
    model.compile("sgd", "mse")
    monitor = PimMonitor(verbose=0)
    fit(model, monitor)
    assert list(monitor.reports) == ["x", "x (2)"]


def test_a_model_without_a_device_or_with_two_is_refused():
    with pytest.raises(ValueError, match=r"on one device. Received: .*, with \['RecNMP', 'Tensor"):
        fit(model_of(DEVICE, tfrec.PimDevice.tensordimm()), PimMonitor())
    model = keras.Sequential([keras.Input((3,), dtype="int64"), tfrec.EmbeddingBag(10, 4)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=r"PimMonitor needs a model with `PimEmbeddingBag` layers"):
        model.fit(np.zeros((4, 3), int), np.ones((4, 4)), verbose=0, callbacks=[PimMonitor()])


def test_the_config_survives():
    monitor = PimMonitor.from_config(PimMonitor("a.svg", verbose=0).get_config())
    assert (monitor.path, monitor.verbose) == ("a.svg", 0)
