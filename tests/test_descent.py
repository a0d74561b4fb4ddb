"""The loop, against the same descent written by hand in NumPy."""

import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import xarray as xr
from problems import bowl_problem, data, line, line_problem

import thalweg as tw
from thalweg import blocks, job, loop, results, sampling


def by_hand(batches, lr, steps, loss="mse", start=(-3.0, 6.0)):
    """Plain SGD on the line's mean squared error: iterates (bias, weight) and losses."""
    x, y = data()
    bias, weight = start
    iterates, losses = [], []
    for step in range(steps + 1):
        index = batches[step % len(batches)]
        e = weight * x[index] + bias - y[index]
        iterates.append((bias, weight))
        losses.append(np.mean(e**2))
        bias, weight = bias - lr * 2 * e.mean(), weight - lr * 2 * (e * x[index]).mean()
    return np.array(iterates), np.array(losses)


FULL = [np.arange(50)]


def half_square(w):
    return (w**2).sum() / 2


def test_full_batch_descent_equals_the_loop_by_hand():
    path = tw.descend(line_problem(), tw.SGD(lr=0.1), steps=40)
    iterates, losses = by_hand(FULL, 0.1, 40)
    assert path.params.dims == ("step", "param")
    assert list(path.param.values) == ["bias", "weight"]
    assert list(path.step.values) == list(range(41))
    np.testing.assert_allclose(path.params, iterates, rtol=1e-12)
    np.testing.assert_allclose(path.loss, losses, rtol=1e-12)
    assert path.status == "completed"
    assert path.diverged_at == -1
    np.testing.assert_array_equal(path.final, path.params[-1])


def test_an_observables_state_advances_at_the_first_row_of_a_descent_that_goes_on():
    rows = {"rows": (lambda at: jnp.zeros((), int), lambda at, state: (state, state + 1))}
    first = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3, every=2, record=rows)
    more = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=5, every=2, record=rows, resume=first)
    assert list(more["step"].values) == [3, 4, 6, 8]
    assert list(more["rows"].values) == [0, 1, 2, 3]


def test_starts_of_half_precision():
    starts = jnp.array([[1.5, -2.0]], jnp.bfloat16)
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=0, starts=starts)
    np.testing.assert_array_equal(path["final"].values[:, 0], [1.5, -2.0])


def test_a_descent_of_no_steps_counts_in_integers():
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=0)
    assert path["step"].dtype.kind == "i"
    assert (
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=0, resume=path)["step"].dtype.kind == "i"
    )


def test_ragged_batches_are_weighted_by_their_size():
    # 50 samples in batches of 20: the third holds ten, and its mean is over ten
    path = tw.descend(line_problem(), tw.SGD(lr=0.05), epochs=2, batch_size=20, record=["batch"])
    batches = [np.arange(20), np.arange(20, 40), np.arange(40, 50)]
    iterates, losses = by_hand(batches, 0.05, 6)
    np.testing.assert_allclose(path.params, iterates, rtol=1e-12)
    np.testing.assert_allclose(path.loss, losses, rtol=1e-12)
    np.testing.assert_array_equal(path.batch[2], [*range(40, 50), *[-1] * 10])


def test_a_last_batch_of_one_sample_is_a_batch_to_a_classifier_too():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 2)), rng.integers(0, 3, 7)
    params = {"w": rng.standard_normal((2, 3))}
    problem = tw.Problem(lambda p, x: x @ p["w"], "cross_entropy", x, y, params=params)
    path = tw.descend(problem, tw.SGD(lr=0.5), steps=4, batch_size=3)
    w = params["w"]
    for batch in (slice(3), slice(3, 6), slice(6, 7), slice(3)):
        p = np.exp(x[batch] @ w)
        p /= p.sum(axis=1, keepdims=True)
        w = w - 0.5 * x[batch].T @ (p - np.eye(3)[y[batch]]) / len(p)
    np.testing.assert_allclose(path["final"], w.ravel(), rtol=1e-12)
    pair = problem.take(np.arange(2))
    assert tw.gradient_norms(pair, params).shape == (2,)


def test_loss_at_the_last_step_is_that_of_the_next_batch():
    path = tw.descend(line_problem(), tw.SGD(lr=0.05), steps=1, batch_size=25)
    _, losses = by_hand([np.arange(25), np.arange(25, 50)], 0.05, 1)
    np.testing.assert_allclose(path.loss, losses, rtol=1e-12)


def test_only_the_batches_that_are_used_are_drawn(monkeypatch):
    asked, rows = [], sampling.Batches.rows

    def counted(self, start, count):
        asked.append(count)
        return rows(self, start, count)

    monkeypatch.setattr(sampling.Batches, "rows", counted)
    tw.descend(line_problem(), tw.SGD(lr=0.01), steps=100, batch_size=10, shuffle=True, every=50)
    # each block draws its steps and the one after; the blocks are a handful
    assert sum(asked) < 2 * 100


def test_given_batches_repeat():
    given = np.array([[0, 3], [7, 7], [20, 1]])
    path = tw.descend(line_problem(), tw.SGD(lr=0.05), steps=7, batches=given)
    iterates, _ = by_hand(list(given), 0.05, 7)
    np.testing.assert_allclose(path.params, iterates, rtol=1e-12)
    assert tw.descend(line_problem(), tw.SGD(lr=0.05), batches=given).sizes["step"] == 4


