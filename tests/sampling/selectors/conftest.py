"""What the tests of selectors share: selectors that have a memory, and short training."""

import inspect

import numpy as np
import pytest


def given(selector, size):
    """`selector`, of a dataset of `size` samples whose only feature is their id, all of class 0."""
    selector.dataset(np.arange(size)[:, None], np.zeros(size, int))
    return selector


def remembering(selector, losses):
    """`selector`, which knows `losses`, NaN of a sample that was never seen."""
    given(selector, len(losses)).memory.loss[:] = losses
    return selector


def predicted(selector, samples, classes):
    """`selector`, which knows of each of `samples` the predicted labels, the oldest first."""
    given(selector, len(samples))._classes = classes
    for turn in range(max(len(labels) for labels in samples)):
        ids = np.array([i for i, labels in enumerate(samples) if turn < len(labels)])
        selector.memory.append(ids, np.float32([samples[i][turn] for i in ids]))
    return selector


def assert_the_config_gives_back(selector):
    """To its constructor, with every argument under its own name."""
    kind, config = type(selector), selector.get_config()
    parameters = {
        name: parameter
        for of in kind.__mro__[:2]
        for name, parameter in inspect.signature(of).parameters.items()
        if parameter.kind != inspect.Parameter.VAR_KEYWORD
    }
    assert set(config) == set(parameters)
    for name, value in config.items():
        assert value == getattr(selector, name)
        assert value != parameters[name].default, f"a default of {name} shows nothing"
    revived = kind(**config)
    assert revived.get_config() == config
    assert {name: getattr(revived, name) for name in config} == config


def assert_refused(kind, arguments, message):
    with pytest.raises(ValueError) as error:
        kind(**arguments)
    assert str(error.value) == message


class Selectors:
    """What test modules use, which cannot import each other."""

    given = staticmethod(given)
    remembering = staticmethod(remembering)
    predicted = staticmethod(predicted)
    assert_the_config_gives_back = staticmethod(assert_the_config_gives_back)
    assert_refused = staticmethod(assert_refused)

    def __init__(self, shared):
        self._shared = shared

    def train(self, selector, epochs):
        """Some epochs of a small model; checks what every selector logs of them."""
        shared = self._shared
        model = shared.compiled(shared.small_model(), learning_rate=0.1)
        history = shared.fit(model, selector.dataset(shared.X, shared.Y), selector, epochs).history
        assert [entry["epoch"] for entry in selector.log] == list(range(1, epochs + 1))
        edges = len(selector.memory.score_edges)
        for at, entry in enumerate(selector.log):
            assert len(entry["scores"]) == edges - 1
            assert 0 < entry["share_shown"] <= 1
            for name, value in entry.items():
                assert not isinstance(value, float) or history[name][at] == value
        scores = selector.memory.scores(shared.CLASSES)
        assert sum(selector.log[-1]["scores"]) == np.sum(~np.isnan(scores)) > 0
        assert len(history["loss"]) == epochs
        return selector.log


@pytest.fixture(scope="session")
def selectors(shared):
    return Selectors(shared)
