import numpy as np
import pytest

from tfrec_efficient.sampling._arguments import check
from tfrec_efficient.sampling._arguments import check_integer
from tfrec_efficient.sampling._arguments import decayed


@pytest.mark.parametrize("value", [0, 1.0, 1.5, "1", True, None, np.float32(1)])
def test_an_integer_must_be_one_and_large_enough(value):
    with pytest.raises(ValueError, match="^`epochs` must be an integer of at least 1. Received: "):
        check_integer("epochs", value, 1)


@pytest.mark.parametrize("value", [1, 7, np.int64(1), np.uint8(200)])
def test_integers_of_numpy_are_integers(value):
    check_integer("epochs", value, 1)


def test_an_error_names_argument_rule_and_value():
    check("size", 3, True, "odd")
    with pytest.raises(ValueError, match="^`size` must be odd. Received: size=4$"):
        check("size", 4, False, "odd")


def test_the_pressure_falls_as_the_paper_says():
    """Worked by hand for 100 that falls to 1 from epoch 10 to 100 (section 1.2 of the program)."""
    found = [decayed(100.0, epoch, 10, 100) for epoch in (11, 25, 50, 75, 100)]
    np.testing.assert_allclose(found, [95.01, 46.42, 12.92, 3.59, 1.0], atol=0.005)
    for epoch in range(11, 101):
        by_formula = 100 * np.exp(np.log(1 / 100) / (100 - 10)) ** (epoch - 10)
        assert decayed(100.0, epoch, 10, 100) == pytest.approx(by_formula)
    assert [decayed(100.0, epoch, 10, 100) for epoch in (1, 10, 101, 500)] == [1.0] * 4
