"""The studies: every number marked in their description, and what they draw."""

import re

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize

import thalweg as tw
from thalweg import show, studies
from thalweg.catalogue import data

# minimal-mlp -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minimal():
    return studies.run("minimal-mlp", points=21)


@pytest.fixture(scope="module")
def minimal_figures(minimal):
    return studies.figures("minimal-mlp", minimal)


@pytest.mark.parametrize("model", ["relu", "linear"])
@pytest.mark.parametrize(("w1", "w2"), [(3.0, -4.0), (1.5, 2.0), (-2.0, 0.7), (0.0, 1.0)])
def test_expected_risk_agrees_with_quadrature(model, w1, w2):
    tree = studies.run("minimal-mlp", model=model, n_samples=3, points=2, start=(w1, w2))
    unit = (lambda x: max(w2 * x, 0.0)) if model == "relu" else (lambda x: w2 * x)

    def integrand(x):
        return 0.5 * (w1 * unit(x) - 2 * x) ** 2

    # E (f(x) − 2x − ε)² = E (f(x) − 2x)² + 3²; the unit's kink is at 0
    by_quadrature = quad(integrand, -1, 0)[0] + quad(integrand, 0, 1)[0] + 9
    np.testing.assert_allclose(tree["path/expected"][0], by_quadrature, rtol=1e-12)


def test_expected_risk_of_the_study_is_the_stated_formula(minimal):
    surface = minimal["landscape"]
    product = surface.w1 * surface.w2
    stated = 0.5 * (8 / 3 - 4 / 3 * product + product**2 / 3) + 9
    np.testing.assert_allclose(surface.expected, stated, rtol=1e-12)


def test_minimal_mlp_is_plain_sgd_in_data_order(minimal):
    x, y = data.noisy_line(100, seed=0)
    assert (abs(x) < 1).all()
    w1, w2 = 3.0, -4.0
    for step, (a, b) in enumerate(zip(x, y, strict=True)):
        np.testing.assert_allclose(minimal["path/params"][step], [w1, w2], rtol=1e-10)
        assert minimal["path/batch"][step, 0] == step
        active = w2 * a > 0
        e = w1 * w2 * a * active - b
        gradient = 2 * e * a * active * np.array([w2, w1])
        np.testing.assert_allclose(minimal["path/grad"][step], gradient, rtol=1e-8, atol=1e-12)
        w1, w2 = w1 - 0.01 * gradient[0], w2 - 0.01 * gradient[1]
    np.testing.assert_allclose(minimal["path/final"], [w1, w2], rtol=1e-10)
    assert (
        f"w1 = {w1:.6g}, w2 = {w2:.6g}"
        in studies.findings("minimal-mlp", minimal).numbers["last iterate"]
    )


def test_minimal_mlp_landscape_is_the_mean_of_its_pointwise_risks(minimal):
    surface = minimal["landscape"]
    np.testing.assert_allclose(surface.pointwise.mean("sample"), surface.empirical, rtol=1e-12)
    k, w1, w2 = 17, float(surface.w1[3]), float(surface.w2[15])
    x, y = minimal["data/x"].values[k], minimal["data/y"].values[k]
    by_hand = (w1 * max(w2 * x, 0) - y) ** 2
    np.testing.assert_allclose(surface.pointwise[k, 3, 15], by_hand, rtol=1e-12)


def test_minimal_mlp_figures(minimal_figures):
    figures = minimal_figures
    steps = {f"step-{k:03d}" for k in range(0, 100, 10)}
    assert set(figures) == {*steps, "path", "animation", "loss", "risks"}
    assert figures["step-030"].get_suptitle() == "Step 30, sample 30"
    assert figures["animation"].steps == tuple(range(101))
    titles = [ax.get_title() for ax in figures["step-030"].axes[:3]]
    assert [title.split()[0] for title in titles] == ["Pointwise", "Empirical", "Expected"]


