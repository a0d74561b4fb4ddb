"""How a descent comes to its first iterate: where a gradient takes long to compile, by a step of the block
without an update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from problems import line_problem

import thalweg as tw
from thalweg import attraction, job, loop

X = np.linspace(-1, 1, 12).reshape(6, 2)


def layers(params, x):
    for w in params:
        x = jnp.tanh(x @ w)
    return x[:, 0]


def network(depth=2):
    return tw.Problem(layers, "mse", X, X[:, 0], params=[np.eye(2) + 0.1] * depth)


@pytest.fixture
def arrives(monkeypatch):
    """As of a large model."""
    monkeypatch.setattr(job, "should_arrive", lambda evaluates, known: not known)


@pytest.mark.parametrize("how", [{}, {"every": 3}, {"stop": {"loss": 0.0}}, {"batch_size": 2}])
def test_the_gradient_is_compiled_once(how, monkeypatch):
    products = []

    def counted(function):
        def called(*args, **static):
            program = function.lower(*args, **static).compile().as_text()
            products.append(program.count(" dot("))
            return function(*args, **static)

        called.eval_shape, called.trace = function.eval_shape, function.trace
        return called

    for name in ("begin", "block"):
        monkeypatch.setattr(job, name, counted(getattr(job, name)))
    tw.descend(network(10), tw.Adam(lr=0.1), steps=1, **how)
    # ten products forward, and back to ten weights and to nine layers' inputs
    assert products == [0, 29]


def test_small_functions_are_not_asked_at_each_step(monkeypatch):
    asked = []
    monkeypatch.setattr(
        loop, "_times", lambda count, turn, carry: asked.append(count) or turn(carry)
    )
    jax.clear_caches()  # another test may have traced it
    tw.descend(line_problem(), tw.SGD(lr=0.1), steps=2)
    assert set(asked) == {1}


@pytest.mark.parametrize("optimizer", [tw.SGD(lr=0.1, momentum=0.5), tw.LBFGS()])
@pytest.mark.parametrize(
    ("how", "rows"),
    [
        ({"steps": 0}, [0]),
        ({"steps": 4}, [0, 1, 2, 3, 4]),
        ({"steps": 4, "every": 3}, [0, 3, 4]),
        ({"steps": 4, "every": 9}, [0, 4]),
        ({"steps": 4, "stop": {"loss": 1e9}}, [0]),
    ],
)
def test_users_functions_see_the_rows_and_nothing_else(optimizer, how, rows, arrives):
    seen = []

    def watched(at):
        jax.debug.callback(lambda *at: seen.append(tuple(map(float, at))), at.step, at.loss)
        return at.loss

    problem = line_problem()
    path = tw.descend(problem, optimizer, record={"watched": watched}, **how)
    jax.effects_barrier()
    assert [step for step, _ in seen][: len(rows)] == rows
    np.testing.assert_array_equal([loss for _, loss in seen][: len(rows)], path["loss"])
    if "stop" not in how:  # the blocks under way go on, of members that stay
        assert len(seen) == len(rows)
    more = tw.descend(problem, optimizer, steps=2, resume=path, record={"watched": watched})
    np.testing.assert_array_equal(more["watched"], more["loss"])
    assert more["loss"].values[0] == pytest.approx(float(path["loss"][-1]), rel=1e-12)


def test_the_first_state_of_an_observable_may_be_of_the_loss(arrives):
    share = (lambda at: at.loss, lambda at, first: (at.loss / first, first))
    path = tw.descend(network(), tw.SGD(lr=0.1), steps=3, record={"share": share})
    np.testing.assert_allclose(path["share"], path["loss"] / path["loss"][0], rtol=1e-12)


def test_what_a_model_prints_is_printed_once_an_iterate():
    seen = []

    def printing(params, x):
        jax.debug.callback(lambda w: seen.append(float(w)), params[0][0, 0])
        return layers(params, x)

    problem = tw.Problem(printing, "mse", X, X[:, 0], params=[np.eye(2)] * 10)
    tw.descend(problem, tw.SGD(lr=0.1), steps=2, record=["successive_change"])
    jax.effects_barrier()
    assert len(seen) == 3


@pytest.mark.parametrize("shuffle", [False, True])
def test_who_had_stopped_is_evaluated_once(shuffle, arrives, monkeypatch):
    evaluated = []

    def counted(plan, feed, walk, who):
        evaluated.append(who.sum())
        return loop.at_rest(plan, feed, walk, who)

    monkeypatch.setattr(job, "at_rest", counted)
    how = {"batch_size": 2, "shuffle": True} if shuffle else {}
    optimizer = tw.SGD(lr=[0.02, 0.05, 0.1, 0.2])
    path = tw.descend(network(), optimizer, steps=200, stop={"risk": 0.0125}, **how)
    stopped = path["stopped_at"].values
    assert len(set(stopped)) > 2
    more = tw.descend(network(), optimizer, steps=2, stop={"risk": 0.0125}, resume=path, **how)
    assert sum(evaluated) == (stopped >= 0).sum()
    if not shuffle:
        assert len(evaluated) == 1
    np.testing.assert_allclose(more["loss"][0], path["loss"][-1], rtol=1e-12)


# On a GPU nobody arrives, and loops have a known length -----------------------------------------


def as_on_a_gpu(monkeypatch, most=4):
    def known_turns(every, platform):
        return most if every == 1 else every // -(-every // most)

    monkeypatch.setattr(job, "known_turns", known_turns)
    monkeypatch.setattr(attraction, "known_turns", known_turns)


CASES = {
    "all": {"steps": 30},
    "every": {"steps": 31, "every": 7},
    "batches": {"epochs": 3, "batch_size": 2, "shuffle": True, "seed": 1},
    "runs": {"steps": 9, "starts": np.linspace(-1, 1, 24).reshape(3, 8)},
    "stop": {"steps": 30, "stop": {"loss": 0.09}},
    "observed": {"steps": 9, "record": ["movement", "successive_change", "grad"]},
    "none": {"steps": 0},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("optimizer", [tw.Adam(lr=0.05), tw.SGD(lr=[0.1, 0.2], momentum=0.9)])
def test_a_descent_is_the_same(name, optimizer, arrives, monkeypatch):
    paths = []
    for on_a_gpu in (False, True):
        if on_a_gpu:
            as_on_a_gpu(monkeypatch)
        path = tw.descend(network(), optimizer, **CASES[name])
        paths.append((path, tw.descend(network(), optimizer, steps=5, resume=path)))
    for one, other in zip(*paths, strict=True):
        xr.testing.assert_allclose(one, other, rtol=1e-12)


def test_basins_are_the_same(monkeypatch):
    problem = tw.Problem.from_catalogue("himmelblau")
    plane = tw.coordinate_plane(problem, {"x": (-4, 4), "y": (-4, 4)}, points=8)
    one = tw.basins(problem, tw.SGD(lr=0.01), plane, steps=300)
    as_on_a_gpu(monkeypatch)
    other = tw.basins(problem, tw.SGD(lr=0.01), plane, steps=300)
    assert (one["basin"] >= 0).any()
    xr.testing.assert_allclose(one, other, rtol=1e-9)
