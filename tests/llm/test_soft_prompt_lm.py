import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from tfrec_efficient.llm.soft_prompt_lm import SoftPromptLM

SIZES = {"vocabulary_size": 32, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 24}
GROUPED = SIZES | {"num_query_heads": 4, "num_key_value_heads": 2}
PLAIN = SIZES | {"num_heads": 4}
SMOLLM3 = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_layer_enabled_list": [True, False],
    "layer_types": ["full", "full"],
    "mlp_bias": False,
    "layer_norm_epsilon": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 1e4,
    "partial_rotary_factor": 1.0,
    "attention_bias": False,
    "attention_dropout": 0.0,
}
FAMILIES = {
    "Bloom": PLAIN,
    "Falcon": SIZES | {"num_attention_heads": 4},
    "GPT2": PLAIN | {"max_sequence_length": 20},
    "GPTNeoX": PLAIN | {"hidden_dim": 32},
    "Gemma": GROUPED | {"head_dim": 8},
    "Gemma3": GROUPED | {"head_dim": 8, "image_size": None, "vision_encoder": None},
    "Llama": GROUPED,
    "Llama3": GROUPED,
    "Mistral": GROUPED | {"sliding_window": 16},
    "Mixtral": GROUPED | {"num_experts": 2},
    "OPT": PLAIN | {"max_sequence_length": 20},
    "Phi3": GROUPED,
    "Qwen": GROUPED,
    "Qwen3": GROUPED | {"head_dim": 8},
    "SmolLM3": SIZES | SMOLLM3,
}
# keras-hub 0.32 rotates keys of GPT-NeoX elsewhere in its cached path.
WITHOUT_CACHE = {"GPTNeoX"}
RELATIVE = {name for name in FAMILIES if name not in {"GPT2", "OPT"}}
IDS = np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 31], [0, 30, 2, 2, 11]])


def causal_lm(name, **arguments):
    import keras_hub

    keras.utils.set_random_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        backbone = getattr(keras_hub.models, f"{name}Backbone")(**FAMILIES[name] | arguments)
        make = getattr(keras_hub.models, f"{name}CausalLM")
        return make(backbone=backbone, preprocessor=None)


@functools.cache
def language_model(name="Llama"):
    return SoftPromptLM(causal_lm(name))


@pytest.fixture(params=FAMILIES)
def model(request):
    return language_model(request.param)


def largest_gap(left, right):
    return np.abs(np.asarray(left, np.float32) - np.asarray(right, np.float32)).max()


def test_soft_tokens_that_are_embeddings_give_the_same_bits(model):
    with_soft = np.where(np.arange(5) == 1, -1, np.where(np.arange(5) == 4, -2, IDS))
    soft = model.embed(IDS[:, [1, 4]])
    np.testing.assert_array_equal(model.embed(with_soft, soft), model.embed(IDS))
    states = [model.hidden(model.embed(*a)) for a in ((with_soft, soft), (IDS,))]
    np.testing.assert_array_equal(*states)


def test_logits_are_those_of_the_language_model(model):
    logits = model.logits(model.hidden(model.embed(IDS)))
    whole = model.causal_lm({"token_ids": IDS, "padding_mask": np.ones_like(IDS)})
    assert largest_gap(logits, whole) < 1e-5


def test_the_cache_changes_nothing(model):
    name = type(model.causal_lm).__name__.removesuffix("CausalLM")
    assert model.supports_cache == (name not in WITHOUT_CACHE)
    embedded = model.embed(IDS)
    if name in WITHOUT_CACHE:
        with pytest.raises(ValueError, match=f"family whose cache is exact. Received: {name}"):
            model.prefill(embedded, 5)
        return
    whole = model.hidden(embedded)
    begun, cache = model.prefill(embedded[:, :2], 9)
    middle, cache = model.decode(embedded[:, 2:4], cache, 2)
    last, _ = model.decode(embedded[:, 4:], cache, 4)
    assert largest_gap(tf.concat([begun, middle, last], 1), whole) < 1e-5


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - WITHOUT_CACHE))
def test_one_beginning_serves_many_continuations(name):
    model = language_model(name)
    _, cache = model.prefill(model.embed(IDS[:1, :2]), 5)
    states, _ = model.decode(model.embed(IDS[:, 2:]), model.repeat_cache(cache, 3), 2)
    whole = model.hidden(model.embed(np.concatenate([IDS[[0, 0, 0], :2], IDS[:, 2:]], 1)))
    assert largest_gap(states, whole[:, 2:]) < 1e-5


