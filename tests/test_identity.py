"""Functions that are one program are one, and no others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from torch import nn

import thalweg as tw
from thalweg import identity

X = np.linspace(-1, 1, 12)
SCALE = 1.0


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


def used(problem, risks):
    tw.descend(problem, tw.SGD(lr=0.1), steps=3)
    plane = tw.coordinate_plane(problem, dict.fromkeys(problem.names, (-1, 1)), points=5)
    return tw.landscape(problem, plane, risks=risks)


def test_the_same_functions_written_anew_compile_nothing(compilations):
    used(written_anew(), ("empirical", "expected"))
    compilations.clear()
    used(written_anew(2.0), ("empirical", "expected"))
    assert len(compilations) == 0
    used(tw.linearize(written_anew(), written_anew().params), ("empirical",))
    compilations.clear()
    used(tw.linearize(written_anew(2.0), written_anew(2.0).params), ("empirical",))
    assert len(compilations) == 0


def test_functions_without_data_too(compilations):
    def descended(problem):
        return tw.descend(problem, tw.SGD(lr=0.1), steps=3)

    for made in (
        lambda: tw.Problem.from_function(lambda p: p["a"] ** 2, {"a": 1.0}),
        lambda: tw.Problem.from_residuals(lambda p: jnp.stack([p["a"], p["a"] ** 2]), {"a": 1.0}),
    ):
        descended(made())
        compilations.clear()
        descended(made())
        assert len(compilations) == 0
        assert made().is_without_data


def test_another_module_of_the_same_layers_compiles_nothing(compilations):
    x = np.random.default_rng(0).standard_normal((7, 3)).astype(np.float32)

    def looked_at(activation=nn.ReLU):
        module = nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2))
        problem = tw.from_torch(module, nn.MSELoss(), x, x[:, :2])
        tw.descend(problem, tw.SGD(lr=0.1), steps=2)
        tw.hessian(problem, problem.params).top(1)
        return problem, module

    looked_at()
    compilations.clear()
    problem, module = looked_at()
    assert len(compilations) == 0
    assert set(tw.to_torch(problem)) == set(module.state_dict())
    looked_at(nn.Tanh)
    assert len(compilations) > 0


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
    assert known(f, jnp.ones(2)) != known(f, jnp.ones(2, np.float32))


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
