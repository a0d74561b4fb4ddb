"""What is learnt of a model before it is evaluated: whether its samples stand alone."""

from __future__ import annotations

import ctypes
import gc
import platform
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import psutil
import pytest

import thalweg as tw
from thalweg import backend, independence


def weight(w, x):
    return x @ w["weight"]


def recurrent(w, x):
    """A scan along each sample's own features."""
    start = jnp.zeros((len(x), 3))
    end, _ = jax.lax.scan(
        lambda c, v: (jnp.tanh(c + v[:, None] * w["weight"][0]), None), start, x.T
    )
    return end


def halved_until_small(w, x):
    def of_one(v):
        return jax.lax.while_loop(lambda s: (abs(s) > 1e-3).any(), lambda s: s / 2, v)

    return weight(w, jax.vmap(of_one)(x))


def running_sum(w, x):
    return weight(w, jax.lax.scan(lambda c, v: (c + v, c + v), jnp.zeros(x.shape[1]), x)[1])


ALONE = {
    "linear": weight,
    "network": lambda w, x: jnp.maximum(weight(w, x), 0) @ w["weight"].T,
    "softmax": lambda w, x: jax.nn.softmax(weight(w, x)),
    "sorted features": lambda w, x: weight(w, jnp.sort(x, axis=1)),
    "spectrum": lambda w, x: weight(w, abs(jnp.fft.fft(x, axis=1))),
    "recurrent": recurrent,
    "while": halved_until_small,
}
MIXING = {
    "largest": lambda w, x: weight(w, x / abs(x).max()),
    "least": lambda w, x: weight(w, x - x.min()),
    "mean": lambda w, x: weight(w, x - x.mean(axis=0)),
    "mean after a kink": lambda w, x: jnp.maximum(weight(w, x) - weight(w, x).mean(axis=0), 0),
    "mean before a layer of zeros": lambda w, x: (x - x.mean(axis=0)) @ w["zero"],
    "median": lambda w, x: weight(w, x - jnp.median(x, axis=0)),
    "first": lambda w, x: weight(w, x - x[0]),
    "last": lambda w, x: weight(w, x - x[-1]),
    "neighbour": lambda w, x: weight(w, x + jnp.roll(x, 1, axis=0)),
    "running sum": running_sum,
    "attention": lambda w, x: weight(w, jax.nn.softmax(x @ x.T) @ x),
    "rank": lambda w, x: weight(w, x) * jnp.argsort(x[:, 0])[:, None],
    "place": lambda w, x: weight(w, x + jnp.arange(len(x))[:, None]),
    "noise": lambda w, x: weight(w, x + jax.random.normal(jax.random.key(0), x.shape)),
    "four places before": lambda w, x: weight(w, x - jnp.roll(x, 4, axis=0)),
    "four series": lambda w, x: weight(
        w, jax.nn.softmax(x.reshape(2, -1), axis=1).reshape(x.shape)
    ),
    "the first ten": lambda w, x: weight(w, x) * (jnp.arange(len(x)) < 10)[:, None],
    "beside a matrix": lambda w, x: (x - x.mean(axis=0)) @ jnp.linalg.cholesky(w["sharp"])[:, :3],
    "five places before": lambda w, x: weight(w, x - jnp.concatenate([jnp.zeros((5, 5)), x[:-5]])),
}


def splits(predict, x):
    params = {
        "weight": np.random.default_rng(1).standard_normal((5, 3)),
        "zero": np.zeros((5, 3)),
        "sharp": 1 + 1e-6 * np.eye(5),  # positive definite, which matrices beside it are not
    }
    y = np.zeros(jax.eval_shape(predict, params, x).shape)
    return independence.splits(tw.Problem(predict, "mse", x, y, params=params), 10)


@pytest.mark.parametrize("order", ["as drawn", "rising", "falling"])
@pytest.mark.parametrize("name", [*ALONE, *MIXING])
def test_samples_stand_alone_or_do_not_whatever_the_data(name, order, rng):
    x = rng.standard_normal((30, 5))
    if order != "as drawn":
        x = np.sort(x, axis=0)[:: 1 if order == "rising" else -1].copy()
    assert splits({**ALONE, **MIXING}[name], x) == (name in ALONE)


