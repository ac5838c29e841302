"""Neighbourhoods of embeddings, and the greedy choice of samples that cover them."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfrec_efficient.ops import _loader
from tfrec_efficient.ops._inputs import checked
from tfrec_efficient.ops._inputs import text


def neighbour_graph(
    embeddings: Any,
    similarity_threshold: float,
    max_degree: int,
    first: int = 0,
    last: int | None = None,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the neighbours of some rows among all rows, exactly.

    The similarity of a and b is `(1 + cos(a, b)) / 2`, in float64 and rounded to float32, and its
    neighbours are the rows above the threshold. A row is its own neighbour. It compares all
    `(last - first) * samples` pairs, and needs memory for what it finds.

    Args:
        embeddings: float32 of shape `(samples, dim)`, finite, and no row zero.
        similarity_threshold: float in `[0, 1)`. Opposite rows are above no threshold.
        max_degree: int of at least 1. Of more neighbours the most similar are kept; of those that
            are equally similar, the first.
        first: int. The first of the rows whose neighbours are found. Defaults to 0.
        last: int. The one behind the last of them. Defaults to the number of samples.

    Returns:
        `(row_lengths, neighbours, similarities, degrees)`: int64 of shape `(last - first,)`; int32
        and float32 of shape `(sum of row_lengths,)`, row by row in rising order; and int64 of shape
        `(last - first,)`, how many neighbours each row had before `max_degree`.

    Raises:
        ValueError: A shape is wrong, or a number no integer of so many bits.
        tf.errors.InvalidArgumentError: An argument breaks another rule above.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> embeddings = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]
    >>> lengths, neighbours, _, _ = tfrec.ops.neighbour_graph(embeddings, 0.9, max_degree=10)
    >>> lengths.numpy().tolist(), neighbours.numpy().tolist()
    ([2, 1, 2], [0, 2, 1, 0, 2])

    References:
        - Park et al., "Robust Data Pruning under Label Noise via Maximizing Re-labeling Accuracy",
          NeurIPS 2023: the neighbourhood. Their similarity is scaled to `[0, 1]` in the same way.
    """
    embeddings = _tensor("embeddings", embeddings, tf.float32, rank=2)
    threshold = _tensor("similarity_threshold", similarity_threshold, tf.float32, rank=0)
    count = tf.shape(embeddings, tf.int64)[0]
    most = _tensor("max_degree", max_degree, tf.int64, rank=0)
    first = _tensor("first", first, tf.int64, rank=0)
    last = _tensor("last", count if last is None else last, tf.int64, rank=0)
    module = _loader.native()
    if module is not None:
        return tuple(
            module.tfrec_efficient_neighbour_graph(
                embeddings=embeddings,
                similarity_threshold=threshold,
                max_degree=most,
                first=first,
                last=last,
            )
        )
    embeddings = _checked_embeddings(embeddings)
    first = checked(
        first,
        (most >= 1) & (first >= 0) & (first <= last) & (last <= count),
        lambda: text(
            "`first` and `last` must rise in `[0, ", count, "]`, and `max_degree` be at least 1. "
            "Received: first=", first, ", last=", last, ", max_degree=", most,
        ),
    )  # fmt: skip
    threshold = _checked_threshold(threshold)
    units = _units(embeddings)
    similarities = _similarities(units[first:last], units)
    degrees = tf.reduce_sum(tf.cast(similarities > threshold, tf.int64), 1)
    # A row comes first among those that are similar to it, whatever rounding does.
    is_self = tf.range(first, last)[:, None] == tf.range(count)
    order = tf.argsort(-tf.where(is_self, 2.0, similarities), axis=1, stable=True)
    ranks = tf.argsort(order, axis=1)
    kept = (tf.cast(ranks, tf.int64) < most) & (similarities > threshold)
    return (
        tf.reduce_sum(tf.cast(kept, tf.int64), 1),
        tf.cast(tf.where(kept)[:, 1], tf.int32),
        tf.boolean_mask(similarities, kept),
        degrees,
    )


