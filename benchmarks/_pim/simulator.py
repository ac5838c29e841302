"""The recorded points of a cycle-level simulator, the model's, and those of one that is at hand.

`$TFREC_DRAM_SIMULATOR` names a program that is called as DRAMsim3 is: `program config.ini -c CYCLES
-t trace -o folder`, and writes `dramsim3.json`.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec

RECORDED = Path(__file__).with_name("dramsim3.json")
TABLE_BYTES = 1 << 28
CYCLES = 60_000
CHANNEL = tfrec.pim.DramTimings(ranks=2)  # as the simulated one
_INI = """[dram_structure]
protocol = DDR4
bankgroups = 4
banks_per_group = 4
rows = 65536
columns = 1024
device_width = 8
BL = 8
[timing]
tCK = {clock_ns}
AL = 0
CL = {t_cl:g}
CWL = {t_cwl:g}
tRCD = {t_rcd:g}
tRP = {t_rp:g}
tRAS = {t_ras:g}
tRFC = {t_rfc:g}
tREFI = {t_refi:g}
tRRD_S = 4
tRRD_L = 8
tWTR_S = 4
tWTR_L = {t_wtr:g}
tFAW = {t_faw:g}
tWR = 24
tRTP = 12
tCCD_S = {t_ccd_s:g}
tCCD_L = {t_ccd_l:g}
tRTRS = {t_rtrs:g}
[power]
VDD = {volts}
IDD0 = {i_dd0:g}
IDD2P = 25
IDD2N = {i_dd2n:g}
IDD3P = 43
IDD3N = {i_dd3n:g}
IDD4W = {i_dd4w:g}
IDD4R = {i_dd4r:g}
IDD5AB = {i_dd5:g}
IDD6x = 30
[system]
channel_size = 16384
channels = 1
bus_width = 64
address_mapping = rochrababgco
queue_structure = PER_BANK
refresh_policy = RANK_LEVEL_STAGGERED
row_buf_policy = OPEN_PAGE
cmd_queue_size = 8
trans_queue_size = 32
[other]
epoch_period = 1587301
output_level = 1
"""


def points():
    """Each recorded point with what the model says of it, and its difference."""
    found = []
    for point in json.loads(RECORDED.read_text())["points"]:
        modelled = model(point["order"], point["row_bytes"])
        found.append({**point, **modelled, "difference": _difference(modelled, point)})
    return found


def _difference(modelled, point):
    return modelled["modelled_gigabytes_per_second"] / point["gigabytes_per_second"] - 1


def row_numbers(order, row_bytes, lookups=20_000):
    """The rows of a trace."""
    if order == "sequential":
        return np.arange(lookups)
    return np.random.default_rng(0).integers(0, TABLE_BYTES // row_bytes, lookups)


def model(order, row_bytes):
    """What the device model says of reading rows, as the op counts them."""
    device = tfrec.PimDevice("one channel", 1, dram=CHANNEL)
    rows = row_numbers(order, row_bytes)
    report, _, _ = tfrec.ops.pim_reports(
        (TABLE_BYTES // row_bytes, row_bytes // 4), "float32", rows[:, np.newaxis], device=device
    )
    seconds, moved = report.term("dram"), int(tf.reduce_sum(report.bytes_read))
    joules = float(report.joules[0]) + CHANNEL.idle_watts() * seconds
    return {
        "modelled_gigabytes_per_second": moved / seconds / 1e9,
        "modelled_activations_per_row": int(report.activations[0]) / len(rows),
        "modelled_mw_cycles_per_byte": joules / moved * 1e12 / CHANNEL.clock_ns,
    }


def simulate(order, row_bytes):
    """Gigabytes a second that the program of `$TFREC_DRAM_SIMULATOR` says; None without one."""
    program = os.environ.get("TFREC_DRAM_SIMULATOR")
    if not program:
        return None
    with tempfile.TemporaryDirectory() as folder:
        config, trace = Path(folder, "channel.ini"), Path(folder, "trace")
        config.write_text(_INI.format(**vars(CHANNEL)))
        starts = row_numbers(order, row_bytes) * row_bytes
        addresses = (starts[:, np.newaxis] + np.arange(0, row_bytes, 64)).ravel()
        trace.write_text("".join(f"0x{address:X} READ 0\n" for address in addresses))
        command = [program, config, "-c", str(CYCLES), "-t", trace, "-o", folder]
        subprocess.run(command, check=True, capture_output=True)
        stats = json.loads(Path(folder, "dramsim3.json").read_text())["0"]
    return stats["num_reads_done"] * 64 / (CYCLES * CHANNEL.clock_ns)