@pytest.mark.parametrize(
    ("factor", "alone"),
    [
        (lambda y: 1 + jnp.abs(y), True),
        (lambda y: 0.99 ** jnp.arange(len(y)), False),
        (lambda y: 1 / jnp.abs(y).max(), False),
        # boundary points first, as physics-informed networks have them
        (lambda y: jnp.concatenate([0 * y[:12], 1 + 0 * y[12:]]), False),
    ],
)
def test_a_loss_of_the_users_may_mix_samples_too(factor, alone, rng):
    def loss(yhat, y):
        return factor(y[:, 0]) * ((yhat - y) ** 2).mean(axis=1)

    x, params = rng.standard_normal((30, 5)), {"weight": rng.standard_normal((5, 3))}
    y = 1 + rng.random((30, 1))
    problem = tw.Problem(lambda w, x: jnp.tanh(weight(w, x)), loss, x, y, params=params)
    assert independence.splits(problem, 10) == alone


@pytest.mark.parametrize("n", [2, 3, 30])
def test_one_sample_is_a_part_of_them_however_jax_writes_it(n, rng):
    """Axes of length 1 are other operations to JAX, as in choosing the probability of each sample's class."""
    x, y = rng.standard_normal((n, 5)), rng.integers(0, 3, n)
    params = {"weight": rng.standard_normal((5, 3))}
    for predict, alone in (
        (weight, True),
        (MIXING["mean"], False),
        (lambda w, x: weight(w, x) / len(x), False),
        (lambda w, x: weight(w, x - x.mean(axis=0)) if len(x) > 1 else weight(w, x), False),
        (lambda w, x: weight(w, x) * jnp.linspace(1, 2, n)[:, None], False),
    ):
        problem = tw.Problem(predict, "cross_entropy", x, y, params=params)
        assert independence.splits(problem, 1) == alone


def test_samples_may_be_numbers_of_a_table():
    places = np.repeat(np.arange(5), 6)  # the first few are alike
    assert splits(lambda w, i: w["weight"][i] * 2 + jnp.sin(w["weight"][i]) @ jnp.eye(3), places)
    assert not splits(lambda w, i: w["weight"][i] - w["weight"][i].mean(axis=0), places)
    ones = np.ones(30, int)
    assert not splits(lambda w, k: jnp.sin(w["weight"][0]) * (k / k.sum())[:, None], ones)


def test_inputs_may_have_a_domain(rng):
    """Values that the data do not have may be refused; then values that they have must do."""
    x, params = 1 + rng.random((30, 5)), {"weight": rng.random((5, 3))}
    for predict, alone in (
        (lambda w, x: jnp.log(weight(w, x)), True),
        (lambda w, x: jnp.log(weight(w, x)) / jnp.log(x).sum(), False),
    ):
        problem = tw.Problem(predict, "mse", x, np.zeros((30, 3)), params=params)
        with jax.debug_nans(True):
            assert independence.splits(problem, 10) == alone

    def checked(v):
        if (v <= 0).any():
            raise RuntimeError("not positive")
        return np.log(v)

    def predict(w, x):
        return jax.pure_callback(checked, jax.ShapeDtypeStruct(x.shape, x.dtype), x) @ w["weight"]

    assert independence.splits(tw.Problem(predict, "mse", x, np.zeros((30, 3)), params=params), 10)


def test_places_are_seen_in_half_precision(rng):
    x = rng.standard_normal((30, 5)).astype(jnp.bfloat16)
    params = {"weight": rng.standard_normal((5, 3)).astype(jnp.bfloat16)}
    for predict, alone in (
        (lambda w, x: jnp.tanh(weight(w, x)), True),
        (
            lambda w, x: jnp.tanh(weight(w, x)) * (1 - 0.5 * (jnp.arange(len(x)) % 2))[:, None],
            False,
        ),
    ):
        y = np.zeros((30, 3), jnp.bfloat16)
        problem = tw.Problem(
            lambda w, x, f=predict: f(w, x).astype(x.dtype), "mse", x, y, params=params
        )
        assert independence.splits(problem, 10) == alone


