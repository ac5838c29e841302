"""How long the memory of a rank is busy, and what energy it takes: a closed form over counts."""

import dataclasses
import sys
from typing import Any

import tensorflow as tf

# What the ops can count with; a device with more of it does not exist.
_MOST = {
    "ranks": 1 << 20,
    "banks": 1 << 20,
    "burst_bytes": 1 << 40,
    "page_bytes": 1 << 40,
    "cache_bytes": 1 << 40,
}


@dataclasses.dataclass(frozen=True)
class DramTimings:
    """Timings and currents of the memory behind one data bus.

    Names are those of the JEDEC standards, in clock cycles, but for what has a unit in its name.
    The defaults are one rank of DDR4-3200.

    With `bursts` transferred and `activations` pages opened, and all requests waiting, the bus is
    busy for

        max(bursts * t_ccd_s + activations * t_rtrs * (ranks - 1) / ranks,
            activations * t_faw / 4 / ranks,
            bursts * t_ccd_l - activations * (queue * t_ccd_l - t_rp - t_rcd))
        / (1 - t_rfc / t_refi)

    cycles. First, bursts follow each other every `t_ccd_s` cycles, and the bus rests for `t_rtrs`
    where another rank drives it. Second, a rank opens four pages in `t_faw` cycles. Third, bursts
    of one bank group follow each other every `t_ccd_l` cycles; that is hidden as far as the
    controller sees bursts of another one: it looks `queue` bursts ahead, less the time that it
    takes to open the page it finds there. Random rows hide all of it. Rows that lie one behind the
    other do not, where neighbours share a bank group, and are slower for that. What is written
    waits until it fills the queue, and then turns the bus around once.

    Args:
        clock_ns: Nanoseconds of a cycle. Defaults to 0.63.
        burst_bytes: Bytes of a burst. Defaults to 64.
        page_bytes: Bytes of an open page, over all chips of the rank. Defaults to 8192.
        banks: Banks of a rank. Defaults to 16.
        ranks: Ranks that share the bus. Defaults to 1.
        t_ccd_s: From burst to burst in different bank groups. Defaults to 4.
        t_ccd_l: From burst to burst in one bank group. Defaults to 8.
        t_rtrs: Between bursts of different ranks. Defaults to 1.
        t_rcd: From opening a page to reading. Defaults to 22.
        t_rp: From closing a page to opening another. Defaults to 22.
        t_ras: From opening a page to closing it. Defaults to 52.
        t_faw: In which four pages may be opened. Defaults to 34.
        t_cl: From reading to data. Defaults to 22.
        t_cwl: From writing to data. Defaults to 16.
        t_wtr: From written data to reading. Defaults to 12.
        t_rfc: Of a refresh. Defaults to 560.
        t_refi: From refresh to refresh. Defaults to 12480.
        queue: Bursts that the controller sees. Defaults to 40: 32 transactions, and 8 commands.
        chips: Chips of a rank. Defaults to 8.
        volts: Supply voltage. Defaults to 1.2.
        i_dd0: Milliamperes of a chip that opens and closes a page. Defaults to 57.
        i_dd2n: Of one with closed pages. Defaults to 37.
        i_dd3n: Of one with open pages. Defaults to 52.
        i_dd4r: Of one that reads. Defaults to 168.
        i_dd4w: Of one that writes. Defaults to 150.
        i_dd5: Of one that refreshes. Defaults to 250.

    Raises:
        ValueError: A value is negative, or zero where memory could not exist.

    Example:
    >>> import tfrec_efficient as tfrec
    >>> memory = tfrec.pim.DramTimings()
    >>> round(memory.bandwidth / 1e9, 1)
    25.4

    References:
        - The defaults are those of `DDR4_8Gb_x8_3200.ini` of DRAMsim3 (Li et al., IEEE CAL 2020),
          whose channel has two ranks, and row, rank, bank, bank group and column bits of an
          address in this order.
    """

    clock_ns: float = 0.63
    burst_bytes: int = 64
    page_bytes: int = 8192
    banks: int = 16
    ranks: int = 1
    t_ccd_s: float = 4
    t_ccd_l: float = 8
    t_rtrs: float = 1
    t_rcd: float = 22
    t_rp: float = 22
    t_ras: float = 52
    t_faw: float = 34
    t_cl: float = 22
    t_cwl: float = 16
    t_wtr: float = 12
    t_rfc: float = 560
    t_refi: float = 12480
    queue: int = 40
    chips: int = 8
    volts: float = 1.2
    i_dd0: float = 57
    i_dd2n: float = 37
    i_dd3n: float = 52
    i_dd4r: float = 168
    i_dd4w: float = 150
    i_dd5: float = 250

    def __post_init__(self) -> None:
        positive = ("clock_ns", "burst_bytes", "page_bytes", "banks", "ranks", "t_ccd_s", "t_refi")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            rule = "positive" if field.name in positive else "0 or more"
            check_number(field.name, value, rule, field.type is int)
        if self.page_bytes < self.burst_bytes:
            raise ValueError(
                f"`page_bytes` must be at least `burst_bytes`, {self.burst_bytes}. "
                f"Received: page_bytes={self.page_bytes}"
            )
        if self.t_rfc >= self.t_refi:
            raise ValueError(
                f"`t_rfc` must be below `t_refi`, {self.t_refi}. Received: t_rfc={self.t_rfc}"
            )
        if self.t_ccd_l < self.t_ccd_s:
            raise ValueError(
                f"`t_ccd_l` must be at least `t_ccd_s`, {self.t_ccd_s}. "
                f"Received: t_ccd_l={self.t_ccd_l}"
            )

    @property
    def bandwidth(self) -> float:
        """Bytes a second at most."""
        return self.burst_bytes / (self.t_ccd_s * self.clock_ns * 1e-9)

    def busy_seconds(self, read: Any, written: Any, activations: Any) -> tf.Tensor:
        """Seconds for bursts that are read and written, and pages opened; float64."""
        read, written, activations = (_float64(count) for count in (read, written, activations))
        bursts = read + written
        overlap = self.queue * self.t_ccd_l - self.t_rp - self.t_rcd
        cycles = tf.maximum(
            bursts * self.t_ccd_s + activations * (self.t_rtrs * (self.ranks - 1) / self.ranks),
            tf.maximum(
                activations * (self.t_faw / 4 / self.ranks),
                bursts * self.t_ccd_l - activations * overlap,
            ),
        )
        turns = tf.minimum(read, written) / max(1, self.queue)
        to_write = self.t_cl - self.t_cwl + self.t_rtrs
        to_read = self.t_cwl + self.t_wtr
        cycles += turns * max(0.0, to_write + to_read)
        return cycles / (1 - self.t_rfc / self.t_refi) * (self.clock_ns * 1e-9)

    def activation_joules(self) -> float:
        """Of opening and closing a page, beyond what open and closed pages take anyway."""
        current = (
            self.i_dd0 * (self.t_ras + self.t_rp)
            - self.i_dd3n * self.t_ras
            - self.i_dd2n * self.t_rp
        )
        return self._joules(current)

    def read_joules(self) -> float:
        """Of a burst."""
        return self._joules((self.i_dd4r - self.i_dd3n) * self.t_ccd_s)

    def write_joules(self) -> float:
        """Of a burst."""
        return self._joules((self.i_dd4w - self.i_dd3n) * self.t_ccd_s)

    def idle_watts(self) -> float:
        """Of all ranks of the bus, with open pages, refresh included."""
        refresh = (self.i_dd5 - self.i_dd3n) * self.t_rfc / self.t_refi
        return self.ranks * self.chips * self.volts * (self.i_dd3n + max(0.0, refresh)) * 1e-3

    def _joules(self, milliampere_cycles: float) -> float:
        return max(0.0, milliampere_cycles) * self.volts * self.chips * self.clock_ns * 1e-12


def check_number(name: str, value: Any, rule: str, whole: bool = False) -> None:
    """Raises ValueError unless `value` is a finite number that is "positive" or "0 or more"."""
    is_number = isinstance(value, int) or (isinstance(value, float) and not whole)
    good = is_number and not isinstance(value, bool) and 0 <= value <= sys.float_info.max
    if not good or (rule == "positive" and value == 0):
        kind = "an integer" if whole else "a finite number"
        rule = f"{kind}, 0 or more" if rule != "positive" else f"{kind} above 0"
        raise ValueError(f"`{name}` must be {rule}. Received: {name}={value!r}")
    if value > _MOST.get(name, value):
        raise ValueError(f"`{name}` must be at most {_MOST[name]}. Received: {name}={value!r}")


def _float64(count: Any) -> tf.Tensor:
    return tf.cast(count, tf.float64)
