"""Which samples a step sees: every sample once an epoch, and the same ones on every visit."""

from functools import partial
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thalweg import sampling
from thalweg.errors import InputError

NOTHING = {
    "steps": None,
    "epochs": None,
    "batch_size": None,
    "shuffle": False,
    "replacement": False,
    "drop_last": False,
    "batches": None,
}


def plan(n=10, seeds=(0,), **options):
    return sampling.plan(n, seeds, **NOTHING | options)


def drawn(batches, start, count, lane=0):
    """The samples that each of the steps uses, as lists."""
    rows, used = batches.rows(start, count)
    assert rows.shape == (count, batches.lanes, batches.size)
    assert rows.min() >= 0
    assert rows.max() < batches.n_samples
    return [row[lane, :u].tolist() for row, u in zip(rows, used, strict=True)]


def flat(batches):
    return list(chain.from_iterable(batches))


def test_in_order_with_a_smaller_last_batch():
    steps, batches = plan(epochs=2, batch_size=4)
    epoch = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert steps == 6
    assert batches.ragged
    assert drawn(batches, 0, 6) == epoch * 2


def test_drop_last_leaves_the_smaller_batch_out():
    steps, batches = plan(epochs=2, batch_size=4, drop_last=True)
    assert steps == 4
    assert not batches.ragged
    assert drawn(batches, 0, 4) == [[0, 1, 2, 3], [4, 5, 6, 7]] * 2


def test_places_that_are_not_used_hold_a_sample_of_the_batch():
    _, batches = plan(epochs=1, batch_size=4, shuffle=True)
    rows, used = batches.rows(2, 1)
    assert used == [2]
    assert set(rows[0, 0, 2:]) <= set(rows[0, 0, :2])


sizes = st.tuples(st.integers(2, 30), st.integers(1, 29)).filter(lambda pair: pair[1] < pair[0])


@given(sizes, st.integers(0, 2**40), st.integers(0, 50))
def test_an_epoch_visits_each_sample_once(pair, seed, epoch):
    n, size = pair
    _, batches = plan(n, (seed,), epochs=1, batch_size=size, shuffle=True)
    epoch = drawn(batches, epoch * batches.per_epoch, batches.per_epoch)
    assert sorted(flat(epoch)) == list(range(n))
    assert [len(batch) for batch in epoch[:-1]] == [size] * (len(epoch) - 1)
    assert len(epoch[-1]) == (n % size or size)


@given(sizes, st.booleans())
def test_drop_last_visits_no_sample_twice(pair, shuffle):
    n, size = pair
    _, batches = plan(n, epochs=1, batch_size=size, shuffle=shuffle, drop_last=True)
    epoch = flat(drawn(batches, 0, batches.per_epoch))
    assert len(set(epoch)) == len(epoch) == n // size * size


ways = st.sampled_from(
    [{"shuffle": True}, {"shuffle": "after_first"}, {"replacement": True}, {}, {"drop_last": True}]
)


@given(sizes, ways, st.integers(0, 100), st.integers(1, 20))
def test_any_stretch_of_steps_is_the_same_as_on_the_way(pair, way, start, count):
    n, size = pair
    _, batches = plan(n, (5, 6), steps=1, batch_size=size, **way)
    rows, used = batches.rows(0, start + count)
    stretch, stretch_used = batches.rows(start, count)
    np.testing.assert_array_equal(stretch, rows[start:])
    np.testing.assert_array_equal(stretch_used, used[start:])
    one_by_one = [batches.rows(step, 1)[0] for step in range(start, start + count)]
    np.testing.assert_array_equal(stretch, np.concatenate(one_by_one))


def test_order_depends_on_seed_and_epoch_alone():
    shuffled = partial(plan, 20, batch_size=5, shuffle=True)
    epochs = [drawn(shuffled((seed,), epochs=1)[1], 4 * e, 4) for seed in (0, 1) for e in (0, 1)]
    assert len({str(epoch) for epoch in epochs}) == 4  # reshuffled each epoch and for each seed
    # the number of steps and the other seeds of a sweep change nothing
    _, more = shuffled((7, 1), steps=100)
    assert drawn(more, 4, 4, lane=1) == epochs[3]
    # nor does the batch size change the order
    wide = plan(20, (0,), batch_size=10, shuffle=True, epochs=1)[1]
    assert flat(drawn(wide, 0, 2)) == flat(epochs[0])