def test_a_landscape_takes_all_samples_at_once_where_they_are_compared(monkeypatch, rng):
    x = np.sort(rng.standard_normal((400, 5)), axis=0)[::-1].copy()  # the largest stands first
    params = {"weight": rng.standard_normal((5, 3))}
    problem = tw.Problem(MIXING["largest"], "mse", x, np.zeros((400, 3)), params=params)
    monkeypatch.setattr("thalweg.tiling._samples_together", lambda *_: 100)
    plane = tw.line(problem, params, {"weight": np.zeros((5, 3))}, points=5)
    found = tw.landscape(problem, plane)["empirical"].values
    scale = np.linspace(1, 0, 5) ** 2
    prediction = x / abs(x).max() @ params["weight"]
    np.testing.assert_allclose(found, scale * (prediction**2).mean(), rtol=1e-12, atol=1e-15)


def gated(gate, w, x):
    hidden = jnp.tanh(weight(w, x))
    return (hidden + gate * hidden.max(axis=0)) @ w["weight"].T


def test_what_is_learnt_is_of_the_models_own_numbers(rng):
    """Two problems may be one program, and only one of them compare samples."""
    x = rng.standard_normal((50, 3))

    def problem(gate):
        predict = jax.tree_util.Partial(gated, jnp.asarray(gate))
        return tw.Problem(predict, "mse", x, x, params={"weight": np.eye(3)})

    assert independence.splits(problem(0.0), 10)
    assert not independence.splits(problem(1.0), 10)
    assert independence.splits(problem(0.0), 10)


def test_clearing_the_caches_frees_what_functions_hold():
    held = jnp.arange(10.0) + 1
    freed = weakref.ref(held)

    def used(held):
        x = np.linspace(-1, 1, 5)
        problem = tw.Problem(lambda w, x: w["a"] * x * held[0], "mse", x, x, params={"a": 1.0})
        tw.descend(problem, tw.SGD(lr=0.1), steps=1)
        tw.landscape(problem, tw.coordinate_plane(problem, {"a": (-1, 1)}, points=3))
        tw.hessian(problem, problem.params).top(1)

    used(held)
    del held
    tw.clear_caches()
    gc.collect()
    assert freed() is None


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="others return it by themselves")
def test_memory_that_is_free_goes_back_to_the_system():
    c = ctypes.CDLL(None)
    c.malloc.restype, c.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    block = 100_000  # bytes: below what glibc would map by itself
    blocks = [c.malloc(block) for _ in range(2000)]
    for each in blocks:
        ctypes.memset(each, 1, block)
    for each in blocks[:-1]:  # the last one keeps the heap's end where it is
        c.free(each)
    before = psutil.Process().memory_info().rss
    backend.return_memory()
    assert before - psutil.Process().memory_info().rss > 0.8 * block * len(blocks)
    c.free(blocks[-1])


@pytest.mark.parametrize("name", ["_QUICKLY", "_ON_ALL_CORES"])
def test_programs_do_without_options_that_xla_does_not_know(name, monkeypatch):
    known = getattr(backend, name)
    assert all(map(backend._is_known, known.items()))
    monkeypatch.setattr(backend, name, {"xla_no_such_option": 1, **known})
    monkeypatch.setattr(backend, "_unknown", set())
    monkeypatch.setattr(backend, "cores", lambda: 2)
    compiled = {"_QUICKLY": backend.compiled_quickly, "_ON_ALL_CORES": backend.outermost()}[name]
    twice = compiled(lambda x: 2 * x)
    assert twice(3.0) == 6
    assert backend._unknown == {("xla_no_such_option", 1)}
    assert twice(4.0) == 8


def test_other_errors_of_a_program_are_raised():
    def failing(x):
        raise ValueError("no")

    @backend.outermost()
    def called(x):
        return jax.pure_callback(failing, x, x)

    with pytest.raises(jax.errors.JaxRuntimeError, match="no"):
        jax.block_until_ready(called(1.0))


@pytest.mark.parametrize(("cores", "spread"), [(1, False), (2, True)])
def test_a_convolution_is_computed_on_all_cores(cores, spread, monkeypatch):
    """XLA's own kernel is; the library that it prefers, YNNPACK, uses one for each convolution."""
    monkeypatch.setattr(backend, "cores", lambda: cores)
    x, kernel = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))

    @backend.outermost()
    def convolved(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    program = convolved.lower(x, kernel).compile().as_text()
    assert ("ynn" not in program) == spread
