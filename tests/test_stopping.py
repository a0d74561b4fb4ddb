"""`stop=`: where a member stops, against a loop in NumPy, and what goes on without it."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from problems import bowl_problem, line, line_problem

import thalweg as tw
from thalweg import job, results, show

OPTIMAL = np.array([1.0, -2.0])  # of the bowl


def bowl_by_hand(lr, steps):
    """Plain descent on the bowl from the origin: iterates, losses and gradients' norms."""
    w, rows = np.zeros(2), []
    for _ in range(steps + 1):
        d = w - OPTIMAL
        grad = np.array([2 * d[0] + d[1], 6 * d[1] + d[0]])
        rows.append((*w, d[0] ** 2 + 3 * d[1] ** 2 + d[0] * d[1], np.linalg.norm(grad)))
        w = w - lr * grad
    iterates, (losses, norms) = np.array(rows)[:, :2], np.array(rows)[:, 2:].T
    return iterates, losses, norms


def first_below(values, limit):
    return int(np.argmax(values <= limit))


@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize("most_rows", [1, 3, 1024])
def test_one_run_ends_at_the_first_iterate_that_meets_the_threshold(every, most_rows, monkeypatch):
    monkeypatch.setattr(job, "_MOST_ROWS", most_rows)
    iterates, losses, _ = bowl_by_hand(0.1, 300)
    end = first_below(losses, 1e-8)
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=300, stop={"loss": 1e-8}, every=every)
    assert path.status == "converged"
    assert path.stopped_at == end == path.attrs["last_step"] == path.step[-1]
    assert path.diverged_at == -1
    assert list(path.step.values) == sorted({*range(0, end, every), end})
    np.testing.assert_allclose(path.params, iterates[path.step], rtol=1e-12)
    np.testing.assert_allclose(path.loss, losses[path.step], rtol=1e-9)
    np.testing.assert_array_equal(path.final, path.params[-1])


def test_neighbours_go_on():
    lr = [0.02, 0.1, 0.2]
    path = tw.descend(
        bowl_problem(), tw.SGD(lr=lr), steps=100, stop={"loss": 1e-8}, record=["grad", "movement"]
    )
    for i, rate in enumerate(lr):
        iterates, losses, _ = bowl_by_hand(rate, 100)
        one, end = path.isel(lr=i), 100
        if (losses <= 1e-8).any():
            end = first_below(losses, 1e-8)
            assert one.status == "converged"
            assert one.stopped_at == end
        else:
            assert one.status == "completed"
            assert one.stopped_at == -1
        np.testing.assert_allclose(one.params[: end + 1], iterates[: end + 1], rtol=1e-12)
        for name in ("params", "loss", "grad", "movement"):
            frozen = one[name][end:].values
            np.testing.assert_array_equal(frozen, np.broadcast_to(frozen[0], frozen.shape))
    assert set(path.status.values) == {"completed", "converged"}
    assert path.sizes["step"] == 101


@pytest.mark.parametrize("every", [1, 4, 1000])
def test_states_of_observables_end_where_the_member_does(every):
    record = {"successive_change": True, "rows": (lambda at: 0, lambda at, seen: (seen, seen + 1))}
    options = {"record": record, "every": every}
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=300, stop={"loss": 1e-8}, **options)
    end = int(path.stopped_at)
    whole = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=end, **options)
    for name in ("params", "loss", "successive_change", "rows"):
        np.testing.assert_allclose(path[name], whole[name], rtol=1e-9)


def test_any_of_several_thresholds_suffices():
    _, losses, norms = bowl_by_hand(0.1, 300)
    ends = {first_below(losses, 1e-12), first_below(norms, 1e-3)}
    path = tw.descend(
        bowl_problem(), tw.SGD(lr=0.1), steps=300, stop={"loss": 1e-12, "grad_norm": 1e-3}
    )
    assert path.stopped_at == min(ends)
    assert len(ends) == 2


def close_enough(at):
    return at.loss < 1e-4


def test_a_function_of_at():
    _, losses, _ = bowl_by_hand(0.1, 300)
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=300, stop=close_enough)
    assert path.stopped_at == first_below(losses, 1e-4)
    assert json.loads(path.attrs["settings"])["stop"] == "<close_enough>"
    with pytest.raises(tw.InputError, match="one boolean"):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3, stop=lambda at: at.loss)
    with pytest.raises(tw.InputError, match="one boolean"):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3, stop=lambda at: (at.loss < 1,))


