"""The cells of `pim.py`."""

import dataclasses
import statistics

import _harness
import numpy as np
import tensorflow as tf

import tfrec_efficient as tfrec
from _pim import models
from _pim import simulator

BATCH_SIZES = (1024, 2048, 4096)
DESIGN_CELLS = {f"{name}_{batch}": (name, batch) for name in models.SHAPES for batch in BATCH_SIZES}
CELLS = ("validation", "traffic", "overhead", *DESIGN_CELLS)
DESIGNS = ("baseline_cpu", "baseline_nmp", "casted_cpu", "casted_nmp")
OVERHEAD_ROWS, OVERHEAD_BAGS = 1_000_000, (4096, 32)


def run(name, rounds):
    """Measures a cell and returns its record."""
    if name in DESIGN_CELLS:
        return design_points(*DESIGN_CELLS[name], rounds)
    return {"validation": validation, "traffic": traffic, "overhead": overhead}[name](rounds)


def step_seconds(host, device):
    """Seconds of a step of each design point, from its parts."""
    # Sorting needs ids only: the host sorts those of the next batch while the device is busy.
    in_device = device["forward"] + device["backward"] + device["update"]
    sorting = max(0.0, host["cast"] - in_device)
    return {
        "baseline_cpu": host["dense"] + host["forward"] + host["expand_coalesce"] + host["scatter"],
        "baseline_nmp": host["dense"] + device["forward"] + host["expand_coalesce"]
        + device["scatter"],
        "casted_cpu": host["dense"] + host["cast"] + host["casted_step"],
        "casted_nmp": host["dense"] + in_device + sorting,
    }  # fmt: skip


def design_points(name, batch, rounds):
    """Measured host parts, modelled device parts."""
    device = tfrec.PimDevice.tensor_casting()
    parts = models.HostParts(models.SHAPES[name], batch, _harness.BATCHES)
    timings = _harness.take_turns(
        {
            part: _harness.timed(lambda number, part=part: parts.run(part, number))
            for part in parts.parts
        },
        rounds,
    )
    reports, host_model = models.device_reports(parts, device)
    device_seconds = {kind: report.term("total") for kind, report in reports.items()}
    rounds_of = [
        step_seconds({part: timing.wall[i] / 1e3 for part, timing in timings.items()},
                     device_seconds)
        for i in range(len(timings["dense"].wall))
    ]  # fmt: skip
    steps = {design: statistics.median(of[design] for of in rounds_of) for design in DESIGNS}
    in_device = {
        "baseline_cpu": (), "casted_cpu": (),
        "baseline_nmp": ("forward", "scatter"), "casted_nmp": ("forward", "backward", "update"),
    }  # fmt: skip
    return {
        "shape": dataclasses.asdict(models.SHAPES[name]),
        "batch": batch,
        "device": device.name,
        "host_parts_ms": {
            part: {"median": statistics.median(timing.wall), "quartiles": _spread(timing.wall)}
            for part, timing in timings.items()
        },
        "device_reports": {kind: report.as_dict() for kind, report in reports.items()},
        "host_tables_modelled_ms": host_model * 1e3,
        "step_ms": {design: seconds * 1e3 for design, seconds in steps.items()},
        "speedup": {
            design: _harness.quartiles(of["baseline_cpu"] / of[design] for of in rounds_of)
            for design in DESIGNS
        },
        # The host is switched on for the whole step, whoever works.
        "joules": {
            design: device.host_watts * steps[design]
            + sum(float(reports[kind].total_joules) for kind in kinds)
            for design, kinds in in_device.items()
        },
        "rounds": len(rounds_of),
    }


def _spread(values):
    return _harness.quartiles(values)[1:]


def overhead(rounds):
    """What emulation costs beside `gather_reduce`, with reports and without."""
    rng = np.random.default_rng(0)
    ids = tf.constant(rng.integers(0, OVERHEAD_ROWS, (_harness.BATCHES, *OVERHEAD_BAGS)))
    table = tf.Variable(tf.random.stateless_normal((OVERHEAD_ROWS, 64), [0, 0]))
    rows = dataclasses.replace(
        tfrec.PimDevice.tensor_casting(), slices=1, placement="row_interleave"
    )
    rivals = {"gather_reduce": tf.function(lambda ids: tfrec.ops.gather_reduce(table, ids))}
    for name, device in (("tables", tfrec.PimDevice.tensor_casting()), ("rows", rows)):
        for reports in (False, True):
            rivals[f"{name}, reports {'on' if reports else 'off'}"] = tf.function(
                lambda ids, device=device, reports=reports: tfrec.ops.pim_gather_reduce(
                    table, ids, device=device, with_report=reports
                )
            )
    timings = _harness.take_turns(
        {
            name: _harness.timed(lambda number, rival=rival: rival(ids[number]))
            for name, rival in rivals.items()
        },
        rounds,
    )
    return {
        "milliseconds": {name: statistics.median(timing.wall) for name, timing in timings.items()},
        "ratio": {
            name: _harness.quartiles(
                b / a for a, b in zip(timings["gather_reduce"].wall, timing.wall, strict=True)
            )
            for name, timing in timings.items()
        },
        "rounds": len(timings["gather_reduce"].wall),
    }


def traffic(rounds):
    """Bytes that are counted, and those of the closed forms, for all placements."""
    bags, hotness, rows, dim = 4096, 32, 1_000_000, 256
    shape = models.Shape(1, rows, hotness, (), (), dim)
    ids = models.batches_of(shape, bags, 1)[0, 0]
    row, lookups, unique = 4 * dim, ids.size, len(np.unique(ids))
    found = {}
    for placement in ("row_interleave", "table_aware"):
        for slices in (1, 4, 16):
            device = tfrec.PimDevice("test", 16, placement, slices)
            reports = tfrec.ops.pim_reports((rows, dim), "float32", ids, device=device)
            moved = [int(tf.reduce_sum(r.bytes_read + r.bytes_written)) for r in reports]
            groups = 16 // slices if placement == "row_interleave" else 1
            arrived = row * len(np.unique(np.arange(bags)[:, np.newaxis] * groups + ids % groups))
            found[f"{placement}, slices={slices}"] = {
                "forward": {"counted": moved[0], "closed_form": lookups * row},
                "backward and update": {
                    "counted": moved[1] + moved[2],
                    "closed_form": (lookups + 4 * unique) * row + arrived,
                },
            }
    return {"lookups": lookups, "unique": unique, "row_bytes": row, "placements": found}


def validation(rounds):
    """The recorded points of a simulator, the model, and a simulator that is at hand."""
    found = simulator.points()
    for point in found:
        point["simulated_now"] = simulator.simulate(point["order"], point["row_bytes"])
    return {"points": found}