def test_minimal_mlp_levels_are_quantile_bands_about_the_middle(minimal, minimal_figures):
    surface = minimal["landscape"].to_dataset()
    center = float(surface["expected"][10, 10])  # of 21 × 21 points
    assert center == pytest.approx(4 / 3 + 9, rel=1e-12)  # at the origin: ½·8/3 + 3²
    both = np.concatenate([surface["empirical"].values, surface["expected"].values], axis=None)
    below = np.quantile(both[both < center], np.linspace(0, 1, 11))[:-1]
    above = np.quantile(both[both > center], np.linspace(0, 1, 11))[1:]
    # Many of 21 × 21 points have equal expected risks, and so have two quantiles.
    edges = np.unique(np.concatenate([below, [center], above]))
    assert len(edges) == 20
    figures = minimal_figures
    left, middle, right, bar = figures["step-030"].axes
    levels = [
        next(c for c in ax.collections if hasattr(c, "levels")).levels
        for ax in (left, middle, right, figures["animation"].figure.axes[0])
    ]
    for shared in levels[1:3]:
        np.testing.assert_allclose(shared, edges, rtol=1e-12)
    for stretched in (levels[0], levels[3]):
        np.testing.assert_allclose(stretched[1:-1], edges[1:-1], rtol=1e-12)
    own = surface["pointwise"][30].values
    assert levels[0][0] == min(edges[0], own.min())
    assert levels[0][-1] == max(edges[-1], own.max())
    assert bar.get_ylabel().startswith("risk (levels are quantiles below and above 10.3")


def test_minimal_mlp_arrow_is_a_tenth_of_the_gradient_downhill(minimal, minimal_figures):
    figures = minimal_figures
    moving = 0
    for step in range(0, 100, 10):
        left = figures[f"step-{step:03d}"].axes[0]
        arrows = [c for c in left.collections if hasattr(c, "U")]
        gradient = minimal["path/grad"].values[step]
        moving += len(arrows)
        assert len(arrows) == gradient.any()
        for arrow in arrows:
            np.testing.assert_allclose([arrow.U[0], arrow.V[0]], -0.1 * gradient, rtol=1e-12)
    assert 0 < moving < 10


def test_minimal_mlp_keeps_to_its_hyperbola(minimal):
    # w1 − s·w2, w2 − s·w1: the difference of the squares is multiplied by 1 − s²
    path = minimal["path"].to_dataset()
    w1, w2 = path["params"].values.T
    gradient = path["grad"].values[:-1]
    s = 0.01 * gradient[:, 0] / w2[:-1]  # the gradient is (w2, w1) times one number
    np.testing.assert_allclose(0.01 * gradient[:, 1] / w1[:-1], s, rtol=1e-9)
    squares = w1**2 - w2**2
    np.testing.assert_allclose(squares[1:], squares[:-1] * (1 - s**2), rtol=1e-12)


def test_minimal_mlp_from_a_diagonal_stays_on_it():
    for w1, w2 in ((2.0, 2.0), (2.0, -2.0)):
        tree = studies.run("minimal-mlp", points=5, start=(w1, w2))
        a, b = tree["path/params"].values.T
        np.testing.assert_allclose(a, b * w1 / w2, rtol=1e-12)
        assert len(np.unique(a)) > 10


def test_minimal_mlp_draws_chosen_steps_and_never_too_many():
    tree = studies.run("minimal-mlp", points=3, n_samples=5, at=(1, 4))
    assert [f for f in studies.figures("minimal-mlp", tree) if "step" in f] == [
        "step-001",
        "step-004",
    ]
    tree = studies.run("minimal-mlp", points=3, n_samples=5, epochs=40, every=1)
    assert sum("step" in f for f in studies.figures("minimal-mlp", tree)) == 50
    with pytest.raises(tw.InputError, match="'at': step 5 was not taken; give steps from 0 to 4"):
        studies.run("minimal-mlp", points=3, n_samples=5, at=(5,))
    with pytest.raises(tw.InputError, match="'noise' must be at least 0"):
        studies.run("minimal-mlp", noise=-1.0)
    with pytest.raises(tw.InputError, match="'start' must be two numbers"):
        studies.run("minimal-mlp", start=(1.0,))
    with pytest.raises(tw.InputError, match="'points' must be at least 2"):
        studies.run("minimal-mlp", points=1)