def test_float32_data_stay_float32_and_follow_torch():
    x, y = data(dtype=np.float32)
    path = tw.descend(line_problem(dtype=np.float32), tw.SGD(lr=0.1, momentum=0.9), steps=50)
    assert path.params.dtype == path.loss.dtype == np.float32
    weight, bias = torch.tensor(6.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
    for _ in range(50):
        optimizer.zero_grad()
        loss = ((weight * torch.tensor(x) + bias - torch.tensor(y)) ** 2).mean()
        loss.backward()
        optimizer.step()
    # fifty steps of float32 rounding, each at most 2⁻²⁴ relative, on values below 10
    np.testing.assert_allclose(path.final, [bias.item(), weight.item()], atol=50 * 10 * 2**-24)


# Members -----------------------------------------------------------------------------------


def test_sweeps_are_an_outer_product_and_equal_separate_runs():
    starts = np.array([[0.0, 0.0], [1.0, -1.0], [3.0, 2.0]])
    lr, momentum = [0.01, 0.05], [0.0, 0.5, 0.9]
    path = tw.descend(
        line_problem(), tw.SGD(lr=lr, momentum=momentum), steps=30, starts=starts, batch_size=7
    )
    assert path.params.dims == ("step", "param", "run", "lr", "momentum")
    assert path.loss.dims == ("step", "run", "lr", "momentum")
    np.testing.assert_array_equal(path.momentum, momentum)
    for r, i, j in [(0, 0, 0), (2, 1, 2), (1, 0, 1)]:
        alone = tw.descend(
            line_problem(),
            tw.SGD(lr=lr[i], momentum=momentum[j]),
            steps=30,
            starts=starts[[r]],
            batch_size=7,
        )
        np.testing.assert_allclose(
            path.params[:, :, r, i, j], alone.params[:, :, 0], rtol=1e-12, atol=1e-14
        )


def init_pair(key):
    return {"x": jax.random.normal(key), "y": jax.random.normal(jax.random.fold_in(key, 1))}


def test_run_i_starts_from_its_own_key():
    problem = tw.Problem.from_function(lambda w: w["x"] ** 2 + w["y"] ** 2, init=init_pair)
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=2, runs=5, seed=3)
    expected = init_pair(jax.random.fold_in(jax.random.key(3), 4))
    np.testing.assert_allclose(path.start[:, 4], [expected["x"], expected["y"]], rtol=1e-6)
    assert len(np.unique(path.start.values)) == 10


def test_every_seed_draws_its_own_starts():
    problem = tw.Problem.from_function(lambda w: w["x"] ** 2 + w["y"] ** 2, init=init_pair)
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=1, runs=2, seed=[3, 9])
    for run in range(2):
        for place, seed in enumerate([3, 9]):
            drawn = init_pair(jax.random.fold_in(jax.random.key(seed), run))
            # drawn with all others in one program, whose logarithms may be another code's
            np.testing.assert_allclose(
                path.start[:, run, place], [drawn["x"], drawn["y"]], rtol=1e-14
            )


def test_seeds_are_a_swept_dimension_with_their_own_batches():
    both = tw.descend(
        line_problem(), tw.SGD(lr=0.05), epochs=2, batch_size=8, shuffle=True, seed=[4, 9],
        record=["batch"],
    )  # fmt: skip
    assert both.params.dims == ("step", "param", "seed")
    alone = tw.descend(
        line_problem(), tw.SGD(lr=0.05), epochs=2, batch_size=8, shuffle=True, seed=9,
        record=["batch"],
    )  # fmt: skip
    np.testing.assert_array_equal(both.batch.sel(seed=9), alone.batch)
    np.testing.assert_allclose(both.params.sel(seed=9), alone.params, rtol=1e-12)
    assert not np.array_equal(both.batch.sel(seed=4), both.batch.sel(seed=9))


def test_a_trajectory_as_starts_means_its_last_iterates():
    first = tw.descend(bowl_problem(), tw.SGD(lr=[0.01, 0.1]), steps=5)
    second = tw.descend(bowl_problem(), tw.SGD(lr=0.05), steps=3, starts=first)
    np.testing.assert_array_equal(second.params[0].values, first.final.values)


def test_starts_as_a_stacked_pytree():
    stacked = {"x": np.array([1.0, 2.0]), "y": [3.0, 4.0]}
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.01), steps=1, starts=stacked)
    np.testing.assert_array_equal(path.start, [[1, 2], [3, 4]])


# Going on ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [
        tw.SGD(lr=[0.01, 0.02], momentum=0.9),
        tw.Adam(lr=0.1),
        tw.Rprop(lr=0.01),
        tw.LBFGS(max_iter=3),
    ],
    ids=lambda o: o.name,
)
def test_resume_equals_an_uninterrupted_run(optimizer, tmp_path):
    options = {"batch_size": 7, "shuffle": True, "seed": 3}
    whole = tw.descend(line_problem(), optimizer, steps=60, **options)
    first = tw.descend(line_problem(), optimizer, steps=23, **options)
    tw.save(first, tmp_path / "first.nc")
    rest = tw.descend(
        line_problem(), optimizer, steps=37, resume=tw.load(tmp_path / "first.nc"), **options
    )
    assert list(rest.step.values) == list(range(23, 61))
    np.testing.assert_array_equal(rest.params, whole.params[23:])
    np.testing.assert_array_equal(rest.loss, whole.loss[23:])
    np.testing.assert_array_equal(rest.start, whole.start)


