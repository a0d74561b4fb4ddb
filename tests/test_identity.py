"""Functions that are one program are one, and no others."""

import copy
import logging
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from torch import nn

import thalweg as tw
from thalweg import identity
from thalweg.catalogue import models

X = np.linspace(-1, 1, 12)
NETWORK = models.init_mlp((1, 4, 1), jax.random.key(0))
SCALE = 1.0


@pytest.fixture(autouse=True)
def _says_why(caplog):
    """What a function is not known for is among a failure's output."""
    caplog.set_level(logging.DEBUG, identity.__name__)


def known(function, *args):
    return identity.by_program(Partial(function), *args).func


def written_anew(weight=1.0):
    """A problem all of whose functions are new objects."""

    def predict(params, x):
        return params["slope"] * jnp.tanh(x) + params["offset"]

    return tw.Problem(
        predict,
        lambda yhat, y: jnp.abs(yhat - y) ** 3,
        X,
        X**2,
        params={"slope": weight, "offset": 0.0},
        expected=lambda params: params["slope"] ** 2,
        penalty=lambda params: 0.1 * params["slope"] ** 2,
    )


def are_one(problem, other):
    """Whether JAX takes two problems for the same program with other numbers."""
    structure = jax.tree_util.tree_structure
    return structure(problem) == structure(other)


def used(problem, risks):
    tw.descend(problem, tw.SGD(lr=0.1), steps=3)
    plane = tw.coordinate_plane(problem, dict.fromkeys(problem.names, (-1, 1)), points=5)
    tw.landscape(problem, plane, risks=risks)
    return problem


def test_the_same_functions_written_anew_are_one():
    both = [used(written_anew(weight), ("empirical", "expected")) for weight in (1.0, 2.0)]
    assert are_one(*both)
    both = [used(tw.linearize(problem, problem.params), ("empirical",)) for problem in both]
    assert are_one(*both)


def test_what_is_one_compiles_nothing(compilations):
    problem, other = written_anew(), written_anew(2.0)
    other.risk(other.params)
    compilations.clear()
    problem.risk(problem.params)
    assert len(compilations) == 0


def test_functions_with_arrays_inside_too():
    """Which come before the parameters, by which a model is differentiated."""

    def descended(scale):
        def predict(scale, params, x):
            return scale * jax.nn.relu(params["a"] * x)

        problem = tw.Problem(Partial(predict, scale), "mse", X, X, params={"a": 1.0})
        tw.descend(problem, tw.SGD(lr=0.1), steps=2, batch_size=5)
        return problem

    assert are_one(descended(np.array([1.0])), descended(np.array([2.0])))


def test_functions_without_data_too():
    def descended(problem):
        tw.descend(problem, tw.SGD(lr=0.1), steps=3)
        return problem

    for made in (
        lambda: tw.Problem.from_function(lambda p: p["a"] ** 2, {"a": 1.0}),
        lambda: tw.Problem.from_residuals(lambda p: jnp.stack([p["a"], p["a"] ** 2]), {"a": 1.0}),
    ):
        assert are_one(descended(made()), descended(made()))
        assert made().is_without_data


def test_a_function_of_parameters_by_other_names_is_another():
    def descended(name):
        problem = tw.Problem.from_function(lambda p: p[name] ** 7, {name: 1.0})
        tw.descend(problem, tw.SGD(lr=0.1), steps=3)
        return problem

    there_before = descended("b")
    assert are_one(descended("a"), descended("a"))
    assert not are_one(there_before, descended("a"))
    assert are_one(there_before, descended("b"))


def test_another_module_of_the_same_layers_is_one():
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)

    def looked_at(activation=nn.ReLU):
        module = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2))
        problem = tw.from_torch(module, nn.MSELoss(), x, x[:, :2])
        tw.descend(problem, tw.SGD(lr=0.1), steps=2)
        tw.hessian(problem, problem.params).top(1)
        return problem, module

    before, _ = looked_at()
    problem, module = looked_at()
    assert are_one(before, problem)
    assert set(tw.to_torch(problem)) == set(module.state_dict())
    assert not are_one(looked_at(nn.Tanh)[0], problem)


def with_rule(power):
    """A function with a derivative of its own, and the names of every other of these."""

    @jax.custom_jvp
    def f(w):
        return w**2

    @f.defjvp
    def rule(primals, tangents):
        return f(*primals), primals[0] ** power * tangents[0]

    return f


def with_reverse_rule(factor):
    @jax.custom_vjp
    def f(w):
        return w**2

    f.defvjp(lambda w: (w**2, w), lambda w, g: (factor * w * g,))
    return f


def with_a_value_in_its_rule(more):
    @jax.custom_vjp
    def f(w):
        return w**2

    f.defvjp(lambda w: (w**2 + more, w), lambda w, g: (2 * w * g,))
    return f


def with_rule_in_a_rule(power):
    inner = with_rule(power)

    @jax.custom_jvp
    def f(w):
        return w**3

    @f.defjvp
    def rule(primals, tangents):
        return f(*primals), 3 * inner(primals[0]) * tangents[0]

    return f


