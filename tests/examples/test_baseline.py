import importlib.util
from pathlib import Path

import numpy as np

EXAMPLE = Path(__file__).parents[2] / "examples" / "baseline.py"


def test_rates_are_smoothed_and_added_up():
    spec = importlib.util.spec_from_file_location("baseline", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    user, item = np.array([0, 0, 1, 1, 0, 2]), np.array([0, 1, 0, 1, 1, 2])
    clicks = np.array([1.0, 0.0, 1.0, 0.0, 1.0, 1.0])
    train, test = np.arange(4), np.array([4, 5])
    guess = module.click_probability((user, item), clicks, train, test)
    # Half of all are clicks, so the average has log-odds of 0. User 0 is half of the time, item 1
    # never: (0 + 5) / (2 + 10) = 5/12, odds of 5/7. User 2 and item 2 are new.
    np.testing.assert_allclose(guess, [5 / 12, 1 / 2])
