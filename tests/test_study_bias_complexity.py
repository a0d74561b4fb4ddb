"""`bias-complexity`: the true risk by quadrature, one program for all dimensions, the peak of theory."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import quad

import thalweg as tw
from thalweg import results, studies
from thalweg.catalogue import data, models
from thalweg.catalogue.random_matrices import noise_risk
from thalweg.plots import style
from thalweg.studies import bias_complexity as study

SMALL = {
    "dimension": 6, "steps": 30, "largest": 12, "runs": 3, "sweep_steps": 20, "n_samples": 15,
    "peak_n": 12, "peak_largest": 24, "peak_draws": 50,
}  # fmt: skip


@pytest.fixture(scope="module")
def small():
    return studies.run("bias-complexity", **SMALL)


def features(x, d):
    """sin(0.2πjx), cos(0.2πjx), j = 0, 1, …, side by side."""
    columns = [f(0.2 * np.pi * j * x) for j in range(d // 2) for f in (np.sin, np.cos)]
    return np.stack(columns, axis=-1)


def by_quadrature(final, target):
    """½∫ (f − target)² of the model with these parameters (bias first), by SciPy, between kinks."""
    truth = data.TARGETS[target]
    bias, weights = final[0], final[1:]

    def error(x):
        return 0.5 * (features(np.asarray(x), len(weights)) @ weights + bias - truth(x)) ** 2

    ends = (-1, *truth.kinks, 1)
    return sum(quad(error, a, b, epsabs=1e-13, limit=200)[0] for a, b in pairwise(ends))


# True risk -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["simple", "middle", "complex"])
def test_the_true_risk_is_that_of_adaptive_quadrature(target):
    tree = studies.run("bias-complexity", **SMALL | {"target": target, "dimension": 40})
    path = results.part(tree, "path/one")
    for step in (0, -1):
        mean = by_quadrature(path["params"].values[step], target)
        np.testing.assert_allclose(path["expected"][step], mean, rtol=1e-9)


@pytest.mark.parametrize("kinks", [(), (0.0,), (-0.5, 0.5)])
@pytest.mark.parametrize("highest", [0.0, 5.0, 62.0, 300.0])
def test_quadrature_integrates_squared_waves(kinks, highest):
    """½∫ (1 + cos(ωx))² dx over [−1, 1] is 3/2 + 2 sin(ω)/ω + sin(2ω)/(4ω)."""
    nodes, weights = study.quadrature(kinks, highest)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-13)
    exact = 1.5 + 2 * np.sinc(highest / np.pi) + np.sinc(2 * highest / np.pi) / 2
    np.testing.assert_allclose(weights @ (1 + np.cos(highest * nodes)) ** 2, exact, rtol=1e-12)


# One program for all dimensions --------------------------------------------------------------------


def test_padding_changes_nothing(small):
    """Each dimension's risks are those of a model of that dimension alone."""
    sweep = results.part(small, "sweep")
    x, y = data.regression("middle", 15, noise=0.05, seed=0)
    for d in (2, 6, 12):
        starts = study._starts(study.Settings(**SMALL), d, d)
        problem = tw.Problem(
            models.line,
            "mse",
            features(x, d),
            y,
            params={"weight": np.zeros(d), "bias": 0.0},
        )
        path = tw.descend(problem, tw.SGD(lr=0.1), steps=20, starts=starts)
        # rounding alone: sums over more columns add in another order
        np.testing.assert_allclose(sweep["train"].sel(dimension=d), path["loss"][-1], rtol=1e-11)
        for run in range(3):
            mean = by_quadrature(path["final"].isel(run=run).values, "middle")
            np.testing.assert_allclose(sweep["true"].sel(dimension=d, run=run), mean, rtol=1e-9)


def test_starts_are_those_of_torchs_linear_and_zero_beyond():
    starts = study._starts(study.Settings(runs=500), 16, 40)
    assert starts["weight"].shape == (500, 40)
    assert not starts["weight"][:, 16:].any()
    drawn = np.column_stack([starts["weight"][:, :16], starts["bias"]])
    assert np.abs(drawn).max() <= 0.25  # 1/√16
    # uniform: variance bound²/3, its standard error √(4/45/8500)·bound² = 0.0002
    assert abs(drawn.var() - 0.25**2 / 3) < 5 * 0.0002
    assert abs(drawn.mean()) < 5 * 0.25 / np.sqrt(3 * 8500)


def test_all_dimensions_are_one_program(compilations):
    """Twice as many dimensions compile as much as half of them, and other numbers nothing."""
    table = study.regression.data(study.regression.DataSettings(n_samples=13))
    counts = []
    for changes in ({"largest": 14}, {"largest": 28}, {"largest": 28, "seed": 1, "sweep_lr": 0.05}):
        before = len(compilations)
        study._sweep(study.Settings(**SMALL | changes), table)
        counts.append(len(compilations) - before)
    half, whole, again = counts
    assert 0 < whole <= half
    assert again == 0


# What is known -------------------------------------------------------------------------------------


