"""The recommenders that are compared: what each is made of, trains, and answers."""

import dataclasses
import resource
import time

import keras
import numpy as np

from _cf_llm import data
from _cf_llm import stages
from tfrec_efficient import llm

LORA_RANK = 8
TRAIN_CANDIDATES = 500
BATCH = 4


@dataclasses.dataclass(frozen=True)
class Variant:
    """A recommender with a language model.

    Attributes:
        user: Whether a soft token stands for the user.
        items: `"joint"` vectors of stage 1, `"cf"` vectors of the backbone, `"random"` ones, or
            None for no soft tokens of items.
        cold: Whether cold items take the side of their texts.
        lora: Whether low-rank weights of the language model are trained.
        added: Whether the scores of the backbone and the likeness of texts are added.
        trained: Whether there is a stage 2.
    """

    user: bool = True
    items: str | None = "joint"
    cold: bool = False
    lora: bool = False
    added: bool = False
    trained: bool = True


VARIANTS = {
    "cf_llm": Variant(cold=True, added=True),
    "a_llmrec": Variant(),
    "a_llmrec_text": Variant(cold=True),
    "mlp_llm": Variant(items="cf"),
    "llm_only": Variant(user=False, items=None, trained=False),
    "tallrec": Variant(user=False, items=None, lora=True),
    "collm": Variant(items="cf", lora=True),
    "without_user": Variant(user=False),
    "without_items": Variant(items=None),
    "random_items": Variant(items="random"),
}
WITHOUT_LANGUAGE_MODEL = ("popularity", "sasrec", "aligner")
METHODS = (*WITHOUT_LANGUAGE_MODEL, *VARIANTS)
ANSWERS = ("likelihood", "verbalizer", "retrieval")


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long stage 2 trains and how many questions are asked."""

    epochs: int = 3
    train: int = 400
    test: int = 500


def run(method, name, seed, few, answer, budget, cache):
    """Trains what is not trained yet, asks the test questions, and returns the record."""
    sequences = data.load(name)
    asked, test = data.questions(sequences, "test", budget.test, seed)
    begun = time.process_time()
    if method == "popularity":
        scores = stages.popularity(sequences, stages.few_rows(sequences, few, seed), test)
        record = {}
    else:
        backbone, seconds = stages.sasrec(sequences, seed, few, cache)
        record = {"backbone_cpu_seconds": seconds}
        if method == "sasrec":
            scores = stages.cf_scores(backbone, test)
        else:
            scores, more = _beyond_backbone(
                method, sequences, backbone, seed, few, answer, budget, cache, test
            )
            record |= more
    cold = np.isin(test.target_items, data.cold_items(sequences))
    hits = test.hits(scores)
    return record | {
        "hits": [round(float(hit), 4) for hit in hits],
        "cold": [bool(is_cold) for is_cold in cold],
        "users": [int(user) for user in asked],
        "cpu_seconds": time.process_time() - begun,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "budget": dataclasses.asdict(budget),
    }


def _beyond_backbone(method, sequences, backbone, seed, few, answer, budget, cache, test):
    aligner, seconds = stages.aligner(sequences, backbone, seed, few, cache)
    record = {"aligner_cpu_seconds": seconds}
    if method == "aligner":
        # Warm items by what users did, cold ones by where their texts place them.
        table = np.concatenate(
            [
                np.zeros((1, backbone.width)),
                backbone.item_vectors(np.arange(1, sequences.item_count + 1)),
            ]
        )
        cold = known_cold(sequences)
        table[cold] = aligner.cf_vectors_of_texts()[cold]
        return stages.table_scores(backbone.user_state, table, test), record
    model = recommender(VARIANTS[method], sequences, backbone, aligner, answer, seed, cache)
    if VARIANTS[method].added:
        record |= calibrate(model, sequences, seed, few, test)
    if VARIANTS[method].trained:
        record |= train(model, VARIANTS[method], sequences, answer, seed, few, budget)
    begun = time.process_time()
    scores = model.predict(test.dataset(BATCH), verbose=0)
    record["answer_cpu_seconds_a_user"] = (time.process_time() - begun) / len(test)
    return scores, record


def known_cold(sequences):
    """The cold items that have a text."""
    cold = data.cold_items(sequences)
    return np.array([item for item in cold if sequences.texts[item - 1].strip()], np.int64)


def recommender(variant, sequences, backbone, aligner, answer, seed, cache):
    """A recommender over SmolLM2-135M, not yet trained."""
    keras.utils.set_random_seed(seed)
    language_model = llm.SoftPromptLM.load(
        dtype="bfloat16", lora_rank=LORA_RANK if variant.lora else None
    )
    kinds = {
        "likelihood": llm.CandidateLikelihood,
        "verbalizer": llm.Verbalizer,
        "retrieval": lambda: llm.RetrievalHead(temperature=0.5 if variant.added else 0.07),
    }
    verb, past, noun = sequences.words
    prompt = llm.RecommendationPrompt(
        language_model.tokenizer,
        sequences.titles,
        llm.prompt_template(verb, past, noun, variant.user, answer != "retrieval"),
        item_tokens=variant.items is not None,
        lettered=answer == "verbalizer",
    )
    tables = {
        "joint": lambda: aligner.item_vectors(known_cold(sequences) if variant.cold else ()),
        "cf": lambda: _padded(backbone),
        "random": lambda: np.random.default_rng(seed).uniform(
            size=(sequences.item_count + 1, aligner.joint_width)
        ),
    }
    needs_items = variant.items or ("joint" if answer == "retrieval" else None)
    return llm.CFLLMRecommender(
        language_model,
        prompt,
        kinds[answer](),
        cf_backbone=backbone,
        item_vectors=tables[needs_items]() if needs_items else None,
        text_vectors=_of_known_texts(sequences, cache) if variant.added else None,
        cf_scores=variant.added,
    )


def _of_known_texts(sequences, cache):
    vectors = stages.text_vectors(sequences, cache)
    has_text = np.array([bool(text.strip()) for text in sequences.texts])
    return np.concatenate([np.zeros((1, vectors.shape[1])), vectors * has_text[:, np.newaxis]])


def calibrate(model, sequences, seed, few, test):
    """Fits the weights of what is added, and says how far that goes without a language model."""
    if few:
        questions = few_questions(sequences, few, seed, data.NEGATIVES)
    else:
        _, questions = data.questions(sequences, "valid", 1000, seed)
    weights = model.calibrate(questions, batch_size=50)
    scores = [
        np.einsum("kqc,k->qc", [kind.numpy() for kind in model.added_scores(inputs)], weights[1:])
        for inputs, _ in test.dataset(50)
    ]
    hits = test.hits(np.concatenate(scores))
    return {
        "score_weights": [round(float(weight), 4) for weight in weights],
        "hits_without_language_model": [round(float(hit), 4) for hit in hits],
    }


def few_questions(sequences, few, seed, negatives):
    """What the few users took next; the test asks what they took after that."""
    rows = [sequences.items[user][:-1] for user in sequences.few(few, seed)]
    return llm.CandidateQuestions.draw(
        rows, sequences.item_count, sequences.max_length, negatives, seed=[seed, 7]
    )


def _padded(backbone):
    ids = np.arange(backbone.item_count + 1)
    return backbone.item_vectors(ids).numpy()


def train(model, variant, sequences, answer, seed, few, budget):
    """Stage 2: learns from the last item but one of users who are not validated on."""
    # A retrieval head ranks the catalogue: with few wrong items it learns little.
    negatives = data.NEGATIVES
    if answer == "retrieval":
        negatives = min(TRAIN_CANDIDATES, sequences.item_count // 2) - 1
    if few:
        questions = few_questions(sequences, few, seed, negatives).take(slice(budget.train))
    else:
        _, questions = data.questions(sequences, "train", budget.train, seed, negatives)
    steps = -(-len(questions) // BATCH) * budget.epochs
    rate = keras.optimizers.schedules.CosineDecay(1e-3 if not variant.lora else 3e-4, steps)
    model.compile(keras.optimizers.Adam(rate, beta_2=0.98, global_clipnorm=1.0))
    begun = time.process_time()
    history = model.fit(
        questions.dataset(BATCH, shuffle_seed=seed), epochs=budget.epochs, verbose=2, shuffle=False
    )
    return {
        "train_cpu_seconds": time.process_time() - begun,
        "losses": [round(float(loss), 4) for loss in history.history["loss"]],
    }
