import keras
import numpy as np
import pytest
import tensorflow as tf

from tfrec_efficient import llm


def fitted(recommender, house, epochs=2, **arguments):
    recommender.compile(keras.optimizers.Adam(0.01), run_eagerly=True, **arguments)
    recommender.fit(house.questions.dataset(2), epochs=epochs, verbose=0, shuffle=False)
    return recommender


def test_only_projections_are_trained(house):
    recommender = house.recommender()
    paths = {weight.path.split("/")[0] for weight in recommender.trainable_weights}
    assert paths == {"user_projection", "item_projection"}
    frozen = [recommender.cf_backbone, recommender.item_table, recommender.language_model.causal_lm]
    before = [[weight.numpy() for weight in part.weights] for part in frozen]
    projections = [weight.numpy() for weight in recommender.trainable_weights]
    fitted(recommender, house)
    for part, values in zip(frozen, before, strict=True):
        for weight, value in zip(part.weights, values, strict=True):
            np.testing.assert_array_equal(weight, value)
    for weight, value in zip(recommender.trainable_weights, projections, strict=True):
        assert (weight.numpy() != value).any(), weight.path


def test_fit_lowers_the_loss_and_evaluate_reports_hits(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    recommender.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
    data = house.questions.dataset(2)
    before = recommender.evaluate(data, verbose=0, return_dict=True)
    recommender.fit(data, epochs=4, verbose=0, shuffle=False)
    after = recommender.evaluate(data, verbose=0, return_dict=True)
    assert after["loss"] < before["loss"]
    hits = house.questions.hits(recommender(house.inputs)).mean()
    assert after["hit_at_1"] == pytest.approx(hits)


@pytest.mark.slow
def test_fit_and_predict_run_in_graphs(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12), cf_scores=True)
    recommender.compile(keras.optimizers.Adam(0.01))
    recommender.fit(house.questions.dataset(2), epochs=1, verbose=0, shuffle=False)
    scores = recommender.predict(house.questions.dataset(2), verbose=0)
    np.testing.assert_allclose(scores, recommender(house.inputs), atol=1e-5)


def test_scores_of_the_backbone_and_of_texts_are_added(house):
    texts = np.random.default_rng(5).normal(size=(10, 6)).astype(np.float32)
    texts[[0, 7]] = 0
    answer = llm.RetrievalHead(8, 12)
    plain = house.recommender(answer)
    added = house.recommender(
        llm.RetrievalHead(8, 12),
        cf_scores=True,
        text_vectors=texts,
        cf_backbone=plain.cf_backbone,
    )
    for mine, other in zip(
        added.answer.weights + added.item_projection.weights + added.user_projection.weights,
        plain.answer.weights + plain.item_projection.weights + plain.user_projection.weights,
        strict=True,
    ):
        mine.assign(other)
    added.score_weights.assign([0.5, 2.0, 3.0, 4.0])
    state = plain.cf_backbone.user_state(house.inputs["history"]).numpy()
    candidates = house.inputs["candidates"]
    of_items = plain.cf_backbone.item_vectors(candidates).numpy()
    expected = 0.5 * plain(house.inputs).numpy()
    expected = expected + 2 * np.einsum("bd,bcd->bc", state, of_items)
    known = texts.any(axis=1)
    texts[known] -= texts[known].mean(axis=0)
    texts[known] /= np.linalg.norm(texts[known], axis=1, keepdims=True)
    for row, (history, asked) in enumerate(zip(house.inputs["history"], candidates, strict=True)):
        cosines = texts[asked] @ texts[history[history > 0]].T
        expected[row] += 3 * cosines.mean(axis=1) + 4 * cosines.max(axis=1)
    np.testing.assert_allclose(added(house.inputs), expected, atol=1e-4)