def test_padding_changes_nothing(model):
    name = type(model.causal_lm).__name__.removesuffix("CausalLM")
    whole = model.hidden(model.embed(IDS))
    right = model.hidden(
        model.embed(np.pad(IDS, ((0, 0), (0, 3)))), np.pad(np.ones((3, 5), bool), ((0, 0), (0, 3)))
    )
    assert largest_gap(right[:, :5], whole) < 1e-5
    left = model.hidden(
        model.embed(np.pad(IDS, ((0, 0), (3, 0)))), np.pad(np.ones((3, 5), bool), ((0, 0), (3, 0)))
    )
    assert (largest_gap(left[:, 3:], whole) < 1e-5) == (name in RELATIVE)


def test_the_gradient_reaches_soft_tokens_and_no_weight(model):
    assert model.trainable_weights == [] == model.causal_lm.trainable_weights
    soft = tf.Variable(tf.ones([3, 1, model.width]) * 0.1)
    with_soft = np.where(np.arange(5) == 1, -1, IDS)
    with tf.GradientTape() as tape:
        hidden = model.hidden(model.embed(with_soft, soft))
        loss = tf.reduce_sum(
            tf.square(model.logits_at(hidden, np.arange(5) == 4 * np.ones((3, 1))))
        )
    gradient = tape.gradient(loss, soft)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0


@given(
    st.integers(1, 3),
    st.integers(1, 8),
    st.integers(0, 4),
    st.integers(0, 2**31),
)
@settings(deadline=None, max_examples=30)
def test_every_place_gets_its_token(rows, length, slots, seed):
    model = language_model()
    generator = np.random.default_rng(seed)
    ids = generator.integers(-slots, 32, (rows, length))
    soft = generator.normal(size=(rows, slots, model.width)).astype(np.float32)
    table = model.causal_lm.backbone.token_embedding.embeddings.numpy()
    expected = [
        [table[i] if i >= 0 else soft[row, -1 - i] for i in line] for row, line in enumerate(ids)
    ]
    np.testing.assert_array_equal(model.embed(ids, soft), np.array(expected, np.float32))


def test_only_places_asked_for_reach_the_vocabulary():
    model = language_model()
    hidden = model.hidden(model.embed(IDS))
    places = np.array([[0, 1, 0, 0, 1], [0] * 5, [1, 0, 0, 0, 0]], bool)
    logits = model.logits_at(hidden, places)
    assert logits.shape == (3, 32)
    np.testing.assert_allclose(logits, model.logits(hidden).numpy()[places], atol=1e-6)


@pytest.mark.parametrize("token", [32, -2])
def test_tokens_that_are_none_are_refused(token):
    model = language_model()
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"`token_ids` must be in `\[-slots, 32\)`"
    ):
        model.embed([[1, token]], tf.zeros([1, 1, model.width]))


def test_a_soft_token_needs_soft_tokens():
    with pytest.raises(tf.errors.InvalidArgumentError, match="`token_ids` must be in"):
        language_model().embed([[-1]])


@pytest.mark.parametrize("token", [2**32 + 5, -(2**33)])
def test_an_id_of_64_bits_is_no_other_id(token):
    with pytest.raises(tf.errors.InvalidArgumentError, match="`token_ids` must be in"):
        language_model().embed(np.array([[token]]), tf.zeros([1, 1, 16]))


@pytest.mark.parametrize("dtype", [np.float32, bool])
def test_tokens_are_integers(dtype):
    with pytest.raises(ValueError, match="`token_ids` must be integers. Received: dtype="):
        language_model().embed(np.ones([1, 2], dtype))


@pytest.mark.parametrize("shape", [(1, 1, 8), (1, 16)])
def test_soft_tokens_are_as_wide_as_the_model(shape):
    message = r"`soft_tokens` must have the shape \(batch, slots, 16\). Received: shape"
    with pytest.raises(ValueError, match=message):
        language_model().embed([[1, -1]], tf.zeros(shape))


