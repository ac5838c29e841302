"""`PimMonitor`: what a processing-in-memory device would have done in `fit`."""

from typing import Any

import keras

from tfrec_efficient.pim.pim_embedding_bag import PimEmbeddingBag
from tfrec_efficient.pim.pim_report import PimReport
from tfrec_efficient.pim.pim_report import plot_roofline
from tfrec_efficient.pim.pim_report import summary_table


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class PimMonitor(keras.callbacks.Callback):
    """Adds up the reports of each `PimEmbeddingBag` over `fit`, and shows them at its end.

    `reports` has them afterwards: for each layer by name, its `reports()`. Where nested
    models have two of one name, the second is `"name (2)"`.

    Args:
        path: Where to save a picture of the roofline, or None. Defaults to None.
        verbose: int. 1 prints the table, 0 does not. Defaults to 1.

    Raises:
        ValueError: The model has no `PimEmbeddingBag`, or layers on different devices.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> monitor = tfrec.pim.PimMonitor("roofline.svg")
    >>> # model.fit(dataset, callbacks=[monitor])
    """

    def __init__(self, path: Any = None, verbose: int = 1) -> None:
        super().__init__()
        self.path = path
        self.verbose = verbose
        self.reports: dict[str, dict[str, PimReport]] = {}
        self._layers: list[PimEmbeddingBag] = []

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        layers = self.model._flatten_layers()
        self._layers = [layer for layer in layers if isinstance(layer, PimEmbeddingBag)]
        devices = list(dict.fromkeys(layer.device for layer in self._layers))
        if len(devices) != 1:
            raise ValueError(
                "PimMonitor needs a model with `PimEmbeddingBag` layers on one device. "
                f"Received: {self.model.name!r}, with {[device.name for device in devices]}"
            )
        for layer in self._layers:
            if layer.built:
                layer.reset_reports()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        self.reports = {}
        for layer in self._layers:
            name, number = layer.name, 1
            while name in self.reports:
                number += 1
                name = f"{layer.name} ({number})"
            self.reports[name] = layer.reports()
        lines = {
            f"{name} {kind}": report
            for name, of_layer in self.reports.items()
            for kind, report in of_layer.items()
        }
        total, *others = lines.values()
        for report in others:
            total += report
        device = self._layers[0].device
        if self.verbose:
            print(f"\n{device.name}, modelled; nothing of it was measured:")
            print(summary_table({**lines, "all": total}))
        if self.path is not None:
            plot_roofline(device, {**lines, "all": total}, self.path)

    def get_config(self) -> dict[str, Any]:
        return {"path": None if self.path is None else str(self.path), "verbose": self.verbose}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "PimMonitor":
        return cls(**config)
