"""Sharpness along descents: against dense Hessians, and at the edge of stability."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import edge, observables
from thalweg.catalogue import models
from thalweg.errors import InputError

WIDTHS = (2, 8, 8, 1)


def tanh_net(params, x):
    return models.mlp(params, x, jnp.tanh)


def regression(n=30, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (n, 2))
    y = np.sin(3 * x[:, 0]) + x[:, 1] ** 2
    return tw.Problem(tanh_net, "mse", x, y, params=models.init_mlp(WIDTHS, jax.random.key(seed)))


def dense(problem, vector, scale=1.0):
    matrix = jax.hessian(lambda v: problem.risk(problem.unflatten(v)))(jnp.asarray(vector))
    return float(np.linalg.eigvalsh(scale * np.asarray(matrix) * np.reshape(scale, (-1, 1)))[-1])


def test_sharpness_along_a_descent_is_the_dense_hessians():
    problem = regression()
    path = tw.descend(
        problem, tw.SGD(lr=[0.05, 0.3]), steps=200, every=10, record={"sharpness": tw.sharpness}
    )
    for lr in range(2):
        for row in range(0, 21, 4):
            expected = dense(problem, path["params"].values[row, :, lr])
            assert float(path["sharpness"][row, lr]) == pytest.approx(expected, rel=1e-3)
    start = tw.sharpness(problem, problem.params)
    assert start == pytest.approx(dense(problem, path["start"].values[:, 0]), rel=1e-9)


def rotating(params):
    """Two bowls, of which one steepens as the other is left: the top eigenvector changes for another."""
    a, b = params["a"], params["b"]
    return 0.5 * (3 - a) * b**2 + 0.5 * (a - 2) ** 2 + 0.1 * a**4


def test_it_finds_a_new_top_that_is_orthogonal_to_the_old_one():
    problem = tw.Problem.from_function(rotating, {"a": -1.0, "b": 0.0})
    path = tw.descend(problem, tw.SGD(lr=0.05), steps=100, record={"sharpness": tw.sharpness})
    expected = [dense(problem, row) for row in path["params"].values]
    np.testing.assert_allclose(path["sharpness"], expected, rtol=1e-6)
    assert np.argmax(np.diff(np.sign(np.diff(expected)))) > 0  # it falls, and then another rises


@pytest.mark.parametrize(
    ("low", "high", "p"), [(-1000, 1, 2000), (-100, -1, 2000), (-10, 1, 1000), (0, 1, 1000)]
)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_crowd_of_eigenvalues_below_the_largest(low, high, p, dtype):
    """Or far larger ones of the other sign: ten products are too few, and more are taken."""
    curvatures = jnp.linspace(low, high, p).astype(dtype)
    problem = tw.Problem.from_function(
        lambda w: 0.5 * jnp.sum(curvatures * w * w), jnp.ones(p, dtype)
    )
    path = tw.descend(problem, tw.SGD(lr=0.0), steps=2, record={"sharpness": tw.sharpness})
    np.testing.assert_allclose(path.sharpness, high, rtol=1e-4 if dtype == "float64" else 2e-3)


def test_a_measurement_takes_no_more_than_400_products(monkeypatch):
    products, seen = edge.products.whole_product, []

    def counted(*arguments):
        jax.debug.callback(lambda: seen.append(1))
        return products(*arguments)

    monkeypatch.setattr(edge.products, "whole_product", counted)
    monkeypatch.setattr(edge, "_TOLERANCE", 0.0)
    curvatures = jnp.linspace(-1000, 1, 2000)
    problem = tw.Problem.from_function(lambda w: 0.5 * jnp.sum(curvatures * w * w), jnp.ones(2000))
    at = observables.at_point(problem, problem.params, problem.params, 0)
    jax.block_until_ready(edge._top(False, at, jnp.ones(2000)))
    jax.effects_barrier()
    assert len(seen) == 400


def test_sharpness_in_half_precision():
    curvatures = jnp.asarray([1.0, 2.0, 4.0], jnp.bfloat16)
    problem = tw.Problem.from_function(
        lambda w: 0.5 * jnp.sum(curvatures * w * w), jnp.ones(3, jnp.bfloat16)
    )
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=2, record={"sharpness": tw.sharpness})
    np.testing.assert_allclose(path.sharpness, 4, rtol=1e-2)


@pytest.mark.parametrize(
    ("optimizer", "preconditioner"),
    [
        (tw.Adam(lr=1e-3), lambda s, t: (1 - 0.9**t) * (np.sqrt(s["v"] / (1 - 0.999**t)) + 1e-8)),
        (tw.RMSprop(lr=1e-3), lambda s, t: np.sqrt(s["r"]) + 1e-8),
        (
            tw.Adagrad(lr=1e-2, lr_decay=0.3),
            lambda s, t: (1 + 0.3 * (t - 1)) * (np.sqrt(s["sum"]) + 1e-10),
        ),
    ],
    ids=["Adam", "RMSprop", "Adagrad"],
)
def test_preconditioned_sharpness(optimizer, preconditioner):
    problem = regression()
    path = tw.descend(
        problem, optimizer, steps=30, record={"sharp": tw.preconditioned_sharpness, "grad": True}
    )
    state = dict.fromkeys(("v", "r", "sum"), 0.0)
    for t, g in enumerate(path["grad"].values, 1):
        state = {
            "v": 0.999 * state["v"] + 0.001 * g**2,
            "r": 0.99 * state["r"] + 0.01 * g**2,
            "sum": state["sum"] + g**2,
        }
        if t in (1, 10, 31):
            scale = preconditioner(state, t) ** -0.5
            expected = dense(problem, path["params"].values[t - 1], scale)
            assert float(path["sharp"][t - 1]) == pytest.approx(expected, rel=2e-3)


def test_preconditioned_sharpness_is_not_for_every_optimizer():
    with pytest.raises(InputError, match="SGD given"):
        tw.descend(regression(), tw.SGD(lr=0.1), steps=1, record={"p": tw.preconditioned_sharpness})


def test_the_edge_of_stability():
    """Full-batch descent of a small tanh network: sharpness rises to 2/η and hovers there (Cohen et al.,
    2021). The model, data and seed are those of `regression`: 30 samples, two hidden layers of 8."""
    problem, lr, steps = regression(), 0.15, 8000
    path = tw.descend(
        problem, tw.SGD(lr=lr), steps=steps, every=50,
        record={"sharpness": tw.sharpness, "params": False},
    )  # fmt: skip
    limit = float(tw.stability_threshold(path))
    assert limit == pytest.approx(2 / lr)
    sharp = path["sharpness"].values
    assert sharp[0] < 0.8 * limit
    assert abs(np.median(sharp[-len(sharp) // 4 :]) / limit - 1) < 0.2
    assert path["loss"].values[-1] < 0.1 * path["loss"].values[0]


# Where a quadratic becomes unstable ------------------------------------------------------------


def stretched(params):
    return 0.5 * 4.0 * params["w"] ** 2


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "nesterov": True},
        {"weight_decay": 1.0},
    ],
    ids=str,
)
def test_the_threshold_is_where_a_quadratic_becomes_unstable(options):
    """Curvature 4: learning rates just below and just above the one whose threshold is 4."""
    problem = tw.Problem.from_function(stretched, {"w": 1.0})
    unit = tw.descend(problem, tw.SGD(lr=1.0, **options), steps=1)
    decay = options.get("weight_decay", 0.0)
    critical = (float(tw.stability_threshold(unit)) + decay) / (4.0 + decay)
    path = tw.descend(problem, tw.SGD(lr=[0.98 * critical, 1.02 * critical], **options), steps=3000)
    limits = tw.stability_threshold(path)
    assert limits.dims == ("lr",)
    assert float(limits[0]) > 4 > float(limits[1])
    below, above = np.abs(path["params"].values[:, 0]).T
    assert below[-100:].max() < 1e-3
    assert not above[-1] < 1e3  # NaN where it has left the numbers


def test_thresholds_of_a_sweep_of_rates_and_momenta():
    problem = tw.Problem.from_function(stretched, {"w": 1.0})
    path = tw.descend(problem, tw.SGD(lr=[0.1, 0.2], momentum=[0, 0.9], dampening=0.5), steps=1)
    # 2 (1 + μ) / (η (1 − τ)), and 2/η where there is no momentum, by hand
    np.testing.assert_allclose(tw.stability_threshold(path), [[20, 76], [10, 38]])
    assert tw.stability_threshold(path).dims == ("lr", "momentum")


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "Adagrad"])
def test_thresholds_of_adaptive_rules(name):
    problem = tw.Problem.from_function(stretched, {"w": 1.0})
    path = tw.descend(problem, getattr(tw, name)(lr=[0.1, 0.2]), steps=1)
    factor = {"Adam": 38, "AdamW": 38}.get(name, 2)
    expected = np.array([factor / 0.1, factor / 0.2])
    if name == "AdamW":  # whose weight decay is 0.01
        expected -= 0.01 * 19
    np.testing.assert_allclose(tw.stability_threshold(path), expected)


@pytest.mark.parametrize(
    "optimizer",
    [
        tw.AdamW(lr=0.1, eps=1e6, weight_decay=5.0),
        tw.Adam(lr=0.1, eps=1e6, weight_decay=5.0, decoupled_weight_decay=True),
    ],
)
def test_decoupled_decay_has_its_part_in_the_threshold(optimizer):
    """ε is far above any gradient, so that the preconditioner is ε: curvatures just below and above."""
    steep = tw.Problem.from_function(lambda w: 0.5 * jnp.sum(w**2), np.ones(1))
    limit = float(tw.stability_threshold(tw.descend(steep, optimizer, steps=1)))
    assert limit == pytest.approx(1.5 * 19 / 0.1)
    curvatures = 1e6 * limit * np.array([0.98, 1.02])
    both = tw.Problem.from_function(lambda w: 0.5 * jnp.sum(curvatures * w**2), np.full(2, 1e-90))
    first, *_, last = abs(tw.descend(both, optimizer, steps=1500, every=500).params.values[1:])
    assert last[0] < 1e-6 * first[0]
    assert last[1] > 1e6 * first[1]


def test_a_schedule_has_a_threshold_a_step():
    problem = tw.Problem.from_function(stretched, {"w": 1.0})
    path = tw.descend(problem, tw.SGD(lr=lambda t: 0.1 / (t + 1)), steps=4)
    np.testing.assert_allclose(tw.stability_threshold(path), 20 * np.array([1, 2, 3, 4, 4]))
    further = tw.descend(problem, tw.SGD(lr=lambda t: 0.1 / (t + 1)), steps=5, resume=path, every=2)
    threshold = tw.stability_threshold(further)
    np.testing.assert_array_equal(threshold.step, [4, 6, 8, 9])
    np.testing.assert_allclose(threshold, 20 * np.array([5, 7, 9, 9]))
    with pytest.raises(InputError, match="was made by LBFGS"):
        tw.stability_threshold(tw.descend(problem, tw.LBFGS(), steps=1))


def test_a_limit_has_the_colour_of_its_curve():
    problem = tw.Problem.from_function(
        lambda w: w["a"] ** 2 + 2 * w["b"] ** 2, {"a": 1.0, "b": 0.5}
    )

    def descent(lr):
        return tw.descend(problem, tw.SGD(lr=lr), steps=4, record={"sharpness": tw.sharpness})

    ax = tw.plot.sharpness(descent(0.1), label="first")
    tw.plot.sharpness(descent([0.2, 0.4]), ax=ax, label="second")
    drawn = {line.get_label(): line for line in ax.lines}
    assert drawn["first: stable below 20"].get_color() == "#000000"
    for curve, limit in (
        ("second: lr = 0.2", drawn["second: stable below 10, 5"]),
        ("second: lr = 0.4", drawn["_limit"]),
    ):
        assert limit.get_color() == drawn[curve].get_color()
    tw.plot.sharpness(descent(0.25), ax=ax, label="third")
    last = {line.get_label(): line for line in ax.lines}
    assert last["third: stable below 8"].get_color() == last["third"].get_color()


def test_sharpness_goes_on_after_a_point_without_a_hessian():
    def f(w):
        return jnp.sum(jnp.array([1.0, 2.0, 3.0]) * jnp.abs(w) ** 1.5) - jnp.sum(w)

    path = tw.descend(
        tw.Problem.from_function(f, jnp.zeros(3)),
        tw.SGD(lr=0.05),
        steps=3,
        record={"sharpness": tw.sharpness, "params": True},
    )
    assert np.isnan(path["sharpness"][0])
    w = path["params"].values[1:]
    expected = (0.75 * np.array([1, 2, 3]) / np.sqrt(np.abs(w))).max(axis=1)
    np.testing.assert_allclose(path["sharpness"][1:], expected, rtol=1e-3)