def test_the_last_iterate_may_be_the_one():
    _, losses, _ = bowl_by_hand(0.1, 300)
    end = first_below(losses, 1e-8)
    for steps, status in [(end - 1, "completed"), (end, "converged")]:
        path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=steps, stop={"loss": 1e-8})
        assert path.status == status
        assert path.stopped_at == (end if status == "converged" else -1)
        assert path.step[-1] == steps


def test_a_start_that_has_arrived_takes_no_step():
    there = bowl_problem().at({"x": 1.0, "y": -2.0})
    path = tw.descend(there, tw.SGD(lr=0.1), steps=30, stop={"loss": 0.0})
    assert list(path.step.values) == [0]
    assert path.stopped_at == 0
    np.testing.assert_array_equal(path.final, OPTIMAL)
    # nor does one where the gradient is not zero; at the origin the loss is 15
    for lr in (0.1, [0.1, 0.2]):
        path = tw.descend(bowl_problem(), tw.SGD(lr=lr), steps=30, stop={"loss": 15.0})
        assert (path.stopped_at == 0).all()
        assert not path.final.any()


def test_thresholds_compile_nothing(compilations):
    tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=30, stop={"loss": 1e-3, "risk": -1})
    assert compilations, "the listener saw nothing: this test would pass in vain"
    seen = len(compilations)
    for limit in (1e-5, 1, np.float32(0.1)):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=30, stop={"loss": limit, "risk": -2})
    assert len(compilations) == seen


def test_without_a_rule_nothing_is_added_to_the_program(monkeypatch):
    asked = []

    def seen(plan, feed, start, walk, *rest, **static):
        asked.append(walk.stopped_at is not None)
        return block(plan, feed, start, walk, *rest, **static)

    block = job.block
    monkeypatch.setattr(job, "block", seen)
    plain = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=20)
    assert not any(asked)
    asked.clear()
    never = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=20, stop={"loss": -1.0})
    assert all(asked)
    xr.testing.assert_equal(plain, never)
    assert plain.stopped_at == -1


# Batches, schedules, divergence -------------------------------------------------------------


def test_mini_batches_stop_by_their_own_loss_or_by_the_risk():
    options = {"steps": 200, "batch_size": 7, "shuffle": True, "record": ["risk", "batch"]}
    whole = tw.descend(line_problem(), tw.SGD(lr=0.02), **options)
    for name, limit in [("loss", 0.05), ("risk", 0.12)]:
        end = first_below(whole[name].values, limit)
        path = tw.descend(line_problem(), tw.SGD(lr=0.02), stop={name: limit}, **options)
        assert 0 < end == path.stopped_at
        for recorded in ("params", "loss", "risk", "batch"):
            np.testing.assert_allclose(path[recorded], whole[recorded][: end + 1], rtol=1e-12)


def test_schedules_and_momentum_run_to_the_same_stop():
    def optimizer():
        return tw.SGD(lr=lambda t: 0.1 / (1 + 0.1 * t), momentum=[0.0, 0.5])

    whole = tw.descend(bowl_problem(), optimizer(), steps=80)
    path = tw.descend(bowl_problem(), optimizer(), steps=80, stop={"loss": 1e-3})
    for i in range(2):
        end = first_below(whole.loss[:, i].values, 1e-3)
        assert path.stopped_at[i] == end
        np.testing.assert_array_equal(path.params[: end + 1, :, i], whole.params[: end + 1, :, i])
    assert path.step[-1] == path.stopped_at.max()