def test_minimal_mlp_diverging_is_drawn_and_said():
    tree = studies.run("minimal-mlp", points=3, lr=10.0, every=5)
    lost = int(tree["path/diverged_at"])
    assert 0 < lost < 100
    figures = studies.figures("minimal-mlp", tree)
    steps = [int(name[5:]) for name in figures if name.startswith("step")]
    assert steps == list(range(0, lost, 5))
    assert figures["animation"].steps[-1] < lost
    numbers = studies.findings("minimal-mlp", tree).numbers
    assert numbers["status"] == f"diverged at step {lost}"


@pytest.mark.parametrize(
    "settings",
    [
        {"start": "random"},
        {"start": (0.0, 0.0)},
        {"model": "linear", "start": (1.0, 1.0)},
        {"optimizer": "adam", "epochs": 2, "shuffle": True, "batch_size": 7},
        {"batch_size": 100},
        {"optimizer": "SGD", "options": "momentum=0.9,nesterov=true", "lr": 0.001},
        {"epochs": 3, "noise": 10.0},
        {"n_samples": 1, "noise": 0.0},
    ],
)
def test_minimal_mlp_variants(settings):
    tree = studies.run("minimal-mlp", points=5, every=50, **settings)
    assert tree["path/status"] == "completed"
    assert studies.figures("minimal-mlp", tree)
    if settings.get("start") == (0.0, 0.0):
        # the origin is a saddle, and relu'(0) = 0: nothing moves
        np.testing.assert_array_equal(tree["path/params"], np.zeros((101, 2)))
    if settings.get("start") == "random":
        assert (np.abs(tree["path/params"][0]) < 0.1).all()


# losses-and-momentum -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def momentum():
    return studies.run("losses-and-momentum", points=15)


def test_losses_and_momentum_reproduces_the_reference(momentum):
    loss = momentum["path/mse/plain/loss"].values
    assert loss.dtype == np.float32
    # the reference prints six digits
    np.testing.assert_allclose(loss[[0, 1, 99]], [53.0783, 34.7295, 0.499441], rtol=2e-6)


def test_huber_and_smooth_l1_are_the_same_function(momentum):
    for name in ("plain", "momentum", "nesterov", "weight_decay", "dampening"):
        huber = momentum[f"path/huber/{name}"].to_dataset()
        smooth = momentum[f"path/smooth_l1/{name}"].to_dataset()
        # in single precision, and fused as it may be: each step rounds by 2⁻²⁴ of what it adds up
        np.testing.assert_allclose(huber.params, smooth.params, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(
        momentum["landscape/huber/empirical"], momentum["landscape/smooth_l1/empirical"], rtol=1e-6
    )


def test_weight_decay_ends_at_the_bottom_of_the_penalised_risk(momentum):
    x, y = data.curved_line()
    # (XᵀX·2/n + λI) w = Xᵀy·2/n, the minimiser of MSE + ½λ‖w‖²
    design = np.column_stack([np.ones(50), x]).astype(float)
    exact = np.linalg.solve(
        2 / 50 * design.T @ design + 2 * np.eye(2), 2 / 50 * design.T @ y.astype(float)
    )
    final = momentum["path/mse/weight_decay/final"].values
    np.testing.assert_allclose(final, exact, rtol=1e-5)
    surface = momentum["penalised/mse"]
    w = {"bias": float(surface.bias[4]), "weight": float(surface.weight[9])}
    residual = w["weight"] * x.astype(float) + w["bias"] - y
    by_hand = np.mean(residual**2) + w["bias"] ** 2 + w["weight"] ** 2
    np.testing.assert_allclose(surface.empirical[4, 9], by_hand, rtol=1e-6)


RESIDUAL_RISKS = {
    "mse": lambda r: r**2,
    "l1": abs,
    "huber": lambda r: np.where(abs(r) < 1, r**2 / 2, abs(r) - 0.5),
    "smooth_l1": lambda r: np.where(abs(r) < 1, r**2 / 2, abs(r) - 0.5),
}


@pytest.mark.parametrize("loss", RESIDUAL_RISKS)
def test_weight_decay_ends_at_the_bottom_for_every_loss(momentum, loss):
    x, y = (a.astype(float) for a in data.curved_line())

    def penalised(w):  # bias, weight; ½λ‖w‖² with λ = 2
        return RESIDUAL_RISKS[loss](w[1] * x + w[0] - y).mean() + w @ w

    # Nelder–Mead needs no derivative, and the L1 loss has none at its kinks.
    exact = minimize(penalised, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8})
    final = momentum[f"path/{loss}/weight_decay/final"].values.astype(float)
    # float32: the risk is flat to its precision over ‖Δw‖ of about the root of that
    assert penalised(final) <= exact.fun + 1e-6
    np.testing.assert_allclose(final, exact.x, atol=1e-4)


