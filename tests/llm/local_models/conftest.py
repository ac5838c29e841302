"""A small Llama in a GGUF file, and the slow formulas to hold against it."""

import numpy as np
import pytest

WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN = 64, 2, 4, 2, 96
EPSILON, THETA = 1e-2, 500.0  # far from every default, so that what is not read shows
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "' s", "1 9", "Ċ Ċ", "Ġ Ġ", "Ð ¾"]


def tokens():
    """The special tokens, all bytes, then what the merges make; "1 9" must never be used."""
    import tokenizers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    return SPECIAL + letters + [merge.replace(" ", "") for merge in MERGES]


def write_gguf(
    path, tied=True, quantized=True, architecture="llama", pre="smollm", more=(), **fields
):
    """Writes random weights, and returns what was written of each tensor, as raw bytes."""
    import gguf

    vocabulary = tokens()
    kinds = gguf.GGMLQuantizationType
    random = np.random.default_rng(0)
    head = WIDTH // HEADS
    shapes = {"token_embd": (len(vocabulary), WIDTH), "output_norm": (WIDTH,)}
    if not tied:
        shapes["output"] = (len(vocabulary), WIDTH)
    for layer in range(LAYERS):
        of_layer = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, WIDTH),
            "attn_k": (KV_HEADS * head, WIDTH),
            "attn_v": (KV_HEADS * head, WIDTH),
            "attn_output": (WIDTH, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (HIDDEN, WIDTH),
            "ffn_up": (HIDDEN, WIDTH),
            "ffn_down": (WIDTH, HIDDEN),
        }
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    shapes |= dict(more)

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(EPSILON)
    writer.add_rope_freq_base(THETA)
    writer.add_rope_dimension_count(head)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocabulary)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(vocabulary) - len(SPECIAL)))
    writer.add_token_merges(MERGES)
    for name, value in fields.items():
        if isinstance(value, str):
            writer.add_string(name.replace("__", "."), value)
        else:
            writer.add_uint32(name.replace("__", "."), value)
    written = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            kind, values = kinds.F32, random.uniform(0.5, 1.5, shape)
        else:
            kind = kinds.Q8_0 if name == "token_embd" else kinds.Q4_1
            values = random.normal(scale=0.3, size=shape)
        values = values.astype(np.float32)
        if not quantized:
            kind = kinds.F32
        raw = values if kind == kinds.F32 else gguf.quants.quantize(values, kind)
        writer.add_tensor(f"{name}.weight", raw, raw_dtype=kind)
        written[name] = (kind.name, raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def dequantized(kind, raw):
    """What a tensor means, after the layout of its blocks of 32 numbers in ggml."""
    if kind == "F32":
        return raw.astype(np.float64)
    rows = []
    for row in raw:
        numbers = []
        for block in row.reshape(-1, {"Q4_1": 20, "Q8_0": 34}[kind]):
            if kind == "Q8_0":
                numbers += list(block[:2].view(np.float16).astype(float) * block[2:].view(np.int8))
            else:
                scale, least = block[:4].view(np.float16).astype(float)
                numbers += [scale * (byte & 15) + least for byte in block[4:]]
                numbers += [scale * (byte >> 4) + least for byte in block[4:]]
        rows.append(numbers)
    return np.array(rows)


def slow_logits(written, ids):
    """A Llama in NumPy that rotates neighbours, as GGUF keeps them."""
    weights = {name: dequantized(*tensor) for name, tensor in written.items()}
    head = WIDTH // HEADS
    angles = np.outer(np.arange(len(ids)), THETA ** (-np.arange(0, head, 2) / head))
    turns = np.exp(1j * angles)

    def norm(x, scale):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPSILON) * scale

    def rotated(x):
        turned = (x[:, 0::2] + 1j * x[:, 1::2]) * turns
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    x = weights["token_embd"][ids]
    future = np.triu(np.full((len(ids), len(ids)), -np.inf), 1)
    for layer in range(LAYERS):
        w = {
            name.removeprefix(f"blk.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"blk.{layer}.")
        }
        h = norm(x, w["attn_norm"])
        outputs = []
        for i in range(HEADS):
            mine = slice(i * head, (i + 1) * head)
            j = i * KV_HEADS // HEADS
            shared = slice(j * head, (j + 1) * head)
            q, k = rotated(h @ w["attn_q"][mine].T), rotated(h @ w["attn_k"][shared].T)
            scores = np.exp(q @ k.T / np.sqrt(head) + future)
            scores /= scores.sum(-1, keepdims=True)
            outputs.append(scores @ (h @ w["attn_v"][shared].T))
        x = x + np.concatenate(outputs, -1) @ w["attn_output"].T
        h = norm(x, w["ffn_norm"])
        gate = h @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
    return norm(x, weights["output_norm"]) @ weights.get("output", weights["token_embd"]).T


def slow_tokens(text):
    """Byte pair encoding by its definition, for texts without special tokens."""
    import regex
    import tokenizers

    # The printable stand-in of each byte, read off single bytes in Latin-1 and UTF-8.
    by_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    vocabulary = {token: number for number, token in enumerate(tokens())}
    words = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    ids = []
    for part in regex.split(r"(\p{N})", text):
        for word in regex.findall(words, part):
            symbols = list(by_bytes.pre_tokenize_str(word)[0][0])
            while True:
                pairs = [f"{a} {b}" for a, b in zip(symbols, symbols[1:], strict=False)]
                known = [MERGES.index(pair) for pair in pairs if pair in MERGES]
                if not known:
                    break
                place = pairs.index(MERGES[min(known)])
                symbols[place : place + 2] = ["".join(symbols[place : place + 2])]
            ids += [vocabulary[symbol] for symbol in symbols]
    return ids


@pytest.fixture(scope="session")
def tiny():
    """What the tests of this folder share; test modules are no packages here."""

    class Tiny:
        write = staticmethod(write_gguf)
        tokens = staticmethod(tokens)
        slow_logits = staticmethod(slow_logits)
        slow_tokens = staticmethod(slow_tokens)
        special = SPECIAL

    return Tiny


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty per-user cache, and no other place to look in."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TFREC_DATA_DIR", raising=False)
    return tmp_path