def test_one_diverges_and_another_converges():
    square = tw.Problem.from_function(lambda w: w["x"] ** 2, params={"x": 1.0})
    path = tw.descend(square, tw.SGD(lr=[0.1, 5.0]), steps=5000, stop={"loss": 1e-6})
    assert list(path.status.values) == ["converged", "diverged"]
    # w_t = 0.8^t and (−9)^t: the square leaves float64 at the first t with 81^t > 1.8e308
    assert path.stopped_at[0] == np.ceil(np.log(1e-6) / np.log(0.64))
    assert path.diverged_at[1] == np.ceil(np.log(np.finfo(float).max) / np.log(81))
    assert path.step[-1] == path.diverged_at[1]
    assert np.isnan(path.loss[-1, 1])
    # where none arrives, the trajectory has its full length, as without a rule
    lost = tw.descend(square, tw.SGD(lr=[4.0, 5.0]), steps=5000, stop={"loss": 1e-6})
    assert list(lost.status.values) == ["diverged", "diverged"]
    assert lost.step[-1] == 5000


def is_not_above(at):
    return ~(at.loss > -1)


def test_a_loss_that_is_nan_stops_nobody():
    problem = tw.Problem.from_function(lambda w: jnp.log(w["x"]), params={"x": 1.0})
    path = tw.descend(problem, tw.SGD(lr=5.0), steps=9, stop=is_not_above)  # x = 1 − 5 at step 1
    assert path.status == "diverged"
    assert path.diverged_at == 1
    assert path.stopped_at == -1


def test_what_the_optimizer_records_can_be_asked_for_and_ends_with_the_steps():
    optimizer = tw.LBFGS(max_iter=3)
    starts = np.array([[0.0, 0.0], [5.0, 5.0], [1.0, -2.0]])
    whole = tw.descend(bowl_problem(), optimizer, steps=12, starts=starts)
    assert (whole.evaluations[0] == -1).all()
    path = tw.descend(bowl_problem(), optimizer, steps=12, starts=starts, stop={"evaluations": 1})
    for run in range(3):
        end = 1 + first_below(whole.evaluations[1:, run].values, 1)  # −1 at the start is no record
        assert path.stopped_at[run] == end
        assert path.evaluations[end, run] == 1
        assert (path.evaluations[end + 1 :, run] == -1).all()


@pytest.mark.parametrize("every", [1, 4, 1000])
def test_the_last_row_has_the_last_update_s_record(every):
    rule = tw.LevenbergMarquardt()
    start = {"weight": 60.0, "bias": -30.0}
    problem = line_problem().at(start)
    whole = tw.descend(problem, rule, steps=9)
    least = float(whole.loss.min())
    path = tw.descend(problem, rule, steps=9, every=every, stop={"loss": least * (1 + 1e-9)})
    end = int(path.stopped_at)
    assert 1 < end < 9
    for name in ("mu", "gain_ratio", "accepted"):
        assert path[name][-1] == whole[name][end]


# Going on, doing again, showing --------------------------------------------------------------


def test_a_converged_trajectory_goes_on_where_the_threshold_is_lower():
    whole = tw.descend(bowl_problem(), tw.SGD(lr=0.1, momentum=0.5), steps=60)
    first = tw.descend(bowl_problem(), tw.SGD(lr=0.1, momentum=0.5), steps=60, stop={"loss": 1e-3})
    end = int(first.stopped_at)
    assert 0 < end < 60
    again = tw.descend(
        bowl_problem(), tw.SGD(lr=0.1, momentum=0.5), steps=5, resume=first, stop={"loss": 1e-3}
    )
    assert list(again.step.values) == [end]
    assert again.stopped_at == end
    rest = tw.descend(bowl_problem(), tw.SGD(lr=0.1, momentum=0.5), steps=60 - end, resume=first)
    assert rest.status == "completed"
    assert rest.stopped_at == -1
    # two programs compute the gradient there, before the loop and in it: they may round it differently
    np.testing.assert_allclose(rest.params, whole.params[end:], rtol=1e-13, atol=1e-15)