def test_calibrate_fits_the_weights_of_what_is_added(house):
    texts = np.random.default_rng(5).normal(size=(10, 6))
    recommender = house.recommender(llm.RetrievalHead(8, 12), cf_scores=True, text_vectors=texts)
    with_language_model = recommender.calibrate(house.questions, language_model=True)
    assert with_language_model.shape == (4,) and with_language_model[0] != 1
    recommender.score_weights.assign([1.0, 1.0, 0.0, 0.0])
    weights = recommender.calibrate(house.questions)
    np.testing.assert_array_equal(weights, recommender.score_weights)
    assert weights[0] == 1
    assert not any(weight.name == "score_weights" for weight in recommender.trainable_weights)
    with pytest.raises(ValueError, match="needs `cf_scores` or `text_vectors`"):
        house.recommender().calibrate(house.questions)
    with pytest.raises(ValueError, match="must hold a question"):
        recommender.calibrate(house.questions.take(slice(0)))


def test_faithful_keeps_dropout_in_the_frozen_backbone_and_no_size(house):
    backbone = llm.SASRec(9, width=4, max_length=5, dropout=0.5)
    recommender = house.recommender(faithful=True, cf_backbone=backbone)
    inputs = {name: tf.convert_to_tensor(value) for name, value in house.inputs.items()}
    users = [recommender.prompts(inputs, True)[1][:, 0].numpy() for _ in range(2)]
    assert (users[0] != users[1]).any()
    assert recommender.user_projection.rms is None
    mended = house.recommender(cf_backbone=backbone)
    users = [mended.prompts(inputs, training)[1][:, 0].numpy() for training in (True, False)]
    np.testing.assert_array_equal(*users)
    rms = mended.language_model.embedding_rms
    np.testing.assert_allclose(np.sqrt((users[0] ** 2).mean(-1)), rms, rtol=1e-3)


def test_text_alone_with_low_rank_weights_is_tallrec(house):
    model = llm.SoftPromptLM(house.causal_lm(), house.characters(), lora_rank=2)
    recommender = house.recommender(
        llm.Verbalizer(),
        language_model=model,
        user=False,
        item_tokens=False,
        cf_backbone=None,
        item_vectors=None,
    )
    assert {weight.path.rsplit("/", 1)[1] for weight in recommender.trainable_weights} == {
        "lora_kernel_a",
        "lora_kernel_b",
    }
    before = recommender(house.inputs).numpy()
    fitted(recommender, house)
    assert (recommender(house.inputs).numpy() != before).any()


def test_a_text_alone_has_nothing_to_train(house):
    recommender = house.recommender(
        user=False, item_tokens=False, cf_backbone=None, item_vectors=None
    )
    with pytest.raises(ValueError, match="`fit` needs weights to train"):
        fitted(recommender, house)


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("answer", [llm.Verbalizer, lambda: llm.RetrievalHead(8, 12)])
def test_mixed_precision_scores_in_float32(house, policy, answer):
    texts = np.random.default_rng(5).normal(size=(10, 6))
    arguments = {"cf_scores": True, "text_vectors": texts}
    wide = house.recommender(answer(), **arguments)
    keras.config.set_dtype_policy(policy)
    try:
        recommender = house.recommender(answer(), **arguments)
        for mine, other in zip(recommender.variables, wide.variables, strict=True):
            mine.assign(other)
        assert recommender.score_weights.dtype == recommender.item_table.compute_dtype == "float32"
        scores = recommender(house.inputs)
        assert scores.dtype == tf.float32
        np.testing.assert_allclose(scores, wide(house.inputs), atol=0.2)
        fitted(recommender, house, epochs=1)
        assert np.isfinite(recommender.calibrate(house.questions)).all()
    finally:
        keras.config.set_dtype_policy("float32")


def test_the_policy_is_that_of_the_arguments(house):
    recommender = house.recommender(
        llm.RetrievalHead(8, 12, dtype="mixed_bfloat16"), dtype="mixed_bfloat16"
    )
    towers = (recommender.answer._query, recommender.answer._item, recommender.answer._state)
    parts = [recommender.user_projection, recommender.item_projection]
    parts += [layer for tower in towers for layer in tower.layers]
    assert {part.compute_dtype for part in parts} == {"bfloat16"}
    assert recommender(house.inputs).dtype == tf.float32


