"""Whatever happens to a process or its files, the last checkpoint is whole, or it is refused."""

import contextlib
import resource
import shutil
import time

import numpy as np
import pytest
import tensorflow as tf

import tfrec_efficient as tfrec

REFUSED = (ValueError, tf.errors.InvalidArgumentError)


# ---- Killed processes ----------------------------------------------------------------------------


def kill_again_and_again(shared, nursery, folder, with_keys, kills, seed):
    """Goes on with one store, and returns how often each end of the log was what was found."""
    children, rng = shared.children, np.random.default_rng(seed)
    store, log = folder / "store", folder / "log"
    found_in = {"opened": 0, "before": 0, "after": 0}
    digest = None
    for kill in range(kills):
        log.unlink(missing_ok=True)
        _, end = nursery.start(
            "train_for_ever", folder=store, log=log, seed=seed + kill, with_keys=with_keys
        )
        deadline = time.monotonic() + 120
        while not log.exists() or log.stat().st_size == 0:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        time.sleep(rng.random() ** 2 * 0.3)
        assert end() is None
        lines = [line.split() for line in log.read_text().splitlines()]
        assert digest in (None, lines[0][1])  # which the child has opened
        layer = children.table(store, with_keys)
        digest = children.digest(layer)
        layer.close()
        # The last one that was made, or the one that was being made.
        last = max(k for k, (kind, _) in enumerate(lines) if kind != "before")
        places = [kind for kind, of_line in reversed(lines[last:]) if of_line == digest]
        assert places, f"after kill {kill}: {digest} is none of {lines[last:]}"
        found_in[places[-1]] += 1
    return found_in


@pytest.mark.parametrize("with_keys", [False, True])
def test_a_killed_process_leaves_its_last_checkpoint(shared, nursery, tmp_path, with_keys):
    kill_again_and_again(shared, nursery, tmp_path, with_keys, kills=4, seed=10)


@pytest.mark.slow
@pytest.mark.parametrize("with_keys", [False, True])
def test_a_thousand_kills(shared, nursery, tmp_path, with_keys):
    found_in = kill_again_and_again(shared, nursery, tmp_path, with_keys, kills=500, seed=0)
    assert found_in["after"] > 100
    assert found_in["before"] > 0  # some came between a commit and the line that says so


# ---- Full disks ----------------------------------------------------------------------------------


