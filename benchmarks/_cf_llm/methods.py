"""The recommenders that are compared: what each is made of, trains, and answers."""

import dataclasses
import resource
import time
from pathlib import Path

import keras
import numpy as np

from _cf_llm import data
from _cf_llm import stages
from tfrec_efficient import llm

LORA_RANK = 8
TRAIN_CANDIDATES = 500
BATCH = 4
# The paper shows ten; a prompt's time is that of its tokens.
HISTORY_LENGTH = 6
MOST_QUESTIONS = 1000


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
    "without_llm": Variant(cold=True, added=True, trained=False),
}
WITHOUT_LANGUAGE_MODEL = ("popularity", "sasrec", "aligner", "without_llm")
METHODS = tuple(dict.fromkeys((*WITHOUT_LANGUAGE_MODEL, *VARIANTS)))
ANSWERS = ("likelihood", "verbalizer", "retrieval")


def makes_sense(method, name, few, answer):
    """Whether there is such a cell.

    Where nothing is trained, a retrieval head is random. Across domains, the ids that popularity
    and SASRec know are those of other items. In a split by time, few users are not asked again.
    """
    if "-to-" in name and method in ("popularity", "sasrec"):
        return False
    if few and name in data.SPLIT_BY_TIME:
        return False
    return answer != "retrieval" or VARIANTS[method].trained


@dataclasses.dataclass(frozen=True)
class Budget:
    """How long stage 2 trains and how many questions are asked."""

    epochs: int = 2
    train: int = 256
    test: int = 300