def test_the_row_of_the_padding_does_not_count_among_texts(house):
    texts = np.random.default_rng(5).normal(size=(10, 6))
    tables = []
    for texts[0] in (np.zeros(6), np.full(6, 9.0)):
        table = house.recommender(llm.RetrievalHead(8, 12), text_vectors=texts).text_table
        tables.append(table(np.arange(10)))
    np.testing.assert_array_equal(*tables)


def test_padding_among_candidates_never_wins(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    candidates = np.array([[1, 2, 0]] * 4)
    scores = recommender({"history": house.inputs["history"], "candidates": candidates}).numpy()
    assert (scores[:, 2] == np.finfo(np.float32).min).all()


def test_the_backbone_proposes_where_nobody_does(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    ids, scores = recommender.recommend(house.inputs["history"], k=4)
    proposed = recommender.cf_backbone.top_k(house.inputs["history"], 4)[0].numpy()
    np.testing.assert_array_equal(np.sort(ids), np.sort(proposed))
    assert (np.diff(scores) <= 0).all()
    ids, _ = recommender.recommend(house.inputs["history"], candidates=house.inputs["candidates"])
    np.testing.assert_array_equal(np.sort(ids), np.sort(house.inputs["candidates"]))


def test_a_saved_recommender_refers_to_its_language_model(house, tmp_path):
    house.causal_lm().save_to_preset(str(tmp_path / "preset"))
    lm = llm.SoftPromptLM(house.causal_lm(), house.characters(), str(tmp_path / "preset"))
    texts = np.random.default_rng(0).normal(size=(10, 4))
    recommender = house.recommender(
        llm.RetrievalHead(8, 12), language_model=lm, cf_scores=True, text_vectors=texts
    )
    fitted(recommender, house, epochs=1)
    recommender.save(tmp_path / "recommender.keras")
    assert (tmp_path / "recommender.keras").stat().st_size < 2**20
    with pytest.MonkeyPatch.context() as patch:
        # The preset of the test has no tokenizer of its own.
        made = llm.SoftPromptLM.__init__
        patch.setattr(
            llm.SoftPromptLM,
            "__init__",
            lambda self, causal_lm, tokenizer=None, *rest, **named: made(
                self, causal_lm, house.characters(), *rest, **named
            ),
        )
        revived = keras.saving.load_model(tmp_path / "recommender.keras")
    np.testing.assert_allclose(revived(house.inputs), recommender(house.inputs), atol=1e-5)
    saved = {weight.path for weight in recommender.weights}
    assert not any("transformer_layer" in path for path in saved)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(llm.CandidateLikelihood, marks=pytest.mark.slow),
        pytest.param(llm.Verbalizer, marks=pytest.mark.slow),
        lambda: llm.RetrievalHead(8, 12),
    ],
)
def test_a_saved_model_scores_candidates(house, tmp_path, answer):
    recommender = house.recommender(answer())
    recommender.export_scores(str(tmp_path / "saved"))
    served = tf.saved_model.load(str(tmp_path / "saved"))
    inputs = {name: tf.constant(value) for name, value in house.inputs.items()}
    np.testing.assert_allclose(served.serve(**inputs), recommender(house.inputs), atol=1e-5)
    places = {spec.name: spec.shape for spec in served.serve.input_signature}
    assert places["history"].as_list() == [None, 5]
    fewer = {"history": inputs["history"][:1], "candidates": inputs["candidates"][:1, :2]}
    np.testing.assert_allclose(served.serve(**fewer), recommender(fewer), atol=1e-5)


def test_what_writes_titles_is_not_exported(house, tmp_path):
    with pytest.raises(ValueError, match="`answer` must score without Python"):
        house.recommender(llm.TitleGeneration(5)).export_scores(str(tmp_path))


