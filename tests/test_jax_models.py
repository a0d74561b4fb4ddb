"""Models of JAX's libraries: they train as in a loop of their own, and what is no parameter is told apart."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import thalweg as tw
from thalweg.errors import InputError

X = np.random.default_rng(0).standard_normal((12, 3))
Y = np.sin(X[:, :1])


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(5, param_dtype=jnp.float64)(x)
        x = nn.BatchNorm(use_running_average=True, param_dtype=jnp.float64)(x)
        return nn.Dense(1, param_dtype=jnp.float64)(nn.tanh(x))


class Dropped(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(3, 5, rngs=rngs, param_dtype=jnp.float64)
        self.norm = nnx.BatchNorm(5, rngs=rngs, param_dtype=jnp.float64)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.outer = nnx.Linear(5, 1, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        return self.outer(self.drop(nnx.tanh(self.norm(self.inner(x)))))


def perceptron(key):
    return eqx.nn.MLP(3, 1, 5, 2, activation=jnp.tanh, dtype=jnp.float64, key=jax.random.key(key))


def linen():
    model = Normed()
    variables = model.init(jax.random.key(0), X[:1])
    return lambda p, x: model.apply({**variables, "params": p}, x), variables["params"]


def neural_networks():
    model = Dropped(nnx.Rngs(0))
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    return lambda p, x: nnx.merge(graph, p, rest, copy=True)(x), params


def equinox():
    params, rest = eqx.partition(perceptron(0), eqx.is_inexact_array)
    return lambda p, x: jax.vmap(eqx.combine(p, rest))(x), params


def filtered():
    """Equinox's jit is a pytree that holds functions and text."""
    predict, params = equinox()
    return eqx.filter_jit(predict), params


def haiku():
    model = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([5, 1], activation=jnp.tanh)(x))
    )
    return model.apply, model.init(jax.random.key(0), X)


@pytest.mark.parametrize("library", [linen, neural_networks, equinox, filtered, haiku])
def test_a_model_trains_as_in_its_own_loop(library):
    predict, params = library()
    optimizer = optax.adam(0.01)

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean((predict(p, X) - Y) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    iterates, state = [params], optimizer.init(params)
    for _ in range(20):
        new, state = step(iterates[-1], state)
        iterates.append(new)

    problem = tw.Problem(predict, "mse", X, Y, params=params)
    kept = tw.trajectory(iterates, problem)
    own = tw.descend(problem, tw.optax(optax.adam, learning_rate=0.01), steps=20)
    for name in ("params", "loss"):
        np.testing.assert_allclose(own[name], kept[name], rtol=1e-9, atol=1e-12)
    back = problem.unflatten(own["final"].values)
    assert jax.tree_util.tree_structure(back) == jax.tree_util.tree_structure(params)
    np.testing.assert_allclose(
        np.mean((predict(back, X) - Y) ** 2), own["loss"].isel(step=-1), rtol=1e-12
    )


def test_a_whole_module_is_a_point():
    predict, params = equinox()
    problem = tw.Problem(predict, "mse", X, Y, params=params)
    modules = [perceptron(0), perceptron(1)]
    path = tw.trajectory(modules, problem)
    risks = [np.mean((jax.vmap(module)(X) - Y) ** 2) for module in modules]
    np.testing.assert_allclose(path["loss"], risks, rtol=1e-12)
    assert risks[0] != risks[1]
    other = eqx.nn.MLP(3, 1, 5, 1, key=jax.random.key(0))
    with pytest.raises(InputError, match=r"params have the entries .*; expected"):
        problem.risk(other)


class Tempered(eqx.Module):
    weight: jax.Array
    temperature: float


VARIABLES = {"params": {"scale": jnp.ones(1)}, "batch_stats": {"mean": jnp.zeros(1)}}
NOT_ALL_TRAINED = {
    "functions": (lambda: perceptron(0), r"'activation' is .*equinox\.partition"),
    "a rate": (lambda: {"drop": eqx.nn.Dropout(0.1)}, r"'drop.p' is 0.1.*equinox\.partition"),
    "a field": (lambda: Tempered(jnp.ones((3, 1)), 2.0), r"'temperature' is 2.0.*equinox\.partition"),
    "statistics": (lambda: VARIABLES, r"batch_stats.*variables\['params'\]"),
    "statistics of nnx": (lambda: nnx.state(Dropped(nnx.Rngs(0))), r"is Flax's .*nnx\.split"),
    "a key": (lambda: {"w": jnp.ones(3), "key": jax.random.key(0)}, "'key' .* a key of jax.random"),
    "an old key": (
        lambda: {"w": jnp.ones(3), "key": jax.random.PRNGKey(0)},
        "'key' .* a key of jax.random",
    ),
    "text": (lambda: {"w": jnp.ones(3), "axis": "batch"}, "'axis' must hold real numbers; 'batch' given"),
    "a function": (lambda: {"w": jnp.ones(3), "f": jnp.tanh}, "'f' must hold real numbers"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_ALL_TRAINED)
@pytest.mark.parametrize("dtype", [None, "float32"])
def test_what_is_not_trained_is_no_parameter(what, dtype):
    params, words = NOT_ALL_TRAINED[what]

    def predict(params, x):
        raise AssertionError("it is refused before it is called")

    for given in ({"params": params()}, {"init": lambda key: params()}):
        with pytest.raises(InputError, match=words) as raised:
            tw.Problem(predict, "mse", X, Y, dtype=dtype, **given)
        assert "\n" not in str(raised.value)


def test_numbers_and_whole_numbers_outside_of_modules_are_parameters():
    problem = tw.Problem(
        lambda p, x: x[:, :1] * p["a"] + p["b"][0],
        "mse",
        X,
        Y,
        params={"a": 2, "b": np.array([1, 2])},
    )
    assert problem.size == 3


def test_classes_on_the_last_axis_are_told_where_they_belong():
    tokens = np.random.default_rng(0).integers(0, 5, (4, 6))
    with pytest.raises(InputError, match=r"jnp\.moveaxis\(yhat, -1, 1\)"):
        tw.Problem(lambda p, x: p["w"][x], "cross_entropy", tokens, tokens, params={"w": np.eye(5)})