def budget_of(method, budget):
    """Methods without a language model are cheap: they are asked more, and have no stage 2."""
    return Budget(0, 0, MOST_QUESTIONS) if method in WITHOUT_LANGUAGE_MODEL else budget


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a cell is made of, but for its data."""

    method: str
    answer: str
    seed: int
    few: int
    budget: Budget
    cache: Path


def run(method, name, seed, few, answer, budget, cache):
    """Trains what is not trained yet, asks the test questions, and returns the record.

    With a name such as `ml-100k-to-amazon-beauty`, all is trained on the first and the questions
    are of the second, whose items are known by their texts alone.
    """
    learnt, _, other = name.partition("-to-")
    sequences = data.load(learnt)
    test_sequences = sequences
    if other:
        test_sequences = data.load(other)
        test_sequences.max_length = sequences.max_length
    asked, test = data.questions(test_sequences, "test", budget.test, seed)
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
            setting = Setting(method, answer, seed, few, budget, cache)
            scores, more = _beyond_backbone(setting, sequences, backbone, test, test_sequences)
            record |= more
    cold = np.isin(test.target_items, data.cold_items(test_sequences))
    hits = test.hits(scores)
    return record | {
        "hits": [round(float(hit), 4) for hit in hits],
        "cold": [bool(is_cold) for is_cold in cold],
        "users": [int(user) for user in asked],
        "cpu_seconds": time.process_time() - begun,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "budget": dataclasses.asdict(budget),
    }


def _beyond_backbone(setting, sequences, backbone, test, test_sequences):
    aligner, seconds = stages.aligner(sequences, backbone, setting.seed, setting.few, setting.cache)
    record = {"aligner_cpu_seconds": seconds}
    elsewhere = test_sequences is not sequences
    if elsewhere:
        there = stages.for_other_items(backbone, aligner, test_sequences, setting.cache)
    if setting.method == "aligner":
        if elsewhere:
            return stages.cf_scores(there[0], test), record
        # Warm items by what users did, cold ones by where their texts place them.
        table = _padded(backbone)
        cold = known_cold(sequences)
        table[cold] = aligner.cf_vectors_of_texts()[cold]
        return stages.table_scores(backbone.user_state, table, test), record
    variant = VARIANTS[setting.method]
    model = recommender(setting, sequences, backbone, aligner)
    if variant.added:
        weights = calibrate(model, setting, sequences)
        record["score_weights"] = [round(float(weight), 4) for weight in weights]
    if variant.trained:
        record |= train(model, setting, sequences)
    if elsewhere:
        model = _carried_over(model, recommender(setting, test_sequences, *there, model))
    if setting.method == "without_llm":
        return _added_alone(model, test), record
    begun = time.process_time()
    scores = model.predict(test.dataset(BATCH), verbose=0)
    record["answer_cpu_seconds_a_user"] = (time.process_time() - begun) / len(test)
    return scores, record


def known_cold(sequences):
    """The cold items that have a text."""
    return np.intersect1d(data.cold_items(sequences), _with_text(sequences))


def _with_text(sequences):
    return 1 + np.flatnonzero([bool(text.strip()) for text in sequences.texts])


def recommender(setting, sequences, backbone, aligner, trained=None):
    """A recommender over SmolLM2-135M, or over the language model of a trained one."""
    variant, answer = VARIANTS[setting.method], setting.answer
    keras.utils.set_random_seed(setting.seed)
    if trained is None:
        rank = LORA_RANK if variant.lora else None
        language_model = llm.SoftPromptLM.load(lora_rank=rank)
    else:
        language_model = trained.language_model
    kinds = {
        "likelihood": llm.CandidateLikelihood,
        "verbalizer": llm.Verbalizer,
        "none": lambda: llm.RetrievalHead(),
        "retrieval": lambda: llm.RetrievalHead(temperature=0.5 if variant.added else 0.07),
    }
    verb, past, noun = sequences.words
    prompt = llm.RecommendationPrompt(
        language_model.tokenizer,
        sequences.titles,
        llm.prompt_template(verb, past, noun, variant.user, answer not in ("none", "retrieval")),
        history_length=HISTORY_LENGTH,
        item_tokens=variant.items is not None,
        lettered=answer == "verbalizer",
    )
    tables = {
        "joint": lambda: aligner.item_vectors(
            _with_text(sequences) if trained else known_cold(sequences) if variant.cold else ()
        ),
        "cf": lambda: _padded(backbone),
        "random": lambda: np.random.default_rng(setting.seed).uniform(
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
        text_vectors=_of_known_texts(sequences, setting.cache) if variant.added else None,
        cf_scores=variant.added,
    )


def _of_known_texts(sequences, cache):
    table = np.zeros((sequences.item_count + 1, stages.TEXT_WIDTH), np.float32)
    known = _with_text(sequences)
    table[known] = stages.text_vectors(sequences, cache)[known - 1]
    return table


def calibrate(model, setting, sequences):
    """Fits the weights of what is added, and returns them."""
    if setting.few:
        questions = few_questions(sequences, setting, data.NEGATIVES)
    else:
        _, questions = data.questions(sequences, "valid", 1000, setting.seed)
    return model.calibrate(questions, batch_size=50)


def _added_alone(model, test):
    """What is left of `cf_llm` without its language model."""
    weights = model.score_weights.numpy()[1:]
    return np.concatenate(
        [
            np.tensordot(weights, [kind.numpy() for kind in model.added_scores(inputs)], 1)
            for inputs, _ in test.dataset(50)
        ]
    )


def _carried_over(trained, fresh):
    """The same weights, but for the tables of items; the language model is shared."""
    for part in ("user_projection", "item_projection", "answer"):
        if getattr(trained, part) is not None:
            getattr(fresh, part).set_weights(getattr(trained, part).get_weights())
    fresh.score_weights.assign(trained.score_weights)
    return fresh


def few_questions(sequences, setting, negatives):
    """What the few users took next; the test asks what they took after that."""
    rows = [sequences.items[user][:-1] for user in sequences.few(setting.few, setting.seed)]
    return llm.CandidateQuestions.draw(
        rows, sequences.item_count, sequences.max_length, negatives, seed=[setting.seed, 7]
    )


def _padded(backbone):
    ids = np.arange(backbone.item_count + 1)
    return backbone.item_vectors(ids).numpy()


def train(model, setting, sequences):
    """Stage 2: learns from the last item but one of users who are not validated on."""
    # A retrieval head ranks the catalogue: with few wrong items it learns little.
    negatives = data.NEGATIVES
    if setting.answer == "retrieval":
        negatives = min(TRAIN_CANDIDATES, sequences.item_count // 2) - 1
    seed, budget = setting.seed, setting.budget
    if setting.few:
        questions = few_questions(sequences, setting, negatives).take(slice(budget.train))
    else:
        _, questions = data.questions(sequences, "train", budget.train, seed, negatives)
    steps = -(-len(questions) // BATCH) * budget.epochs
    rate = keras.optimizers.schedules.CosineDecay(
        3e-4 if VARIANTS[setting.method].lora else 1e-3, steps
    )
    model.compile(keras.optimizers.Adam(rate, beta_2=0.98, global_clipnorm=1.0))
    begun = time.process_time()
    history = model.fit(
        questions.dataset(BATCH, shuffle_seed=seed), epochs=budget.epochs, verbose=2, shuffle=False
    )
    return {
        "train_cpu_seconds": time.process_time() - begun,
        "losses": [round(float(loss), 4) for loss in history.history["loss"]],
    }
