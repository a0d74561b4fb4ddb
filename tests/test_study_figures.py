"""Every figure of every study is labelled, explained and readable, and draws its result's numbers."""

import functools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import faults
from small import SMALL

from thalweg import studies

pytestmark = pytest.mark.docs


@pytest.fixture(scope="module")
def examined():
    """For each study, by figure: what is wrong with it, and what was drawn that the result lacks.

    Drawing takes longer than all else, so that each study is drawn once."""
    return functools.cache(examine)


# What is computed while it is drawn: middles of runs, formulas, residuals. tests/test_plots*.py and the
# studies' own tests hold these to their numbers.
COMPUTED = ("median of", "mean of", "theory", "slope", "density", "residual", "(1 −", "σ²", "least")
# Figures of a difference or a ratio of what the result holds, tested with their study.
DERIVED = {("regression-tour", "gap"), ("eigenbasis", "pace")}


def examine(name):
    tree = studies.run(name, **SMALL[name])
    known, wrong, strange, compared = numbers(tree), {}, {}, 0
    for key, drawing in studies.drawings(name, tree):
        assert drawing.caption.strip().endswith((".", "?")), key
        if not hasattr(drawing.figure, "get_axes"):
            continue
        found = faults(drawing.figure)
        if found:
            wrong[key] = found
        for line in (line for ax in drawing.figure.get_axes() for line in ax.lines):
            y = np.asarray(line.get_ydata(orig=True), float)
            computed = any(word in str(line.get_label()) for word in COMPUTED)
            if not line.get_gid() or not len(y) or computed or (name, key) in DERIVED:
                continue
            compared += 1
            if len(strangers(y, known)):
                strange[f"{key}: {line.get_label()}"] = strangers(y, known)
        plt.close(drawing.figure)
    return wrong, strange, compared


def test_every_study_has_its_small_settings():
    assert set(SMALL) == set(studies.STUDIES)


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_figures_are_labelled_and_readable(examined, name):
    assert examined(name)[0] == {}


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_what_is_drawn_is_what_the_result_holds(examined, name):
    _, strange, compared = examined(name)
    assert strange == {}
    assert compared


def numbers(tree):
    """Every finite number of a result, sorted."""
    variables = [v for node in tree.subtree for v in node.to_dataset().variables.values()]
    values = [v.values.ravel().astype(float) for v in variables if v.dtype.kind in "iuf"]
    every = np.concatenate(values)
    return np.unique(every[np.isfinite(every)])


def strangers(values, known):
    """Those of the values that are not among the known ones, but for the rounding of a projection."""
    values = values[np.isfinite(values)]
    after = np.clip(np.searchsorted(known, values), 1, len(known) - 1)
    off = np.minimum(abs(known[after] - values), abs(known[after - 1] - values))
    return values[off > 1e-9 * np.maximum(1, abs(values))]


def test_the_checks_find_what_is_wrong():
    figure, (left, right) = plt.subplots(1, 2)
    left.plot([0, 1], [0, 1])
    left.set(xlabel="x", title="a title")
    right.plot([0, 1], [0, 1], label="named, without a legend")
    right.set(xlabel="x", ylabel="y", title="a title that is much too long for its panel" * 3)
    right.text(0.5, 0.5, "one", transform=right.transAxes)
    right.text(0.5, 0.5, "two", transform=right.transAxes)
    found = "\n".join(faults(figure))
    for fault in (
        "panel 0 (a title): the y axis has no label",
        "panel 0 (a title): a Line2D without a name",
        "'named, without a legend' is not in a legend",
        "leaves the figure",
        "'one' overlaps 'two'",
    ):
        assert fault in found