def test_resume_with_another_optimizer_is_refused():
    first = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=2)
    with pytest.raises(tw.InputError, match="another optimizer"):
        tw.descend(bowl_problem(), tw.Adam(lr=0.1), steps=2, resume=first)
    swept = tw.descend(bowl_problem(), tw.SGD(lr=[0.1, 0.2]), steps=2)
    for lr in (0.1, [0.1, 0.2, 0.3]):
        with pytest.raises(tw.InputError, match=r"goes on with the members.*'lr': 2"):
            tw.descend(bowl_problem(), tw.SGD(lr=lr), steps=2, resume=swept)


@pytest.mark.parametrize("runs", [None, 2])
def test_each_member_goes_on_for_every_value_of_a_new_sweep(runs):
    problem, momenta, seeds = line_problem(), [0.5, 0.9], [3, 4, 5]
    options = {"batch_size": 7, "shuffle": True}
    starts = None if runs is None else [[1.0, 2.0], [-1.0, 0.5]]
    first = tw.descend(
        problem, tw.SGD(lr=0.05, momentum=0.9), steps=8, starts=starts, seed=7, **options
    )

    def gone_on(momentum, seed):
        optimizer = tw.SGD(lr=0.05, momentum=momentum)
        return tw.descend(
            problem, optimizer, steps=9, resume=first, seed=seed, record=["movement"], **options
        )

    forked = gone_on(momenta, seeds)
    assert forked["loss"].dims == ("step", *["run"] * bool(runs), "momentum", "seed")
    for momentum in momenta:
        for seed in seeds:
            alone = gone_on(momentum, seed)
            one = forked.sel(momentum=momentum, seed=seed)
            for name in ("params", "loss", "movement", "start", "optimizer_state", "status"):
                if one[name].dtype.kind == "f":
                    np.testing.assert_allclose(one[name], alone[name], rtol=1e-12)
                else:
                    np.testing.assert_array_equal(one[name], alone[name])
    again = tw.descend(
        problem, tw.SGD(lr=0.05, momentum=momenta), steps=1, resume=forked, **options
    )
    np.testing.assert_array_equal(
        again["params"][0], forked["final"].transpose(*again["params"].dims[1:])
    )


def test_a_diverged_run_is_still_diverged_where_several_go_on_from_it():
    square = tw.Problem.from_function(lambda w: w["x"] ** 2, params={"x": 1.0})
    first = tw.descend(square, tw.SGD(lr=5.0), steps=200)
    more = tw.descend(square, tw.SGD(lr=[0.1, 0.2]), steps=3, resume=first)
    assert (more["status"] == "diverged").all()
    assert (more["diverged_at"] == first["diverged_at"]).all()


@pytest.mark.parametrize("picked", [1, [2, 0]])
def test_members_picked_from_a_sweep_of_seeds_go_on_with_their_own(picked):
    problem, options = line_problem(), {"steps": 5, "batch_size": 7, "shuffle": True}
    first = tw.descend(problem, tw.SGD(lr=0.05), seed=[3, 4, 5], **options)
    more = tw.descend(problem, tw.SGD(lr=0.05), resume=first, **options)
    some = tw.descend(problem, tw.SGD(lr=0.05), resume=first.isel(seed=picked), **options)
    np.testing.assert_array_equal(some.params, more.params.isel(seed=picked))


def test_resume_takes_the_seed_of_the_trajectory():
    options = {"batch_size": 7, "shuffle": True}
    whole = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=20, seed=5, **options)
    first = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=9, seed=5, **options)
    rest = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=11, resume=first, **options)
    np.testing.assert_array_equal(rest.params, whole.params[9:])


def test_a_part_of_a_trajectory_is_not_resumed():
    first = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=9)
    for steps in (slice(0, 5), slice(0, 0), 5):
        with pytest.raises(tw.InputError, match="part of a trajectory"):
            tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=2, resume=first.isel(step=steps))
    expected = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=2, resume=first)
    for last in ([-1], -1):
        rest = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=2, resume=first.isel(step=last))
        xr.testing.assert_identical(rest, expected)
    with pytest.raises(tw.InputError, match="over the parameters"):
        tw.descend(line_problem(), tw.SGD(lr=0.1), steps=2, resume=first)
    adam = tw.descend(bowl_problem(), tw.Adam(lr=0.1), steps=2)
    with pytest.raises(tw.InputError, match="another optimizer, Adam"):
        tw.descend(bowl_problem(), tw.AdamW(lr=0.1), steps=2, resume=adam)


