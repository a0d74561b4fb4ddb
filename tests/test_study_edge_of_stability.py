"""The study `edge-of-stability`: sharpness comes to its limit and stays there."""

import numpy as np
import pytest
from small import SMALL

from thalweg import results, studies
from thalweg.errors import InputError
from thalweg.studies import edge_of_stability

NAME = "edge-of-stability"


@pytest.fixture(scope="module")
def tree():
    """At its default settings, which take seconds."""
    return studies.run(NAME)


def test_gradient_descent_hovers_at_two_over_its_step(tree):
    """Cohen et al. (2021). At the edge descents are chaotic: with the rounding of other programs for the same
    step, and of other compilers, 0.989 to 1.011 were seen."""
    path = results.part(tree, "path/gradient-descent")
    share = edge_of_stability.late(path, "sharpness")
    np.testing.assert_allclose(share, 1, atol=0.02)
    limits = 2 / path["lr"].values
    assert (path["sharpness"].values[0] < 0.7 * limits).all()
    assert (path["sharpness"].max("step").values > limits).all()
    assert (path["loss"].values[-1] < 0.01 * path["loss"].values[0]).all()
    assert (path["status"] == "completed").all()


def test_adam_hovers_at_38_over_its_step(tree):
    """Cohen et al. (2022). Of the second, 0.962 to 0.990 were seen, as above."""
    share = edge_of_stability.late(results.part(tree, "path/adam"), "preconditioned_sharpness")
    np.testing.assert_allclose(share, [0.945, 0.983], atol=0.03)


def test_the_spectrum_at_the_end_ends_at_the_edge(tree):
    last = results.part(tree, "spectrum/end")["ritz_value"].max()
    sharp = results.part(tree, "path/gradient-descent")["sharpness"][-1, -1]
    # along the descent it is followed to a thousandth
    assert float(last) == pytest.approx(float(sharp), rel=1e-3)


def test_the_spectrum_at_the_end_is_of_the_largest_learning_rate():
    ends = [
        results.part(studies.run(NAME, **{**SMALL[NAME], "lrs": lrs}), "spectrum/end")
        for lrs in ((0.1, 0.25), (0.25, 0.1), (0.25, 1e3, 0.1))
    ]
    for other in ends[1:]:
        np.testing.assert_allclose(other["ritz_value"], ends[0]["ritz_value"], rtol=1e-6, atol=1e-9)


def test_momentum_raises_the_limit():
    tree = studies.run(NAME, momentum=0.9, lrs=(0.3,), adam_lrs=(0.01,), steps=4000)
    path = results.part(tree, "path/gradient-descent")
    # as without momentum
    assert float(edge_of_stability.late(path, "sharpness")[0]) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"n_samples": 1, "depth": 0},
        {"lrs": (1e3,), "adam_lrs": (10.0,)},  # all of gradient descent diverges
        {"lrs": (0.1, 1e3)},
    ],
    ids=str,
)
def test_odd_settings(changes):
    tree = studies.run(NAME, **{**SMALL[NAME], **changes})
    assert studies.figures(NAME, tree)
    found = studies.findings(NAME, tree)
    assert len(found.tables["At the edge"]) == 1 + sum(
        results.part(tree, f"path/{name}").sizes["lr"] for name in ("gradient-descent", "adam")
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lrs": ()}, "lrs"),
        ({"lrs": (0.1, 0.1)}, "different numbers"),
        ({"adam_lrs": (-1.0,)}, "above 0"),
        ({"width": 0}, "width"),
        ({"depth": -1}, "at least 0"),
    ],
    ids=str,
)
def test_bad_settings_are_one_line(changes, words):
    with pytest.raises(InputError, match=words):
        studies.run(NAME, **changes)
