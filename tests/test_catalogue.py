"""Data and models of the catalogue, against torch.nn and against the formulas by hand."""

import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

import thalweg as tw
from thalweg.catalogue import data, models

# Targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("simple", [-1, -0.2, 0, 0.5, 1], [0, 0, 0, 0.15, 0.3]),
        # −0.9 − x up to −0.5, then 0.1 + x up to 0.5, then 1.1 − x
        ("middle", [-1, -0.5, 0, 0.5, 1], [0.1, -0.4, 0.1, 0.6, 0.1]),
        # sin(10x) vanishes at 0 and ±π/10; at π/20 it is 1 and the cosine's argument is π/10 + 1
        ("complex", [0, np.pi / 10, -np.pi / 10, np.pi / 20], [0, 0, 0, np.cos(np.pi / 10 + 1)]),
    ],
)
def test_targets_by_hand(name, x, y):
    np.testing.assert_allclose(data.TARGETS[name](x), y, atol=1e-15)


@pytest.mark.parametrize("name", data.TARGETS)
def test_a_target_bends_at_its_kinks_and_nowhere_else(name):
    """Slopes from both sides of a point differ at a kink, and agree to the step elsewhere."""
    target, h = data.TARGETS[name], 1e-6
    for x in (*np.linspace(-0.96, 0.96, 33), *target.kinks):
        jump = (target(x + h) - 2 * target(x) + target(x - h)) / h
        known = any(abs(x - kink) < h for kink in target.kinks)
        assert (abs(jump) > 0.1) == known, x


def test_regression_draws_x_and_adds_noise():
    x, y = data.regression("middle", 2000, seed=3)
    assert x.shape == y.shape == (2000,)
    assert x.min() >= -1
    assert x.max() <= 1
    assert abs(x.mean()) < 0.05  # its standard error is 1/√(3·2000) = 0.013
    np.testing.assert_array_equal(y, data.TARGETS["middle"](x))
    again, noisy = data.regression("middle", 2000, noise=0.05, seed=3)
    np.testing.assert_array_equal(again, x)
    assert abs((noisy - y).std() - 0.05) < 0.004  # 5 × its standard error 0.05/√4000
    assert not np.array_equal(data.regression("middle", 2000, seed=4)[0], x)


def test_regression_says_what_is_wrong():
    with pytest.raises(tw.InputError, match="middle"):
        data.regression("midle", 5)
    with pytest.raises(tw.InputError, match="at least one sample"):
        data.regression("simple", 0)
    with pytest.raises(tw.InputError, match="noise -1 and seed 0 given"):
        data.regression("simple", 3, noise=-1.0)
    with pytest.raises(tw.InputError, match="seed -2 given"):
        data.regression("simple", 3, seed=-2)


# Models ------------------------------------------------------------------------------------------

WIDTHS = {"linear": (8, 1), "shallow": (1, 10, 1), "deep": (1, 10, 10, 10, 10, 10, 1)}


def as_torch(params):
    """The torch.nn.Sequential that holds the parameters of `mlp`."""
    modules = []
    for layer in params.values():
        out, width = layer["weight"].shape
        linear = torch.nn.Linear(width, out, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(np.asarray(layer["weight"])))
            linear.bias.copy_(torch.tensor(np.asarray(layer["bias"])))
        modules += [linear, torch.nn.ReLU()]
    return torch.nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("name", WIDTHS)
def test_mlp_is_torchs(name):
    """ŷ and the gradient of the MSE agree with torch.nn at the same weights."""
    widths = WIDTHS[name]
    params = models.init_mlp(widths, jax.random.key(0))
    x = np.random.default_rng(0).uniform(-1, 1, (15, widths[0]))
    y = np.cos(x.sum(axis=1))
    module = as_torch(params)
    loss = torch.nn.functional.mse_loss(module(torch.tensor(x))[:, 0], torch.tensor(y))
    loss.backward()
    problem = tw.Problem(models.mlp, "mse", x, y, params=params)
    np.testing.assert_allclose(float(problem.risk(params)), loss.item(), rtol=1e-13)
    gradient = problem.gradient(params)
    for layer, linear in zip(gradient.values(), list(module)[::2], strict=True):
        for key in ("weight", "bias"):
            np.testing.assert_allclose(layer[key], getattr(linear, key).grad.numpy(), atol=1e-14)


@pytest.mark.parametrize(
    ("name", "count"),
    [("linear", 9), ("shallow", 31), ("deep", 20 + 4 * 110 + 11)],  # by layer: h(in + 1)
)
def test_parameter_counts(name, count):
    params = models.init_mlp(WIDTHS[name], jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree_util.tree_leaves(params)) == count


def test_init_is_the_distribution_of_torchs_linear():
    """Uniform between ±1/√fan_in, for weights and biases, as torch.nn.Linear draws them."""
    torch.manual_seed(0)
    params = models.init_mlp((400, 300, 1), jax.random.key(1))["l1"]
    linear = torch.nn.Linear(400, 300)
    bound = 400**-0.5
    # A quantile's standard error is at most 2·bound·√(¼/count): 0.003 and 0.06 of the bound.
    for key, near in (("weight", 0.02), ("bias", 0.4)):
        ours, theirs = np.asarray(params[key]).ravel(), getattr(linear, key).detach().numpy()
        for drawn in (ours, theirs):
            assert np.abs(drawn).max() <= bound * (1 + 1e-6)  # torch rounds the bound to float32
        quantiles = np.linspace(0.05, 0.95, 19)
        expected = bound * (2 * quantiles - 1)
        for drawn in (ours, theirs):
            np.testing.assert_allclose(np.quantile(drawn, quantiles), expected, atol=near * bound)


def test_fourier_features_by_hand():
    x = np.array([0.0, 0.25, -0.5])
    seen = models.fourier_features(x, 6)
    by_hand = [
        [f(2 * np.pi * j * value) for j in range(3) for f in (np.sin, np.cos)] for value in x
    ]
    np.testing.assert_allclose(seen, by_hand, atol=1e-15)
    np.testing.assert_array_equal(np.asarray(seen)[:, :2], [[0, 1]] * 3)  # j = 0


def test_fourier_features_nest_and_start_where_told():
    x = np.linspace(-1, 1, 7)
    more = models.fourier_features(x, 20, frequency=0.2 * np.pi)
    np.testing.assert_array_equal(models.fourier_features(x, 8, frequency=0.2 * np.pi), more[:, :8])
    later = models.fourier_features(x, 18, frequency=0.2 * np.pi, first=1)
    np.testing.assert_array_equal(later, more[:, 2:])


@pytest.mark.parametrize(("dimension", "first"), [(7, 0), (0, 0), (4, -1)])
def test_fourier_features_say_what_is_wrong(dimension, first):
    with pytest.raises(tw.InputError, match="come in pairs"):
        models.fourier_features(np.zeros(3), dimension, first=first)


def test_features_are_float64_whatever_was_imported_before():
    code = (
        "import numpy; from thalweg.catalogue import models;"
        "assert models.fourier_features(numpy.ones(1), 2).dtype == 'float64'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("model", [models.mlp, models.residual_mlp])
def test_networks_with_several_outputs(model):
    params = models.init_mlp((3, 4, 4, 4, 2), jax.random.key(0))
    x = np.random.default_rng(0).standard_normal((6, 3))
    both = model(params, x)
    assert both.shape == (6, 2)
    for k in range(2):
        one = {n: dict(layer) for n, layer in params.items()}
        one["l4"] = {name: part[k : k + 1] for name, part in params["l4"].items()}
        np.testing.assert_allclose(model(one, x), both[:, k], rtol=1e-12)
