"""Lets a frozen language model rank movies by what similar users did, and talk about it.

    pip install '.[llm]' && python examples/cf_llm.py [users to learn from] [users to ask]

SASRec learns who watches what after what; stage 1 aligns its item vectors with the texts of the
movies; `calibrate` weighs what SASRec says, and how alike texts are; stage 2 trains two projections
that put all this in front of SmolLM2-135M as soft tokens, to learn what the others get wrong.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from tfrec_efficient import data
from tfrec_efficient import llm

MAX_LENGTH = 50
learners, asked = (int(n) for n in (sys.argv[1:] + ["100", "60"][len(sys.argv) - 1 :]))
keras.utils.set_random_seed(0)

# What each user watched, in the order of time; of equal timestamps, the row further down is later.
movies = data.datasets.movielens_100k()
ratings, titles = movies.ratings, movies.items["title"].tolist()
order = np.argsort(ratings["timestamp"], kind="stable")
users, items = ratings["user_id"][order], ratings["item_id"][order]
sequences = [items[users == user] for user in np.unique(users)]
texts = [
    f"{t}, {g.replace('|', ', ')}" for t, g in zip(titles, movies.items["genres"], strict=True)
]
sizes = {"item_count": len(titles), "max_length": MAX_LENGTH}

# The backbone learns all but the last two movies: one for stage 2 to learn from, one for the test.
seen = [sequence[:-2] for sequence in sequences]
backbone = llm.SASRec(**sizes, width=64, dropout=0.5)
backbone.compile(keras.optimizers.Adam(1e-3))
batches = llm.sequence_dataset(seen, **sizes, batch_size=32, negatives=100, share_negatives=True)
backbone.fit(batches, epochs=60, verbose=2, shuffle=False)

text_vectors = llm.minilm_l6().encode(texts)
aligner = llm.CFAligner(backbone, text_vectors)
aligner.compile(keras.optimizers.Adam(1e-3))
pairs = llm.alignment_dataset(seen, **sizes, batch_size=128, every_position=True).take(200)
aligner.fit(pairs.cache(), epochs=8, verbose=2, shuffle=False)

language_model = llm.SoftPromptLM.load()
recommender = llm.CFLLMRecommender(
    language_model,
    llm.RecommendationPrompt(
        language_model.tokenizer,
        titles,
        llm.prompt_template(candidates=False),
        history_length=6,
    ),
    llm.RetrievalHead(temperature=0.5),
    backbone,
    aligner.item_vectors(),
    text_vectors=np.pad(text_vectors, [(1, 0), (0, 0)]),  # row 0 is the padding
    cf_scores=True,
)
# The last movie but one of users who are not asked about later.
rows = [sequence[:-1] for sequence in sequences[asked:]]
weights = recommender.calibrate(llm.CandidateQuestions.draw(rows, **sizes), batch_size=64)
print(f"weights of the language model, SASRec, and texts (mean, closest): {weights.round(2)}")
recommender.compile(keras.optimizers.Adam(1e-3, beta_2=0.98))
learn = llm.CandidateQuestions.draw(rows[:learners], **sizes, negatives=499)
recommender.fit(learn.dataset(4, shuffle_seed=0), epochs=2, verbose=2, shuffle=False)

ask = llm.CandidateQuestions.draw(sequences[:asked], **sizes)
scores = recommender.predict(ask.dataset(4), verbose=0)
alone = backbone.scores(ask.history, ask.candidates)
print(f"\nHit@1 of 20: {ask.hits(scores).mean():.3f}, of SASRec alone {ask.hits(alone).mean():.3f}")

output = Path("cf_llm_output")
output.mkdir(exist_ok=True)
recommender.save(output / "recommender.keras")
recommender.export_scores(str(output / "model"))
print(f"saved {output}/recommender.keras, without the language model, and {output}/model, with it")

# Without candidates, the backbone proposes those that the language model ranks.
watched = [titles[item - 1] for item in ask.history[0][-5:]]
print(f"\nYou: I watched {', '.join(watched)}. What should I watch next?")
ranked, scores = recommender.recommend(ask.history[:1], k=10)
print(f'Recommender: Try "{titles[ranked[0][0] - 1]}". I thought of:')
for item, score in zip(ranked[0], scores[0], strict=True):
    print(f"  {score:7.2f}  {titles[item - 1]}")
