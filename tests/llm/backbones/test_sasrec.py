import numpy as np
import pytest

from tfrec_efficient.llm.backbones import SASRec

HISTORY = np.array([[0, 0, 3, 1, 2], [4, 5, 6, 7, 3], [0, 0, 0, 0, 6], [0, 0, 0, 0, 0]])


def randomized(**kwargs):
    model = SASRec(7, width=6, max_length=5, **kwargs)
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return model


def numpy_states(model, history):
    """One user, one head and one place at a time."""
    weights = {v.path.split("/", 1)[1]: v.numpy().astype(np.float64) for v in model.weights}

    def normalize(x, name):
        centred = x - x.mean()
        scale = np.sqrt((centred**2).mean() + 1e-8)
        return centred / scale * weights[f"{name}/gamma"] + weights[f"{name}/beta"]

    def dense(x, name):
        return x @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]

    states = np.zeros((*history.shape, model.width))
    each_head = np.split(np.arange(model.width), model.heads)
    for row, items in enumerate(history):
        places = np.flatnonzero(items)
        xs = {
            p: weights["items/embeddings"][items[p]] * model.width**0.5 + weights["positions"][p]
            for p in places
        }
        for block in (f"block_{i}" for i in range(model.blocks)):
            after = {}
            for p in places:
                query = normalize(xs[p], f"{block}/normalize_query")
                seen = np.stack([xs[q] for q in places if q <= p])
                q = dense(query, f"{block}/query")
                k, v = dense(seen, f"{block}/key"), dense(seen, f"{block}/value")
                heads = np.zeros(model.width)
                for part in each_head:
                    e = np.exp(k[:, part] @ q[part] / np.sqrt(len(part)))
                    heads[part] = e / e.sum() @ v[:, part]
                y = normalize(query + dense(heads, f"{block}/output"), f"{block}/normalize_dense")
                inner = np.maximum(dense(y, f"{block}/inner"), 0)
                after[p] = y + dense(inner, f"{block}/outer")
            xs = after
        for p in places:
            states[row, p] = normalize(xs[p], "normalize")
    return states


@pytest.mark.parametrize(("blocks", "heads"), [(1, 1), (2, 1), (2, 3)])
def test_states_are_those_of_the_formula(blocks, heads):
    model = randomized(blocks=blocks, heads=heads)
    expected = numpy_states(model, HISTORY)
    np.testing.assert_allclose(model.user_state(HISTORY)[:3], expected[:3, -1], atol=1e-4)
    vectors = model.item_vectors(HISTORY)
    states = model.encode(vectors, HISTORY > 0, training=False).numpy()
    np.testing.assert_allclose(states[HISTORY > 0], expected[HISTORY > 0], atol=1e-4)


def test_what_stands_in_the_row_of_the_padding_does_not_matter():
    model = randomized()
    before = model.user_state(HISTORY).numpy()
    table = model._items.embeddings
    table.assign(np.concatenate([np.full((1, 6), 9.0), table.numpy()[1:]]))
    np.testing.assert_array_equal(model.user_state(HISTORY), before)


def test_projections_start_different():
    block = SASRec(7, width=6)._blocks[0]
    kernels = [d.kernel.numpy() for d in (block._query, block._key, block._value, block._output)]
    assert len({kernel.tobytes() for kernel in kernels}) == 4


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="`heads` must divide `width`. Received: heads=4, width=6"):
        SASRec(7, width=6, heads=4)
    with pytest.raises(ValueError, match="`blocks` must be a positive integer"):
        SASRec(7, blocks=0)