def choose_by_own_gain(
    embeddings: Any,
    similarity_threshold: float,
    confidences: Any,
    classes: Any,
    chosen: Any,
    coverage: Any,
    scale: float,
    picks: int,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Goes on with a greedy choice, in which a sample counts for what it does for itself.

    The coverage of a sample is the sum, over its chosen neighbours, of similarity times confidence,
    and its utility is `tanh(coverage / scale)`. Each pick is the sample whose own utility grows
    most by choosing it: `tanh((coverage + confidence) / scale) - tanh(coverage / scale)`; the first
    of those that are equal. Needs no graph, and memory for a copy of the embeddings in 16 bits.

    Args:
        embeddings: float32 of shape `(samples, dim)`, finite, and no row zero.
        similarity_threshold: float in `[0, 1)`. See `neighbour_graph`.
        confidences: Numbers in `[0, 1]` of shape `(samples,)`.
        classes: Integers in `[0, samples)` of shape `(samples,)`. Classes take turns in giving a
            sample; all zeros for no such balance.
        chosen: Integers of shape `(chosen,)`: the picks so far, in order.
        coverage: Numbers of at least 0, of shape `(samples,)`: what the picks so far have led to.
        scale: float above 0.
        picks: int. How many samples to choose.

    Returns:
        `(picked, gains, coverage)`: int64 and float64 of shape `(picks,)`, and float64 of shape
        `(samples,)`.

    Raises:
        ValueError: A shape is wrong, or a number no integer of so many bits.
        tf.errors.InvalidArgumentError: An argument breaks another rule above, or fewer samples than
            `picks` are left.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> embeddings = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]
    >>> picked, _, _ = tfrec.ops.choose_by_own_gain(
    ...     embeddings, 0.9, [0.8, 0.7, 0.9], [0, 0, 0], [], [0, 0, 0], scale=1, picks=2
    ... )
    >>> picked.numpy().tolist()
    [2, 1]

    References:
        - Park et al., "Robust Data Pruning under Label Noise via Maximizing Re-labeling Accuracy",
          NeurIPS 2023, algorithm 1 as their program has it.
    """
    embeddings = _tensor("embeddings", embeddings, tf.float32, rank=2)
    threshold = _tensor("similarity_threshold", similarity_threshold, tf.float32, rank=0)
    size = embeddings.shape[0] or None
    state = _state(confidences, classes, chosen, coverage, scale, picks, size)
    module = _loader.native()
    if module is not None:
        return tuple(
            module.tfrec_efficient_choose_by_own_gain(
                embeddings=embeddings, similarity_threshold=threshold, **state
            )
        )
    units = _units(_checked_embeddings(embeddings))
    threshold = _checked_threshold(threshold)
    count = tf.shape(units)[0]
    state = _checked_state(state, count)
    confidences, scale = state["confidences"], state["scale"]

    def gains_of(coverage: tf.Tensor) -> tf.Tensor:
        return _gains(coverage, confidences, scale, own=True)

    def additions(point: tf.Tensor) -> tf.Tensor:
        similarities = _similarities(units[point][None], units)[0]
        similarities = tf.where(similarities > threshold, similarities, 0.0)
        return tf.cast(similarities, tf.float64) * confidences[point]

    picked, gains, coverage = _choose(state, count, gains_of, additions)
    return picked, tf.exp(gains), coverage


def choose_over_graph(
    row_splits: Any,
    neighbours: Any,
    similarities: Any,
    confidences: Any,
    classes: Any,
    chosen: Any,
    coverage: Any,
    bounds: Any,
    scale: float,
    picks: int,
    own: bool = False,
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Goes on with a greedy choice, in which a sample counts for what it does for its neighbours.

    Each pick is the sample x with the largest
    `sum over its neighbours v of tanh((coverage[v] + s * confidence[x]) / scale) -
    tanh(coverage[v] / scale)`, where s is the similarity of the two: the marginal gain of the total
    utility. It never grows, so a gain from earlier is a bound of it, and few are computed again.

    Args:
        row_splits: int64 of shape `(samples + 1,)`: where in `neighbours` each row begins and ends.
        neighbours: int32 of shape `(edges,)`, in `[0, samples)`. Those of a sample include itself.
        similarities: float32 of shape `(edges,)`, in `[0, 1]`.
        confidences: See `choose_by_own_gain`, for all that follow, too.
        classes: Integers of shape `(samples,)`.
        chosen: Integers of shape `(chosen,)`.
        coverage: Numbers of shape `(samples,)`.
        bounds: Numbers of shape `(samples,)` that no gain is above: those of the call before, or
            infinite.
        scale: float above 0.
        picks: int.
        own: bool. Whether the gain is that of the sample's own utility only, and the bounds are
            in logarithms. Defaults to False.

    Returns:
        `(picked, gains, coverage, bounds)`: int64 and float64 of shape `(picks,)`, and float64 of
        shape `(samples,)` twice.

    Raises:
        ValueError: A shape is wrong, or a number no integer of so many bits.
        tf.errors.InvalidArgumentError: An argument breaks another rule above, or fewer samples than
            `picks` are left.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> picked, _, _, _ = tfrec.ops.choose_over_graph(
    ...     [0, 2, 3, 5], [0, 2, 1, 0, 2], [1, 0.95, 1, 0.95, 1],
    ...     [0.8, 0.7, 0.9], [0, 0, 0], [], [0, 0, 0], [float("inf")] * 3, scale=1, picks=2
    ... )
    >>> picked.numpy().tolist()
    [2, 1]

    References:
        - Park et al., "Robust Data Pruning under Label Noise via Maximizing Re-labeling Accuracy",
          NeurIPS 2023: the objective, which this gain is that of.
        - Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978.
    """
    row_splits = _tensor("row_splits", row_splits, tf.int64)
    neighbours = _tensor("neighbours", neighbours, tf.int32)
    similarities = _tensor("similarities", similarities, tf.float32)
    size = row_splits.shape[0] - 1 if row_splits.shape[0] else None
    state = _state(confidences, classes, chosen, coverage, scale, picks, size)
    bounds = _tensor("bounds", bounds, tf.float64, size=size)
    module = _loader.native()
    if module is not None:
        return tuple(
            module.tfrec_efficient_choose_over_graph(
                row_splits=row_splits,
                neighbours=neighbours,
                similarities=similarities,
                bounds=bounds,
                own=own,
                **state,
            )
        )
    row_splits, neighbours, similarities = _checked_graph(row_splits, neighbours, similarities)
    count = tf.size(row_splits) - 1
    state = _checked_state(state, count)
    bounds = _checked_length("bounds", bounds, count)
    _checked_numbers("bounds", bounds, -np.inf, np.inf, "numbers")
    confidences, scale = state["confidences"], state["scale"]
    sources = tf.repeat(tf.range(count), row_splits[1:] - row_splits[:-1])
    weights = tf.cast(similarities, tf.float64) * tf.gather(confidences, sources)

    def gains_of(coverage: tf.Tensor) -> tf.Tensor:
        if own:
            return _gains(coverage, confidences, scale, own=True)
        gains = _gains(tf.gather(coverage, neighbours), weights, scale, own=False)
        return tf.math.unsorted_segment_sum(gains, sources, count)

    def additions(point: tf.Tensor) -> tf.Tensor:
        row = slice(row_splits[point], row_splits[point + 1])
        return tf.math.unsorted_segment_sum(weights[row], neighbours[row], count)

    picked, gains, coverage = _choose(state, count, gains_of, additions)
    return picked, tf.exp(gains) if own else gains, coverage, gains_of(coverage)


