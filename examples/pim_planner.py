"""Plans the tables of the quickstart for a processing-in-memory device, as they are and larger.

    python examples/pim_planner.py [--device tensor_casting] [--times 1000] [--batch 4096]

The quickstart has five small tables. The first plan is for them and its batch of 256. In the
second, the vocabularies are so many times as large and the batch is what `--batch` says: what one
would buy for a service that has grown. All times of the device, and those of tables on the host,
are modelled; `--dense-ms` is what the rest of a step takes, if you have measured it.
"""

import argparse

import keras
import numpy as np

import tfrec_efficient as tfrec

PRESETS = ("tensor_casting", "tensordimm", "recnmp", "trim", "upmem")
parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--device", choices=PRESETS, default="tensor_casting")
parser.add_argument("--times", type=int, default=1000)
parser.add_argument("--batch", type=int, default=4096)
parser.add_argument("--dense-ms", type=float, default=0.0)
parser.add_argument("--output", default="pim_plan.svg")
asked = parser.parse_args()

# Users, items and genres of MovieLens-100K, each with one more for what is unknown or padding.
SIZES = {"user": 944, "item": 1683, "genres": 20}
HOTNESS = {"user": 1, "item": 1, "genres": 6}


def model_of(sizes):
    """The tables of the quickstart; what it computes of them does not matter to the plan."""
    ids = {name: keras.Input((HOTNESS[name],), dtype="int64", name=name) for name in sizes}
    vectors = [
        tfrec.EmbeddingBag(sizes[name], dim, "mean", padding_id=0, name=f"{name}_{kind}")(ids[name])
        for name, kind, dim in (
            ("item", "vector", 16),
            ("genres", "vector", 16),
            ("user", "vector", 16),
            ("user", "bias", 1),
            ("item", "bias", 1),
        )
    ]
    return keras.Model(ids, keras.layers.concatenate(vectors))


def ids_of(sizes, batch):
    """A batch of skewed ids, of which the most frequent are anywhere in the table."""
    rng = np.random.default_rng(0)
    popular = {name: rng.zipf(1.2, (batch, HOTNESS[name])) for name in sizes}
    return {name: 1 + popular[name] * 7919 % (rows - 1) for name, rows in sizes.items()}


device = getattr(tfrec.PimDevice, asked.device)()
for times, batch in ((1, 256), (asked.times, asked.batch)):
    sizes = {name: rows if name == "genres" else rows * times for name, rows in SIZES.items()}
    plan = tfrec.pim.plan(
        model_of(sizes), ids_of(sizes, batch), device, "adam", dense_seconds=asked.dense_ms / 1e3
    )
    print(f"\n{times} x the quickstart, batches of {batch}\n{plan}")
plan.plot(asked.output)
print(f"\nThe picture of the last one is {asked.output}.")
