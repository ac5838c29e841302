"""Draws learning curves as an SVG picture, with nothing installed but Python.

from learning_curve import draw
draw("curve.svg", {"train": [0.7, 0.8], "test": [0.69, 0.74]}, "AUC")
"""

from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path

COLORS = ("#8c8c8c", "#c8102e", "#1f6fb4", "#2a9d5c")


def draw(path: str | Path, curves: Mapping[str, Sequence[float]], title: str) -> None:
    """Writes one line for each curve: a value for each epoch, from epoch 1."""
    width, height = 480, 240
    values = [value for curve in curves.values() for value in curve]
    low, high = min(values), max(values)
    epochs = max(len(curve) for curve in curves.values())

    def x(epoch: int) -> float:
        return width * (epoch - 1) / max(1, epochs - 1)

    def y(value: float) -> float:
        return height * (high - value) / ((high - low) or 1)

    parts = [f'<text x="0" y="-12" font-weight="bold">{title}</text>']
    for tick in (low, (low + high) / 2, high):
        parts.append(f'<path d="M0 {y(tick):.1f}H{width}" stroke="#ddd"/>')
        parts.append(f'<text x="-8" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.3f}</text>')
    for epoch in sorted({1, (1 + epochs) // 2, epochs}):
        parts.append(f'<text x="{x(epoch):.1f}" y="{height + 20}">{epoch}</text>')
    parts.append(f'<text x="{width / 2 - 20}" y="{height + 40}">epoch</text>')
    for (name, curve), color in zip(curves.items(), COLORS, strict=False):
        points = " ".join(f"{x(i):.1f},{y(value):.1f}" for i, value in enumerate(curve, 1))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(
            f'<text x="{x(len(curve)) + 8:.1f}" y="{y(curve[-1]) + 4:.1f}" fill="{color}">'
            f"{name} {curve[-1]:.3f}</text>"
        )
    Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-70 -40 {width + 190} {height + 100}" '
        'font-family="sans-serif" font-size="13"><rect x="-70" y="-40" width="100%" height="100%" '
        f'fill="white"/>{"".join(parts)}</svg>\n'
    )
