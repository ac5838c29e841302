"""Row update: one optimizer step on the rows of a table that a batch has looked up."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfrec_efficient.ops import _loader
from tfrec_efficient.ops._inputs import Bags
from tfrec_efficient.ops._inputs import as_tf
from tfrec_efficient.ops._inputs import bag_attributes
from tfrec_efficient.ops._inputs import checked
from tfrec_efficient.ops._inputs import handle_on_cpu
from tfrec_efficient.ops._inputs import text
from tfrec_efficient.ops._inputs import weight_dtype
from tfrec_efficient.ops.casting import cast_tables
from tfrec_efficient.ops.gather_reduce import features_of

# For each rule, its slots and its hyperparameters in the order of row_updater.h.
RULES = {
    "sgd": (0, ()),
    "momentum": (1, ("momentum",)),
    "nesterov": (1, ("momentum",)),
    "adagrad": (1, ("epsilon",)),
    "rowwise_adagrad": (1, ("epsilon",)),
    "adam": (2, ("epsilon", "one_minus_beta_1", "one_minus_beta_2", "alpha")),
    "amsgrad": (3, ("epsilon", "one_minus_beta_1", "one_minus_beta_2", "alpha")),
    "ftrl": (2, ("learning_rate_power", "l1", "l2", "l2_shrinkage")),
}
_HYPERPARAMETERS = 7


def row_update(
    table: Any,
    gradient: tf.IndexedSlices,
    rule: str,
    learning_rate: Any,
    slots: Sequence[Any] = (),
    decay: Any = 0.0,
    rounding_seed: Any = None,
    **hyperparameters: Any,
) -> None:
    """Lets an optimizer rule update the rows of a table that a gradient belongs to, in place.

    Contributions to one row are summed first. Each row, and its rows in the slots, is then read,
    updated and written once; no other row is touched, and nothing as large as the table is made.
    With `g` the gradient of a row `w`, and before all rules `w -= decay * w`:

    - `"sgd"`: `w -= learning_rate * g`
    - `"momentum"`: `m = momentum * m - learning_rate * g; w += m`
    - `"nesterov"`: `m` as above; `w += momentum * m - learning_rate * g`
    - `"adagrad"`: `a += g**2; w -= learning_rate * g / sqrt(a + epsilon)`
    - `"rowwise_adagrad"`: the same with one `a` for the row, `a += mean(g**2)`
    - `"adam"`: `m += one_minus_beta_1 * (g - m); v += one_minus_beta_2 * (g**2 - v);
      w -= alpha * m / (sqrt(v) + epsilon)`
    - `"amsgrad"`: `m` and `v` as above; `u = max(u, v)` stands for `v` in `w`
    - `"ftrl"`: with `p = -learning_rate_power`, `n = a + g**2`:
      `z += g + 2 * l2_shrinkage * w - (n**p - a**p) / learning_rate * w;
      w = (clip(z, -l1, l1) - z) / (n**p / learning_rate + 2 * l2); a = n`

    Inside a `tf.function`, a gradient that comes straight from the native `gather_reduce` is not
    materialised at all: the update gathers it while it goes. The result is the same, to the bit.

    Args:
        table: `tf.Variable` or `keras.Variable` of shape `(rows, dim)`, or `(rows, ...)`, and dtype
            float32, float16, bfloat16 or float64.
        gradient: Its gradient. Ids may repeat.
        rule: One of the names above.
        learning_rate: Scalar.
        slots: Variables `m`, `a`, `(m, v)`, `(m, v, u)` or `(a, z)`, as the rule needs them, of
            the shape of `table` or, for `"rowwise_adagrad"`, `(rows,)`. They are float64 where the
            table is, else float32. Defaults to none.
        decay: Scalar, the share of a row that is subtracted from it first. Defaults to 0.
        rounding_seed: int64 scalar, or None. Rows narrower than float32 are rounded to a neighbour
            at random, in the mean to the exact value, by bits that depend on this seed, the row and
            the column; with None, to the nearest. Defaults to None.
        **hyperparameters: Scalars, by the names that the rule gives them.

    Raises:
        ValueError: The rule is unknown, or slots or hyperparameters are not those of the rule.
        tf.errors.InvalidArgumentError: An id is outside `[0, rows)`, or shapes do not fit.

    Example:
    >>> import tensorflow as tf
    >>> import tfrec_efficient as tfrec
    >>> table = tf.Variable([[1.0], [1.0], [1.0]])
    >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([2, 2]))
    >>> tfrec.ops.row_update(table, gradient, "sgd", learning_rate=0.5)
    >>> table.numpy().tolist()
    [[1.0], [1.0], [-0.5]]

    References:
        - The rules are those of `keras.optimizers`, with the gradient of a row summed first as in
          TensorFlow 1 and in the exact optimizers of FBGEMM. `"adam"` is lazy: rows without a
          gradient do not move, where Keras moves all.
        - Gather and update in one pass: Kwon, Lee and Rhu, HPCA 2021, section IV-A, and ours.
    """
    table, slots = as_tf(table), [as_tf(slot) for slot in slots]
    if not isinstance(gradient, tf.IndexedSlices):
        raise ValueError(
            f"`gradient` must be a tf.IndexedSlices. Received: {type(gradient).__name__}"
        )
    expected = gradient.indices.shape.concatenate(table.shape[1:])
    if not gradient.values.shape.is_compatible_with(expected):
        raise ValueError(
            f"`gradient` must have values of shape {expected}. "
            f"Received: shape {gradient.values.shape}"
        )
    _check_rule(rule, table, slots, hyperparameters)
    if gradient.dtype != table.dtype:  # as Keras does, whose loss scaling makes gradients float32
        gradient = tf.cast(gradient, table.dtype)
    dtype = weight_dtype(table)
    scalars = [learning_rate, decay, *(hyperparameters[name] for name in RULES[rule][1])]
    scalars += [0.0] * (_HYPERPARAMETERS - len(scalars))
    scalars = tf.stack([_as_scalar(scalar, dtype) for scalar in scalars])
    seed = None if rounding_seed is None else tf.cast(rounding_seed, tf.int64)
    module = _loader.native()
    handles = [handle_on_cpu(variable) for variable in (table, *slots)]
    if module is None or None in handles:
        _reference(table, slots, gradient, rule, scalars, seed)
        return
    module.tfrec_efficient_resource_row_update(
        table=handles[0],
        slots=handles[1:],
        hyperparameters=scalars,
        rounding_seed=tf.constant(0, tf.int64) if seed is None else seed,
        round_at_random=seed is not None,
        rule=rule,
        **(_source(gradient) or _as_lookups(gradient, table)),
    )


def _as_scalar(value: Any, dtype: tf.DType) -> tf.Tensor:
    # tf.cast would take a number of Python through float32.
    if tf.is_tensor(value) or hasattr(value, "dtype"):
        return tf.cast(value, dtype)
    return tf.convert_to_tensor(value, dtype)


def _check_rule(
    rule: str, table: Any, slots: Sequence[Any], hyperparameters: dict[str, Any]
) -> None:
    if rule not in RULES:
        raise ValueError(f"`rule` must be one of {sorted(RULES)}. Received: rule={rule!r}")
    count, names = RULES[rule]
    if len(slots) != count:
        raise ValueError(f"`slots` of the rule {rule!r} must be {count}. Received: {len(slots)}")
    shape = table.shape[:1] if rule == "rowwise_adagrad" else table.shape
    dtype = weight_dtype(table)
    for slot in slots:
        if slot.shape != shape or slot.dtype != dtype:
            raise ValueError(
                f"`slots` of the rule {rule!r} must be {dtype.name} of shape {shape}. "
                f"Received: {slot.dtype.name} of shape {slot.shape}"
            )
    if set(hyperparameters) != set(names):
        raise ValueError(
            f"The rule {rule!r} takes the hyperparameters {sorted(names)}. "
            f"Received: {sorted(hyperparameters)}"
        )


def _as_lookups(gradient: tf.IndexedSlices, table: tf.Variable) -> dict[str, Any]:
    """A gradient is that of bags of one lookup each."""
    bags = Bags(tf.reshape(gradient.indices, [-1, 1]), tf.zeros([0], tf.int64), None)
    return {
        **bag_attributes([bags], ["sum"], [None], weight_dtype(table)),
        "grads": tf.reshape(
            gradient.values, [tf.size(gradient.indices), table.shape[1:].num_elements()]
        ),
        "columns": [0],
        "casting": cast_tables([bags], [None], [0], 1)[0],
    }


def _source(gradient: tf.IndexedSlices) -> dict[str, Any] | None:
    """What the native op would compute `gradient` from, or None where something else made it.

    Only graphs know where a tensor comes from. The op that is passed over has no other reader then,
    and never runs.
    """
    if not all(tf.is_symbolic_tensor(part) for part in (gradient.values, gradient.indices)):
        return None
    values, indices = _without_identity(gradient.values), _without_identity(gradient.indices)
    op = values.op
    if op.type != "TfrecEfficient>GatherReduceGrad" or op.control_inputs or indices.op is not op:
        return None
    num_tables = op.get_attr("num_tables")
    table = indices.value_index
    # An unknown width could be another than that of the table to update.
    if values.value_index - num_tables != table or -1 in op.get_attr("dims"):
        return None
    common = features_of(op, 1)
    table_of, dims = common.pop("table_of"), op.get_attr("dims")
    columns = [sum(dims[t] for t in table_of[:i]) for i in range(len(table_of))]
    mine = [i for i, of in enumerate(table_of) if of == table]
    return {
        **{name: [entries[i] for i in mine] for name, entries in common.items()},
        "grads": op.inputs[0],
        "columns": [columns[i] for i in mine],
        "casting": op.inputs[len(op.inputs) - num_tables + table],
    }


def _without_identity(tensor: tf.Tensor) -> tf.Tensor:
    # One with control inputs waits for something, such as an assertion, which must not be lost.
    while tensor.op.type == "Identity" and not tensor.op.control_inputs:
        tensor = tensor.op.inputs[0]
    return tensor


# ---- Reference -----------------------------------------------------------------------------------


def _reference(
    table: tf.Variable,
    slots: Sequence[tf.Variable],
    gradient: tf.IndexedSlices,
    rule: str,
    scalars: tf.Tensor,
    seed: tf.Tensor | None,
) -> None:
    """The same in plain TensorFlow."""
    wide = scalars.dtype
    indices = tf.reshape(gradient.indices, [-1])
    bags = Bags(indices[:, tf.newaxis], tf.zeros([0], tf.int64), None)
    with tf.control_dependencies(cast_tables([bags], [None], [0], 1)):  # negative ids fail there
        ids = tf.sort(tf.unique(indices).y)
    largest = tf.reduce_max(tf.concat([tf.cast(ids, tf.int64), [-1]], 0))
    ids = checked(
        ids,
        largest < table.shape[0],
        lambda: text(f"`ids` must be in `[0, {table.shape[0]})`. Received: ", largest),
    )
    values = tf.reshape(gradient.values, tf.concat([tf.shape(indices), table.shape[1:]], 0))
    sums = tf.math.unsorted_segment_sum(
        tf.cast(values, wide), tf.searchsorted(ids, indices), tf.size(ids)
    )
    g = tf.cast(tf.cast(sums, table.dtype), wide)
    h = dict(
        zip(("learning_rate", "decay", *RULES[rule][1]), tf.unstack(scalars)[:7], strict=False)
    )
    w = tf.cast(tf.gather(table, ids), wide)
    w -= w * h["decay"]
    w, new_slots = _RULES[rule](g, w, [tf.gather(slot, ids) for slot in slots], h)
    if seed is not None and table.dtype.size < 4:
        rounded = _round_at_random(w, table.dtype, ids, seed)
    else:
        rounded = tf.cast(w, table.dtype)
    table.scatter_update(tf.IndexedSlices(rounded, ids))
    for slot, values in zip(slots, new_slots, strict=True):
        slot.scatter_update(tf.IndexedSlices(values, ids))


def _sgd(g: Any, w: Any, slots: Any, h: Any) -> Any:
    return w - h["learning_rate"] * g, []


def _momentum(g: Any, w: Any, slots: Any, h: Any) -> Any:
    m = slots[0] * h["momentum"] - h["learning_rate"] * g
    return w + m, [m]


def _nesterov(g: Any, w: Any, slots: Any, h: Any) -> Any:
    m = slots[0] * h["momentum"] - h["learning_rate"] * g
    return w + m * h["momentum"] - h["learning_rate"] * g, [m]


def _adagrad(g: Any, w: Any, slots: Any, h: Any) -> Any:
    a = slots[0] + g**2
    return w - h["learning_rate"] * g / tf.sqrt(a + h["epsilon"]), [a]


def _rowwise_adagrad(g: Any, w: Any, slots: Any, h: Any) -> Any:
    axes = list(range(1, g.shape.rank))
    a = slots[0] + tf.reduce_mean(g**2, axes)
    rate = h["learning_rate"] / tf.sqrt(a + h["epsilon"])
    return w - tf.reshape(rate, [-1, *[1] * len(axes)]) * g, [a]


def _adam(g: Any, w: Any, slots: Any, h: Any) -> Any:
    m = slots[0] + (g - slots[0]) * h["one_minus_beta_1"]
    v = slots[1] + (g**2 - slots[1]) * h["one_minus_beta_2"]
    return w - m * h["alpha"] / (tf.sqrt(v) + h["epsilon"]), [m, v]


def _amsgrad(g: Any, w: Any, slots: Any, h: Any) -> Any:
    _, (m, v) = _adam(g, w, slots[:2], h)
    u = tf.maximum(slots[2], v)
    return w - m * h["alpha"] / (tf.sqrt(u) + h["epsilon"]), [m, v, u]


def _ftrl(g: Any, w: Any, slots: Any, h: Any) -> Any:
    a, z = slots
    n = a + g**2
    old, new = (tf.pow(x, -h["learning_rate_power"]) for x in (a, n))
    z += g + 2 * h["l2_shrinkage"] * w - (new - old) / h["learning_rate"] * w
    clipped = tf.clip_by_value(z, -h["l1"], h["l1"])
    return (clipped - z) / (new / h["learning_rate"] + 2 * h["l2"]), [n, z]


_RULES = {
    "sgd": _sgd,
    "momentum": _momentum,
    "nesterov": _nesterov,
    "adagrad": _adagrad,
    "rowwise_adagrad": _rowwise_adagrad,
    "adam": _adam,
    "amsgrad": _amsgrad,
    "ftrl": _ftrl,
}


def _round_at_random(w: tf.Tensor, dtype: tf.DType, ids: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """One of the two neighbours of each value, by the probability that makes the mean right.

    The native op has random bits of its own, so the two agree in distribution only.
    """
    random = tf.random.stateless_uniform(tf.shape(w), tf.stack([seed, tf.size(ids, tf.int64)]))
    nearest = tf.cast(w, dtype)
    bits = tf.bitcast(nearest, tf.int16)
    error = w - tf.cast(nearest, w.dtype)
    # The bits of floats of one sign rise with their magnitude.
    away = tf.where((error > 0) == (w > 0), bits + tf.ones_like(bits), bits - tf.ones_like(bits))
    other = tf.bitcast(away, dtype)
    gap = tf.cast(other, w.dtype) - tf.cast(nearest, w.dtype)
    is_other = (error != 0) & tf.math.is_finite(tf.cast(other, w.dtype)) & (random < error / gap)
    return tf.where(is_other, other, nearest)