@pytest.mark.parametrize("rows", [1, 3])
def test_each_row_has_its_soft_tokens(rows):
    with pytest.raises(tf.errors.InvalidArgumentError, match="a row for each row of `token_ids`"):
        language_model().embed([[1, 2], [2, 1]], tf.zeros([rows, 1, 16]))


@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
@pytest.mark.parametrize("index", [2, -1])
@pytest.mark.parametrize("run", [lambda f: f, tf.function])
def test_tokens_outside_the_cache_are_refused(name, index, run):
    model = language_model(name)
    _, cache = model.prefill(model.embed(IDS[:, :2]))
    decode = run(model.decode)
    with pytest.raises(tf.errors.InvalidArgumentError, match="within the capacity of the cache"):
        decode(model.embed(IDS[:, 2:3]), cache, tf.constant(index))
    with pytest.raises(tf.errors.InvalidArgumentError, match="within the capacity of the cache"):
        model.prefill(model.embed(IDS), 4)


@pytest.mark.parametrize("name", ["Mistral", "Gemma", "Gemma3", "Qwen"])
def test_the_cache_is_exact_beyond_a_sliding_window(name):
    size = {"sliding_window": 3} if name == "Mistral" else {"sliding_window_size": 3}
    if name != "Mistral":
        size |= {"use_sliding_window_attention": True}
    model = SoftPromptLM(causal_lm(name, **size))
    embedded = model.embed(np.tile(IDS, 2))
    begun, cache = model.prefill(embedded[:, :4], 12)
    middle, cache = model.decode(embedded[:, 4:8], cache, 4)
    last, _ = model.decode(embedded[:, 8:], cache, 8)
    assert largest_gap(tf.concat([begun, middle, last], 1), model.hidden(embedded)) < 1e-5


class Holder(keras.Model):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, ids, training=False):
        embedded = self.model.embed(ids)
        begun, cache = self.model.prefill(embedded[:, :2], 5)
        rest, _ = self.model.decode(embedded[:, 2:], cache, 2)
        return tf.concat([begun, rest], 1), self.model.hidden(embedded)


@pytest.mark.parametrize("name", ["GPT2", "Llama"])
def test_a_frozen_model_drops_nothing_in_training(name):
    model = SoftPromptLM(causal_lm(name, dropout=0.5))
    holder = Holder(model)
    for states in holder(tf.constant(IDS), training=True):
        assert largest_gap(states, model.hidden(model.embed(IDS))) < 1e-5
    assert holder.weights == []


def test_the_size_of_embeddings_is_measured():
    model = language_model()
    table = model.causal_lm.backbone.token_embedding.embeddings.numpy()
    np.testing.assert_allclose(model.embedding_rms, np.sqrt((table**2).mean()), rtol=1e-5)


def test_graphs_of_any_size_give_the_same():
    model = language_model()

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.int32)])
    def run(ids):
        states, cache = model.prefill(model.embed(ids[:, :2]), tf.shape(ids)[1])
        more, _ = model.decode(model.embed(ids[:, 2:]), cache, 2)
        return tf.concat([states, more], 1)

    for ids in (IDS, IDS[:1, :3]):
        assert largest_gap(run(tf.constant(ids, tf.int32)), model.hidden(model.embed(ids))) < 1e-5


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_half_precision_computes_in_half_precision(dtype):
    model = SoftPromptLM(causal_lm("Llama", dtype=dtype))
    assert model.hidden(model.embed(IDS)).dtype == tf.bfloat16 and model.supports_cache


def test_two_replicas_compute_as_one():
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0", "CPU:1"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    with strategy.scope():
        model = SoftPromptLM(causal_lm("Llama"))
    run = tf.function(lambda: model.hidden(model.embed(IDS)))
    for states in strategy.experimental_local_results(strategy.run(run)):
        assert largest_gap(states, language_model().hidden(language_model().embed(IDS))) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_that_is_wrong_is_known_in_any_dtype(dtype):
    assert not SoftPromptLM(causal_lm("GPTNeoX", dtype=dtype)).supports_cache