def test_resume_goes_on_with_schedules_batches_and_divergence():
    options = {"batch_size": 7, "shuffle": True, "seed": 3, "record": ["batch"], "every": 5}

    def optimizer():
        return tw.SGD(lr=lambda t: 0.1 / (1 + t), momentum=[0.0, 0.9])

    whole = tw.descend(line_problem(), optimizer(), steps=40, **options)
    first = tw.descend(line_problem(), optimizer(), steps=20, **options)
    turned = first.transpose("momentum", "param", "step", ...)
    rest = tw.descend(line_problem(), optimizer(), steps=20, resume=turned, **options)
    later = whole.sel(step=rest.step)
    np.testing.assert_array_equal(rest.params, later.params)
    np.testing.assert_array_equal(rest.batch, later.batch)

    square = tw.Problem.from_function(lambda w: w["x"] ** 2, params={"x": 1.0})
    whole = tw.descend(square, tw.SGD(lr=[0.1, 5.0]), steps=250)
    first = tw.descend(square, tw.SGD(lr=[0.1, 5.0]), steps=200)
    rest = tw.descend(square, tw.SGD(lr=[0.1, 5.0]), steps=50, resume=first)
    np.testing.assert_array_equal(rest.diverged_at, whole.diverged_at)
    np.testing.assert_array_equal(rest.status, whole.status)
    np.testing.assert_array_equal(rest.params, whole.params[200:])


@pytest.mark.parametrize(
    "optimizer",
    [
        tw.Rprop(lr=lambda t: 0.1 / (1 + t)),
        tw.ASGD(lr=lambda t: 0.1 / (1 + t)),
        tw.Adagrad(lr=[0.1, 0.2], initial_accumulator_value=lambda t: 1.0 + t),
    ],
    ids=lambda optimizer: optimizer.name,
)
def test_a_state_is_that_before_the_first_update_where_none_was_made(optimizer):
    whole = tw.descend(line_problem(), optimizer, steps=4)
    first = tw.descend(line_problem(), optimizer, steps=0)
    rest = tw.descend(line_problem(), optimizer, steps=4, resume=first)
    np.testing.assert_array_equal(rest.params, whole.params)
    np.testing.assert_array_equal(rest.optimizer_state, whole.optimizer_state)


def test_given_batches_are_for_the_steps_of_the_call():
    table = np.random.default_rng(0).integers(0, 50, (12, 4))
    whole = tw.descend(line_problem(), tw.SGD(lr=0.01), batches=table)
    first = tw.descend(line_problem(), tw.SGD(lr=0.01), batches=table[:7])
    rest = tw.descend(line_problem(), tw.SGD(lr=0.01), batches=table[7:], resume=first)
    np.testing.assert_array_equal(rest.params[:-1], whole.params[7:-1])
    np.testing.assert_array_equal(rest.final, whole.final)


# Recording ---------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3, 7, 30, 1000])
def test_every_records_the_same_numbers(every):
    record = ["grad", "grad_norm", "movement", "successive_change", "risk"]
    options = {"steps": 100, "batch_size": 9, "shuffle": True, "record": record}
    dense = tw.descend(line_problem(), tw.SGD(lr=0.01), **options)
    thin = tw.descend(line_problem(), tw.SGD(lr=0.01), every=every, **options)
    assert list(thin.step.values) == sorted({*range(0, 101, every), 100})
    for name in ("params", "loss", *record):
        np.testing.assert_allclose(thin[name], dense[name].sel(step=thin.step), rtol=1e-12)


@pytest.mark.parametrize("stop", [None, {"loss": 0.2}])
@pytest.mark.parametrize("every", [1, 3, 127])
def test_a_gpus_loops_take_the_same_steps(every, stop, monkeypatch):
    options = {"steps": 517, "every": every, "stop": stop, "record": ["grad_norm"]}
    optimizer = tw.SGD(lr=[0.01, 0.02, 2.0], momentum=0.5)
    plain = tw.descend(line_problem(), optimizer, **options)
    monkeypatch.setattr(job, "known_turns", lambda every, _: loop.known_turns(every, "gpu"))
    known = tw.descend(line_problem(), optimizer, **options)
    state = "optimizer_state"  # of a diverged member goes on, or not, when all others have stopped
    xr.testing.assert_allclose(known.drop_vars(state), plain.drop_vars(state), rtol=1e-12)


def test_blocks_work_in_the_memory_of_the_first_and_leave_the_users_alone(monkeypatch):
    given = jnp.arange(1.0, 10_001.0)
    seen = []

    def noted(plan, feed, start, walk, *rest, **static):
        seen.append([leaf.unsafe_buffer_pointer() for leaf in (walk.params, walk.grad)])
        return block(plan, feed, start, walk, *rest, **static)

    block = job.block
    monkeypatch.setattr(job, "block", noted)
    monkeypatch.setattr(job, "_MOST_ROWS", 5)
    problem = tw.Problem.from_function(half_square, params=given)
    start = {"begun": (lambda at: at.start, lambda at, begun: (begun.sum(), begun))}
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=20, record={"params": False, **start})
    assert len(seen) >= 4  # of five steps at most
    own = {pointer for pointers in seen for pointer in pointers}
    assert len(own) <= 3  # what XLA exchanges among them
    assert problem.params.unsafe_buffer_pointer() not in own
    np.testing.assert_array_equal(given, np.arange(1.0, 10_001.0))
    np.testing.assert_array_equal(path.begun, given.sum())
    np.testing.assert_allclose(path.final, 0.9**20 * given, rtol=1e-12)


