"""`PimEmbeddingBag`: an `EmbeddingBag` whose table lies in a processing-in-memory device."""

import json
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import BagLayer
from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.embedding._bags import values_of
from tfrec_efficient.ops._pim.counts import COUNTERS
from tfrec_efficient.ops._pim.counts import check_table_number
from tfrec_efficient.ops.casting import cast_indices
from tfrec_efficient.ops.gather_reduce import Combiner
from tfrec_efficient.ops.pim import pim_gather_reduce
from tfrec_efficient.ops.pim import pim_reports
from tfrec_efficient.ops.row_update import RULES
from tfrec_efficient.pim.pim_device import PimDevice
from tfrec_efficient.pim.pim_report import ENERGIES
from tfrec_efficient.pim.pim_report import TERMS
from tfrec_efficient.pim.pim_report import PimReport
from tfrec_efficient.pim.pim_report import fields_of

KINDS = ("forward", "backward", "update")


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class PimEmbeddingBag(BagLayer):
    """Looks rows up and pools them as a processing-in-memory device would, and counts what it did.

    A call returns what `tfrec_efficient.ops.pim_gather_reduce` does: the values are exact, computed
    on the host, and nothing waits. A call with `training=True` also adds to `reports()` what the
    device would do for this batch: the forward gather-reduce and, if the layer is trainable, the
    casted gather-reduce of the backward pass and the update of the rows. All of that depends on ids
    only. The gradient and the update themselves are those of `EmbeddingBag`, by the optimizer of
    the model; `rule` says what it does, so that its traffic is counted.

    `PimMonitor` resets the reports before `fit`, and shows them after it.

    Args:
        input_dim: int. Rows of the table; ids are in `[0, input_dim)`.
        output_dim: int. Width of a row.
        device: A `PimDevice`.
        combiner: `"sum"`, `"mean"`, `"sqrtn"`, or None to look up without pooling.
            Defaults to `"sum"`.
        embeddings_initializer: Initializer of the table. Defaults to `"uniform"`.
        padding_id: int or None. Lookups of this id count as absent. Defaults to None.
        mask_zero: bool. As in `EmbeddingBag`. Defaults to False.
        table_number: int. Which table of the device it is, so that tables begin in different
            groups of ranks. Defaults to 0.
        hot_ids: Rising ids of rows that each group of ranks has a copy of, or None. Defaults to
            None.
        rule: The rule of `tfrec_efficient.ops.row_update` that the optimizer of the model applies.
            Defaults to `"sgd"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        ids: As in `EmbeddingBag`.
        weights: As in `EmbeddingBag`.
        casting: As in `EmbeddingBag`.
        training: bool. Whether to count.

    Raises:
        ValueError: An argument breaks a rule above, or the table and its optimizer state do not fit
            the device.
        tf.errors.InvalidArgumentError: As in `EmbeddingBag`.

    Example:
    >>> import numpy as np
    >>> import tfrec_efficient as tfrec
    >>> layer = tfrec.pim.PimEmbeddingBag(100, 64, tfrec.PimDevice.tensor_casting())
    >>> layer(np.array([[1, 2, 3], [4, 4, 4]]), training=True).shape
    TensorShape([2, 64])
    >>> int(sum(layer.reports()["forward"].bytes_read))
    1536

    References:
        - Kwon, Lee and Rhu, "Tensor Casting", HPCA 2021, section IV-C.
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        device: PimDevice | Mapping[str, Any],
        combiner: Combiner | None = "sum",
        embeddings_initializer: Any = "uniform",
        padding_id: int | None = None,
        mask_zero: bool = False,
        table_number: int = 0,
        hot_ids: Sequence[int] | None = None,
        rule: str = "sgd",
        **kwargs: Any,
    ) -> None:
        super().__init__(input_dim, output_dim, combiner, padding_id, mask_zero, **kwargs)
        check_sizes(input_dim=input_dim)  # keys have no rows of their own here
        if isinstance(device, Mapping):
            device = PimDevice.from_dict(device)
        if not isinstance(device, PimDevice):
            raise ValueError(f"`device` must be a PimDevice. Received: device={device!r}")
        if rule not in RULES:
            raise ValueError(f"`rule` must be one of {sorted(RULES)}. Received: rule={rule!r}")
        check_table_number(table_number)
        _check_hot_ids(hot_ids, input_dim)
        self.device = device
        self.embeddings_initializer = keras.initializers.get(embeddings_initializer)
        self.table_number = table_number
        self.hot_ids = None if hot_ids is None else [int(i) for i in hot_ids]
        self.rule = rule
        self.device.check_fits(
            (input_dim, output_dim),
            self.variable_dtype,
            copies=1 + RULES[rule][0],
            hot_rows=len(self.hot_ids or ()),
        )

    def build(
        self, ids_shape: Any = None, weights_shape: Any = None, casting_shape: Any = None
    ) -> None:
        if self.built:
            return
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.input_dim, self.output_dim),
            initializer=self.embeddings_initializer,
            autocast=False,  # casting the table to the compute dtype would read all of it
        )
        self._tally = _Tally(self.device.ranks)
        self.built = True

    def call(
        self, ids: Any, weights: Any = None, casting: Any = None, training: bool = False
    ) -> Any:
        if not training:
            return self._pool_or_look_up(ids, weights, casting)
        bags = bags_of(self, ids)
        if casting is None:
            casting = cast_indices(bags, self.padding_id)
        pooled = self._pool_or_look_up(ids, weights, casting)
        reports = pim_reports(
            self.embeddings.shape,
            self.variable_dtype,
            bags,
            device=self.device,
            weighted=weights is not None,
            padding_id=self.padding_id,
            casting=casting,
            table_number=self.table_number,
            hot_ids=self.hot_ids,
            rule=self.rule,
        )
        self._tally.add(reports if self.trainable else reports[:1])
        return pooled

    def _pool(self, ids: Any, weights: Any, casting: Any) -> tf.Tensor:
        pooled, _ = pim_gather_reduce(
            self.embeddings,
            ids,
            weights,
            self.combiner or "sum",
            self.padding_id,
            casting,
            device=self.device,
            table_number=self.table_number,
            hot_ids=self.hot_ids,
            with_report=False,
        )
        return pooled

    def reports(self) -> dict[str, PimReport]:
        """What the device would have done in training since the layer was built, or reset.

        Returns:
            The sums of all calls: `"forward"`, `"backward"` and `"update"`.

        Raises:
            ValueError: The layer is not built.
        """
        self._check_built()
        return self._tally.read()

    def reset_reports(self) -> None:
        """Begins the reports anew.

        Raises:
            ValueError: The layer is not built.
        """
        self._check_built()
        self._tally.reset()

    def _check_built(self) -> None:
        if not self.built:
            raise ValueError("The layer must be built before it has reports. Received: not built")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.update(
            device=json.loads(self.device.to_json()),
            embeddings_initializer=keras.initializers.serialize(self.embeddings_initializer),
            table_number=self.table_number,
            hot_ids=self.hot_ids,
            rule=self.rule,
        )
        return config


def bags_of(layer: BagLayer, ids: Any) -> Any:
    """The ids of a call of a layer as bags of rank 2, as they are pooled."""
    ids = layer._as_ids(ids)
    if layer.combiner is None:
        return tf.reshape(values_of(ids), [-1, 1])
    if isinstance(ids, tf.RaggedTensor | tf.SparseTensor) or ids.shape.rank == 2:
        return ids
    shape = tf.shape(ids)
    return tf.reshape(ids, tf.concat([[tf.reduce_prod(shape[:-1])], shape[-1:]], 0))


def _check_hot_ids(hot_ids: Any, input_dim: int) -> None:
    ids = np.asarray([] if hot_ids is None else hot_ids)
    rises = ids.ndim == 1 and (ids.size == 0 or np.issubdtype(ids.dtype, np.integer))
    if not rises or np.any(np.diff(ids) <= 0) or np.any((ids < 0) | (ids >= input_dim)):
        raise ValueError(
            f"`hot_ids` must be None or rising integers in `[0, {input_dim})`. "
            f"Received: hot_ids={hot_ids!r}"
        )


class _Tally:
    """The sums of reports. Not weights: they are no part of a saved model."""

    def __init__(self, ranks: int) -> None:
        shapes = [(ranks, len(COUNTERS)), (len(TERMS),), (len(ENERGIES),), (), ()]
        with tf.init_scope():
            self._sums = [
                tf.Variable(
                    tf.zeros([len(KINDS), *shape], tf.float64 if i else tf.int64),
                    trainable=False,
                    synchronization=tf.VariableSynchronization.ON_READ,  # replicas add up
                    aggregation=tf.VariableAggregation.SUM,
                )
                for i, shape in enumerate(shapes)
            ]

    def add(self, reports: Sequence[PimReport]) -> None:
        of_kinds = [fields_of(report) for report in reports]
        for i, total in enumerate(self._sums):
            fields = [fields[i] for fields in of_kinds]
            absent = [tf.zeros_like(fields[0])] * (len(KINDS) - len(fields))
            total.assign_add(tf.stack(fields + absent))

    def read(self) -> dict[str, PimReport]:
        sums = [tf.convert_to_tensor(total) for total in self._sums]
        return {kind: PimReport(*(total[k] for total in sums)) for k, kind in enumerate(KINDS)}

    def reset(self) -> None:
        for total in self._sums:
            total.assign(tf.zeros_like(total))