def test_the_numerical_rank_is_about_28_at_dimension_50():
    """studies.md: nearly dependent on [−1, 1]."""
    for seed in range(5):
        x, _ = data.regression("middle", 50, noise=0.05, seed=seed)
        assert abs(np.linalg.matrix_rank(features(x, 50)) - 28) <= 1


def test_the_flag_is_the_threshold_of_gradient_descent():
    """lr just below 2/λ_max shrinks, just above grows; every start has its own flag."""
    first = studies.run("bias-complexity", **SMALL)
    threshold = float(results.part(first, "sweep")["threshold"][-1])
    x, _ = data.regression("middle", 15, noise=0.05, seed=0)
    design = np.column_stack([features(x, 12), np.ones(15)])
    np.testing.assert_allclose(threshold, 15 / np.linalg.eigvalsh(design.T @ design)[-1])
    for lr, flag in ((0.999 * threshold, 0), (1.001 * threshold, 1)):
        tree = studies.run("bias-complexity", **SMALL | {"sweep_lr": lr, "sweep_steps": 9000})
        sweep = results.part(tree, "sweep")
        assert sweep["unstable"].dims == ("dimension", "run")
        assert (sweep["unstable"][-1] == flag).all()
        # e^(∓0.002·9000) in the iterate, twice that in the risk: e^36 = 4e15
        assert (sweep["train"][-1] > 1e3).all() == bool(flag)
        found = studies.findings("bias-complexity", tree)
        assert bool(found.warnings) == bool(flag)
        (ax,) = studies.figures("bias-complexity", tree)["sweep"].axes
        said = [text for text in style.notes(ax) if "2/λ_max" in text]
        assert bool(said) == bool(flag)


def test_the_peak_is_where_theory_has_it():
    """The measured mean agrees with theory within its standard error; seeds are those of the study."""
    settings = study.Settings(peak_n=30, peak_largest=80, peak_draws=1500)
    risk = study._peak(settings)["risk"]
    p = risk["features"].values
    error = risk.values.std(axis=1, ddof=1) / np.sqrt(1500)
    # Nearer to n the fourth moment is infinite, and the measured standard error means little.
    far = np.abs(p - 30) >= 8
    off = (risk.values.mean(axis=1) - noise_risk(p, 30, 0.05))[far] / error[far]
    assert np.abs(off).max() < 3.5  # of 32 normal numbers, 3.5 is passed once in 70 times
    assert np.sqrt((off**2).mean()) < 1.4
    assert p[risk.values.mean(axis=1).argmax()] == 30


@pytest.mark.parametrize("p", [4, 12, 20])
def test_the_fits_are_minimum_norm_least_squares(p):
    settings = study.Settings(peak_n=12, peak_largest=20, peak_draws=3, noise=0.5)
    rng = np.random.default_rng([0, 12, p])
    design, noise = rng.standard_normal((3, 12, p)), 0.5 * rng.standard_normal((3, 12, 1))
    by_numpy = [
        (np.linalg.lstsq(a, b[:, 0])[0] ** 2).sum() for a, b in zip(design, noise, strict=True)
    ]
    np.testing.assert_allclose(study._peak(settings)["risk"].sel(features=p), by_numpy, rtol=1e-8)


# What is drawn and said ----------------------------------------------------------------------------


def test_figures(small):
    figures = studies.figures("bias-complexity", small)
    assert list(figures) == ["fit", "descent", "sweep", "rank", "peak"]
    (ax,) = figures["sweep"].axes
    sweep = results.part(small, "sweep")
    drawn = {line.get_label(): line for line in ax.lines}
    mean = drawn["true risk: mean of 3 runs, 10–90 %"]
    np.testing.assert_allclose(mean.get_ydata(), sweep["true"].mean("run"))
    training, true = figures["descent"].axes[0].lines[:2]
    assert (training.get_linestyle(), true.get_linestyle()) == ("-", "--")
    (ax,) = figures["rank"].axes
    np.testing.assert_array_equal(ax.lines[1].get_ydata(), sweep["rank"])
    (ax,) = figures["peak"].axes
    theory = [line for line in ax.lines if "theory" in str(line.get_label())]
    assert len(theory) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0, "sweep_steps": 0},
        {"n_samples": 1, "noise": 0.0},
        {"lr": 1e3, "sweep_lr": 1e3, "steps": 400, "sweep_steps": 400},
        {"runs": 1, "largest": 3, "first": 1, "frequency": 1.0},
        {"peak_n": 1, "peak_largest": 1, "peak_draws": 1},
        {"peak_n": 100, "peak_largest": 5, "frequency": 0.0},
    ],
)
def test_odd_settings(settings):
    tree = studies.run("bias-complexity", **SMALL | settings)
    assert len(studies.figures("bias-complexity", tree)) == 5
    assert studies.findings("bias-complexity", tree).numbers


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"runs": 0}, "'runs' and 'largest'"),
        ({"peak_draws": 0}, "'peak_draws' must be at least 1"),
        ({"dimension": 7}, "come in pairs"),
        ({"target": "midle"}, "did you mean 'middle'"),
    ],
)
def test_impossible_settings(settings, words):
    with pytest.raises(tw.InputError, match=words):
        studies.run("bias-complexity", **SMALL | settings)