# Qwen's queries and values have biases.
@pytest.mark.parametrize("name", ["Llama", "Qwen"])
@pytest.mark.parametrize("frozen", [False, True])
def test_low_rank_weights_alone_are_trained_where_asked_for(name, frozen):
    model = causal_lm(name)
    model.trainable = not frozen
    model = SoftPromptLM(model, lora_rank=2)
    names = {weight.path.rsplit("/", 1)[1] for weight in model.trainable_weights}
    assert names == {"lora_kernel_a", "lora_kernel_b"} and len(model.trainable_weights) == 8
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.square(model.logits(model.hidden(model.embed(IDS)))))
    gradients = tape.gradient(loss, model.trainable_weights)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("name", ["GPTNeoX", "SmolLM3"])
def test_a_family_without_low_rank_weights_is_refused(name):
    with pytest.raises(ValueError, match=f"`lora_rank` must be None .* and {name}CausalLM"):
        SoftPromptLM(causal_lm(name), lora_rank=2)


def test_a_family_that_scores_tokens_otherwise_is_refused():
    import keras_hub

    sizes = {"gate_lora": 4, "mv_lora": 4, "aaa_lora": 4, "decay_lora": 4, "head_size": 8}
    backbone = keras_hub.models.RWKV7Backbone(
        vocabulary_size=32, num_layers=1, hidden_size=16, intermediate_dim=24, **sizes
    )
    model = keras_hub.models.RWKV7CausalLM(backbone=backbone, preprocessor=None)
    with pytest.raises(ValueError, match="token embedding in reverse. Received: RWKV7CausalLM"):
        SoftPromptLM(model)


def test_a_context_without_a_length_is_refused():
    with pytest.raises(ValueError, match="`context_length` must be a positive integer"):
        SoftPromptLM(causal_lm("Llama"), context_length=0)


def test_what_is_no_language_model_is_refused():
    with pytest.raises(ValueError, match="`causal_lm` must be a `keras_hub.models.CausalLM`"):
        SoftPromptLM(keras.Sequential())


def test_a_model_that_takes_embeddings_otherwise_is_refused(monkeypatch):
    monkeypatch.setattr(SoftPromptLM, "hidden", lambda self, embeddings: embeddings * 1e3)
    with pytest.raises(ValueError, match="LlamaCausalLM, whose hidden states differ by"):
        SoftPromptLM(causal_lm("Llama"))


def test_without_a_reference_it_cannot_be_referred_to():
    with pytest.raises(ValueError, match="`reference` must be given to `SoftPromptLM`"):
        language_model().get_config()


def test_a_preset_in_a_folder_is_referred_to_by_the_folder(tmp_path):
    preset = causal_lm("Llama")
    preset.backbone.save_to_preset(str(tmp_path))
    preset.save_to_preset(str(tmp_path))
    model = SoftPromptLM.load(str(tmp_path), lora_rank=3)
    assert model.get_config() == {
        "reference": str(tmp_path),
        "dtype": "float32",
        "lora_rank": 3,
        "context_length": None,
    }
    again = SoftPromptLM.from_config(model.get_config())
    expected = language_model().hidden(language_model().embed(IDS))
    assert largest_gap(again.hidden(again.embed(IDS)), expected) < 1e-6


def test_an_unknown_reference_is_refused():
    with pytest.raises(FileNotFoundError, match="`reference` must be 'smollm2-135m-instruct' or a"):
        SoftPromptLM.load("gpt-5")


@pytest.mark.parametrize(
    ("cpu", "dtype"), [("flags : fpu avx512_bf16 sse", "bfloat16"), ("flags : fpu sse", "float32")]
)
def test_the_dtype_is_one_that_the_processor_multiplies_in(monkeypatch, tmp_path, cpu, dtype):
    from tfrec_efficient.llm import soft_prompt_lm

    (tmp_path / "cpuinfo").write_text(f"model : any\n{cpu}\n")
    monkeypatch.setattr(soft_prompt_lm, "_PROCESSOR", tmp_path / "cpuinfo")
    assert soft_prompt_lm.fastest_dtype() == dtype
    monkeypatch.setattr(soft_prompt_lm, "_PROCESSOR", tmp_path / "none")
    assert soft_prompt_lm.fastest_dtype() == "float32"