def test_who_had_stopped_stays_where_the_rule_is_the_same():
    """Also where the next batch's loss is above the threshold."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal(20)
    y = 2 * x + 0.5 * rng.standard_normal(20)
    problem = tw.Problem(lambda w, x: w * x, "mse", x, y, params=0.0)
    options = {"batch_size": 4, "shuffle": True}
    rule = tw.SGD(lr=[0.2, 1e-6])

    def parts(*steps, stop):
        path = None
        for count in steps:
            path = tw.descend(problem, rule, steps=count, resume=path, stop=stop, **options)
        return path

    whole = parts(60, stop={"loss": 0.06})
    assert 0 < whole.stopped_at[0] < 20
    for found in (parts(20, 40, stop={"loss": 0.06}), parts(20, 20, 20, stop={"loss": 0.06})):
        for name in ("stopped_at", "updates", "status", "final"):
            np.testing.assert_array_equal(found[name], whole[name], err_msg=name)
    # a function cannot be compared, and another threshold is another rule
    first = parts(20, stop={"loss": 0.06})
    for stop in (lambda at: at.loss <= 0.06, {"loss": 0.05}):
        again = tw.descend(problem, rule, steps=40, resume=first, stop=stop, **options)
        assert again.stopped_at[0] >= 20


def test_who_had_stopped_keeps_the_loss_of_its_own_batch():
    """A descent in three parts is the whole one, whose members stop on batches of one sample each."""
    x = np.array([0.0, 1.0, -1.0, 2.0])
    y = np.array([1.0, 3.0, -1.0, 40.0])  # the last is not near the line of the others
    problem = tw.Problem(line, "mse", x, y, params={"weight": 2.0, "bias": 1.0})
    starts = np.array([[1.0, 2.0], [1.4, 2.2], [0.5, 1.5]])  # bias, weight

    def descended(steps, **more):
        return tw.descend(
            problem, tw.SGD(lr=0.05), steps=steps, batch_size=1, shuffle="after_first",
            stop={"loss": 0.02}, record=["grad"], **more,
        )  # fmt: skip

    whole = descended(12, starts=starts)
    parts = [descended(5, starts=starts)]
    for steps in (4, 3):
        parts.append(descended(steps, resume=parts[-1]))
    stopped = whole["stopped_at"].values
    assert ((stopped >= 0) & (stopped < 5)).any()
    for part in parts:
        here = whole.sel(step=part["step"])
        for name in ("params", "loss", "grad"):
            np.testing.assert_allclose(part[name], here[name], rtol=1e-12)
    np.testing.assert_array_equal(parts[-1]["stopped_at"], stopped)


def test_nothing_is_left_to_do_where_all_had_stopped():
    problem, rule, stop = bowl_problem(), tw.SGD(lr=[0.1, 0.2]), {"loss": 1e-3}
    first = tw.descend(problem, rule, steps=200, stop=stop)
    again = tw.descend(problem, rule, steps=50, stop=stop, resume=first)
    assert list(again.step.values) == [int(first.step[-1])]
    for name in ("stopped_at", "updates", "final", "status"):
        np.testing.assert_array_equal(again[name], first[name], err_msg=name)


def test_a_converged_descent_is_saved_and_done_again(tmp_path):
    problem = tw.Problem.from_catalogue("beale")
    optimizer = tw.SGD(lr=lambda t: 0.01 / (1 + 0.001 * t), momentum=[0.0, 0.9])
    path = tw.descend(problem, optimizer, steps=4000, stop={"risk": 1e-3, "grad_norm": 1e-3})
    assert (path.status == "converged").all()
    assert path.step[-1] < 4000
    tw.save(path, tmp_path / "path.nc")
    loaded = tw.load(tmp_path / "path.nc")
    assert loaded.identical(path)
    assert tw.rerun(loaded).equals(path)
    by_function = tw.descend(problem, tw.SGD(lr=0.01), steps=9, stop=close_enough)
    with pytest.raises(tw.InputError, match=r"stopped by a function .* \(<close_enough>\)"):
        tw.rerun(by_function)


@pytest.mark.parametrize(
    ("rows", "steps"), [(1, [9]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, [*range(10)])]
)
def test_no_more_rows_are_shown_than_asked_for(rows, steps):
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=9)
    shown = [line.split()[0] for line in show.lines(path, rows=rows) if line.startswith("   ")]
    assert shown == ["step", *map(str, steps)]


def test_a_rule_that_returns_a_word_is_refused():
    with pytest.raises(tw.InputError, match="stop must return numbers or arrays; str returned"):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=9, stop=lambda at: "there")


def test_no_rows_are_refused():
    path = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=9)
    with pytest.raises(tw.InputError, match="rows must be a whole number of at least 1; 0 given"):
        list(show.lines(path, rows=0))


def test_show_and_plots_know_what_converged_means():
    path = tw.descend(bowl_problem(), tw.SGD(lr=[0.05, 0.1]), steps=300, stop={"loss": 1e-8})
    text = "\n".join(show.lines(path, rows=5))
    for i in range(2):
        assert f"converged at step {int(path.stopped_at[i])}" in text
    ax = tw.plot.loss(path)
    assert not any("diverged" in t.get_text() for t in ax.get_legend().get_texts())
    plane = tw.coordinate_plane(bowl_problem(), {"x": (-1, 2), "y": (-3, 1)}, points=9)
    tw.plot.contour(tw.landscape(bowl_problem(), plane), path)
    assert results.settings_of(path)["stop"] == {"loss": 1e-8}


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({}, "mapping from names"),
        (1e-6, "mapping from names"),
        ({"loss": "small"}, "must be a number"),
        ({"loss": np.nan}, "must be a number"),
        ({"loss": True}, "must be a number"),
        ({"los": 1e-6}, "did you mean 'loss'"),
        ({"evaluations": 1}, "unknown stop 'evaluations'"),
        ({"successive_change": 1e-6}, "state of its own"),
        ({"movement": 1.0}, "'movement' is 0 at the start"),
        ({"expected": 1e-6}, "no expected risk"),
        (lambda at: bool(at.loss < 1), "jax.numpy"),
    ],
)
def test_rules_that_cannot_be(stop, message):
    with pytest.raises(tw.InputError, match=message):
        tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=3, stop=stop)


def test_thresholds_are_not_rounded_to_the_losses_precision():
    x = np.linspace(-1, 1, 20, dtype=np.float32)
    problem = tw.Problem(line, "mse", x, 2 * x, params={"weight": 0.0, "bias": 1.0})
    whole = tw.descend(problem, tw.SGD(lr=0.1), steps=10)
    assert whole.loss.dtype == np.float32
    just_below = float(whole.loss[4]) * (1 - 1e-9)  # the same float32
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=10, stop={"loss": just_below})
    assert path.stopped_at == 5


@pytest.mark.parametrize("rule", [tw.Adam, tw.NAdam, tw.RAdam, tw.Adamax, tw.Adagrad])
def test_who_stopped_early_goes_on_with_its_own_count_of_updates(rule):
    """What is corrected for the number of updates must not take those that a member sat out for its own."""

    def valley(w):
        return (1 - w["x"]) ** 2 + 5 * (w["y"] - w["x"] ** 2) ** 2

    problem = tw.Problem.from_function(valley, params={"x": -1.0, "y": 0.5})

    def on_and_on(lr):
        path = tw.descend(problem, rule(lr=lr), steps=1000, stop={"loss": 2.5})
        for steps, stop in ((5, None), (60, {"loss": 1.5}), (40, None)):
            path = tw.descend(problem, rule(lr=lr), steps=steps, stop=stop, resume=path)
        return path

    alone, swept = on_and_on(0.05), on_and_on([0.05, 0.003])
    slow, fast = swept.isel(lr=1), swept.isel(lr=0)
    assert int(fast["step"][-1]) == int(slow["updates"]) > int(fast["updates"])
    assert int(fast["updates"]) == int(alone["updates"])
    np.testing.assert_allclose(fast["final"], alone["final"], rtol=1e-12)
    np.testing.assert_allclose(fast["params"].values, alone["params"].values, rtol=1e-12)


def test_what_is_measured_of_a_member_that_has_stopped_stays():
    def bowl(w):
        return w["x"] ** 2 + 15 * w["y"] ** 2

    problem = tw.Problem.from_function(bowl, params={"x": 1.0, "y": 0.4})
    record = {"steep": tw.preconditioned_sharpness, "made": lambda at: at.updates}
    options = {"steps": 20, "stop": {"loss": 2.0}, "record": record}
    together = tw.descend(problem, tw.Adam(lr=[0.01, 0.2]), every=4, **options).isel(lr=1)
    alone = tw.descend(problem, tw.Adam(lr=0.2), **options)
    end = int(alone["stopped_at"])
    assert 0 < end < 4
    np.testing.assert_array_equal(together["made"][1:], end)
    assert int(together["updates"]) == end
    np.testing.assert_allclose(together["steep"][1:], alone["steep"][-1], rtol=1e-6)
