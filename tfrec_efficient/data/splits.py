"""Splits of interaction logs into what is trained on and what is held out."""

import numpy as np
import numpy.typing as npt


def temporal_split(
    user_ids: npt.ArrayLike, timestamps: npt.ArrayLike, test_fraction: float = 0.2
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Holds out the last interactions of each user.

    A user with `n` interactions gives the latest `floor(test_fraction * n)` of them to the test
    set; of equal timestamps, those further down count as later. Nothing of a user's future is
    trained on, though other users' training interactions may be later than a test interaction.

    Args:
        user_ids: Array of shape `(n,)`: who interacted.
        timestamps: Array of shape `(n,)`, in any unit: when.
        test_fraction: float in `(0, 1)`. Defaults to 0.2.

    Returns:
        Two arrays of row numbers, `(train, test)`, each in rising order.

    Raises:
        ValueError: The arrays differ in shape or have no rank of 1, or the fraction is outside
            its range.

    Example:
    >>> train, test = temporal_split([7, 7, 7, 7, 7, 8], [5, 1, 2, 4, 3, 0])
    >>> train.tolist(), test.tolist()
    ([1, 2, 3, 4, 5], [0])
    """
    users, times = np.asarray(user_ids), np.asarray(timestamps)
    if users.ndim != 1 or users.shape != times.shape:
        raise ValueError(
            "`user_ids` and `timestamps` must have the same shape, `(n,)`. "
            f"Received: shapes {users.shape} and {times.shape}"
        )
    if not 0 < test_fraction < 1:
        raise ValueError(
            f"`test_fraction` must be in `(0, 1)`. Received: test_fraction={test_fraction}"
        )
    order = np.lexsort((np.arange(len(users)), times, users))
    _, first, inverse, counts = np.unique(
        users[order], return_index=True, return_inverse=True, return_counts=True
    )
    place = np.arange(len(users)) - first[inverse]
    # The small number undoes rounding such as 0.29 * 100 = 28.999999999999996.
    held_out = np.floor(test_fraction * counts + 1e-9)
    is_test = place >= (counts - held_out)[inverse]
    return np.sort(order[~is_test]), np.sort(order[is_test])