@contextlib.contextmanager
def files_end_at(size):
    """No file grows beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def big(shared, store, **arguments):
    return shared.cached(store, rows=2000, cache_rows=100, **arguments)


def train_all(shared, layer, seed=0):
    step = shared.trainer(layer)
    for ids in np.random.default_rng(seed).permutation(2000).reshape(20, 20, 5):
        step(ids)


@pytest.mark.parametrize("size", [100, 4_000, 40_000, 79_000])
def test_a_full_disk_leaves_the_last_checkpoint(shared, store, size):
    layer = big(shared, store)
    train_all(shared, layer)
    layer.flush()
    rows = shared.rows_of(layer)
    failed = False
    with files_end_at(size):
        for _ in range(2):
            try:
                train_all(shared, layer, seed=1)
                layer.flush()
            except tf.errors.InvalidArgumentError as error:
                assert "File too large" in error.message
                failed = True
    assert failed
    layer.close()
    layer = big(shared, store)
    np.testing.assert_array_equal(shared.rows_of(layer), rows)
    train_all(shared, layer, seed=1)
    layer.flush()
    assert layer.stats().checkpoints == 2


def test_a_failed_transfer_is_told_until_the_table_is_opened_again(shared, store):
    layer = big(shared, store)
    with files_end_at(4_000), pytest.raises(tf.errors.InvalidArgumentError, match="File too large"):
        train_all(shared, layer)
    for use in (lambda: layer(np.array([[1]])), layer.flush, lambda: layer.read_rows([1])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="must be opened again"):
            use()


def test_a_store_that_cannot_be_made_leaves_nothing_behind(shared, store):
    with files_end_at(4_000), pytest.raises(tf.errors.InvalidArgumentError, match="too large"):
        big(shared, store)
    big(shared, store)


def test_a_vocabulary_that_cannot_be_written_leaves_the_last_checkpoint(shared, store):
    def opened():
        vocabulary = tfrec.embedding.DynamicVocabulary()
        return shared.cached(store, rows=None, cache_rows=600, vocabulary=vocabulary)

    layer = opened()
    layer(np.arange(100)[np.newaxis], training=True)
    layer.flush()
    layer(np.arange(600)[np.newaxis], training=True)
    with files_end_at(8_000), pytest.raises((OSError, tf.errors.InvalidArgumentError)):
        layer.flush()
    layer.close()
    layer = opened()
    assert len(layer._rows.vocabulary.export()[0]) == 100
    layer(np.arange(600)[np.newaxis], training=True)
    layer.flush()
    layer.close()
    assert len(opened()._rows.vocabulary.export()[0]) == 600


# ---- Damaged files -------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[False, True], ids=["ids", "keys"])
def sound(request, shared, tmp_path_factory):
    """A store that is to be copied and damaged, and the digest of what it holds."""
    store = tmp_path_factory.mktemp("sound") / "store"
    layer = shared.children.table(store, request.param, rows=40)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        shared.children.train_step(layer, rng.integers(0, 20, (5, 3)))
    layer.flush()
    digest = shared.children.digest(layer)
    layer.close()
    return store, request.param, digest


def digest_of(shared, store, with_keys):
    layer = shared.children.table(store, with_keys, rows=40)
    try:
        return shared.children.digest(layer)
    finally:
        layer.close()


def test_a_copy_is_a_store(shared, sound, store):
    folder, with_keys, digest = sound
    shutil.copytree(folder, store)
    assert digest_of(shared, store, with_keys) == digest


def test_flipped_bits_are_refused(shared, sound, store):
    folder, with_keys, digest = sound
    rng = np.random.default_rng(0)
    kept = {"lock", "shadow_rows"}  # which hold nothing after a checkpoint
    files = [file.name for file in folder.iterdir() if file.name not in kept]
    assert len(files) == 2 + with_keys
    shutil.copytree(folder, store)
    for name in files:
        whole = (folder / name).read_bytes()
        for _ in range(15):
            damaged = bytearray(whole)
            # Files of rows are mostly holes: the first rows are those that were written.
            damaged[rng.integers(min(len(whole), 2000))] ^= 1 << rng.integers(8)
            (store / name).write_bytes(damaged)
            with pytest.raises(REFUSED, match="must|was made with"):
                digest_of(shared, store, with_keys)
        (store / name).write_bytes(whole)
    assert digest_of(shared, store, with_keys) == digest


def test_files_of_another_length_are_refused(shared, sound, store):
    folder, with_keys, digest = sound
    shutil.copytree(folder, store)
    for name in ("header.json", "rows.npy", *(["keys-1.npy"] if with_keys else [])):
        whole = (folder / name).read_bytes()
        longer = [whole + b"\0"] if name != "keys-1.npy" else []  # of which NumPy reads its part
        for other in (whole[:-1], whole[: len(whole) // 2], b"", *longer):
            (store / name).write_bytes(other)
            with pytest.raises(REFUSED):
                digest_of(shared, store, with_keys)
        (store / name).write_bytes(whole)
        (store / name).unlink()
        with pytest.raises(REFUSED):
            digest_of(shared, store, with_keys)
        (store / name).write_bytes(whole)
    assert digest_of(shared, store, with_keys) == digest


def test_another_version_is_refused_by_its_number(shared, sound, store):
    folder, with_keys, _ = sound
    shutil.copytree(folder, store)
    header = store / "header.json"
    text = header.read_text()
    header.write_text(text.replace('"version": 1', '"version": 2', 1))
    with pytest.raises(REFUSED, match="must be of version 1.*Received: version 2"):
        digest_of(shared, store, with_keys)


def test_files_of_a_checkpoint_that_was_never_made_are_dropped(shared, sound, store):
    folder, with_keys, digest = sound
    shutil.copytree(folder, store)
    (store / "keys-7.npy").write_bytes(b"what a killed process has left")
    (store / "keys-8.npy.part").write_bytes(b"what a killed process has left")
    (store / "header.json.new").write_text("what a killed process has left")
    assert digest_of(shared, store, with_keys) == digest
    layer = shared.children.table(store, with_keys, rows=40)
    layer.flush()
    assert not list(store.glob("keys-[178]*"))
    assert len(list(store.glob("keys-*"))) == with_keys