@pytest.mark.parametrize(
    ("made", "one", "other"),
    [
        (lambda factor: lambda w: factor * w, 2.0, 3.0),
        (lambda array: lambda w: jnp.sum(jnp.asarray(array) * w), [1.0, 2.0], [1.0, 3.0]),
        (lambda array: lambda w: jax.jit(lambda v: v + np.array(array))(w), [1.0, 2.0], [1.0, 3.0]),
        (lambda name: lambda w: {name: w}, "a", "b"),
        (lambda axis: lambda w: jax.nn.softmax(jnp.outer(w, w), axis), 0, 1),
        (lambda relu: relu, jax.nn.relu, lambda w: jnp.maximum(w, 0)),
        (lambda f: lambda w: jax.lax.scan(lambda c, _: (f(c), None), w, None, 3), jnp.sin, jnp.cos),
        (with_rule, 1, 2),
        (with_reverse_rule, 2.0, 3.0),
        (with_a_value_in_its_rule, 0.0, 5.0),
        (with_rule_in_a_rule, 1, 2),
    ],
)  # fmt: skip
def test_other_functions_are_others(made, one, other):
    w = jnp.ones(2)
    first, again, different = (known(made(v), w) for v in (one, one, other))
    assert isinstance(first, identity.ByProgram)
    assert first == again
    assert hash(first) == hash(again)
    assert first != different


def test_another_shape_is_another_program():
    def f(w):
        return w.sum()

    assert known(f, jnp.ones(2)) != known(f, jnp.ones(3))
    assert known(f, jnp.ones(2, np.float64)) != known(f, jnp.ones(2, np.float32))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda yhat, y: (yhat - y) ** 2 / 12, lambda yhat, y: (yhat - y) ** 2 / len(y)),
        (lambda yhat, y: (yhat - y) ** 2, lambda yhat, y: (yhat - y) ** (2 if len(y) > 4 else 4)),
    ],
)
@pytest.mark.parametrize("both_first", [True, False])
def test_what_is_another_program_for_a_batch_is_another(one, other, both_first):
    """For all twelve samples they are the same one."""

    def problem(loss):
        return tw.Problem(lambda w, x: w["a"] * x, loss, X, X**2 + 1, params={"a": 1.0})

    def found(problem):
        path = tw.descend(problem, tw.SGD(lr=0.1), steps=5, batch_size=4)
        return float(path["loss"][-1]), float(problem.take([0, 1, 2]).risk({"a": 1.0}))

    identity.forget()
    problems = [problem(one), problem(other)] if both_first else []
    if both_first:
        assert problems[0].loss.func == problems[1].loss.func
    first = found(problems[0] if both_first else problem(one))
    second = found(problems[1] if both_first else problem(other))
    jax.clear_caches()
    identity.forget()
    assert found(problem(other)) == second
    assert found(problem(one)) == first
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_one_that_is_the_same_in_half_precision_alone():
    """Curvature is computed in single precision."""
    w = jnp.linspace(0.5, 1, 3, dtype=jnp.float16)

    def top(rounded):
        def f(w):
            return jnp.sum(jnp.tanh(w * 1.5).astype(jnp.float16 if rounded else w.dtype) ** 2)

        problem = tw.Problem.from_function(f, w)
        return float(tw.hessian(problem, problem.params).top(1)[0][0])

    found = top(True), top(False)
    jax.clear_caches()
    identity.forget()
    assert (top(False), top(True)) == found[::-1]
    assert found[0] != found[1]


def test_copies_are_of_their_kind():
    problem = written_anew()
    for copied in (copy.deepcopy(problem), copy.copy(problem)):
        assert copied.predict.func == problem.predict.func
    again = pickle.loads(pickle.dumps(tw.Problem(models.mlp, "mse", X, X, params=NETWORK)))
    assert again.predict.func == tw.Problem(models.mlp, "mse", X, X, params=NETWORK).predict.func


def test_what_calls_the_host_is_known_by_itself():
    def f(w):
        return jax.pure_callback(lambda v: np.asarray(v), w, w)

    assert known(f, jnp.ones(2)) is f


def reads_a_global():
    return tw.Problem(lambda p, x: SCALE * p["w"] * x, "mse", X, X, params={"w": 1.0})


def test_a_global_that_has_changed(monkeypatch):
    """A problem made anew has the number that is there then, whatever was compiled before."""

    def predict(params, x):
        return SCALE * params["w"] * x

    def risk(problem):
        return float(tw.descend(problem, tw.SGD(lr=0.0), steps=1)["loss"][0])

    size = np.mean(X**2)
    assert risk(tw.Problem(predict, "mse", X, X, params={"w": 3.0})) == pytest.approx(4 * size)
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    assert risk(tw.Problem(predict, "mse", X, X, params={"w": 3.0})) == pytest.approx(25 * size)


def test_what_has_changed_lends_its_programs_to_nobody(monkeypatch):
    """A function that is traced after a global has changed compiles what others must not be given."""
    stale, fresh = reads_a_global(), reads_a_global()
    assert stale.predict.func == fresh.predict.func
    monkeypatch.setitem(globals(), "SCALE", 2.0)
    batch = np.arange(5)
    assert float(stale.take(batch).risk({"w": 1.0})) == pytest.approx(np.mean(X[:5] ** 2))
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    assert float(reads_a_global().take(batch).risk({"w": 1.0})) == 0
    assert float(fresh.take(batch).risk({"w": 1.0})) == 0
    assert stale.predict.func != fresh.predict.func


def test_it_is_logged_why_a_function_is_not_known(caplog):
    def fails(params):
        raise ValueError("no program")

    assert not isinstance(known(fails, {"a": 1.0}), identity.ByProgram)
    assert "is not known by its program" in caplog.text
    assert "no program" in caplog.text