@pytest.mark.slow
def test_two_replicas_train_as_one(house):
    weights = []
    for strategy in (
        tf.distribute.get_strategy(),
        tf.distribute.MirroredStrategy(
            ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
        ),
    ):
        with strategy.scope():
            recommender = house.recommender(llm.RetrievalHead(8, 12, uniformity=0.0))
            recommender.compile(keras.optimizers.SGD(0.05))
        data = house.questions.dataset(4)
        recommender.fit(data, epochs=2, verbose=0, shuffle=False)
        weights.append(recommender.user_projection.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("answer", [llm.CandidateLikelihood, lambda: llm.RetrievalHead(8, 12)])
def test_a_replica_may_get_no_row_of_the_last_batch(house, answer):
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        recommender = house.recommender(answer())
        recommender.compile(keras.optimizers.SGD(0.05))
    data = house.questions.take(slice(3)).dataset(2)
    history = recommender.fit(data, epochs=1, verbose=0, shuffle=False).history
    assert np.isfinite(history["loss"]).all()
    assert all(np.isfinite(weight).all() for weight in recommender.get_weights())


@pytest.mark.slow
def test_a_seed_repeats_a_run(house):
    scores = [
        fitted(house.recommender(llm.RetrievalHead(8, 12)), house)(house.inputs) for _ in range(2)
    ]
    np.testing.assert_array_equal(*scores)


def test_training_goes_on_from_its_last_epoch(house, tmp_path):
    def run(epochs, stop=None):
        recommender = house.recommender(llm.RetrievalHead(8, 12))
        recommender.compile(keras.optimizers.Adam(0.01), run_eagerly=True)
        callbacks = [keras.callbacks.BackupAndRestore(tmp_path / str(stop is not None))]
        if stop is not None:
            callbacks.append(
                keras.callbacks.LambdaCallback(
                    on_epoch_begin=lambda epoch, logs: 1 / 0 if epoch == stop else None
                )
            )
        data = house.questions.dataset(4)
        recommender.fit(data, epochs=epochs, verbose=0, shuffle=False, callbacks=callbacks)
        return recommender(house.inputs).numpy()

    with pytest.raises(ZeroDivisionError):
        run(2, stop=1)
    resumed = run(2, stop=9)
    np.testing.assert_allclose(resumed, run(2), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cf_backbone": None}, "`cf_backbone` must be given with {user} in the template"),
        ({"item_vectors": None}, "`item_vectors` must be given with item tokens in the prompt"),
        (
            {"cf_backbone": None, "user": False, "cf_scores": True},
            "`cf_backbone` must be given with cf_scores",
        ),
        (
            {"cf_backbone": llm.SASRec(8, width=4, max_length=5)},
            "`cf_backbone` must know the 9 items of `prompt`. Received: item_count=8",
        ),
        ({"item_vectors": np.zeros((9, 4))}, r"`item_vectors` must have the shape \(10, d\)"),
        ({"text_vectors": np.zeros((9, 4))}, r"`text_vectors` must have the shape \(10, d\)"),
        (
            {"item_vectors": np.where(np.arange(40).reshape(10, 4) == 13, np.nan, 0)},
            "`item_vectors` must be finite. Received: the vector of item 3",
        ),
        (
            {"text_vectors": np.full((10, 4), np.inf)},
            "`text_vectors` must be finite. Received: the vector of item 0",
        ),
        ({"end_token_id": 128}, "`end_token_id` must be a token of the language model"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(house, arguments, words):
    with pytest.raises(ValueError, match=words):
        house.recommender(**arguments)


def test_a_target_that_is_no_candidate_is_refused(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    recommender.compile("adam", run_eagerly=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="targets must be places of the cand"):
        recommender.fit(house.inputs, np.array([0, 1, 4, 2]), verbose=0)
    padded = house.inputs | {"candidates": np.array([[1, 0]] * 4)}
    with pytest.raises(tf.errors.InvalidArgumentError, match="and not of padding"):
        recommender.fit(padded, np.array([0, 0, 1, 0]), verbose=0)


def test_a_prompt_without_a_token_is_refused(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12), user=False, item_tokens=False)
    prompt = llm.RecommendationPrompt(house.characters(), house.titles, "{history}", 3, False)
    recommender.prompt = prompt
    empty = {name: np.zeros_like(ids) for name, ids in house.inputs.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match="A prompt must have a token"):
        recommender(empty)


def test_a_prompt_longer_than_the_language_model_reads_is_refused(house):
    model = llm.SoftPromptLM(house.causal_lm(), house.characters(), context_length=20)
    recommender = house.recommender(llm.RetrievalHead(8, 12), language_model=model)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have at most 20 tokens"):
        recommender(house.inputs)


@pytest.mark.parametrize("inputs", [np.zeros((1, 5)), {"history": np.zeros((1, 5), np.int64)}])
def test_inputs_must_be_named(house, inputs):
    with pytest.raises(ValueError, match='`inputs` must be a dict of "history" and "candidates"'):
        house.recommender(llm.RetrievalHead(8, 12))(inputs)


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("history", np.full((4, 5), 1.5)),
        ("candidates", np.ones(4, np.int64)),
        ("candidates", np.ones((4, 0), np.int64)),
    ],
)
def test_inputs_must_be_integers_of_two_axes(house, name, ids):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    with pytest.raises(ValueError, match=f"`{name}` must be integers of shape"):
        recommender(house.inputs | {name: ids})


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint64"])
def test_integers_of_any_size_are_ids(house, dtype):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    narrow = {name: ids.astype(dtype) for name, ids in house.inputs.items()}
    np.testing.assert_array_equal(recommender(narrow), recommender(house.inputs))


def test_histories_and_candidates_must_have_equally_many_rows(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    with pytest.raises(ValueError, match="equally many rows. Received: {'history': 1, 'cand"):
        recommender(house.inputs | {"history": house.inputs["history"][:1]})


@pytest.mark.parametrize(
    "target", [np.array([0.7, 1, 0, 2]), np.array([True] * 4), np.zeros((4, 1), np.int64)]
)
def test_targets_are_not_rounded(house, target):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    recommender.compile("adam", run_eagerly=True)
    for method in (recommender.train_on_batch, recommender.test_on_batch):
        with pytest.raises(ValueError, match="targets must be integers of shape"):
            method(house.inputs, target)


def test_histories_are_not_rounded(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    with pytest.raises(ValueError, match="`history` must be integers"):
        recommender.recommend([[0, 0, 1.7, 2.2, 3.9]], candidates=[[1, 2]])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"history": [[0.5, 1.0]]}, "`history` must be integers of shape"),
        ({"history": [1, 2]}, "`history` must be integers of shape"),
        ({"candidates": [[1.5]] * 4}, "`candidates` must be integers of shape"),
        ({"max_tokens": -1}, "`max_tokens` must be a positive integer. Received: max_tokens=-1"),
    ],
)
def test_what_cannot_be_answered_is_refused(house, arguments, words):
    with pytest.raises(ValueError, match=words):
        house.recommender().generate(**(house.inputs | arguments))


