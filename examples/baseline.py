"""The baseline that a click model must beat."""

import numpy as np


def click_probability(keys, clicks, train, test):
    """Adds up how much each key of a row, such as its user or its item, is clicked.

    The log-odds of each key are smoothed with ten average rows, and the average is counted once.

    Args:
        keys: Arrays of ids, one for each kind of key, with one entry a row.
        clicks: 0 or 1 for each row.
        train: The rows to count clicks in.
        test: The rows to guess.

    Returns:
        The probability of a click for each row of `test`.
    """
    rate = clicks[train].mean()
    average = np.log(rate / (1 - rate))
    log_odds = (1 - len(keys)) * average
    for key in keys:
        shown = np.bincount(key[train], minlength=key.max() + 1)
        clicked = np.bincount(key[train], clicks[train], minlength=key.max() + 1)
        smoothed = (clicked + 10 * rate) / (shown + 10)
        log_odds = log_odds + np.log(smoothed / (1 - smoothed))[key[test]]
    return 1 / (1 + np.exp(-log_odds))
