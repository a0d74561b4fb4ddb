"""Known answers for random matrices: against quadrature, samples and the literature's numbers."""

import numpy as np
import pytest
from scipy.integrate import quad

import thalweg as tw
from thalweg.catalogue import random_matrices as known


def test_the_edges_of_100_by_5000():
    # (1 ∓ √0.02)² = 1.02 ∓ 2√0.02
    np.testing.assert_allclose(known.marchenko_pastur_edges(0.02), [0.737157, 1.302843], atol=5e-7)


@pytest.mark.parametrize("ratio", [0.02, 0.5, 1.0, 2.0, 10.0])
def test_moments_of_the_density(ratio):
    """Mass min(1, 1/ratio), mean 1, second moment 1 + ratio."""
    low, high = known.marchenko_pastur_edges(ratio)
    middle, half = (low + high) / 2, (high - low) / 2

    def moment(power):
        # λ = middle − half·cos t turns the square roots at the edges into smooth functions
        def integrand(t):
            at = middle - half * np.cos(t)
            return at**power * known.marchenko_pastur(at, ratio) * half * np.sin(t)

        return quad(integrand, 0, np.pi)[0]

    expected = [min(1, 1 / ratio), 1, 1 + ratio]
    np.testing.assert_allclose([moment(power) for power in range(3)], expected, rtol=1e-6)


def test_the_density_vanishes_outside_its_edges():
    np.testing.assert_array_equal(known.marchenko_pastur([-1, 0, 0.7, 1.31, 9], 0.02), 0)


@pytest.mark.parametrize("ratio", [0.3, 2.5])
def test_the_density_is_that_of_a_large_sample(ratio):
    n = 1200
    p = round(ratio * n)
    values = np.linalg.svd(np.random.default_rng(0).standard_normal((p, n)) / np.sqrt(n))[1] ** 2
    low, high = known.marchenko_pastur_edges(ratio)
    for cut in np.linspace(low, high, 6)[1:-1]:
        below = quad(known.marchenko_pastur, low, cut, args=(ratio,))[0]
        # eigenvalues repel: counts differ from theory by a few of p
        np.testing.assert_allclose((values < cut).sum() / p, below, atol=4 / p)


@pytest.mark.parametrize(("p", "risk"), [(9, 0.9), (18, 18.0), (22, 20.0), (61, 0.5)])
def test_noise_risk_by_hand(p, risk):
    # n = 20: 9/10, 18/1, 20/1, 20/40
    assert known.noise_risk(p, 20) == risk
    assert known.noise_risk(p, 20, noise=3.0) == 9 * risk


def test_noise_risk_is_infinite_about_the_number_of_samples():
    np.testing.assert_array_equal(known.noise_risk([19, 20, 21], 20), np.inf)


@pytest.mark.parametrize("p", [8, 30])
def test_noise_risk_is_that_of_a_sample(p):
    """The mean of σ² tr (ΦᵀΦ)⁺ over draws, whose spread is measured too."""
    features = np.random.default_rng(1).standard_normal((4000, 16, p))
    traces = 0.25 * (np.linalg.svd(features, compute_uv=False) ** -2.0).sum(axis=1)
    error = traces.std(ddof=1) / np.sqrt(len(traces))
    assert abs(traces.mean() - known.noise_risk(p, 16, noise=0.5)) < 3 * error


@pytest.mark.parametrize("ratio", [0, -1.0, np.nan, np.inf])
def test_impossible_ratios(ratio):
    with pytest.raises(tw.InputError, match="positive number"):
        known.marchenko_pastur(1.0, ratio)
