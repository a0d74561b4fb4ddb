"""The study `lazy-1d`: the functions by hand, and two losses that become one."""

import numpy as np
import pytest
from matplotlib.text import Text
from small import SMALL

import thalweg as tw
from thalweg import results, studies
from thalweg.studies import lazy_1d

NAME = "lazy-1d"


def f(x, w):
    return w * x / 2 + np.log(1 + w**2) * x / 5 + 0.1 * np.sin(np.exp(2 * w))


@pytest.fixture(scope="module")
def tree():
    return studies.run(NAME, points=801)


def test_the_function_and_its_tangent_by_hand(tree):
    drawn = tree["function"]
    w = drawn["w"].values
    assert (w[0], w[-1]) == (-1, 1)
    np.testing.assert_allclose(drawn["h"].sel(curve="h"), f(2, w) * (w - 0.4), atol=1e-14)
    tangent = f(2, 0.4) * (w - 0.4)
    np.testing.assert_allclose(drawn["h"].sel(curve="its tangent"), tangent, atol=1e-14)


@pytest.mark.parametrize("alpha", [1.0, 5.0, 10.0, 50.0, 100.0, 1000.0, 2000.0, 10000.0])
def test_both_losses_by_hand(tree, alpha):
    name = f"alpha-{alpha:g}"
    for what, slope in (("model", lambda w: f(1.5, w)), ("linear", lambda w: f(1.5, 1.5))):
        surface = results.part(tree, f"{what}/{name}")
        w = surface["w"].values
        np.testing.assert_allclose(w[[0, -1]], 1.5 + np.array([-2, 2]) / alpha**0.75, rtol=1e-15)
        by_hand = (alpha * slope(w) * (w - 1.5) - 3) ** 2 / (2 * alpha**2)
        np.testing.assert_allclose(surface["empirical"], by_hand, rtol=1e-9, atol=1e-20)


def test_the_losses_become_one_at_the_predicted_rate(tree):
    """α^(−3/4) as α grows; the next order is α^(−1/4) smaller, and not yet small."""
    gap = tree["gap/gap"].values
    assert gap[0] > 0.5
    assert gap[-1] < 0.01
    measured = lazy_1d.slope(tree, studies.settings_of(tree))
    assert abs(measured + 0.75) < 0.1
    far = studies.run(NAME, alphas=(1e9, 1e10), points=801)
    assert abs(lazy_1d.slope(far, studies.settings_of(far)) + 0.75) < 0.01


def test_figures_and_the_quiz(tree):
    figures = studies.figures(NAME, tree)
    assert set(figures) == {"function", "losses", "gap"}
    panels = figures["losses"].axes
    assert [ax.get_title() for ax in panels] == [
        f"α = {a}" for a in (1, 5, 10, 50, 100, 1000, 2000, 10000)
    ]
    assert all(ax.get_xlabel() == "w" for ax in panels)
    quiz = studies.run(NAME, quiz=True, **SMALL[NAME])
    for name, drawing in studies.drawings(NAME, quiz):
        words = {text.get_text() for text in drawing.figure.findobj(Text)}
        axes = drawing.figure.axes
        ticks = {
            t.get_text() for ax in axes for t in (*ax.get_xticklabels(), *ax.get_yticklabels())
        }
        assert words - ticks - {""} == {"?"}, name
        assert "α" not in drawing.caption
    assert not studies.findings(NAME, quiz).numbers
    # the numbers are the same: only words are hidden
    plain = studies.run(NAME, **SMALL[NAME])
    assert quiz["model/alpha-100"].to_dataset().equals(plain["model/alpha-100"].to_dataset())


@pytest.mark.parametrize(
    "settings",
    [
        {"alphas": (7.0,)},
        {"start": 0.0, "sample": (0.0, 0.0)},  # f(0, 0) is not zero: sin(1)/10
        {"points": 2, "window": 1e-6},
        {"alphas": (1e-3, 1e12)},
    ],
)
def test_odd_settings(settings):
    tree = studies.run(NAME, **{**SMALL[NAME], **settings})
    assert studies.figures(NAME, tree)
    assert studies.findings(NAME, tree).numbers


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alphas": ()}, "'alphas' must be different numbers above 0"),
        ({"alphas": (1.0, 1.0)}, "'alphas' must be different numbers above 0"),
        ({"sample": (1.0,)}, "'sample' and 'shown_window' are two"),
        ({"sample": (1.0, 2.0, 3.0)}, "'sample' and 'shown_window' are two"),
        ({"points": 1}, "at least two points"),
        ({"window": 0.0}, "a window above 0"),
        ({"alphas": (0.0,)}, "'alphas' must be different numbers above 0"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(tw.InputError, match=message):
        studies.run(NAME, **settings)