def test_many_blocks_equal_one(monkeypatch):
    whole = tw.descend(line_problem(), tw.SGD(lr=0.01, momentum=0.5), steps=500, every=3)
    monkeypatch.setattr(job, "_MOST_ROWS", 5)
    cut = tw.descend(line_problem(), tw.SGD(lr=0.01, momentum=0.5), steps=500, every=3)
    xr.testing.assert_equal(whole, cut)


def test_states_of_observables_advance_once_a_row_whatever_the_blocks(monkeypatch):
    record = {"rows": (count_init, count_measure), "sum": (lambda at: 0.0, running_sum)}
    whole = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=500, every=3, record=record)
    monkeypatch.setattr(job, "_MOST_ROWS", 5)
    cut = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=500, every=3, record=record)
    np.testing.assert_array_equal(whole.rows, range(168))
    xr.testing.assert_equal(whole, cut)


def running_sum(at, total):
    return total, total + at.loss


def test_an_observable_of_plain_functions_advances_at_every_step_where_it_says_so():
    record = {
        "every": tw.Observable(lambda at: 0.0, running_sum, every_step=True),
        "recorded": tw.Observable(lambda at: 0.0, running_sum),
    }
    path = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=9, every=3, record=record)
    losses = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=9).loss.values
    np.testing.assert_allclose(path["every"], np.cumsum([0, *losses])[:-1:3])
    np.testing.assert_allclose(path["recorded"], np.cumsum([0, *losses[::3]])[:-1])
    with pytest.raises(tw.InputError, match="'half' must be True, a function"):
        tw.descend(
            line_problem(), tw.SGD(), steps=1, record={"half": tw.Observable(0.0, running_sum)}
        )


def test_a_plainly_written_state_takes_the_dtype_of_what_is_measured():
    path = tw.descend(
        line_problem(dtype=np.float32), tw.SGD(lr=0.01), steps=5,
        record={"sum": (lambda at: 0, running_sum)},
    )  # fmt: skip
    expected = np.concatenate([[0], np.cumsum(path.loss.values[:-1], dtype=np.float32)])
    np.testing.assert_allclose(path["sum"], expected, rtol=1e-6)
    with pytest.raises(tw.InputError, match="state like the one"):
        tw.descend(
            line_problem(), tw.SGD(lr=0.01), steps=5,
            record={"bad": (lambda at: 0.0, lambda at, s: (s, jnp.ones(2)))},
        )  # fmt: skip


def moments(at):
    """An observable with structure: a pytree, one leaf with a shape of its own."""
    return {
        "mean": (at.params["weight"] + at.params["bias"]) / 2,
        "ladder": at.loss * jnp.arange(3.0),
    }


def like_params(at):
    return jax.tree_util.tree_map(lambda w, w0: w - w0, at.params, at.start)


def count_init(at):
    return jnp.zeros((), int)


def count_measure(at, seen):
    return seen, seen + 1


def test_observables_of_every_kind():
    held_out = tw.Problem(line, "mse", [1.0, 2.0], [0.0, 0.5], params={"weight": 0.0, "bias": 0.0})
    path = tw.descend(
        line_problem(),
        tw.SGD(lr=[0.05, 0.1]),
        steps=6,
        every=2,
        record={
            "m": moments,
            "moved": like_params,
            "rows": (count_init, count_measure),
            "test": held_out,
            "by": tw.movement_by_parameter,
            "relative_movement": True,
            "grad": True,
        },
    )
    w = path.params.sel(param="weight")
    b = path.params.sel(param="bias")
    np.testing.assert_allclose(path["m_mean"], (w + b) / 2, rtol=1e-12)
    assert path["m_ladder"].dims == ("step", "m_ladder_0", "lr")
    np.testing.assert_allclose(path["m_ladder"].isel({"m_ladder_0": 2}), 2 * path.loss, rtol=1e-12)
    assert path.moved.dims == ("step", "param", "lr")
    np.testing.assert_allclose(path.moved, path.params - path.start, atol=1e-12)
    # the state advances at recorded steps alone: 0, 2, 4, and the last
    np.testing.assert_array_equal(path.rows.isel(lr=0), [0, 1, 2, 3])
    expected = ((w + b) ** 2 + (2 * w + b - 0.5) ** 2) / 2
    np.testing.assert_allclose(path.test, expected, rtol=1e-12)
    moved = path.by.sel(param="weight")
    np.testing.assert_allclose(moved, abs(w - 6) / 6, rtol=1e-12, atol=1e-15)
    whole = np.hypot(w - 6, b + 3) / np.hypot(6, 3)
    np.testing.assert_allclose(path.relative_movement, whole, rtol=1e-12, atol=1e-15)


def test_movement_from_the_origin_is_absolute():
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=1, record=["relative_movement"])
    np.testing.assert_allclose(path.relative_movement[1], np.linalg.norm(path.params[1]))
    assert "absolute" in path.relative_movement.attrs["note"]


def test_params_can_be_left_out():
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=9, record={"params": False})
    full = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=9)
    assert "params" not in path
    np.testing.assert_array_equal(path.final, full.final)


