"""The batch plan: union over ranks, exact weights, epochs, purity."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmemb.storage.manifests import IndexEntry
from mmemb.training.batch_plan import BatchPlan, balanced_parts, entry_tokens, rank_slice

fast = settings(max_examples=40, deadline=None)
group_sizes = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 50), min_size=1)


def make_entries(sizes: dict[str, int]) -> list[IndexEntry]:
    names = chain.from_iterable([group] * size for group, size in sizes.items())
    return [
        IndexEntry(f"k{i}", f"s-{i // 7:06d}.tar", {}, {"source": name})
        for i, name in enumerate(names)
    ]


def make_plan(sizes, batch_size=8, group_size=4, weights=None, seed=0, window=4096):
    return BatchPlan(
        make_entries(sizes),
        batch_size=batch_size,
        group_size=group_size,
        weights=weights or {},
        seed=seed,
        window=window,
    )


@fast
@given(group_sizes, st.integers(1, 4), st.integers(1, 4), st.integers(0, 1000), st.integers(1, 9))
def test_ranks_share_a_batch_and_groups_are_homogeneous(sizes, groups, group_size, step, window):
    batch_size = groups * group_size
    plan = make_plan(sizes, batch_size, group_size, window=window)
    positions = plan.positions(step)
    assert len(positions) == batch_size
    for world in (w for w in (1, 2, 3, 4) if batch_size % w == 0):
        parts = [rank_slice(positions, rank, world) for rank in range(world)]
        assert list(chain(*parts)) == positions
        assert len({len(part) for part in parts}) == 1
    entries = make_entries(sizes)
    for i in range(0, batch_size, group_size):
        assert len({entries[p].meta["source"] for p in positions[i : i + group_size]}) == 1


@fast
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 80), st.integers(0, 3))
def test_an_epoch_takes_every_sample_once(size, group_size, window, seed):
    plan = make_plan({"a": size}, group_size, group_size, seed=seed, window=window)
    stream = list(chain.from_iterable(plan.positions(step) for step in range(2 * size)))
    for epoch in range(2):
        assert sorted(stream[epoch * size : (epoch + 1) * size]) == list(range(size))


@fast
@given(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5), min_size=1), st.integers(0, 9))
def test_weights_are_exact_over_a_cycle(weights, turn):
    if not any(weights.values()):
        return
    plan = make_plan(dict.fromkeys(weights, 9), 3, 3, weights)
    length = sum(plan.groups.values())
    entries = make_entries(dict.fromkeys(weights, 9))
    drawn = Counter(
        entries[plan.positions(step)[0]].meta["source"]
        for step in range(turn * length, (turn + 1) * length)
    )
    assert drawn == {name: count for name, count in plan.groups.items() if count}
    assert all(drawn[a] * weights[b] == drawn[b] * weights[a] for a in weights for b in weights)


def test_decimal_weights_are_exact():
    plan = make_plan({"a": 5, "b": 5, "c": 5}, weights={"a": 0.5, "b": 0.3, "c": 0.2})
    assert plan.groups == {"a": 5, "b": 3, "c": 2}


def test_without_weights_groups_come_by_size():
    assert make_plan({"a": 40, "b": 20}).groups == {"a": 2, "b": 1}


@fast
@given(group_sizes, st.integers(0, 10**6), st.integers(0, 5))
def test_pure_in_seed_and_step(sizes, step, seed):
    plan = make_plan(sizes, seed=seed)
    plan.positions(step + 3)  # other steps asked before do not matter
    restored = pickle.loads(pickle.dumps(plan))
    again = make_plan(sizes, seed=seed)
    assert plan.positions(step) == restored.positions(step) == again.positions(step)


def test_epochs_and_seeds_differ():
    plan = make_plan({"a": 64})
    first, second = (
        list(chain.from_iterable(plan.positions(s) for s in range(e * 8, e * 8 + 8)))
        for e in range(2)
    )
    assert first != second
    assert sorted(first) == sorted(second)
    assert plan.positions(0) != make_plan({"a": 64}, seed=1).positions(0)


def test_windows_keep_reads_local():
    plan = make_plan({"a": 70}, 7, 7, window=7)
    for step in range(10):  # shards hold seven samples each
        assert len({position // 7 for position in plan.positions(step)}) == 1


def test_substitutes_are_the_rest_of_the_space():
    plan = make_plan({"a": 3, "b": 4})
    assert plan.substitutes(4) == [5, 6, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"a": 1}}, r"one weight >= 0 .* for each of \['a', 'b'\]"),
        ({"weights": {"a": 1, "b": 1, "x": 1}}, "for each of"),
        ({"weights": {"a": 0, "b": 0}}, "not all 0"),
        ({"weights": {"a": -1, "b": 1}}, "weight >= 0"),
        ({"weights": {"a": 0.123456, "b": 1}}, "short decimals"),
        ({"batch_size": 6}, "a multiple of group_size"),
        ({"group_size": 0}, "positive"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_plan({"a": 5, "b": 5}, **arguments)


def test_nothing_to_train_on():
    with pytest.raises(ValueError, match="No sample to train on"):
        make_plan({})


def test_batch_that_ranks_cannot_share():
    with pytest.raises(ValueError, match="batch of 8 cannot be split evenly over 3"):
        rank_slice(range(8), 0, 3)


@fast
@given(
    st.lists(st.integers(1, 2000), min_size=1, max_size=8),
    st.integers(1, 6),
    st.randoms(use_true_random=False),
)
def test_balanced_parts_are_equal_in_number_and_hold_all(costs, world, random):
    costs = costs * world
    random.shuffle(costs)
    positions = list(range(100, 100 + len(costs)))
    parts = balanced_parts(positions, costs, world)
    assert {len(part) for part in parts} == {len(costs) // world}
    assert sorted(chain.from_iterable(parts)) == positions
    assert all(part == sorted(part) for part in parts), "the order of the batch is kept"
    assert parts == balanced_parts(positions, costs, world)
    assert world > 1 or parts == [positions]


@fast
@given(st.integers(2, 8), st.integers(8, 32), st.integers(0, 10**6))
def test_videos_beside_texts_are_shared_out(world, rows, seed):
    """A quarter of the rows are videos, as groups hold them: all in one place of the batch."""
    videos = rows * world // 4
    costs = [20 + seed % 7 + n % 11 for n in range(rows * world - videos)]
    costs += [16 * 64 + n % 50 for n in range(videos)]
    parts = balanced_parts(range(len(costs)), costs, world)
    tokens = [sum(costs[n] for n in part) for part in parts]
    in_order = [sum(costs[r * rows : (r + 1) * rows]) for r in range(world)]
    assert max(tokens) - min(tokens) <= max(costs), "by no more than one sample"
    assert max(tokens) <= max(in_order)


def test_the_cost_of_a_sample_is_read_off_the_index():
    text = IndexEntry("a", "s.tar", {"json": (0, 400)})
    video = IndexEntry("b", "s.tar", {"json": (0, 400)}, media=dict.fromkeys("xyz", "0"))
    assert entry_tokens(text) == 101
    assert entry_tokens(video) == 101 + 3 * 64


def test_an_uneven_batch_has_no_balanced_parts():
    with pytest.raises(ValueError, match="cannot be split evenly over 3 ranks"):
        balanced_parts(range(8), [1] * 8, 3)