def _state(
    confidences: Any,
    classes: Any,
    chosen: Any,
    coverage: Any,
    scale: Any,
    picks: Any,
    size: int | None,
) -> dict[str, tf.Tensor]:
    return {
        "confidences": _tensor("confidences", confidences, tf.float64, size=size),
        "classes": _tensor("classes", classes, tf.int32, size=size),
        "chosen": _tensor("chosen", chosen, tf.int64),
        "coverage": _tensor("coverage", coverage, tf.float64, size=size),
        "scale": _tensor("scale", scale, tf.float64, rank=0),
        "picks": _tensor("picks", picks, tf.int64, rank=0),
    }


def _tensor(
    name: str, values: Any, dtype: tf.DType, rank: int = 1, size: int | None = None
) -> tf.Tensor:
    """A tensor of this rank and, as far as is known, with an entry for each sample."""
    if dtype.is_integer and not tf.is_tensor(values):
        _check_integers(name, np.asarray(values), dtype)
    tensor = tf.convert_to_tensor(values, dtype)
    if tensor.shape.rank != rank:
        raise ValueError(f"`{name}` must have rank {rank}. Received: rank {tensor.shape.rank}")
    if size is not None and tensor.shape[0] not in (None, size):
        raise ValueError(
            f"`{name}` must have an entry for each of {size} samples. "
            f"Received: {tensor.shape[0]} entries"
        )
    return tensor


def _check_integers(name: str, array: np.ndarray, dtype: tf.DType) -> None:
    """Refuses what TensorFlow would cut in silence."""
    if array.dtype == dtype.as_numpy_dtype:
        return
    with np.errstate(invalid="ignore"):
        differs = (array.astype(dtype.as_numpy_dtype) != array).ravel()
    if differs.any():
        position = int(differs.argmax())
        index = f"[{position}]" if array.ndim else ""
        raise ValueError(
            f"`{name}` must hold integers of {8 * dtype.size} bits. "
            f"Received: {name}{index}={array.ravel()[position]}"
        )