def test_schedules_are_called_for_every_step():
    path = tw.descend(bowl_problem(), tw.SGD(lr=lambda t: 0.2 / (t + 1)), steps=30)
    w = np.zeros(2)
    for t in range(30):
        dx, dy = w - [1, -2]
        w = w - 0.2 / (t + 1) * np.array([2 * dx + dy, 6 * dy + dx])
    np.testing.assert_allclose(path.final, w, rtol=1e-12)
    np.testing.assert_allclose(path["schedule_lr"], 0.2 / np.arange(1, 31))


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_the_last_iterate_keeps_the_last_updates_hyperparameters(steps):
    record = {"lr": lambda at: at.optimizer.lr}
    path = tw.descend(
        bowl_problem(), tw.SGD(lr=lambda t: 0.2 / (t + 1)), steps=steps, record=record
    )
    updates = 0.2 / np.arange(1, steps + 1)
    last = updates[-1:] if steps else [np.nan]  # where there was no update
    np.testing.assert_allclose(path.lr, [*updates, *last])


# Failure is data -----------------------------------------------------------------------------


def test_a_diverged_run_does_not_stop_the_others():
    # f'' = 2 in x alone: stable below lr = 1, and each step of lr = 5 multiplies by −9
    problem = tw.Problem.from_function(lambda w: w["x"] ** 2, params={"x": 1.0})
    path = tw.descend(
        problem, tw.SGD(lr=[0.1, 5.0]), steps=600, record={"n": (count_init, count_measure)}
    )
    assert list(path.status.values) == ["completed", "diverged"]
    # 9^t is beyond the square root of the largest float64 (2^512) first at t = 162
    at = int(path.diverged_at[1])
    assert at == int(np.ceil(512 * np.log(2) / np.log(9)))
    assert np.isfinite(path.params[:at, :, 1]).all()
    assert np.isnan(path.params[at:, :, 1]).all()
    assert np.isnan(path.loss[at:, 1]).all()
    assert np.isfinite(path.loss[: at - 1, 1]).all()
    assert (path.n[at:, 1] == -1).all()
    assert np.isnan(path.final[:, 1]).all()
    np.testing.assert_allclose(path.params[:, 0, 0], 0.8 ** np.arange(601), atol=1e-15)


def test_the_last_iterate_of_a_diverged_run_is_nan_though_it_was_finite():
    # the loss leaves its domain: log of a negative number at a finite iterate
    problem = tw.Problem.from_function(lambda w: jnp.log(w["x"]), params={"x": 1.0})
    path = tw.descend(problem, tw.SGD(lr=2.0), steps=4)
    assert path.diverged_at == 1
    assert np.isnan(path.final).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_kept_as_float32_and_resumes(dtype, tmp_path):
    problem = bowl_problem(dtype=dtype)
    whole = tw.descend(problem, tw.SGD(lr=0.05, momentum=0.5), steps=10)
    first = tw.descend(problem, tw.SGD(lr=0.05, momentum=0.5), steps=4)
    assert first.params.dtype == first.start.dtype == first.final.dtype == np.float32
    tw.save(first, tmp_path / "half.nc")
    rest = tw.descend(
        problem, tw.SGD(lr=0.05, momentum=0.5), steps=6, resume=tw.load(tmp_path / "half.nc")
    )
    np.testing.assert_array_equal(rest.params, whole.params[4:])


def test_divergence_is_found_whatever_is_recorded():
    problem = tw.Problem.from_function(lambda w: w["x"] ** 2, params={"x": 1.0})
    dense = tw.descend(problem, tw.SGD(lr=5.0), steps=400)
    thin = tw.descend(problem, tw.SGD(lr=5.0), steps=400, every=100, record={"params": False})
    assert int(thin.diverged_at) == int(dense.diverged_at)
    last = tw.descend(problem, tw.SGD(lr=5.0), steps=int(dense.diverged_at))
    assert last.status == "diverged"
    assert last.diverged_at == dense.diverged_at


def test_ctrl_c_returns_what_was_computed(monkeypatch):
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    run = blocks.run

    def run_and_press(*arguments, **options):
        timer.start()  # not before: a slow compilation must not be what is interrupted
        return run(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(blocks, "run", run_and_press)
        path = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=2_000_000_000, every=100_000)
    timer.join()
    assert path.status == "interrupted"
    assert path.attrs["interrupted"] == 1
    last = int(path.step[-1])
    assert 0 < last < 2_000_000_000
    whole = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=last, every=100_000)
    np.testing.assert_array_equal(path.params, whole.params)
    on = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=2, resume=path)
    assert list(on.step.values) == [last, last + 1, last + 2]


