"""What comes before the language model: the CF backbone and the alignment, trained once."""

import json
import time

import keras
import numpy as np

from _cf_llm import data
from tfrec_efficient import llm

WIDTH = 64
TEXT_WIDTH = 384
_MOST_EPOCHS = 400
_PATIENCE = 3
_EPOCHS_BETWEEN = 5
_FEW_EPOCHS_BETWEEN = 40
_FEW_ROWS = 900
ALIGN_EPOCHS = 20


def few_rows(sequences, few, seed):
    """The training sequences: of all users, or of `few` of them."""
    rows = sequences.of_training()
    if few:
        rows = [rows[user] for user in sequences.few(few, seed)]
    return [items for items in rows if len(items) >= 2]


def sasrec(sequences, seed, few, cache):
    """SASRec, stopped where the validation questions are answered best, and its seconds."""
    path = cache / f"sasrec-{sequences.name}-{few}-{seed}"
    keras.utils.set_random_seed(seed)
    model = llm.SASRec(
        sequences.item_count, WIDTH, max_length=sequences.max_length, dropout=0.5, seed=seed
    )
    record = path.with_suffix(".json")
    if record.exists():
        model.load_weights(path.with_suffix(".weights.h5"))
        return model, json.loads(record.read_text())["cpu_seconds"]
    begun = time.process_time()
    _, valid = data.questions(sequences, "valid", 1000, seed)
    rows = few_rows(sequences, few, seed)
    # With large batches, an epoch of few rows is a few steps, and nothing to judge by.
    are_few = len(rows) < _FEW_ROWS
    dataset = llm.sequence_dataset(
        rows,
        sequences.item_count,
        sequences.max_length,
        batch_size=32 if are_few else 128,
        negatives=100,
        share_negatives=True,
        seed=seed,
    )
    model.compile(keras.optimizers.Adam(1e-3, beta_2=0.98))
    best, bad, done, weights = -1.0, 0, 0, None
    between = _FEW_EPOCHS_BETWEEN if are_few else _EPOCHS_BETWEEN
    while bad < _PATIENCE and done < _MOST_EPOCHS:
        model.fit(dataset, epochs=between, verbose=0, shuffle=False)
        done += between
        hits = valid.hits(cf_scores(model, valid)).mean()
        print(f"   SASRec after {done} epochs: {hits:.4f}", flush=True)
        bad += 1
        if hits > best:
            best, bad, weights = hits, 0, model.get_weights()
    model.set_weights(weights)
    seconds = time.process_time() - begun
    model.save_weights(path.with_suffix(".weights.h5"))
    record.write_text(json.dumps({"cpu_seconds": seconds, "validation": best}))
    return model, seconds


def cf_scores(model, questions):
    """The backbone's scores of the candidates, in parts."""
    parts = [
        model.scores(
            questions.history[start : start + 256], questions.candidates[start : start + 256]
        )
        for start in range(0, len(questions), 256)
    ]
    return np.concatenate([part.numpy() for part in parts])


def text_vectors(sequences, cache):
    """MiniLM's vectors of the texts, of shape `(items, 384)`."""
    path = cache / f"texts-{sequences.name}.npy"
    if not path.exists():
        vectors = llm.minilm_l6().encode(sequences.texts, batch_size=64, verbose=False)
        np.save(path, vectors)
    return np.load(path)


def aligner(sequences, backbone, seed, few, cache):
    """Stage 1 over frozen text vectors, and its seconds."""
    path = cache / f"aligner-{sequences.name}-{few}-{seed}"
    keras.utils.set_random_seed(seed)
    has_text = np.array([bool(text.strip()) for text in sequences.texts])
    model = llm.CFAligner(backbone, text_vectors(sequences, cache), has_text, beta=0.5)
    record = path.with_suffix(".json")
    if record.exists():
        model.load_weights(path.with_suffix(".weights.h5"))
        return model, json.loads(record.read_text())["cpu_seconds"]
    begun = time.process_time()
    dataset = llm.alignment_dataset(
        few_rows(sequences, few, seed),
        sequences.item_count,
        sequences.max_length,
        batch_size=128,
        every_position=True,
        seed=seed,
    )
    # Cached: the alignment needs no new negatives, and drawing them is slower than a step.
    model.compile(keras.optimizers.Adam(1e-3, beta_2=0.98))
    model.fit(dataset.take(2000).cache(), epochs=ALIGN_EPOCHS, verbose=0, shuffle=False)
    seconds = time.process_time() - begun
    model.save_weights(path.with_suffix(".weights.h5"))
    record.write_text(json.dumps({"cpu_seconds": seconds}))
    return model, seconds


def for_other_items(backbone, aligner, sequences, cache):
    """The backbone and the aligner for items of another domain, placed by their texts alone."""
    placed = llm.SASRec(sequences.item_count, WIDTH, max_length=sequences.max_length, dropout=0.5)
    has_text = np.array([bool(text.strip()) for text in sequences.texts])
    moved = llm.CFAligner(placed, text_vectors(sequences, cache), has_text, beta=0.5)
    for mine, theirs in zip(moved.trainable_weights, aligner.trainable_weights, strict=True):
        mine.assign(theirs)
    table = moved.cf_vectors_of_texts()
    for mine, theirs in zip(placed.weights, backbone.weights, strict=True):
        mine.assign(table if mine.shape == table.shape else theirs)
    return placed, moved


def table_scores(state_of, table, questions):
    """Dot products of users' states with a table of item vectors."""
    state = np.concatenate(
        [
            state_of(questions.history[start : start + 256]).numpy()
            for start in range(0, len(questions), 256)
        ]
    )
    return np.einsum("bd,bcd->bc", state, table[questions.candidates])


def popularity(sequences, rows, questions):
    """How often each candidate occurs in the training sequences."""
    counts = np.zeros(sequences.item_count + 1)
    for items in rows:
        np.add.at(counts, items, 1)
    return counts[questions.candidates]
