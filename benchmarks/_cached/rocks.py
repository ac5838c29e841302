"""The rival of `cached_embedding.py` that keeps rows in RocksDB, by `rocksdict`.

Speaks as `worker.py` does, and knows neither TensorFlow nor this library. It reads the rows of a
batch and writes them back, and has nothing to compute: less than a training step would need.
"""

import json
import sys
import time

import numpy as np
import rocksdict


def main():
    cell = json.loads(sys.stdin.readline())
    width, ids_of_batch = 2 * cell["dim"], cell["batch"] * cell["hotness"]
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.increase_parallelism(2)
    options.set_write_buffer_size(cell["budget"] // 4)
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(rocksdict.Cache(cell["budget"] // 2))
    blocks.set_bloom_filter(10, False)
    options.set_block_based_table_factory(blocks)
    db = rocksdict.Rdict(cell["path"], options)
    unsynced = rocksdict.WriteOptions()
    unsynced.disable_wal = True
    db.set_write_options(unsynced)
    first = np.zeros(width, np.float32)
    trace = np.memmap(cell["trace"], np.int64, "r").reshape(-1, ids_of_batch)
    print(json.dumps({"ready": True}), flush=True)
    batch = 0
    for _ in sys.stdin:
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(cell["steps"]):
            ids = np.unique(trace[batch % len(trace)])
            batch += 1
            keys = [key.tobytes() for key in ids]
            found = db[keys]
            rows = np.stack(
                [first if row is None else np.frombuffer(row, np.float32) for row in found]
            )
            writes = rocksdict.WriteBatch(raw_mode=True)
            for key, row in zip(keys, rows + np.float32(1), strict=True):
                writes.put(key, row.tobytes())
            db.write(writes)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        answer = {"wall": wall * 1e3 / cell["steps"], "cpu": cpu * 1e3 / cell["steps"]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
