"""The picture of a selector's log."""

import xml.etree.ElementTree

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest

import tfrec_efficient as tfrec
from tfrec_efficient.sampling import ActiveBias
from tfrec_efficient.sampling import SelfPaced


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved = []
    save = matplotlib.figure.Figure.savefig

    def savefig(self, *args, **kwargs):
        saved.append(self)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return saved


def trained(shared, selector, epochs=3):
    model = shared.compiled(shared.small_model(), 0.5)
    shared.fit(model, selector.dataset(shared.X, shared.Y), selector, epochs)
    return selector


SELECTORS = {
    "uncertainty": lambda: tfrec.RecencyBias(batch_size=10, epochs=4, warmup_epochs=1),
    "loss": lambda: SelfPaced(batch_size=10, epochs=4),
    "standard deviation": lambda: ActiveBias(batch_size=10, warmup_epochs=1),
}


@pytest.mark.parametrize("score", SELECTORS)
def test_the_picture_shows_what_was_logged(score, shared, tmp_path, figures):
    selector = trained(shared, SELECTORS[score]())
    selector.plot(tmp_path / "selection.svg")
    [figure] = figures
    spread, shares, hardest, *bars = figure.axes
    assert len(bars) == 1  # the colours' own

    counts = np.array([entry["scores"] for entry in selector.log]).T
    [image] = spread.images
    np.testing.assert_allclose(image.get_array(), counts / counts.sum(axis=0))
    assert spread.get_ylabel() == score
    assert len(spread.get_yticklabels()) == len(selector.memory.score_edges)
    assert spread.get_xlim() == (0.5, 3.5)

    names = [name for name in selector.log[0] if name.startswith("share_")]
    assert [f"share_{line.get_label()}" for line in shares.lines] == names
    for line, name in zip(shares.lines, names, strict=True):
        assert line.get_xdata().tolist() == [1, 2, 3]
        assert line.get_ydata().tolist() == [entry[name] for entry in selector.log]

    ids = [int(label.get_text()) for label in hardest.get_yticklabels()]
    assert ids[::-1] == selector.hardest(20).tolist()  # the worst on top
    hardness = selector.memory.hardness(selector.labels)
    widths = [bar.get_width() for bar in hardest.patches]
    np.testing.assert_allclose(widths, hardness[ids])


def test_pictures_are_svg_and_png_and_nothing_else_is_left(shared, tmp_path):
    selector = trained(shared, SELECTORS["uncertainty"](), epochs=1)
    selector.plot(str(tmp_path / "selection.svg"))
    selector.plot(tmp_path / "selection.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["selection.png", "selection.svg"]
    root = xml.etree.ElementTree.parse(tmp_path / "selection.svg").getroot()
    assert root.tag.endswith("svg")
    assert matplotlib.image.imread(tmp_path / "selection.png").shape[:2] == (360, 1200)


def test_a_picture_needs_an_epoch(shared, tmp_path):
    selector = SELECTORS["uncertainty"]()
    selector.dataset(shared.X, shared.Y)
    message = "There is nothing to draw before the first epoch has ended."
    with pytest.raises(RuntimeError, match=message):
        selector.plot(tmp_path / "selection.svg")
    assert not list(tmp_path.iterdir())