def test_losses_and_momentum_tells_the_penalised_risk(momentum):
    numbers = studies.findings("losses-and-momentum", momentum).numbers
    (text,) = (v for k, v in numbers.items() if k.startswith("MSE") and "decay" in k)
    # 3.7902519 by Nelder–Mead, as above
    assert "3.7903 with the penalty (lowest on the grid: " in text


def test_show_prints_the_losses_step_by_step(momentum):
    lines = list(show.lines(momentum, "path/mse/plain"))
    printed = dict(line.split() for line in lines if re.fullmatch(r"\s+\d+\s+\S+", line))
    assert len(printed) == 101
    assert [printed[step] for step in ("0", "1", "99")] == ["53.0783", "34.7295", "0.499441"]


def test_curved_line_is_drawn_in_the_stated_order():
    x, y = data.curved_line()
    random = np.random.RandomState(20240215)
    own = random.standard_normal(50).astype("float32")
    np.testing.assert_array_equal(x, own)
    stated = 0.75 * own**2 + own + 2 + 0.3 * random.standard_normal(50)
    np.testing.assert_array_equal(y, stated.astype("float32"))
    assert x.dtype == y.dtype == np.float32


def test_losses_and_momentum_figures(momentum):
    figures = studies.figures("losses-and-momentum", momentum)
    four = {"plain", "momentum", "nesterov", "weight_decay", "dampening", "weight_decay_penalised"}
    assert set(figures) == {"points", "fit", "landscape", "heatmap", "path", *four}
    for name in four:
        panels = [ax for ax in figures[name].axes if ax.get_xlabel() == "bias"]
        assert [ax.get_title() for ax in panels] == ["MSE", "L1", "Huber", "smooth L1"]
        assert all(ax.get_ylabel() == "weight" for ax in panels)


# Of all studies ------------------------------------------------------------------------------------


def test_settings_are_read_from_text():
    made = studies.make_settings(
        "minimal-mlp", {"start": "1,-2", "n_samples": "7", "shuffle": "true", "lr": "1e-3"}
    )
    assert made.start == (1.0, -2.0)
    assert made.n_samples == 7
    assert made.shuffle is True
    assert made.lr == 1e-3
    for name, value in [
        ("n_samples", "7.5"),
        ("n_samples", 7.5),
        ("shuffle", "maybe"),
        ("lr", "fast"),
        ("n_samples", float("inf")),
        ("seed", -1),
        ("seed", 2**32),
    ]:
        with pytest.raises(tw.InputError, match=name):
            studies.make_settings("minimal-mlp", {name: value})


@pytest.mark.parametrize("name", ["minimal-mlp", "losses-and-momentum"])
def test_a_saved_study_runs_again_to_the_same_numbers(name, tmp_path):
    tree = studies.run(name, points=5)
    tw.save(tree, tmp_path / "study.nc")
    loaded = tw.load(tmp_path / "study.nc")
    assert loaded.identical(tree)
    assert tw.rerun(loaded).equals(tree)


@pytest.mark.parametrize("missing", ["study", "settings"])
def test_a_study_that_does_not_say_how_it_was_made_is_not_run_again(missing):
    tree = studies.run("lazy-1d")
    del tree.attrs[missing]
    with pytest.raises(tw.InputError, match=f"attribute '{missing}' is missing"):
        tw.rerun(tree)


def test_unknown_studies_and_results():
    with pytest.raises(tw.InputError, match="did you mean 'minimal-mlp'"):
        studies.run("minimal-mpl")
    with pytest.raises(tw.InputError, match="thalweg descend TABLE"):
        studies.run("fit")
    with pytest.raises(tw.InputError, match="not made by a study"):
        studies.settings_of(
            tw.descend(tw.Problem.from_catalogue("beale"), tw.SGD(lr=1e-3), steps=1)
        )
