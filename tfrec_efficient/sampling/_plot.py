"""Draws what a selector logged."""

from pathlib import Path
from typing import Any

import numpy as np

_HARDEST = 20


def draw(selector: Any, path: Path) -> None:
    """Writes a picture: scores over epochs, figures over epochs, and the hardest samples."""
    if not selector.log:
        raise RuntimeError("There is nothing to draw before the first epoch has ended.")
    import matplotlib.figure

    memory, log = selector.memory, selector.log
    epochs = [entry["epoch"] for entry in log]
    figure = matplotlib.figure.Figure(figsize=(12, 3.6), layout="constrained")
    spread, shares, hardest = figure.subplots(1, 3)

    counts = np.array([entry["scores"] for entry in log], float).T
    counts /= np.maximum(counts.sum(axis=0), 1)
    image = spread.imshow(
        counts,
        origin="lower",
        aspect="auto",
        extent=(epochs[0] - 0.5, epochs[-1] + 0.5, 0, len(counts)),
    )
    spread.set_yticks(range(len(counts) + 1), [f"{edge:.3g}" for edge in memory.score_edges])
    spread.set(xlabel="epoch", ylabel=memory.score_name, title=f"{memory.score_name} of samples")
    figure.colorbar(image, ax=spread, label="share")

    for name in log[-1]:
        if name.startswith("share_"):
            values = [entry[name] for entry in log]
            shares.plot(epochs, values, marker=".", label=name.removeprefix("share_"))
    shares.set(xlabel="epoch", ylabel="share of samples", ylim=(0, 1.02), title="shares")
    shares.legend()

    ids = selector.hardest(_HARDEST)
    hardness = memory.hardness(selector.labels)[ids]
    hardest.barh([f"{sample}" for sample in ids[::-1]], hardness[::-1])
    hardest.tick_params(axis="y", labelsize="x-small")
    every = memory.hardness(selector.labels)
    as_hard = int((every >= hardness.min()).sum()) if len(ids) else 0
    hardest.set(xlabel="hardness", ylabel="id", title=f"{len(ids)} of the hardest {as_hard}")
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format=path.suffix.lstrip(".") or "svg")
    temporary.replace(path)