@pytest.mark.parametrize("late", ["_end", "trajectory"])
def test_ctrl_c_at_the_very_end_loses_nothing(late, monkeypatch):
    original = getattr(job.Job, late)

    def press(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(job.Job, late, press)
    path = tw.descend(line_problem(), tw.SGD(lr=0.01), steps=20)
    assert path.status == "completed"
    assert path.sizes["step"] == 21


# Compilations ----------------------------------------------------------------------------------


def test_few_programs_for_all_intervals_of_recording(compilations):
    """The room for rows is a power of two, from one to 1,024 of them."""
    problem = bowl_problem()
    for every in (2, 1000, 5000, 20_000):
        tw.descend(problem, tw.SGD(lr=0.1), steps=1, every=every)
    compilations.clear()
    for every in (3, 7, 15, 900, 1023, 4500, 30_000, 10**9):
        tw.descend(problem, tw.SGD(lr=0.1), steps=1, every=every)
    assert len(compilations) == 0


def test_other_numbers_compile_nothing(compilations):
    starts = np.zeros((3, 2))
    options = {"batch_size": 5, "shuffle": True}
    tw.descend(line_problem(), tw.SGD(lr=0.1), steps=100, starts=starts, **options)
    assert compilations, "the listener saw nothing: this test would pass in vain"
    seen = len(compilations)
    other_starts = np.ones((3, 2))
    tw.descend(line_problem(), tw.SGD(lr=0.2), steps=100, starts=starts, **options)
    tw.descend(line_problem(), tw.SGD(lr=1, momentum=0.9), steps=100, starts=starts, **options)
    tw.descend(
        line_problem(), tw.SGD(lr=np.float32(0.3)), steps=100, starts=other_starts, **options
    )
    tw.descend(
        line_problem(), tw.SGD(lr=0.2, weight_decay=0.1, dampening=0.5), steps=37, starts=other_starts,
        seed=8, **options,
    )  # fmt: skip
    tw.descend(line_problem(), tw.SGD(lr=0.2), steps=5_000, starts=starts, **options)
    x, y = data()
    other = tw.Problem(line, "mse", x + 1, y, params={"weight": 1, "bias": 0})
    tw.descend(other, tw.SGD(lr=0.2), steps=100, starts=starts, **options)
    assert len(compilations) == seen


def test_other_sweeps_and_schedules_compile_nothing(compilations):
    tw.descend(line_problem(), tw.Adam(lr=[0.1, 0.2], betas=(lambda t: 0.9, 0.99)), steps=10)
    seen = len(compilations)
    tw.descend(line_problem(), tw.Adam(lr=[0.3, 0.4], betas=(lambda t: 0.5, 0.9)), steps=70)
    assert len(compilations) == seen


# Bad input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 5, "epochs": 2}, "not both"),
        ({}, "none given"),
        ({"steps": -1}, "at least 0"),
        ({"steps": 2.5}, "whole number"),
        ({"steps": 5, "batch_size": 0}, "batch_size"),
        ({"steps": 5, "shuffle": True}, "need batch_size"),
        ({"steps": 5, "every": 0}, "every"),
        ({"steps": 5, "every": "a"}, "every"),
        ({"steps": 5, "every": float("inf")}, "every"),
        ({"steps": 5, "record": tw.movement}, "list of names"),
        ({"steps": 5, "record": {5: True}}, "list of names"),
        ({"steps": 5, "record": {"loss_": lambda at: float(at.loss)}}, "jax.numpy"),
        ({"steps": 5, "seed": [1, 1]}, "twice"),
        ({"steps": 10**9, "runs": None}, "iB"),
        ({"steps": 5, "runs": 3}, "no init="),
        ({"steps": 5, "runs": "three"}, "runs must be a whole number"),
        ({"steps": 10**400}, "steps can be counted"),
        ({"steps": 5, "runs": 3, "starts": [[0.0, 0.0]]}, "one of starts="),
        ({"steps": 5, "starts": [[0.0, 0.0, 0.0]]}, r"shape \(runs, 2\)"),
        ({"steps": 5, "starts": [[0.0, np.nan]]}, "not finite"),
        ({"steps": 5, "seed": -1}, "seed"),
        ({"steps": 5, "seed": 0.5}, "seed"),
        ({"steps": 5, "record": ["gradnorm"]}, "did you mean 'grad_norm'"),
        ({"steps": 5, "record": {"step": True}}, "unknown observable"),
        ({"steps": 5, "record": {"step": tw.movement}}, "is taken"),
        ({"steps": 5, "record": {"m": 3}}, "must be True, a function"),
        ({"steps": 5, "record": ["batch"]}, "needs mini-batches"),
        ({"batches": [[0, 50]]}, "50 samples"),
        ({"batches": [[0.5]]}, "whole numbers"),
        ({"batches": [[0]], "batch_size": 2}, "leave out"),
        ({"steps": 2**31}, "at most"),
    ],
)
def test_bad_calls_say_what_is_wrong_in_one_line(options, message):
    with pytest.raises(tw.InputError, match=message) as caught:
        tw.descend(line_problem(), tw.SGD(lr=0.1), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (tw.SGD(lr=-0.1), "lr must be at least 0; -0.1 given"),
        (tw.SGD(lr=[0.1, -2.0]), "-2 given"),
        (tw.SGD(lr=np.nan), "lr must be"),
        (tw.SGD(lr="fast"), "'fast' given"),
        (tw.SGD(lr=[[0.1]]), "shape"),
        (tw.SGD(lr=[]), "number or a list"),
        (tw.SGD(lr=lambda t: -1.0), "schedule"),
        (tw.SGD(lr=lambda t: "x"), "schedule"),
        (tw.SGD(lr=lambda t: 1 / (t - 1)), "ZeroDivisionError"),
        (tw.SGD(lr=[0.1, 0.1]), "twice"),
        (tw.Adam(betas=[0.9, 0.99]), "pair"),
        (tw.SGD, "is a class"),
        (0.1, "an optimizer such as"),
    ],
)
def test_bad_optimizers_say_what_is_wrong_in_one_line(optimizer, message):
    with pytest.raises(tw.InputError, match=message) as caught:
        tw.descend(line_problem(), optimizer, steps=3)
    assert "\n" not in str(caught.value)


