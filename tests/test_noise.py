"""Gradient noise along a descent, against gradients sample by sample."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import noise
from thalweg.catalogue import models
from thalweg.errors import InputError

RECORD = {"noise": tw.gradient_noise, "norms": tw.sample_gradient_norms}


@pytest.fixture
def problem():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((13, 2)), rng.standard_normal(13)
    start = models.init_mlp((2, 4, 1), jax.random.key(0))
    return tw.Problem(
        models.mlp, "mse", x, y, params=start, penalty=lambda w: w["l1"]["bias"].sum()
    )


def gradients(problem, params):
    """(n, p), one reverse pass a sample."""
    plain = problem.replace(penalty=None)
    return np.stack(
        [
            np.asarray(plain.flatten(plain.take(np.array([k])).gradient(params)))
            for k in range(problem.n_samples)
        ]
    )


@pytest.mark.parametrize("room", [noise._ROOM, 1000])
def test_along_a_descent(problem, room, monkeypatch):
    """All samples at once, and some at a time."""
    monkeypatch.setattr(noise, "_ROOM", room)
    jax.clear_caches()
    path = tw.descend(
        problem, tw.SGD(lr=[0.05, 0.1]), steps=6, every=2, batch_size=4, record=RECORD
    )
    jax.clear_caches()
    assert path["norms"].sizes["step"] == 4
    for step in path["step"].values:
        for lr in path["lr"].values:
            here = path.sel(step=step, lr=lr)
            each = gradients(problem, problem.unflatten(here["params"].values))
            np.testing.assert_allclose(here["norms"], np.linalg.norm(each, axis=1), rtol=1e-10)
            expected = ((each - each.mean(axis=0)) ** 2).sum(axis=1).mean()
            np.testing.assert_allclose(here["noise"], expected, rtol=1e-10)


def test_from_random_starts_and_on_a_part_of_the_data(problem):
    drawn = tw.Problem(
        models.mlp, "mse", problem.x, problem.y, init=partial(models.init_mlp, (2, 4, 1))
    )
    masked = problem.take(np.arange(13), np.arange(13) % 3 > 0)
    for one, options in ((drawn, {"runs": 2}), (masked, {})):
        path = tw.descend(one, tw.SGD(lr=0.1), steps=2, record=RECORD, **options)
        ends = path["final"].values.reshape(one.size, -1).T
        for end, value in zip(ends, path["noise"].values[-1].ravel(), strict=True):
            trace = np.trace(tw.gradient_covariance(one, end).dense())
            assert value == pytest.approx(trace, rel=1e-10)


def test_it_is_the_trace_of_the_covariance(problem):
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=3, record=RECORD)
    end = path["final"].values
    trace = np.trace(tw.gradient_covariance(problem, end).dense())
    assert float(path["noise"][-1]) == pytest.approx(trace, rel=1e-10)
    np.testing.assert_allclose(path["norms"][-1], tw.gradient_norms(problem, end), rtol=1e-12)


def test_a_batch_strays_as_the_noise_says(problem):
    """E‖g_B − ḡ‖² = noise / b for b samples drawn with replacement."""
    each = gradients(problem, problem.params)
    drawn = np.random.default_rng(0).integers(13, size=(20_000, 5))
    strayed = ((each[drawn].mean(axis=1) - each.mean(axis=0)) ** 2).sum(axis=1)
    told = tw.descend(problem, tw.SGD(lr=0.1), steps=0, record=RECORD)["noise"].values[0]
    error = strayed.std() / np.sqrt(len(strayed))
    assert strayed.mean() == pytest.approx(told / 5, abs=4 * error)
    assert error < 0.02 * told / 5


def test_what_has_no_gradients_of_single_samples():
    with pytest.raises(InputError, match="no data"):
        tw.descend(tw.Problem.from_catalogue("beale"), tw.SGD(lr=0.1), steps=1, record=RECORD)
    x = np.linspace(-1, 1, 9)
    centred = tw.Problem(
        lambda w, x: w["a"] * (x - jnp.mean(x)), "mse", x, x, params={"a": 1.0}
    )  # fmt: skip
    with pytest.raises(InputError, match="several samples at once"):
        tw.descend(centred, tw.SGD(lr=0.1), steps=1, record=RECORD)