def test_after_first_is_the_datas_order_and_then_shuffled():
    way = {"steps": 1, "batch_size": 4}
    later = plan(10, (5, 6), shuffle="after_first", **way)[1]
    shuffled = plan(10, (5, 6), shuffle=True, **way)[1]
    for lane in (0, 1):
        assert flat(drawn(later, 0, 3, lane)) == list(range(10))
        assert drawn(later, 3, 9, lane) == drawn(shuffled, 3, 9, lane)
    assert drawn(later, 3, 3, 0) != drawn(later, 3, 3, 1)


def test_without_randomness_seeds_share_one_order():
    assert plan(seeds=(0, 1, 2), epochs=1, batch_size=3)[1].lanes == 1
    assert plan(seeds=(0, 1, 2), epochs=1, batch_size=3, shuffle=True)[1].lanes == 3


def test_replacement_draws_full_batches_that_repeat_samples():
    _, batches = plan(10, epochs=1, batch_size=4, replacement=True)
    assert batches.per_epoch == 3
    assert not batches.ragged
    everything = np.array(drawn(batches, 0, 3000)).ravel()  # 12,000 draws: 1,200 ± 33 a sample
    assert np.abs(np.bincount(everything, minlength=10) - 1200).max() < 5 * 33
    # and a batch may be larger than the data
    assert len(drawn(plan(3, steps=1, batch_size=8, replacement=True)[1], 0, 1)[0]) == 8


def test_given_batches_are_taken_as_they_are_and_again_from_the_first():
    given_batches = np.array([[1, 1], [5, 2], [9, 0]])
    steps, batches = plan(batches=given_batches)
    assert steps == 3
    assert drawn(batches, 0, 3) == given_batches.tolist()
    steps, batches = plan(batches=given_batches, steps=5)
    assert steps == 5
    assert drawn(batches, 2, 3) == [[9, 0], [1, 1], [5, 2]]
    given_batches[:] = 0
    assert drawn(batches, 0, 1) == [[1, 1]]


def test_a_list_of_samples_is_one_a_step():
    steps, batches = plan(batches=[3, 1, 4])
    assert steps == 3
    assert drawn(batches, 0, 3) == [[3], [1], [4]]


@pytest.mark.parametrize("size", [10, 11, None])
def test_all_samples_in_one_batch_is_the_full_batch(size):
    assert plan(epochs=7, batch_size=size) == (7, None)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 1, "epochs": 1}, r"not both \(steps=1, epochs=1 given\)"),
        ({}, "give steps= or epochs="),
        ({"steps": -1}, "steps must be a whole number of at least 0; -1 given"),
        ({"steps": 1.5}, "whole number"),
        ({"steps": "ten"}, "whole number.*'ten' given"),
        ({"epochs": float("nan")}, "epochs must be a whole number"),
        ({"epochs": np.complex128(2)}, "epochs must be a whole number"),
        ({"epochs": 1, "batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"n": 0, "steps": 1, "batch_size": 1}, "no data"),
        ({"steps": 1, "shuffle": True}, "need batch_size="),
        ({"steps": 1, "batch_size": 2, "shuffle": "once"}, "or 'after_first'; 'once' given"),
        (
            {"steps": 1, "batch_size": 2, "shuffle": "after_first", "replacement": True},
            "in the data's order; leave out one",
        ),
        ({"steps": 1, "drop_last": True}, "need batch_size="),
        ({"epochs": 1, "batch_size": 11, "drop_last": True}, "leaves no batch"),
        (
            {"steps": 1, "batch_size": 11, "drop_last": True, "replacement": True},
            "leaves no batch",
        ),
        ({"batches": [[0, 1]], "batch_size": 2}, "leave out batch_size="),
        ({"batches": [[0, 1]], "epochs": 2}, "leave out batch_size="),
        ({"batches": [[0, 10]]}, "from 0 to 10; there are 10 samples, so 0 to 9"),
        ({"batches": [[-1, 0]]}, "from -1 to 0"),
        ({"batches": [[0.5]]}, "whole numbers of shape"),
        ({"batches": [[0, 1], [2]]}, "same number of indices"),
        ({"batches": []}, "whole numbers of shape"),
    ],
)
def test_contradictions_are_refused(options, says):
    with pytest.raises(InputError, match=says) as caught:
        plan(**options)
    assert "\n" not in str(caught.value)
