"""The studies: every number marked in their description, and what they draw."""

import numpy as np
import pytest
from scipy.integrate import quad

import thalweg as tw
from thalweg import studies
from thalweg.catalogue import data

# minimal-mlp -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def minimal():
    return studies.run("minimal-mlp", points=21)


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


def test_minimal_mlp_figures(minimal):
    figures = studies.figures("minimal-mlp", minimal)
    assert set(figures) == {*(f"step-{k:03d}" for k in range(0, 100, 10)), "path", "loss"}
    titles = [ax.get_title() for ax in figures["step-030"].axes[:3]]
    assert [title.split()[0] for title in titles] == ["Pointwise", "Empirical", "Expected"]


@pytest.mark.parametrize(
    "settings",
    [
        {"start": "random"},
        {"start": (0.0, 0.0)},
        {"model": "linear", "start": (1.0, 1.0)},
        {"optimizer": "adam", "epochs": 2, "shuffle": True, "batch_size": 7},
        {"batch_size": 100},
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
        np.testing.assert_array_equal(huber.params, smooth.params)
    np.testing.assert_array_equal(
        momentum["landscape/huber/empirical"], momentum["landscape/smooth_l1/empirical"]
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


def test_unknown_studies_and_results():
    with pytest.raises(tw.InputError, match="did you mean 'minimal-mlp'"):
        studies.run("minimal-mpl")
    with pytest.raises(tw.InputError, match="not made by a study"):
        studies.settings_of(
            tw.descend(tw.Problem.from_catalogue("beale"), tw.SGD(lr=1e-3), steps=1)
        )
