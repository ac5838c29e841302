"""`CFLLMRecommender`: a frozen language model that is told what similar users did (stage 2)."""

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfrec_efficient.embedding._bag_layer import check_sizes
from tfrec_efficient.embedding.embedding_bag import EmbeddingBag
from tfrec_efficient.llm._added_scores import directions
from tfrec_efficient.llm._added_scores import fitted_weights
from tfrec_efficient.llm._added_scores import likenesses
from tfrec_efficient.llm._added_scores import products
from tfrec_efficient.llm.answers import Answer
from tfrec_efficient.llm.answers import CandidateLikelihood
from tfrec_efficient.llm.answers import TitleGeneration
from tfrec_efficient.llm.candidate_questions import CandidateQuestions
from tfrec_efficient.llm.cf_projection import CFProjection
from tfrec_efficient.llm.prompt import RecommendationPrompt


@keras.saving.register_keras_serializable(package="tfrec_efficient")
class CFLLMRecommender(keras.Model):
    """Ranks candidates by a frozen language model that sees collaborative knowledge (stage 2).

    A prompt names a user's latest items and, with most answers, the candidates. Soft tokens follow
    the titles, and one stands for the user: `CFProjection` makes them of the item vectors of
    `CFAligner` and of the CF backbone's state of the user. Only the two projections, and what the
    answer needs, are trained; the gradient goes through the language model and changes nothing.

    With `cf_scores`, what the backbone itself thinks of a candidate is added to the score, and with
    `text_vectors`, how alike the candidate's text and those of the history are:

        `score = a score of the language model + b x . E + c mean cos(Q, Q_h) + d max cos(Q, Q_h)`

    with the backbone's state `x` and item vector `E`, and with the vectors `Q` of the candidate's
    text and `Q_h` of the texts of the history, less the mean over all items. The weights are 1, 1,
    0 and 0 until `calibrate` fits them to questions. A small language model then need only learn
    what these get wrong.

    Without `cf_backbone` and `item_vectors`, and with a template that has no `{user}`, it is a
    text-only recommender; with `lora_rank` in the language model, one in the manner of TALLRec.

    Args:
        language_model: `SoftPromptLM`.
        prompt: `RecommendationPrompt` over the same tokenizer.
        answer: `CandidateLikelihood`, `Verbalizer`, `RetrievalHead` or `TitleGeneration`.
            Defaults to `CandidateLikelihood()`.
        cf_backbone: A trained `CFBackbone`, which is frozen, or None. Defaults to None.
        item_vectors: Array of shape `(item_count + 1, d)`, row 0 for the padding, as
            `CFAligner.item_vectors` gives, or None. It is not trained. Defaults to None.
        text_vectors: Array of shape `(item_count + 1, d_text)`, or None: what `TextEncoder.encode`
            gives for all items, below a row for the padding, which is not looked at. Rows of zeros
            are items without text. Defaults to None.
        cf_scores: bool. Whether the backbone's scores are added. Defaults to False.
        end_token_id: int or None. The token that ends an answer. None asks the tokenizer.
            Defaults to None.
        faithful: bool. Keeps the size of the projections' outputs and the dropout of the frozen
            backbone in training, as the authors' code does. Defaults to False.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: dict of integers: `"history"` `(batch, max_length)`, item ids padded with 0 on the
            left, with the `max_length` of the CF backbone, if there is one; and `"candidates"`
            `(batch, candidates)`, padded with 0. `fit` and `evaluate` take the place of the right
            candidate as targets of shape `(batch,)`.

    Raises:
        ValueError: The arguments do not fit each other, a vector is not finite, inputs or targets
            are no integers or of another rank, or inputs differ in their rows.
        tf.errors.InvalidArgumentError: An id is out of range, a target is none of the candidates,
            or a prompt is longer than the language model reads.

    References:
        - Kim et al., "Large Language Models meet Collaborative Filtering", KDD 2024, section 4.2.
          Added scores, and answers other than `TitleGeneration`, are not in it.
    """

    def __init__(
        self,
        language_model: Any,
        prompt: RecommendationPrompt,
        answer: Answer | None = None,
        cf_backbone: Any = None,
        item_vectors: Any = None,
        text_vectors: Any = None,
        cf_scores: bool = False,
        end_token_id: int | None = None,
        faithful: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.language_model = language_model
        self.prompt = prompt
        self.cf_backbone = cf_backbone
        self.cf_scores = cf_scores
        self.faithful = faithful
        self.end_token_id = _end_token_id(language_model, end_token_id)
        self._check(item_vectors, text_vectors)
        if cf_backbone is not None:
            cf_backbone.freeze()
        self.item_table = self._frozen_table("item_vectors", item_vectors)
        if text_vectors is not None:
            text_vectors = np.array(text_vectors, np.float32)
            text_vectors[0] = 0.0  # an encoder has a vector for the empty text, too
            text_vectors = directions(text_vectors)
        self.text_table = self._frozen_table("text_vectors", text_vectors)
        rms = None if faithful else language_model.embedding_rms
        self.user_projection = self.item_projection = None
        if prompt.has_user:
            self.user_projection = CFProjection(
                language_model.width,
                "leaky_relu",
                rms,
                dtype=self.dtype_policy,
                name="user_projection",
            )
            self.user_projection.build((None, cf_backbone.width))
        if prompt.item_tokens and self.item_table is not None:
            self.item_projection = CFProjection(
                language_model.width, "gelu", rms, dtype=self.dtype_policy, name="item_projection"
            )
            self.item_projection.build((None, None, self.item_table.output_dim))
        self.answer = CandidateLikelihood() if answer is None else answer
        self.answer.prepare(self)
        first = [1.0] + [1.0] * cf_scores + [0.0, 0.0] * (text_vectors is not None)
        self.score_weights = self.add_weight(
            name="score_weights",
            shape=(len(first),),
            initializer=keras.initializers.Constant(first),
            dtype="float32",
            trainable=False,
            autocast=False,
        )
        # Low-rank weights of the language model are trained and saved here; it is not.
        self._of_language_model = list(language_model.trainable_weights)
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.hits = keras.metrics.Mean(name="hit_at_1")
        self.built = True

    def call(self, inputs: Any, training: bool = False) -> tf.Tensor:
        inputs = _as_inputs(inputs)
        scores = self.with_added(self.answer.scores(self, inputs, training), inputs)
        # Padding never wins.
        return tf.where(inputs["candidates"] > 0, scores, scores.dtype.min)

    def train_step(self, data: Any) -> dict[str, Any]:
        self._check_compiled()
        inputs, target = _as_row_and_target(data)
        weights = self.trainable_weights
        if not weights:
            raise ValueError(
                "`fit` needs weights to train: soft tokens in the prompt, an answer with some, or "
                "`lora_rank` in the language model. Received: none of them"
            )
        with tf.GradientTape() as tape:
            losses = self.answer.losses(self, inputs, target, True)
            # Zero for a replica that gets no row of a last batch.
            count = tf.cast(tf.size(losses), losses.dtype)
            loss = tf.math.divide_no_nan(tf.reduce_sum(losses), count)
            # Gradients of replicas are summed.
            shared = loss / tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(shared)
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        self.loss_tracker.update_state(loss, sample_weight=tf.shape(target)[0])
        return {"loss": self.loss_tracker.result()}

    def test_step(self, data: Any) -> dict[str, Any]:
        self._check_compiled()
        inputs, target = _as_row_and_target(data)
        losses = self.answer.losses(self, inputs, target, False)
        self.loss_tracker.update_state(losses)
        self.hits.update_state(_hits(self(inputs, training=False), target))
        return {"loss": self.loss_tracker.result(), "hit_at_1": self.hits.result()}

    @property
    def metrics(self) -> list[Any]:
        return [self.loss_tracker, self.hits]

    def calibrate(
        self, questions: CandidateQuestions, language_model: bool = False, batch_size: int = 4
    ) -> npt.NDArray[np.float32]:
        """Fits the weights of what is added to the language model's scores.

        They become those under which the right candidates are the likeliest, in a conditional logit
        with a standard normal prior; there are at most four, so that a hundred questions do. Ask
        what the backbone has not learnt, or it is trusted too much. The usual order is `calibrate`,
        then `fit`, in which the language model learns what the others get wrong.

        Args:
            questions: `CandidateQuestions`.
            language_model: bool. Whether the weight of the language model is fitted too, which
                takes its forward passes; otherwise it stays. Ask users that it was not trained on.
                Defaults to False.
            batch_size: int. Defaults to 4.

        Returns:
            The weights: language model, backbone, mean cosine and highest cosine, those there are.

        Raises:
            ValueError: There is nothing to add, or no question.
        """
        if not self.cf_scores and self.text_table is None:
            raise ValueError("`calibrate` needs `cf_scores` or `text_vectors`. Received: neither")
        if not len(questions):
            raise ValueError("`questions` must hold a question. Received: none")
        parts = []
        for inputs, _ in questions.dataset(batch_size):
            kinds = self.added_scores(inputs)
            if language_model:
                kinds = [self.answer.scores(self, inputs, False), *kinds]
            parts.append(np.stack([kind.numpy() for kind in kinds], axis=2))
        fitted = fitted_weights(np.concatenate(parts), questions.target, questions.candidates > 0)
        if not language_model:
            fitted = np.concatenate([self.score_weights.numpy()[:1], fitted])
        self.score_weights.assign(fitted)
        return fitted

    def recommend(
        self, history: npt.ArrayLike, k: int = 20, candidates: npt.ArrayLike | None = None
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Ranks candidates, or those that the CF backbone proposes.

        Args:
            history: Integers of shape `(batch, max_length)`, padded with 0 on the left.
            k: int. How many candidates the backbone proposes: its top-k of the items that are not
                in the history. Not used with `candidates`. Defaults to 20.
            candidates: Integers of shape `(batch, candidates)`, or None. Defaults to None.

        Returns:
            Item ids and their scores, both of shape `(batch, candidates)`, best first. Where the
            backbone knows fewer items that are new to the user, 0 comes last.

        Raises:
            ValueError: There are neither candidates nor a backbone to propose them.
        """
        history = np.asarray(history)
        if candidates is None:
            if self.cf_backbone is None:
                raise ValueError(
                    "`candidates` must be given where no CF backbone proposes them. "
                    "Received: candidates=None"
                )
            candidates = self.cf_backbone.top_k(history, k)[0]
        candidates = np.asarray(candidates)
        scores = self({"history": history, "candidates": candidates}).numpy()
        order = np.argsort(-scores, axis=1, kind="stable")
        return (
            np.take_along_axis(candidates, order, axis=1).astype(np.int64),
            np.take_along_axis(scores, order, axis=1),
        )

    def generate(self, history: Any, candidates: Any = None, max_tokens: int = 48) -> list[str]:
        """Lets the language model write an answer to each prompt, greedily.

        Args:
            history: Integers of shape `(batch, max_length)`, padded with 0 on the left.
            candidates: Integers of shape `(batch, candidates)`, where the prompt lists them.
                Defaults to None.
            max_tokens: int. The longest answer, in tokens. Defaults to 48.

        Returns:
            A string for each row.

        Raises:
            ValueError: `history` or `candidates` are no integers or of another rank, or
                `max_tokens` is no positive integer.
        """
        check_sizes(max_tokens=max_tokens)
        rows = _as_ids("history", history)
        if candidates is not None:
            candidates = _as_inputs({"history": rows, "candidates": candidates})["candidates"]
        inputs = {"history": rows, "candidates": candidates}
        prompts, soft_tokens = self.prompts(inputs, False)
        return [
            self.language_model.tokenizer.detokenize(
                self._write(prompts[row], soft_tokens[row], max_tokens)
            )
            for row in range(rows.shape[0])
        ]

    def export_scores(self, path: str) -> None:
        """Writes a SavedModel whose signature `serve` scores candidates, language model included.

        It takes `history` `(batch, max_length)` and `candidates` `(batch, candidates)`, both int64,
        and returns scores of shape `(batch, candidates)`. Sizes are any, but `max_length` is that
        of the CF backbone, if there is one.

        Args:
            path: Folder to write to.

        Raises:
            ValueError: The answer is a `TitleGeneration`, which needs Python.
        """
        if isinstance(self.answer, TitleGeneration):
            raise ValueError("`answer` must score without Python. Received: TitleGeneration")
        places = None if self.cf_backbone is None else self.cf_backbone.max_length
        archive = keras.export.ExportArchive()
        archive.track(self)
        archive.track(self.language_model.causal_lm)
        archive.add_endpoint(
            "serve",
            lambda history, candidates: self({"history": history, "candidates": candidates}),
            input_signature=[
                tf.TensorSpec([None, places], tf.int64, "history"),
                tf.TensorSpec([None, None], tf.int64, "candidates"),
            ],
        )
        archive.write_out(path, verbose=False)

    # What answers use.

    def prompts(self, inputs: Any, training: bool) -> tuple[tf.RaggedTensor, tf.Tensor]:
        """Token ids `(batch, (tokens))` and soft tokens `(batch, slots, width)` of each row."""
        history = inputs["history"]
        shown = self.prompt.shown(history)
        batch = tf.shape(shown)[0]
        tokens = self.prompt.token_ids(history, inputs["candidates"])
        message = "A prompt must have a token; the template has none beside what it is filled with"
        check = tf.debugging.assert_positive(tokens.row_lengths(), message)
        with tf.control_dependencies([] if check is None else [check]):
            tokens = tokens.with_flat_values(tf.identity(tokens.flat_values))
        width = self.language_model.width
        user = tf.zeros([batch, 1, width])
        if self.user_projection is not None:
            state = self.user_state(history, training and self.faithful)
            user = tf.cast(self.user_projection(state)[:, tf.newaxis], tf.float32)
        if self.item_projection is None or self.item_table is None:
            return tokens, user
        items = shown
        if self.prompt.lists_candidates:
            listed = tf.cast(inputs["candidates"], shown.dtype)
            items = tf.concat([shown, listed], axis=1)
        projected = tf.cast(self.item_projection(self.item_table(items)), tf.float32)
        return tokens, tf.concat([user, projected], axis=1)

    def hidden(
        self, tokens: tf.RaggedTensor, soft_tokens: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Hidden states `(batch, length, width)` and which of them are no padding."""
        lengths = tokens.row_lengths()
        # A replica may get no row of a last batch, and the greatest of no numbers is negative.
        longest = tf.maximum(tf.reduce_max(lengths), 0)
        mask = tf.sequence_mask(lengths, self.within_context(longest))
        dense = tokens.to_tensor()
        return self.language_model.hidden(self.language_model.embed(dense, soft_tokens), mask), mask

    def within_context(self, length: tf.Tensor) -> tf.Tensor:
        """The tokens of a prompt with its answer, refused if the language model reads fewer."""
        limit = self.language_model.context_length
        if limit is None:
            return length
        check = tf.debugging.assert_less_equal(
            length,
            tf.constant(limit, length.dtype),
            f"A prompt with its answer must have at most {limit} tokens, which the language model "
            "reads; show less history, or fewer candidates",
        )
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(length)

    def last_hidden(self, tokens: tf.RaggedTensor, soft_tokens: tf.Tensor) -> tf.Tensor:
        """The hidden state at the last token of each row, `(batch, width)`."""
        hidden, _ = self.hidden(tokens, soft_tokens)
        return tf.gather(hidden, tokens.row_lengths() - 1, batch_dims=1)

    def user_state(self, history: Any, training: bool = False) -> tf.Tensor:
        """The frozen backbone's state of each user, `(batch, d)`."""
        state = self.cf_backbone.user_state(history, training=training)
        return tf.cast(tf.stop_gradient(state), tf.float32)

    def with_added(self, scores: tf.Tensor, inputs: Any) -> tf.Tensor:
        """The language model's scores, weighted, with all that is added to them."""
        kinds = tf.stack([scores, *self.added_scores(inputs)], axis=2)
        return tf.linalg.matvec(kinds, self.score_weights)

    def first_token(self, text: str) -> int:
        """The first token of a text."""
        return int(self.language_model.tokenizer.tokenize([text])[0][0])

    def added_scores(self, inputs: Any) -> list[tf.Tensor]:
        """What is added, each of shape `(batch, candidates)`, in the order of the weights."""
        history, candidates = inputs["history"], inputs["candidates"]
        added = []
        if self.cf_scores:
            vectors = self.cf_backbone.item_vectors(candidates)
            added.append(products(self.user_state(history), vectors))
        if self.text_table is not None:
            added.extend(likenesses(self.text_table, history, candidates))
        return added

    def _write(self, prompt: tf.Tensor, soft_tokens: tf.Tensor, max_tokens: int) -> list[int]:
        model = self.language_model
        start = int(prompt.shape[0])
        capacity = self.within_context(tf.constant(start + max_tokens))
        embedded = model.embed(prompt[tf.newaxis], soft_tokens[tf.newaxis])
        hidden, cache = model.prefill(embedded, capacity=capacity)
        written: list[int] = []
        while True:
            token = int(tf.argmax(model.logits(hidden[:, -1]), axis=-1)[0])
            if token == self.end_token_id or len(written) == max_tokens:
                return written
            written.append(token)
            hidden, cache = model.decode(
                model.embed(tf.constant([[token]])), cache, start + len(written) - 1
            )

    def _check_compiled(self) -> None:
        # Not in `compile`: Keras does not compile a loaded model that has one of its own.
        given = ["loss"] * (getattr(self, "loss", None) is not None)
        given += ["metrics"] * any(metric.name == "compile_metrics" for metric in super().metrics)
        if given:
            raise ValueError(
                "`compile` must get an optimizer alone; the answer has the loss, and the metric is "
                f"hit_at_1. Received: {' and '.join(given)}"
            )

    def _check(self, item_vectors: Any, text_vectors: Any) -> None:
        needs = {
            "cf_backbone": (
                self.cf_backbone,
                [("{user} in the template", self.prompt.has_user), ("cf_scores", self.cf_scores)],
            ),
            "item_vectors": (
                item_vectors,
                [("item tokens in the prompt", self.prompt.item_tokens)],
            ),
        }
        for name, (value, reasons) in needs.items():
            for reason, holds in reasons:
                if holds and value is None:
                    raise ValueError(f"`{name}` must be given with {reason}. Received: None")
        count = self.prompt.item_count
        if self.cf_backbone is not None and self.cf_backbone.item_count != count:
            raise ValueError(
                f"`cf_backbone` must know the {count} items of `prompt`. "
                f"Received: item_count={self.cf_backbone.item_count}"
            )
        for name, table in (("item_vectors", item_vectors), ("text_vectors", text_vectors)):
            if table is None:
                continue
            shape = np.shape(table)
            if len(shape) != 2 or shape[0] != count + 1:
                raise ValueError(
                    f"`{name}` must have the shape ({count + 1}, d), row 0 for the padding. "
                    f"Received: shape {shape}"
                )
            finite = np.isfinite(table).all(axis=1)
            if not finite.all():
                raise ValueError(
                    f"`{name}` must be finite. Received: the vector of item {np.argmin(finite)}"
                )

    def _frozen_table(self, name: str, vectors: Any) -> EmbeddingBag | None:
        if vectors is None:
            return None
        vectors = np.asarray(vectors, np.float32)
        rows, width = vectors.shape
        return EmbeddingBag(
            rows,
            width,
            combiner=None,
            padding_id=0,
            trainable=False,
            weights=vectors,
            dtype="float32",
            name=name,
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        serialize = keras.saving.serialize_keras_object
        config.update(
            language_model=serialize(self.language_model),
            prompt=self.prompt.get_config(),
            answer=serialize(self.answer),
            cf_backbone=None if self.cf_backbone is None else serialize(self.cf_backbone),
            item_vectors=_shape(self.item_table),
            text_vectors=_shape(self.text_table),
            cf_scores=self.cf_scores,
            end_token_id=self.end_token_id,
            faithful=self.faithful,
        )
        return config

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        config = dict(config)
        for name in ("language_model", "answer", "cf_backbone"):
            if isinstance(config[name], dict):
                config[name] = keras.saving.deserialize_keras_object(config[name], custom_objects)
        config["prompt"] = RecommendationPrompt(
            config["language_model"].tokenizer, **config["prompt"]
        )
        # The values are weights of the file, and come after.
        for name in ("item_vectors", "text_vectors"):
            if config[name] is not None:
                config[name] = np.zeros(config[name], np.float32)
        return cls(**config)


def _shape(table: EmbeddingBag | None) -> list[int] | None:
    return None if table is None else list(table.embeddings.shape)


def _end_token_id(language_model: Any, end_token_id: int | None) -> int:
    if end_token_id is None:
        end_token_id = getattr(language_model.tokenizer, "end_token_id", None)
    if end_token_id is None or not 0 <= end_token_id < language_model.vocabulary_size:
        raise ValueError(
            "`end_token_id` must be a token of the language model. "
            f"Received: end_token_id={end_token_id}"
        )
    return int(end_token_id)


def _hits(scores: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """`CandidateQuestions.hits` in a graph."""
    first = tf.cast(scores == tf.reduce_max(scores, axis=1, keepdims=True), scores.dtype)
    return tf.gather(first, target, batch_dims=1) / tf.reduce_sum(first, axis=1)


def _as_inputs(inputs: Any) -> dict[str, tf.Tensor]:
    if not isinstance(inputs, dict) or not {"history", "candidates"} <= set(inputs):
        received = sorted(inputs) if isinstance(inputs, dict) else type(inputs).__name__
        raise ValueError(
            f'`inputs` must be a dict of "history" and "candidates". Received: {received}'
        )
    tensors = {name: _as_ids(name, inputs[name]) for name in ("history", "candidates")}
    rows = {name: ids.shape[0] for name, ids in tensors.items()}
    if None not in rows.values() and len(set(rows.values())) > 1:
        raise ValueError(
            f"`history` and `candidates` must have equally many rows. Received: {rows}"
        )
    return tensors


def _as_ids(name: str, ids: Any) -> tf.Tensor:
    ids = tf.convert_to_tensor(ids)
    rank = ids.shape.rank
    if not ids.dtype.is_integer or rank not in (None, 2) or (rank == 2 and ids.shape[1] == 0):
        raise ValueError(
            f"`{name}` must be integers of shape (batch, places). "
            f"Received: {ids.dtype.name} of shape {ids.shape}"
        )
    return tf.cast(ids, tf.int64)


def _as_row_and_target(data: Any) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
    inputs, target, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if target is None or sample_weight is not None:
        raise ValueError(
            "`fit` must get targets, the places of the right candidates, and no sample weights. "
            f"Received: targets={target}, sample weights={sample_weight}"
        )
    inputs, target = _as_inputs(inputs), tf.convert_to_tensor(target)
    if not target.dtype.is_integer or target.shape.rank not in (None, 1):
        raise ValueError(
            "targets must be integers of shape (batch,), places of the candidates. "
            f"Received: {target.dtype.name} of shape {target.shape}"
        )
    target, candidates = tf.cast(target, tf.int64), inputs["candidates"]
    message = "targets must be places of the candidates, and not of padding"
    # A one-hot row has no one where the target is no place.
    right = tf.one_hot(target, tf.shape(candidates)[1], True, False, dtype=tf.bool)
    check = tf.debugging.assert_equal(
        tf.reduce_any(right & (candidates > 0), axis=1), tf.ones_like(target, tf.bool), message
    )
    with tf.control_dependencies([] if check is None else [check]):
        return inputs, tf.identity(target)
