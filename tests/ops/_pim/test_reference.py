"""The reference keeps no state of memory: it must count what a simulation of it counts."""

import itertools

import hypothesis
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

import tfrec_efficient as tfrec
from tfrec_efficient.ops._inputs import as_bags
from tfrec_efficient.ops._pim import reference
from tfrec_efficient.ops._pim.counts import layout_of


def slow_accesses(rows, layout, cached):
    """Hits and activations of one rank, one access after another."""
    cache, open_pages, hits, activations = {}, {}, 0, 0
    for row in rows:
        if cached and cache.get(row % cached) == row:
            hits += 1
            continue
        if cached:
            cache[row % cached] = row
        page = row // layout.rows_per_page
        if open_pages.get(page % layout.banks) != page:
            open_pages[page % layout.banks] = page
            activations += layout.pages_per_row
    return [hits, activations]


def slow_events(layout, bags, padding_id, hot):
    """The columns of custom_ops/pim/rank_events.h, by lists of what each group does."""
    groups = range(layout.groups)

    def home(i):
        return layout.first_group if layout.by_table else (i + layout.first_group) % layout.groups

    def local(i):
        if i in hot:
            return hot.index(i)
        return len(hot) + (i if layout.by_table else i // layout.groups)

    flat = [(i, b, k) for k, (i, b) in enumerate((i, b) for b, bag in enumerate(bags) for i in bag)]
    flat = [lookup for lookup in flat if lookup[0] != padding_id]
    forward = {g: [] for g in groups}
    for i, b, k in flat:
        forward[k % layout.groups if i in hot else home(i)].append((i, b))
    backward = {g: [] for g in groups}
    for i, b, _ in sorted(flat, key=lambda lookup: (lookup[0], lookup[2])):
        for g in groups if i in hot else [home(i)]:
            backward[g].append((i, b))
    events = []
    for g in groups:
        unique = [i for i, _ in itertools.groupby(i for i, _ in backward[g])]
        events.append(
            [len(forward[g]), len({b for _, b in forward[g]})]
            + slow_accesses([local(i) for i, _ in forward[g]], layout, layout.cached_rows)
            + [len(backward[g]), len({b for _, b in backward[g]})]
            + slow_accesses([b for _, b in backward[g]], layout, layout.cached_rows)
            + [len(unique), slow_accesses([local(i) for i in unique], layout, 0)[1]]
            + [sum(home(i) == g for i in unique)]
        )
    return events


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    bags=st.lists(st.lists(st.integers(0, 29), max_size=6), min_size=1, max_size=8),
    padding_id=st.sampled_from([None, 3]),
    hot=st.sampled_from([[], [0, 5, 11]]),
    shape=st.sampled_from([(4, 1, "row_interleave"), (6, 2, "row_interleave"),
                           (4, 2, "table_aware"), (3, 3, "row_interleave")]),
    cache_bytes=st.sampled_from([0, 3 * 64]),
    number=st.integers(0, 5),
)  # fmt: skip
def test_events_are_those_of_a_simulation(bags, padding_id, hot, shape, cache_bytes, number):
    ranks, slices, placement = shape
    device = tfrec.PimDevice(
        "test", ranks, placement, slices, pads_slices=True, cache_bytes=cache_bytes,
        dram=tfrec.pim.DramTimings(page_bytes=128, banks=2),
    )  # fmt: skip
    layout = layout_of(device, (30, 16), "float32", number)
    ids = tf.ragged.constant(bags, dtype=tf.int64, ragged_rank=1)
    hot_ids = tf.constant(hot, tf.int64)
    expected = slow_events(layout, bags, padding_id, hot)
    tensors = as_bags(ids, None, tf.float32)
    events = reference.rank_events(layout, tensors, padding_id, hot_ids, True)
    np.testing.assert_array_equal(events, expected)
    forward = reference.rank_events(layout, tensors, padding_id, hot_ids, False)
    np.testing.assert_array_equal(forward[:, :4], np.array(expected)[:, :4])
    assert not forward[:, 4:].numpy().any()
    if tfrec.ops._loader.native() is not None:
        for report in tfrec.ops.pim_reports(
            (30, 16), "float32", ids, device=device, padding_id=padding_id, hot_ids=hot,
            table_number=number,
        ):  # fmt: skip
            assert report.counts.shape == (ranks, 10)
        native = tfrec.ops.pim._events(
            layout, ids, padding_id, hot_ids, tfrec.ops.cast_indices(ids, padding_id)
        )
        np.testing.assert_array_equal(tf.stack(list(native.values()), 1), expected)
