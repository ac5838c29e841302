"""One rival of `embedding.py` that runs in an environment of its own: PyTorch or FBGEMM.

Started by `_workers.py` with one line of JSON on standard input, which describes the table, the ids
and the step. Answers with one line, `{"ready": true, "pooled": [...], "versions": {...}}`, and then
each line `run BATCH` with the wall and CPU milliseconds of one step on that batch. Knows neither
TensorFlow nor this library.
"""

import json
import os
import sys
import time

import numpy as np
import torch


def table_of(rows, pattern):
    """The table that all rivals start from: the rows of `pattern`, again and again."""
    table = torch.empty(rows, pattern.shape[1])
    for start in range(0, rows, len(pattern)):
        end = min(start + len(pattern), rows)
        table[start:end] = pattern[: end - start]
    return table


def torch_rival(cell, pattern):
    """`EmbeddingBag` with sparse gradients and the optimizer that PyTorch has for them."""
    table = table_of(cell["rows"], pattern)
    bag = torch.nn.EmbeddingBag(*table.shape, mode="sum", sparse=True, _weight=table)
    if cell["optimizer"] == "none":
        return lambda ids: bag(ids), None
    kinds = {
        "sgd": torch.optim.SGD,
        "adagrad": torch.optim.Adagrad,
        "adam": torch.optim.SparseAdam,
    }
    optimizer = kinds[cell["optimizer"]](bag.parameters(), lr=cell["learning_rate"])

    def step(ids, upstream):
        optimizer.zero_grad(set_to_none=True)
        bag(ids).backward(upstream)
        optimizer.step()

    return lambda ids: bag(ids), step


def fbgemm_rival(cell, pattern):
    """The table batched embeddings, which update rows within the backward pass."""
    from fbgemm_gpu import split_table_batched_embeddings_ops_common as common
    from fbgemm_gpu import split_table_batched_embeddings_ops_training as training

    kinds = {
        "none": training.OptimType.EXACT_SGD,
        "sgd": training.OptimType.EXACT_SGD,
        "adagrad": training.OptimType.EXACT_ADAGRAD,
        "rowwise_adagrad": training.OptimType.EXACT_ROWWISE_ADAGRAD,
    }
    rows, dim = cell["rows"], pattern.shape[1]
    tables = training.SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, dim, common.EmbeddingLocation.HOST, training.ComputeDevice.CPU)],
        optimizer=kinds[cell["optimizer"]],
        learning_rate=cell["learning_rate"],
        # Without the check of the ids that our rival makes: FBGEMM at its fastest.
        bounds_check_mode=common.BoundsCheckMode.NONE,
    )
    tables.split_embedding_weights()[0].copy_(table_of(rows, pattern))
    batch, hotness = cell["batch"], cell["hotness"]
    offsets = torch.arange(0, batch * hotness + 1, hotness)

    def pool(ids):
        return tables(ids.view(-1), offsets)

    if cell["optimizer"] == "none":
        return pool, None
    return pool, lambda ids, upstream: pool(ids).backward(upstream)


def main():
    """Answers lines until standard input ends."""
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    cell = json.loads(sys.stdin.readline())
    torch.set_num_threads(cell["threads"])
    ids = torch.from_numpy(np.load(cell["ids"]))
    pattern = torch.from_numpy(np.load(cell["pattern"]))
    bag_weights = torch.from_numpy(np.load(cell["bag_weights"]))
    upstream = torch.from_numpy(np.load(cell["upstream"]))
    make = {"torch": torch_rival, "fbgemm": fbgemm_rival}[cell["rival"]]
    pool, step = make(cell, pattern)
    versions = {"PyTorch": torch.__version__}
    if cell["rival"] == "fbgemm":
        import fbgemm_gpu

        versions["FBGEMM"] = fbgemm_gpu.__version__
    with torch.no_grad():
        pooled = bag_weights @ pool(ids[0]).double()
    print(
        json.dumps({"ready": True, "pooled": pooled.tolist(), "versions": versions}), file=answers
    )

    slept_from = time.process_time()
    for line in sys.stdin:
        batch = int(line.split()[1])
        cpu, wall = time.process_time(), time.perf_counter()
        idle = cpu - slept_from
        if step is None:
            with torch.no_grad():
                pool(ids[batch])
        else:
            step(ids[batch], upstream)
        wall, slept_from = time.perf_counter() - wall, time.process_time()
        measured = {"wall": wall * 1e3, "cpu": (slept_from - cpu) * 1e3, "idle_cpu": idle * 1e3}
        print(json.dumps(measured), file=answers)


if __name__ == "__main__":
    main()