def test_evaluate_shares_ties_out(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    recommender.compile("adam", run_eagerly=True)
    recommender.score_weights.assign([0.0])
    inputs = house.inputs | {"candidates": np.array([[1, 2, 3, 0]] * 4)}
    for place in range(2):
        report = recommender.test_on_batch(inputs, np.full(4, place), return_dict=True)
        assert report["hit_at_1"] == pytest.approx(1 / 3)
        recommender.reset_metrics()


def test_fit_needs_targets(house):
    recommender = house.recommender(llm.RetrievalHead(8, 12))
    recommender.compile("adam", run_eagerly=True)
    with pytest.raises(ValueError, match="`fit` must get targets"):
        recommender.fit(house.inputs, verbose=0)


def test_a_loss_or_metrics_of_ones_own_are_refused(house):
    for arguments, name in (({"loss": "mse"}, "loss"), ({"metrics": ["accuracy"]}, "metrics")):
        recommender = house.recommender(llm.RetrievalHead(8, 12))
        recommender.compile("adam", run_eagerly=True, **arguments)
        for method in (recommender.train_on_batch, recommender.test_on_batch):
            with pytest.raises(ValueError, match=f"an optimizer alone.* Received: {name}"):
                method(house.inputs, np.zeros(len(house.inputs["history"]), np.int64))


def test_nobody_proposes_without_a_backbone(house):
    recommender = house.recommender(user=False, cf_backbone=None)
    with pytest.raises(ValueError, match="`candidates` must be given where no CF backbone"):
        recommender.recommend(house.inputs["history"])