# ---- The reference.


def _units(embeddings: tf.Tensor) -> tf.Tensor:
    wide = tf.cast(embeddings, tf.float64)
    return wide / tf.norm(wide, axis=1, keepdims=True)


def _similarities(a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    return tf.cast(0.5 + 0.5 * tf.matmul(a, b, transpose_b=True), tf.float32)


def _log_gain(coverage: tf.Tensor, addition: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    """The logarithm of `tanh((coverage + addition) / scale) - tanh(coverage / scale)`.

    The difference itself would soon be rounded to zero.
    """
    a, b = -2 * coverage / scale, -2 * addition / scale
    logarithms = tf.math.log(-tf.math.expm1(b)) - tf.math.log1p(tf.exp(a))
    return tf.math.log(tf.constant(2.0, tf.float64)) + a + logarithms - tf.math.log1p(tf.exp(a + b))


def _gains(coverage: tf.Tensor, addition: tf.Tensor, scale: tf.Tensor, own: bool) -> tf.Tensor:
    """The gain of each entry, or with `own` its logarithm."""
    # Where they fill no register, TensorFlow computes the last entries with other instructions,
    # whose results differ: equal gains would not be equal.
    count = tf.size(coverage)
    coverage, addition = (tf.pad(x, [[0, -count % 16]]) for x in (coverage, addition))
    gains = _log_gain(coverage, addition, scale)
    return (gains if own else tf.exp(gains))[:count]


def _choose(
    state: dict[str, tf.Tensor], count: tf.Tensor, gains_of: Any, additions: Any
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """One pick after the other, each with all gains computed anew."""
    classes, chosen = state["classes"], state["chosen"]
    num_classes = tf.reduce_max(classes) + 1
    is_left = tf.tensor_scatter_nd_update(
        tf.ones([count], tf.bool), chosen[:, None], tf.zeros_like(chosen, tf.bool)
    )
    no_class = tf.constant([-1], tf.int32)  # so that the first turn is that of class 0
    previous = tf.concat([no_class, tf.gather(classes, chosen)], 0)[-1]
    lowest = tf.constant(float("-inf"), tf.float64)

    def pick(step: Any, coverage: Any, is_left: Any, previous: Any, picked: Any, gains: Any) -> Any:
        # The class that comes soonest behind the one before, among those with a sample left.
        waits = tf.where(is_left, (classes - previous - 1) % num_classes, num_classes)
        is_candidate = waits == tf.reduce_min(waits)
        of_all = gains_of(coverage)
        # argmax would take any sample where all gains are the lowest number there is.
        leads = is_candidate & (of_all == tf.reduce_max(tf.where(is_candidate, of_all, lowest)))
        point = tf.argmax(tf.cast(leads, tf.int32), output_type=tf.int64)
        return (
            step + 1,
            # Where there may be one sample, the sum could have any shape, which a loop refuses.
            tf.ensure_shape(coverage + additions(point), coverage.shape),
            tf.tensor_scatter_nd_update(is_left, [[point]], [False]),
            classes[point],
            picked.write(step, point),
            gains.write(step, of_all[point]),
        )

    picks = tf.cast(state["picks"], tf.int32)
    picked = tf.TensorArray(tf.int64, picks, element_shape=[])
    gains = tf.TensorArray(tf.float64, picks, element_shape=[])
    loop = (tf.constant(0), state["coverage"], is_left, previous, picked, gains)
    _, coverage, _, _, picked, gains = tf.while_loop(lambda step, *_: step < picks, pick, loop)
    return picked.stack(), gains.stack(), coverage


def _checked_embeddings(embeddings: tf.Tensor) -> tf.Tensor:
    norms = tf.norm(tf.cast(embeddings, tf.float64), axis=-1)
    embeddings = checked(
        embeddings,
        (tf.rank(embeddings) == 2) & (tf.size(embeddings) > 0),
        lambda: text(
            "`embeddings` must have shape (samples, dim), with one of each at least and fewer than "
            "2^31 samples. Received: shape [",
            tf.strings.reduce_join(tf.strings.as_string(tf.shape(embeddings)), separator=","),
            "]",
        ),
    )
    good = (norms > 0) & tf.math.is_finite(norms)
    return checked(
        embeddings,
        tf.reduce_all(good),
        lambda: text(
            "`embeddings` must be finite, and no row zero. Received: row ", _first(good),
            " with a norm of ", _shown(norms[_first(good)]),
        ),
    )  # fmt: skip


def _checked_threshold(threshold: tf.Tensor) -> tf.Tensor:
    threshold = checked(
        threshold,
        (threshold >= 0) & (threshold < 1),
        lambda: text(
            "`similarity_threshold` must be in `[0, 1)`. Received: similarity_threshold=",
            _shown(threshold),
        ),
    )
    return tf.maximum(threshold, 1e-12)  # see custom_ops/neighbourhood/points.cc


def _checked_graph(
    row_splits: tf.Tensor, neighbours: tf.Tensor, similarities: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    edges = tf.size(neighbours, tf.int64)
    fits = tf.reduce_all(row_splits[:1] == 0) & tf.reduce_all(row_splits[-1:] == edges)
    fits &= tf.reduce_all(row_splits[1:] >= row_splits[:-1])
    row_splits = checked(
        row_splits,
        fits & (tf.size(similarities, tf.int64) == edges) & (tf.size(row_splits) > 1),
        lambda: text(
            "`row_splits` must start at 0, never decrease, and end at the number of `neighbours`, "
            "which is that of `similarities`. Received: ", tf.size(row_splits), " of them for ",
            edges, " `neighbours` and ", tf.size(similarities), " `similarities`",
        ),
    )  # fmt: skip
    neighbours = _checked_range("neighbours", neighbours, tf.size(row_splits) - 1)
    similarities = _checked_numbers("similarities", similarities, 0, 1, "in `[0, 1]`")
    return row_splits, neighbours, similarities


def _checked_range(name: str, values: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    good = (values >= 0) & (values < end)
    return checked(
        values,
        tf.reduce_all(good),
        lambda: text(
            f"`{name}` must be in `[0, ",
            end,
            f")`. Received: {name}[",
            _first(good),
            "]=",
            values[_first(good)],
        ),
    )


def _first(good: tf.Tensor) -> tf.Tensor:
    """The position of the first entry that is not good, of which there is one."""
    return tf.argmin(tf.cast(good, tf.int32))


def _shown(number: tf.Tensor) -> tf.Tensor:
    # Not a NaN, which as_string shows with its sign.
    number = tf.where(tf.math.is_nan(number), tf.constant(np.nan, number.dtype), number)
    return tf.strings.as_string(number, shortest=True)


def _checked_length(name: str, entries: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    return checked(
        entries,
        tf.size(entries) == count,
        lambda: text(
            f"`{name}` must have an entry for each of ", count, " samples. Received: ",
            tf.size(entries), " entries",
        ),
    )  # fmt: skip


def _checked_numbers(
    name: str, values: tf.Tensor, least: float, most: float, rule: str
) -> tf.Tensor:
    flat = tf.reshape(values, [-1])
    good = (flat >= least) & (flat <= most)
    return checked(
        values,
        tf.reduce_all(good),
        lambda: text(
            f"`{name}` must be {rule}. Received: {name}[", _first(good), "]=",
            _shown(flat[_first(good)]),
        ),
    )  # fmt: skip


def _checked_state(state: dict[str, tf.Tensor], count: tf.Tensor) -> dict[str, tf.Tensor]:
    state = dict(state)
    for name in ("confidences", "classes", "coverage"):
        state[name] = _checked_length(name, state[name], count)
    of_double = np.finfo(np.float64)
    for name, least, most, rule in (
        ("confidences", 0, 1, "in `[0, 1]`"),
        ("coverage", 0, of_double.max, "at least 0, and finite"),
        ("scale", of_double.tiny, of_double.max, "above 0, and finite"),
    ):
        state[name] = _checked_numbers(name, state[name], least, most, rule)
    state["classes"] = _checked_range("classes", state["classes"], count)
    count = tf.cast(count, tf.int64)
    chosen = state["chosen"]
    # How often each of the picks so far has come until then.
    again = tf.linalg.band_part(tf.cast(chosen[:, None] == chosen, tf.int32), -1, 0)
    good = (chosen >= 0) & (chosen < count) & (tf.reduce_sum(again, 1) == 1)
    state["chosen"] = checked(
        chosen,
        tf.reduce_all(good),
        lambda: text(
            "`chosen` must be in `[0, ", count, ")`, and none of them twice. Received: chosen[",
            _first(good), "]=", chosen[_first(good)],
        ),
    )  # fmt: skip
    picks, left = state["picks"], count - tf.size(chosen, tf.int64)
    state["picks"] = checked(
        picks,
        (picks >= 0) & (picks <= left),
        lambda: text(
            "`picks` must be in `[0, ", left, "]`, as many as are left. Received: picks=", picks
        ),
    )
    return state