def test_an_error_of_a_schedules_own_is_kept():
    with pytest.raises(tw.InputError) as caught:
        tw.descend(line_problem(), tw.SGD(lr=lambda t: {}[t]), steps=3)
    assert isinstance(caught.value.__cause__, KeyError)


def test_states_too_large_are_refused_before_they_are_made(monkeypatch):
    import psutil

    class Memory:
        available = 50 * 2**20

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    problem = tw.Problem.from_function(lambda w: (w**2).sum(), params=np.zeros(200_000))
    with pytest.raises(MemoryError, match="states of 1 runs of 200000 parameters under LBFGS"):
        tw.descend(problem, tw.LBFGS(), steps=1, record={"params": False})


def test_a_record_too_large_is_refused_before_it_is_made():
    with pytest.raises(MemoryError, match=r"iB.*every="):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=2_000_000_000)


# Provenance ----------------------------------------------------------------------------------------


def test_what_produced_a_trajectory_is_in_its_attributes():
    path = tw.descend(bowl_problem(), tw.SGD(lr=[0.1, 0.2], nesterov=True, momentum=0.9), steps=3)
    settings = results.settings_of(path)
    assert settings["optimizer"]["name"] == "SGD"
    assert settings["optimizer"]["lr"] == [0.1, 0.2]
    assert settings["optimizer"]["nesterov"] is True
    assert settings["steps"] == 3
    assert json.loads(path.attrs["versions"])["jax"] == jax.__version__
    assert path.attrs["dtype"] == "float64"
    assert path.attrs["device"].startswith("cpu")


def test_a_catalogue_descent_runs_again_from_its_file(tmp_path):
    problem = tw.Problem.from_catalogue("himmelblau")
    path = tw.descend(
        problem,
        tw.Adam(lr=lambda t: 0.1 / (1 + t / 50), betas=([0.5, 0.9], 0.99)),
        steps=80,
        starts=[[0.0, 0.0], [-3.0, 1.0]],
        every=7,
        record={"grad_norm": True, "loss": False},
    )
    tw.save(path, tmp_path / "path.nc")
    again = tw.rerun(tw.load(tmp_path / "path.nc"))
    xr.testing.assert_equal(path, again)
    with pytest.raises(tw.InputError, match="Python functions"):
        tw.rerun(tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=1))


def test_what_a_file_does_not_hold_is_not_run_again():
    problem = tw.Problem.from_catalogue("rosenbrock")
    moved = problem.at({"x": 0.0, "y": 0.5})
    path = tw.descend(moved, tw.SGD(lr=1e-3), steps=5)
    np.testing.assert_array_equal(path.start, [0.0, 0.5])
    xr.testing.assert_equal(tw.rerun(path), path)
    changed = tw.descend(problem.replace(reduction="sum"), tw.SGD(lr=1e-3), steps=5)
    with pytest.raises(tw.InputError, match="Python functions"):
        tw.rerun(changed)
    mine = tw.descend(problem, tw.SGD(lr=1e-3), steps=5, record={"movement": like_params})
    with pytest.raises(tw.InputError, match="functions of your own"):
        tw.rerun(mine)


@pytest.mark.parametrize("optimizer", [tw.SGD(lr=0.01), tw.Adam(lr=0.003)])
def test_the_loss_is_that_of_the_iterate_in_half_precision_too(optimizer):
    x = np.linspace(-1, 1, 32, dtype=np.float32)
    single = np.linspace(0.1, 0.9, 4, dtype=np.float32)
    params = {"half": jnp.full(4, 0.3, jnp.bfloat16), "single": single}

    def predict(w, x):
        return jnp.tanh(x[:, None] * w["half"].astype(jnp.float32)) @ w["single"]

    problem = tw.Problem(predict, "mse", x, np.sin(3 * x), params=params)
    path = tw.descend(problem, optimizer, steps=6, record=["risk"])
    np.testing.assert_allclose(path.loss, path.risk, rtol=1e-6)
    first = tw.descend(problem, optimizer, steps=3)
    more = tw.descend(problem, optimizer, steps=3, resume=first)
    np.testing.assert_array_equal(more.final, path.final)


def test_observables_see_the_layout_of_a_problem_with_random_starts():
    problem = tw.Problem(
        line, "mse", *data(), init=lambda key: {"weight": jax.random.normal(key), "bias": 0.5}
    )
    path = tw.descend(
        problem, tw.SGD(lr=0.1), steps=2,
        record={"sum": lambda at: at.problem.flatten(at.params).sum() + at.batch.size},
    )  # fmt: skip
    np.testing.assert_allclose(path["sum"], path["params"].sum("param") + 2, rtol=1e-12)
