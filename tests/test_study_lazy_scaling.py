"""The study `lazy-scaling`: the laws of lazy training, and what its parts say of each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import SMALL

import thalweg as tw
from thalweg import results, studies
from thalweg.catalogue import models
from thalweg.studies import lazy_scaling

NAME = "lazy-scaling"


@pytest.fixture(scope="module")
def small():
    return studies.run(NAME, **SMALL[NAME])


@pytest.fixture(scope="module")
def smooth():
    """The smooth network at its full size, a fifth of the steps."""
    return studies.run(
        NAME,
        steps=2000,
        every=500,
        alphas=(1000.0,),
        width=2,
        depth=1,
        sweep=(300.0, 550.0, 1000.0),
    )


def test_a_smooth_networks_laws(smooth):
    # movement and kernel drift as 1/α, within 0.02; the distance to the linearised descent as 1/α²
    # (Chizat, Oyallon & Bach, 2019, theorem 2.2)
    measured = results.part(smooth, "against_alpha/tanh")
    found = lazy_scaling.slopes(measured, (300.0, 1000.0))
    assert abs(found["relative_movement"] + 1) < 0.02
    assert abs(found["kernel_drift"] + 1) < 0.02
    assert abs(found["to_linear"] + 2) < 0.02
    shown = studies.findings(NAME, smooth).numbers["tanh: slopes over α = 300 … 1000"]
    assert f"drift {found['kernel_drift']:.4f}" in shown


def test_it_is_gradient_descent_on_the_scaled_and_centred_network(small):
    """The ReLU network's path at α = 100 by hand, one step after another."""
    settings = studies.settings_of(small)
    x, y = (small[f"data/{name}"].values for name in ("x", "y"))
    first = models.init_mlp((1, 4, 4, 1), jax.random.key(0))

    @jax.jit
    def step(w):
        def loss(w):
            return jnp.mean((100 * (models.mlp(w, x) - models.mlp(first, x)) - y) ** 2)

        gradient = jax.grad(loss)(w)
        return jax.tree_util.tree_map(lambda v, g: v - 0.01 / 100**2 * g, w, gradient)

    w = first
    for _ in range(settings.steps):
        w = step(w)
    by_hand = np.concatenate([np.ravel(leaf) for leaf in jax.tree_util.tree_leaves(w)])
    path = results.part(small, "path/alpha-100")
    np.testing.assert_allclose(path["final"], by_hand, rtol=1e-12)
    start = path["start"].values
    moved = np.linalg.norm(by_hand - start) / np.linalg.norm(start)
    np.testing.assert_allclose(path["relative_movement"][-1], moved, rtol=1e-8)
    linear = results.part(small, "linear/alpha-100")
    apart = np.linalg.norm(by_hand - linear["final"]) / np.linalg.norm(start)
    np.testing.assert_allclose(path["to_linear"][-1], apart, rtol=1e-7)


def test_the_linearised_descents_follow_the_closed_form(small):
    """The residual of gradient descent on a linear model: (I − 2η/n Θ)^t (−y), whatever α."""
    x, y = (small[f"data/{name}"].values for name in ("x", "y"))
    first = models.init_mlp((1, 4, 4, 1), jax.random.key(0))
    kernel = tw.ntk(tw.Problem(models.mlp, "mse", x, y, params=first), first)
    values, vectors = np.linalg.eigh(kernel)
    for name, lr in (("alpha-1", 0.01), ("alpha-100", 0.01), ("fast", 0.1)):
        linear = results.part(small, f"linear/{name}")
        decay = (1 - 2 * lr / len(x) * values[:, None]) ** linear["step"].values
        losses = np.mean((decay * (vectors.T @ y)[:, None]) ** 2, axis=0)
        np.testing.assert_allclose(linear["loss"], losses, rtol=1e-8)


def test_functions_begin_at_zero_and_tables_count(small):
    functions = results.part(small, "functions/scaled")
    assert list(functions["descent"].values) == ["α = 1", "α = 100", "α = 100, rate 0.1/α²"]
    np.testing.assert_array_equal(functions["yhat_grid"].sel(moment="initialisation"), 0)
    table = studies.findings(NAME, small).tables["Parameters"]
    # 1·4 + 4, 4·4 + 4, 4·1 + 1
    assert [row[3] for row in table if row[1] == "all"] == ["33"] * 3


def test_a_network_whose_units_keep_their_sides_has_the_kernel_of_a_smooth_one():
    tree = studies.run(NAME, **{**SMALL[NAME], "sweep": (1.0, 1e4, 1e5)})
    measured = results.part(tree, "against_alpha/relu")
    assert list(measured["switched"].values)[1:] == [0, 0]
    drift = measured["kernel_drift"].values
    # 1/α, but for terms of a higher order
    np.testing.assert_allclose(drift[1] / drift[2], 10, rtol=1e-3)


def test_figures(small):
    assert set(studies.figures(NAME, small)) == {
        "data", "functions", "network", "loss", "movement", "successive_change",
        "movement_by_parameter", "to_linear", "kernel_drift", "against_alpha",
    }  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"lr": 1e12},  # diverges
        {"n_samples": 1, "alphas": (3.0,), "sweep": (5.0,)},
        {"batch_size": 3, "every": 1000, "noise": 0.1, "target": "complex"},
    ],
)
def test_odd_settings(settings):
    tree = studies.run(NAME, **{**SMALL[NAME], "steps": 20, **settings})
    assert studies.figures(NAME, tree)
    found = studies.findings(NAME, tree)
    assert bool(found.warnings) == ("lr" in settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alphas": ()}, "'alphas' must be different numbers above 0"),
        ({"alphas": (1.0, 1.0)}, "'alphas' must be different numbers above 0"),
        ({"sweep": (-1.0,)}, "'sweep' must be different numbers above 0"),
        ({"window": (1.0,)}, "'window' must be two"),
        ({"target": "simpel"}, "did you mean 'simple'"),
        ({"width": 0}, "whole numbers of at least 1"),
        ({"depth": 0}, "'depth' must be at least 1"),
        ({"every": 0}, "every must be"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(tw.InputError, match=message):
        studies.run(NAME, **settings)
