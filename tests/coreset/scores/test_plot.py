"""The picture and the summaries of a choice show what NumPy makes of it."""

import xml.etree.ElementTree

import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient import coreset
from tfrec_efficient.coreset.coreset_selector import CoresetSelector
from tfrec_efficient.coreset.scores.warmup_scores import WarmupScores


class Given(CoresetSelector):
    """Chooses what it is told to, and has the gains that it is given."""

    def __init__(self, indices, gains=None):
        super().__init__(len(indices))
        self.indices = np.array(indices)
        if gains is not None:
            self.gains_ = np.array(gains, float)

    def _choose(self, samples, count):
        return self.indices


def made(size=60, classes=3, seed=0):
    """Scores of which about half of the labels are not the most probable class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, size)
    logits = np.eye(classes)[labels] + rng.normal(size=(size, classes))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    probabilities = probabilities.astype("float32")
    embeddings = (3 + rng.normal(size=(size, 5))).astype("float32")
    prints = rng.integers(0, 2**62, size)
    return WarmupScores(embeddings, probabilities, probabilities.max(axis=1), labels, prints)


def chosen(scores, indices, gains=None):
    return scores.fit(Given(indices, gains))


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


@pytest.fixture
def drawn(figures, tmp_path):
    """Draws a choice, and returns the title and the three axes."""

    def draw(scores, selector):
        scores.plot(selector, tmp_path / "coreset.svg")
        return figures[-1].get_suptitle(), *figures[-1].axes

    return draw


def stairs(axes):
    return {patch.get_label(): patch.get_data() for patch in axes.patches}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


# ---- The picture.


def test_confidences_of_the_kept_and_the_dropped_are_shares(drawn):
    scores = made()
    kept = [50, 3, 17, 8, 20]
    title, axes, _, _ = drawn(scores, chosen(scores, kept))
    assert title == "Given: 5 of 60 samples kept"
    found = stairs(axes)
    assert list(found) == legend(axes) == ["5 kept", "55 dropped"]
    for label, is_of in (("5 kept", np.isin(range(60), kept)),
                         ("55 dropped", ~np.isin(range(60), kept))):  # fmt: skip
        edges = found[label].edges
        assert edges[0] == 0
        assert edges[-1] == 1
        places = np.floor(scores.label_confidences[is_of] * (len(edges) - 1)).astype(int)
        shares = [(places == place).mean() for place in range(len(edges) - 1)]
        np.testing.assert_allclose(found[label].values, shares)


def test_a_confidence_of_one_is_shown(drawn):
    sure = np.eye(3, dtype="float32")[[0, 1, 2, 0]]
    scores = WarmupScores(sure, sure, sure.max(axis=1), np.arange(4) % 3, np.arange(4))
    _, axes, _, _ = drawn(scores, chosen(scores, [0, 3]))
    assert [patch.values.sum() for patch in stairs(axes).values()] == [1, 1]


def test_shares_of_classes_stand_side_by_side(drawn):
    scores = made(classes=4)
    kept = [50, 3, 17, 8, 20]
    _, _, axes, _ = drawn(scores, chosen(scores, kept))
    for bars, label, labels in zip(
        axes.containers, ["all", "kept"], [scores.labels, scores.labels[kept]], strict=True
    ):
        assert bars.get_label() == label
        shares = [(labels == number).mean() for number in range(4)]
        np.testing.assert_allclose([bar.get_height() for bar in bars], shares)
    assert legend(axes) == ["all", "kept"]
    centres = [[bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in axes.containers]
    np.testing.assert_allclose(np.mean(centres, axis=0), range(4))
    np.testing.assert_allclose(np.subtract(*centres), -axes.containers[0][0].get_width())
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1", "2", "3"]


def test_many_classes_leave_the_axis_readable(drawn):
    scores = made(size=5000, classes=1000)
    kept = np.arange(0, 5000, 7)
    _, _, axes, _ = drawn(scores, chosen(scores, kept))
    assert len(axes.get_xticklabels()) < 12
    assert axes.get_xlabel() == "1,000 classes, the largest first"
    counts = np.bincount(scores.labels, minlength=1000)
    order = sorted(range(1000), key=lambda number: (-counts[number], number))
    of_kept = np.bincount(scores.labels[kept], minlength=1000) / len(kept)
    found = stairs(axes)
    assert list(found) == legend(axes) == ["kept", "all"]
    np.testing.assert_allclose(found["all"].values, counts[order] / 5000)
    np.testing.assert_allclose(found["kept"].values, of_kept[order])


def test_the_kept_have_one_colour_and_no_legend_hides_them(drawn):
    scores = made()
    _, confidences, classes, _ = drawn(scores, chosen(scores, [50, 3, 17, 8, 20]))
    kept, dropped = (patch.get_facecolor()[:3] for patch in confidences.patches)
    assert classes.containers[1][0].get_facecolor()[:3] == kept != dropped
    for axes in (confidences, classes):
        box = axes.get_legend().get_window_extent().transformed(axes.transData.inverted())
        highest = max(
            patch.get_data().values.max() if hasattr(patch, "get_data") else patch.get_height()
            for patch in axes.patches
        )
        assert highest < box.y0


@pytest.mark.parametrize("classes", [2, 20, 21])
def test_classes_without_samples_are_shown(classes, drawn):
    scores = made(size=3, classes=classes)
    _, _, axes, _ = drawn(scores, chosen(scores, [1]))
    values = (
        [bar.get_height() for bar in axes.containers[1]]
        if axes.containers
        else stairs(axes)["kept"].values
    )
    assert sorted(values) == [0] * (classes - 1) + [1]


def test_gains_are_shown_in_the_order_of_choice(drawn):
    scores = made()
    selector = scores.fit(coreset.Prune4Rel(40, verbose=0))
    title, _, _, axes = drawn(scores, selector)
    assert title == "Prune4Rel: 40 of 60 samples kept"
    [line] = axes.lines
    assert line.get_xdata().tolist() == list(range(1, 41))
    np.testing.assert_allclose(line.get_ydata(), selector.gains_)
    assert axes.get_yscale() == "log"
    assert axes.get_title() == "gain of each pick"


def test_a_long_line_of_gains_is_thinned_to_means(drawn):
    scores = made(size=4001)
    gains = np.geomspace(100, 1e-9, 4001) * (1 + np.arange(4001) % 2)  # as two classes take turns
    _, _, _, axes = drawn(scores, chosen(scores, range(4001), gains))
    [line] = axes.lines
    picks, values = line.get_xdata(), line.get_ydata()
    assert len(picks) == 300
    assert line.get_marker() in (None, "None", "")
    # A point in the middle of its picks: 1, 2, ... 13; 14, ... 26; and so on.
    begin = 0
    for pick, value in zip(picks, values, strict=True):
        end = round(2 * pick - 1 - begin)
        assert end - begin in (13, 14)
        assert value == pytest.approx(sum(gains[begin:end]) / (end - begin))
        begin = end
    assert begin == 4001


@pytest.mark.parametrize("gains", [[0.0, 0.0, 0.0], [1.0, 0.1, 0.0]])
def test_gains_that_have_underflowed_are_no_error(gains, drawn):
    scores = made()
    _, _, _, axes = drawn(scores, chosen(scores, [5, 3, 9], gains))
    assert axes.lines[0].get_ydata().tolist() == gains
    assert axes.get_yscale() == ("log" if gains[0] else "linear")


@pytest.mark.parametrize("count", [1, 40, 1000])
def test_without_gains_the_mean_probability_of_the_labels_is_shown(count, drawn):
    scores = made(size=1000)
    kept = np.random.default_rng(1).permutation(1000)[:count]
    _, _, _, axes = drawn(scores, chosen(scores, kept))
    [line] = axes.lines
    picks = line.get_xdata().tolist()
    assert len(picks) == len(set(picks)) == min(count, 300)
    assert picks[-1] == count
    of_labels = [scores.probabilities[row, scores.labels[row]] for row in kept]
    means = [np.mean(of_labels[:pick], dtype=float) for pick in picks]
    np.testing.assert_allclose(line.get_ydata(), means, rtol=1e-6)
    assert axes.get_title() == "probability of the label"


@pytest.mark.parametrize("gains", [False, True])
def test_one_sample_can_be_kept(gains, drawn):
    scores = made()
    title, confidences, _, axes = drawn(scores, chosen(scores, [7], [0.5] if gains else None))
    assert title == "Given: 1 of 60 samples kept"
    assert stairs(confidences)["1 kept"].values.sum() == 1
    [line] = axes.lines
    assert line.get_marker() == "."  # a line of one point cannot be seen


@pytest.mark.parametrize("size", [1, 60])
def test_everything_can_be_kept(size, drawn):
    scores = made(size)
    _, confidences, _, _ = drawn(scores, chosen(scores, range(size)))
    assert legend(confidences) == [f"{size} kept", "0 dropped"]
    assert stairs(confidences)["0 dropped"].values.sum() == 0


SELECTORS = [
    kind
    for kind in vars(coreset).values()
    if isinstance(kind, type) and issubclass(kind, CoresetSelector) and kind is not CoresetSelector
]


@pytest.mark.parametrize("kind", SELECTORS, ids=lambda kind: kind.__name__)
def test_every_selector_has_a_picture(kind, drawn):
    scores = made(200)
    arguments = {"verbose": 0} if kind is coreset.Prune4Rel else {}
    selector = scores.fit(kind(0.25, **arguments), forgetting_events=np.arange(200))
    title, *axes = drawn(scores, selector)
    assert title == f"{kind.__name__}: 50 of 200 samples kept"
    assert len(axes) == 3


def test_pictures_are_svg_and_png_and_nothing_else_is_left(tmp_path):
    scores = made()
    selector = chosen(scores, [1, 2])
    scores.plot(selector, str(tmp_path / "coreset.svg"))
    scores.plot(selector, tmp_path / "coreset.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["coreset.png", "coreset.svg"]
    root = xml.etree.ElementTree.parse(tmp_path / "coreset.svg").getroot()
    assert root.tag.endswith("svg")
    assert matplotlib.image.imread(tmp_path / "coreset.png").shape[:2] == (360, 1200)


def test_a_picture_that_fails_leaves_the_one_before(tmp_path, monkeypatch):
    scores = made()
    selector = chosen(scores, [1, 2])
    scores.plot(selector, tmp_path / "coreset.svg")
    before = (tmp_path / "coreset.svg").read_bytes()

    def fail(self, path, **kwargs):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        scores.plot(selector, tmp_path / "coreset.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["coreset.svg"]
    assert (tmp_path / "coreset.svg").read_bytes() == before


# ---- The summaries.


def summaries(folder):
    """Values by name, all of which must be of step 0."""
    from tensorflow.core.util import event_pb2

    found = {}
    [path] = folder.iterdir()
    for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
        event = event_pb2.Event.FromString(record)
        for value in event.summary.value:
            assert event.step == 0
            assert value.tag not in found
            found[value.tag] = tf.make_ndarray(value.tensor)
    return found


def of_group(scores, name, rows):
    """The scalars of some samples."""
    own = [scores.probabilities[row, scores.labels[row]] for row in rows]
    best = [scores.probabilities[row].max() for row in rows]
    return {
        f"mean_confidence_{name}": np.mean(own, dtype=float),
        f"labels_doubted_{name}": np.mean([a < b for a, b in zip(own, best, strict=True)]),
    }


@pytest.mark.parametrize("on_disk", [False, True])
def test_tensorboard_gets_two_histograms_and_every_figure(on_disk, tmp_path):
    scores = made()
    if on_disk:
        for name, array in vars(scores).items():
            np.save(tmp_path / f"{name}.npy", array)
        scores = WarmupScores(
            **{name: np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in vars(scores)}
        )
    kept = [50, 3, 17, 8, 20]
    scores.log(chosen(scores, kept), tmp_path / "log")
    found = summaries(tmp_path / "log")
    dropped = [row for row in range(60) if row not in kept]
    for name, rows in (("kept", kept), ("dropped", dropped)):
        histogram = found.pop(f"confidence_{name}")  # rows of left, right, count
        assert histogram[:, 2].sum() == len(rows)
        assert histogram[0, 0] == pytest.approx(scores.label_confidences[rows].min())
        assert histogram[-1, 1] == pytest.approx(scores.label_confidences[rows].max())
    expected = of_group(scores, "kept", kept) | of_group(scores, "dropped", dropped)
    assert found == {name: pytest.approx(value) for name, value in expected.items()} | {
        "share_kept": pytest.approx(5 / 60)
    }
    # Or the test could not tell one from the other.
    assert len({round(float(value), 6) for value in found.values()}) == 5
    assert 0 < found["labels_doubted_kept"] < 1


def test_nothing_is_written_of_the_dropped_where_there_are_none(tmp_path):
    scores = made()
    scores.log(chosen(scores, range(60)), str(tmp_path))
    found = summaries(tmp_path)
    assert found.pop("confidence_kept")[:, 2].sum() == 60
    expected = of_group(scores, "kept", range(60)) | {"share_kept": 1.0}
    assert found == {name: pytest.approx(value) for name, value in expected.items()}


def test_one_sample_is_logged(tmp_path):
    scores = made()
    scores.log(chosen(scores, [7]), tmp_path)
    found = summaries(tmp_path)
    assert found["confidence_kept"][:, 2].sum() == 1
    assert found["mean_confidence_kept"] == pytest.approx(scores.label_confidences[7])


# ---- Errors.


SMALL = made(7)
ERRORS = {
    "`selector` must be a `CoresetSelector`. Received: selector=prune4rel": (SMALL, "prune4rel"),
    "`selector` must be a `CoresetSelector`. Received: selector=<class 'tfrec_efficient.coreset"
    ".by_score.uniform.Uniform'>": (SMALL, coreset.Uniform),
    "`selector` must be fitted before. Received: a Uniform that was not fitted": (
        SMALL,
        coreset.Uniform(3),
    ),
    "`selector` must be fitted to the samples of these scores, which are 7. Received: a Given that "
    "was fitted to 60": (SMALL, chosen(made(), [1])),
    "`labels` must be at least 0. Received: labels[0]=-1": (
        WarmupScores(SMALL.embeddings, SMALL.probabilities, SMALL.confidences, SMALL.labels * 0 - 1,
                     SMALL.fingerprints),
        chosen(SMALL, [1]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", ERRORS)
@pytest.mark.parametrize("method", ["plot", "log"])
def test_errors(method, message, tmp_path):
    scores, selector = ERRORS[message]
    with pytest.raises(ValueError) as error:
        getattr(scores, method)(selector, tmp_path / "coreset.svg")
    assert str(error.value) == message
    assert not list(tmp_path.iterdir())
