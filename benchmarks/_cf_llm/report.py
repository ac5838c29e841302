"""The tables of `cf_llm.py`, made of all records there are."""

import collections
import json
import math

import numpy as np


def tables(folder):
    """Prints Hit@1 of all, of cold and of warm items, with seconds and memory, by data set."""
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    for path in sorted(folder.glob("*.seed*.json")):
        name, method, answer, few, seed = path.stem.rsplit(".", 4)
        groups[name, few][method, answer].append((seed, json.loads(path.read_text())))
    for (name, few), rows in sorted(groups.items()):
        users = "all users" if few == "few0" else f"{few.removeprefix('few')} users to learn from"
        print(f"\n{name}, {users}")
        print(
            f"{'method':16}{'answer':12}{'seeds':>6}{'Hit@1':>16}{'cold':>14}{'warm':>14}", end=""
        )
        print(f"{'vs SASRec':>18}{'CPU min':>9}{'GB':>6}")
        of_sasrec = dict(rows.get(("sasrec", "none"), []))
        for (method, answer), records in sorted(rows.items(), key=lambda row: -_mean(row[1])):
            _row(method, answer, records, of_sasrec)


def timings(folder):
    """Prints what an answer and a step take, if it is recorded."""
    path = folder / "timings.inference.json"
    if path.exists():
        record = json.loads(path.read_text())
        ours = record["likelihood"]
        print(
            f"\n{'a user, 20 candidates':24}{'wall s':>8}{'CPU s':>8}"
            f"{'/ likelihood (quartiles)':>28}"
        )
        for name, clocks in record.items():
            if name == "machine":
                continue
            low, median, high = np.quantile(
                np.divide(clocks["wall"], ours["wall"]), [0.25, 0.5, 0.75]
            )
            wall, cpu = (np.median(clocks[clock]) / 1e3 for clock in ("wall", "cpu"))
            print(f"{name:24}{wall:8.2f}{cpu:8.2f}{median:12.2f}x ({low:.2f} to {high:.2f})")
    for batch, name in ((4, "step"), (2, "step_of_two")):
        path = folder / f"timings.{name}.json"
        if path.exists():
            record = json.loads(path.read_text())
            seconds = np.median(record["cpu_seconds_a_user"])
            length = np.mean(record["longest_prompts"])
            print(
                f"\na step, batches of {batch}: {seconds:.2f} CPU s a user, longest prompts of "
                f"{length:.0f} tokens, peak {record['peak_gb']:.1f} GB",
                end="",
            )
    print()


def _row(method, answer, records, of_sasrec):
    hits = [np.mean(record["hits"]) for _, record in records]
    cold, warm = (
        [_share(record, kind) for _, record in records if any(np.equal(record["cold"], kind))]
        for kind in (True, False)
    )
    # The first users of a seed are the same, whatever the number of questions.
    paired = [
        np.mean(record["hits"]) - np.mean(of_sasrec[seed]["hits"][: len(record["hits"])])
        for seed, record in records
        if seed in of_sasrec and len(of_sasrec[seed]["hits"]) >= len(record["hits"])
    ]
    minutes = np.mean([record["cpu_seconds"] for _, record in records]) / 60
    peak = max(record["peak_gb"] for _, record in records)
    cells = [f"{_with_error(hits):>16}", f"{_with_error(cold):>14}", f"{_with_error(warm):>14}"]
    cells.append(f"{_with_error(paired, sign='+'):>18}")
    print(f"{method:16}{answer:12}{len(records):6}{''.join(cells)}{minutes:9.1f}{peak:6.1f}")


def _mean(records):
    return np.mean([np.mean(record["hits"]) for _, record in records])


def _share(record, kind):
    return np.mean(np.array(record["hits"])[np.equal(record["cold"], kind)])


def _with_error(values, sign=""):
    """The mean, and the standard error where there are several."""
    if not values:
        return "-"
    text = f"{np.mean(values):{sign}.3f}"
    if len(values) > 1:
        text += f" ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"
    return text
