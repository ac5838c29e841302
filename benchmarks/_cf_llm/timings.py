"""What an answer and a step of stage 2 take; nothing is trained, for time is the same."""

import resource
import time

import _harness
import keras
import numpy as np
import tensorflow as tf

from _cf_llm import data
from _cf_llm import methods
from _cf_llm import stages
from tfrec_efficient import llm

ROUNDS = 7
JOINT_WIDTH = 128
# With ten movies of history, prompts of about 320 tokens.
STEP_CANDIDATES = 10
_YES_OR_NO = (
    "This user has watched {history} in the previous. Will this user watch {candidates} next? "
    "Answer yes or no: "
)


def inference():
    """Milliseconds a user, 20 candidates of MovieLens-100K and ten movies of history, in turns."""
    sequences = data.load("ml-100k")
    _, questions = data.questions(sequences, "test", _harness.BATCHES, 0)
    models = {
        "likelihood": _recommender(sequences, llm.CandidateLikelihood()),
        "likelihood, uncached": _recommender(
            sequences, llm.CandidateLikelihood(reuse_prefix=False)
        ),
        "verbalizer": _recommender(sequences, llm.Verbalizer()),
        "retrieval": _recommender(sequences, llm.RetrievalHead()),
    }
    batches = [inputs for inputs, _ in questions.dataset(1)]
    rivals = {name: _asked(tf.function(model), batches) for name, model in models.items()}
    rivals["tallrec"] = _asked(_yes_or_no(sequences), batches)
    timings = _harness.take_turns(rivals, ROUNDS)
    return {name: {"wall": timing.wall, "cpu": timing.cpu} for name, timing in timings.items()}


def step():
    """CPU seconds a user of a step of stage 2, batches of 4, and the peak of memory."""
    return _step(4)


def step_of_two():
    """The same with batches of 2, which take less memory."""
    return _step(2)


def _step(batch):
    sequences = data.load("ml-100k")
    _, questions = data.questions(sequences, "train", batch * (ROUNDS + 2), 0, STEP_CANDIDATES - 1)
    model = _recommender(sequences, llm.CandidateLikelihood())
    model.compile(keras.optimizers.Adam(1e-4, beta_2=0.98))
    seconds, lengths = [], []
    for inputs, target in questions.dataset(batch):
        begun = time.process_time()
        model.train_on_batch(inputs, target)
        seconds.append((time.process_time() - begun) / batch)
        prompts = model.prompt.token_ids(inputs["history"], inputs["candidates"])
        lengths.append(float(tf.reduce_max(prompts.row_lengths())))
    return {
        # The first two are traced for one shape and for all.
        "cpu_seconds_a_user": seconds[2:],
        "longest_prompts": lengths[2:],
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def _recommender(sequences, answer):
    language_model = llm.SoftPromptLM.load()
    listed = not isinstance(answer, llm.RetrievalHead)
    template = llm.prompt_template(*sequences.words, candidates=listed)
    backbone = llm.SASRec(sequences.item_count, stages.WIDTH, max_length=sequences.max_length)
    joint = np.random.default_rng(0).uniform(size=(sequences.item_count + 1, JOINT_WIDTH))
    prompt = llm.RecommendationPrompt(
        language_model.tokenizer, sequences.titles, template, lettered=answer.lettered
    )
    return llm.CFLLMRecommender(language_model, prompt, answer, backbone, joint)


def _yes_or_no(sequences):
    """TALLRec's way: a prompt for each candidate, and the chance of yes against no."""
    model = llm.SoftPromptLM.load(lora_rank=methods.LORA_RANK)
    prompt = llm.RecommendationPrompt(
        model.tokenizer, sequences.titles, _YES_OR_NO, item_tokens=False
    )
    words = [int(row[0]) for row in model.tokenizer.tokenize(["yes", "no"])]

    @tf.function
    def scores(inputs):
        candidates = tf.transpose(inputs["candidates"])
        history = tf.repeat(inputs["history"], tf.shape(candidates)[0], axis=0)
        tokens = prompt.token_ids(history, candidates)
        lengths = tokens.row_lengths()
        dense = tokens.to_tensor()
        hidden = model.hidden(model.embed(dense), tf.sequence_mask(lengths, tf.shape(dense)[1]))
        logits = model.logits(tf.gather(hidden, lengths - 1, batch_dims=1))
        return logits[:, words[0]] - logits[:, words[1]]

    return scores


def _asked(scores, batches):
    return _harness.timed(lambda batch: np.asarray(scores(batches[batch])))
