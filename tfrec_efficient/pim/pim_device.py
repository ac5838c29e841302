"""`PimDevice`: a processing-in-memory device, described by figures that each have a source."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Literal

import tensorflow as tf

from tfrec_efficient.ops._pim.counts import COUNTERS
from tfrec_efficient.ops._pim.counts import layout_of
from tfrec_efficient.pim._dram import DramTimings
from tfrec_efficient.pim._dram import check_number
from tfrec_efficient.pim.pim_report import PimReport

_PLACEMENTS = ("row_interleave", "table_aware")
_SIZES = ("ranks", "slices", "rank_bytes", "alu_lanes")
_RATES = ("alu_hz", "instruction_hz", "link_bandwidth", "host_bandwidth")
_COSTS = ("cache_bytes", "launch_seconds", "alu_picojoules", "link_picojoules_per_byte",
          "host_watts")  # fmt: skip
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class PimDevice:
    """Ranks of memory, each with a core beside it that gathers and reduces rows.

    `PimEmbeddingBag`, `tfrec_efficient.ops.pim_gather_reduce` and the planner emulate it: values
    are exact, times and energies come from this description. A rank takes

        dram = DramTimings.busy_seconds(bursts read, bursts written, activations)
        alu = alu_operations / (alu_lanes * alu_hz)
        instructions = instructions / instruction_hz

    all at the same time, and all ranks work at the same time. The total adds to the largest of
    these `launch_seconds`, the bytes of all ranks over `link_bandwidth`, and what comes back over
    `host_bandwidth`.

    The ranks form `ranks / slices` groups. A row lies in one group, cut into `slices` of its
    columns: `slices=1` interleaves rows, `slices=ranks` cuts all of them. Rows that are copied to
    all groups are an argument of the ops.

    Args:
        name: For tables and pictures.
        ranks: int. Ranks with a core.
        placement: `"row_interleave"`: row r of table t is in group `(r + t) % groups`, and each
            group sends a partial sum of its own; or `"table_aware"`: table t is in group
            `t % groups`. Defaults to `"row_interleave"`.
        slices: int. Ranks that share a row; they divide `ranks`. Defaults to 1.
        pads_slices: bool. Whether a slice may be narrower than a burst, which it then wastes; else
            tables with such slices are refused. Defaults to False.
        rank_bytes: int. Capacity of a rank. Defaults to 8 GiB.
        dram: `DramTimings` of a rank. Defaults to those of DDR4-3200.
        cache_bytes: int. Of a cache beside each rank, of whole rows, in which a row has one place;
            it is empty when an op begins. Defaults to 0.
        alu_lanes: int. Values that a core takes at once. Defaults to 16.
        alu_hz: Operations of a lane in a second. Defaults to 1e9.
        instruction_hz: Lookups, and results, that a core takes in a second. Defaults to 1e9.
        link_bandwidth: Bytes a second between host and device. Defaults to 25.6e9.
        launch_seconds: Of each op. Defaults to 1e-6.
        alu_picojoules: Of an operation. Defaults to 1.
        link_picojoules_per_byte: Defaults to 40.
        host_bandwidth: Bytes a second at which the host reads random rows; measure it where it
            matters. Defaults to 15.8e9.
        host_watts: Of the host while it works. Defaults to 100.
        sources: Where figures come from, by their names. What is missing is assumed.

    Raises:
        ValueError: A value could not be that of a device.

    Example:
    >>> import dataclasses
    >>> import tfrec_efficient as tfrec
    >>> device = tfrec.PimDevice.tensor_casting()
    >>> device.ranks, device.groups
    (32, 8)
    >>> tfrec.PimDevice.from_json(device.to_json()) == device
    True
    >>> rows = dataclasses.replace(device, slices=1, placement="row_interleave")

    References:
        - Kwon, Lee and Rhu, "Tensor Casting", HPCA 2021, section IV-C and table I. The closed form
          of the times is ours.
    """

    name: str
    ranks: int
    placement: Literal["row_interleave", "table_aware"] = "row_interleave"
    slices: int = 1
    pads_slices: bool = False
    rank_bytes: int = 8 << 30
    dram: DramTimings = dataclasses.field(default_factory=DramTimings)
    cache_bytes: int = 0
    alu_lanes: int = 16
    alu_hz: float = 1e9
    instruction_hz: float = 1e9
    link_bandwidth: float = 25.6e9
    launch_seconds: float = 1e-6
    alu_picojoules: float = 1.0
    link_picojoules_per_byte: float = 40.0
    host_bandwidth: float = 15.8e9
    host_watts: float = 100.0
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in _SIZES:
            check_number(name, getattr(self, name), "positive", whole=True)
        for name in _RATES:
            check_number(name, getattr(self, name), "positive")
        for name in _COSTS:
            check_number(name, getattr(self, name), "0 or more", whole=name == "cache_bytes")
        if self.ranks % self.slices:
            raise ValueError(
                f"`slices` must divide `ranks`, {self.ranks}. Received: slices={self.slices}"
            )
        if self.placement not in _PLACEMENTS:
            raise ValueError(
                f"`placement` must be one of {_PLACEMENTS}. Received: placement={self.placement!r}"
            )
        if not isinstance(self.dram, DramTimings):
            raise ValueError(f"`dram` must be a DramTimings. Received: dram={self.dram!r}")
        if not isinstance(self.name, str):
            raise ValueError(f"`name` must be a string. Received: name={self.name!r}")
        if not isinstance(self.sources, Mapping):
            raise ValueError(f"`sources` must be a mapping. Received: sources={self.sources!r}")
        names = {field.name for field in dataclasses.fields(self)}
        if not set(self.sources) <= names:
            raise ValueError(
                "`sources` must be by names of arguments. "
                f"Received: {sorted(set(self.sources) - names)}"
            )

    # ---- What follows from the arguments.

    @property
    def groups(self) -> int:
        """Groups of ranks that hold a row each."""
        return self.ranks // self.slices

    @property
    def burst_bytes(self) -> int:
        """Bytes of a burst."""
        return self.dram.burst_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of an open page of a rank."""
        return self.dram.page_bytes

    @property
    def banks(self) -> int:
        """Banks of a rank."""
        return self.dram.banks * self.dram.ranks

    @property
    def bandwidth(self) -> float:
        """Bytes a second of all ranks at most."""
        return self.ranks * self.dram.bandwidth

    def bytes_of_table(self, shape: tuple[int, int], dtype: Any, hot_rows: int = 0) -> int:
        """Bytes of a table in the rank that has most of it, slots not included.

        Raises:
            ValueError: Slices are narrower than a burst.
        """
        layout = layout_of(self, shape, dtype)
        rows = layout.rows if layout.by_table else -(-layout.rows // layout.groups)
        pages = -(-(rows + hot_rows) // layout.rows_per_page) * layout.pages_per_row
        return pages * self.page_bytes

    def check_fits(
        self, shape: tuple[int, int], dtype: Any, copies: int = 1, hot_rows: int = 0
    ) -> None:
        """Raises ValueError unless a table fits, with so many arrays of its shape."""
        needed = copies * self.bytes_of_table(shape, dtype, hot_rows)
        if needed > self.rank_bytes:
            raise ValueError(
                f"The table must fit the {self.rank_bytes:,} bytes of a rank of {self.name}. "
                f"Received: shape {tuple(shape)}, {copies} arrays, which take {needed:,} bytes"
            )

    # ---- The model.

    def report(self, counts: Any, host_bytes: Any) -> PimReport:
        """What the model says of counts of one op, in float64 and without reading a clock.

        Args:
            counts: int64, `(ranks, counters)`, as in `PimReport`.
            host_bytes: What the host would move for the same work.

        Returns:
            The report.
        """
        count = dict(zip(COUNTERS, tf.unstack(tf.cast(counts, tf.float64), axis=1), strict=True))
        read, written = (count[name] / self.burst_bytes for name in ("bytes_read", "bytes_written"))
        to_link = tf.reduce_sum(count["link_bytes_in"] + count["link_bytes_out"])
        returned = tf.reduce_sum(count["link_bytes_out"])
        busy = self.dram.busy_seconds(read, written, count["activations"])
        dram = tf.reduce_max(busy)
        alu = tf.reduce_max(count["alu_operations"]) / (self.alu_lanes * self.alu_hz)
        instructions = tf.reduce_max(count["instructions"]) / self.instruction_hz
        link = to_link / self.link_bandwidth
        combine = returned / self.host_bandwidth
        launch = tf.constant(self.launch_seconds, tf.float64)
        total = tf.maximum(dram, tf.maximum(alu, instructions)) + link + combine + launch
        joules = [
            tf.reduce_sum(
                count["activations"] * self.dram.activation_joules()
                + read * self.dram.read_joules()
                + written * self.dram.write_joules()
            ),
            tf.reduce_sum(count["alu_operations"]) * (self.alu_picojoules * 1e-12),
            to_link * (self.link_picojoules_per_byte * 1e-12),
            total * (self.ranks * self.dram.idle_watts()),
        ]
        host_seconds = tf.cast(host_bytes, tf.float64) / self.host_bandwidth
        return PimReport(
            counts=tf.cast(counts, tf.int64),
            seconds=tf.stack([dram, alu, instructions, link, combine, launch, total]),
            joules=tf.stack(joules),
            host_seconds=host_seconds,
            host_joules=host_seconds * self.host_watts,
        )

    def describe(self) -> str:
        """A line for each figure, with its source, or the word that it is assumed."""
        lines = []
        for field in dataclasses.fields(self)[1:-1]:
            source = self.sources.get(field.name, "assumed")
            if field.name == "dram":
                timings = dataclasses.asdict(self.dram)
                lines += [f"dram.{name} = {value}: {source}" for name, value in timings.items()]
            else:
                lines.append(f"{field.name} = {getattr(self, field.name)}: {source}")
        return "\n".join(lines)

    # ---- JSON.

    def to_json(self) -> str:
        """The device as JSON, which `from_json` reads."""
        return json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "PimDevice":
        """Reads what `to_json` wrote.

        Raises:
            ValueError: It is not the JSON of a device, or of one that could not exist.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict) or not isinstance(values.get("dram"), dict):
                raise TypeError("an object with an object `dram` was expected")
            return cls.from_dict(values)
        except (TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"`text` must be the JSON of a PimDevice: {error}") from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PimDevice":
        """The device of what `to_json` wrote, parsed."""
        values = dict(values)
        version = values.pop("format", None)
        if version != _FORMAT:
            raise ValueError(f"`format` must be {_FORMAT}. Received: format={version!r}")
        return cls(**{**values, "dram": DramTimings(**values["dram"])})

    def save(self, path: Any) -> None:
        """Writes the JSON to a file."""
        part = Path(path).with_name(f".{Path(path).name}.part")
        part.write_text(self.to_json() + "\n")
        part.replace(path)

    # ---- Presets.

    @classmethod
    def tensor_casting(cls) -> "PimDevice":
        """The pool of Tensor Casting: 32 ranks of DDR4-3200, 819.2 GB/s of them together.

        A row of 64 floats is cut into four bursts; tables take turns over the eight groups.
        """
        return cls(
            "Tensor Casting",
            ranks=32,
            placement="table_aware",
            slices=4,
            sources={
                "ranks": "Tensor Casting, HPCA 2021, table I (quoted)",
                "dram": "819.2 GB/s over 32 ranks, Tensor Casting, table I (quoted): DDR4-3200; "
                "timings of DRAMsim3, DDR4_8Gb_x8_3200.ini, one rank",
                "host_bandwidth": "measured, random rows of 256 bytes, 2 x AMD EPYC, 2026-11-21",
            },
        )

    @classmethod
    def tensordimm(cls) -> "PimDevice":
        """TensorDIMM: every rank has a slice of each row, and wastes what fills no burst."""
        return cls(
            "TensorDIMM",
            ranks=32,
            slices=32,
            pads_slices=True,
            sources={
                "slices": "TensorDIMM, MICRO 2019 (1908.03072): rows over all ranks",
                "dram": "timings of DRAMsim3, DDR4_8Gb_x8_3200.ini, one rank",
                "host_bandwidth": "measured, random rows of 256 bytes, 2 x AMD EPYC, 2026-11-21",
            },
        )

    @classmethod
    def recnmp(cls) -> "PimDevice":
        """RecNMP: rows over 8 ranks, and a RankCache of 128 KiB beside each."""
        return cls(
            "RecNMP",
            ranks=8,
            cache_bytes=128 << 10,
            sources={
                "placement": "RecNMP, ISCA 2020 (1912.12953): cores in the buffers of ranks",
                "host_bandwidth": "measured, random rows of 256 bytes, 2 x AMD EPYC, 2026-11-21",
            },
        )

    @classmethod
    def trim(cls) -> "PimDevice":
        """TRiM at bank groups: 64 units over 8 ranks of DDR5; copy hot rows with `hot_ids`.

        Each unit reads a burst of its bank group every `t_ccd_l` cycles, and has an eighth of the
        activations that a rank may make in `t_faw`. The idle energy of a rank is counted for each
        of its eight units, which is too much.
        """
        bank_group = DramTimings(
            clock_ns=0.4166,
            banks=4,
            t_ccd_s=12,
            t_ccd_l=12,
            t_rcd=40,
            t_rp=40,
            t_ras=77,
            t_faw=8 * 32,
            t_rfc=708,
            t_refi=9360,
        )
        return cls(
            "TRiM-G",
            ranks=64,
            rank_bytes=2 << 30,
            dram=bank_group,
            sources={
                "placement": "TRiM, MICRO 2021: reduction units at bank groups, hot rows copied",
                "host_bandwidth": "measured, random rows of 256 bytes, 2 x AMD EPYC, 2026-11-21",
            },
        )

    @classmethod
    def upmem(cls) -> "PimDevice":
        """UPMEM: 2048 DPUs of 64 MB; each waits for its memory, and adds floats in software.

        Reading n bytes takes 77 + n / 2 cycles of 350 MHz, as remembered of its measurements by
        Gómez-Luna et al. (2021). Energies are rough.
        """
        mram = DramTimings(
            clock_ns=1e3 / 350,
            burst_bytes=8,
            page_bytes=1024,
            banks=1,
            t_ccd_s=4,
            t_ccd_l=4,
            t_rtrs=0,
            t_rcd=39,
            t_rp=38,
            t_ras=0,
            t_faw=0,
            t_cl=0,
            t_cwl=0,
            t_wtr=0,
            t_rfc=0,
            queue=0,
            chips=1,
            i_dd0=0,
        )
        return cls(
            "UPMEM",
            ranks=2048,
            rank_bytes=64 << 20,
            dram=mram,
            alu_lanes=1,
            alu_hz=4.9e6,
            instruction_hz=3.5e6,
            link_bandwidth=16e9,
            launch_seconds=100e-6,
            sources={
                "rank_bytes": "64 MB of MRAM for each DPU: Hyun et al., HPCA 2024 (2308.00846)",
                "host_bandwidth": "measured, random rows of 256 bytes, 2 x AMD EPYC, 2026-11-21",
            },
        )
