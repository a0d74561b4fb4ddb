"""Every figure of every study is labelled, explained and readable; drawing needs no JAX."""

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from figure_checks import faults
from small import SMALL

from thalweg import results, studies


@pytest.fixture(scope="module")
def trees():
    made = {}

    def tree(name):
        if name not in made:
            made[name] = studies.run(name, **SMALL[name])
        return made[name]

    return tree


def test_every_study_has_its_small_settings():
    assert set(SMALL) == set(studies.STUDIES)


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_figures_are_labelled_and_readable(trees, name):
    found = {}
    for key, drawing in studies.drawings(name, trees(name)):
        assert drawing.caption.strip().endswith((".", "?")), key
        if hasattr(drawing.figure, "get_axes"):
            found[key] = faults(drawing.figure)
            plt.close(drawing.figure)
        else:
            found[key] = []
    assert found
    assert {key: what for key, what in found.items() if what} == {}


# What is computed while it is drawn: middles of runs, formulas, residuals. tests/test_plots*.py and the
# studies' own tests hold these to their numbers.
COMPUTED = ("median of", "mean of", "theory", "slope", "density", "residual", "(1 −", "σ²", "least")
# Figures of a difference or a ratio of what the result holds, tested with their study.
DERIVED = {("regression-tour", "gap"), ("eigenbasis", "pace")}


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_what_is_drawn_is_what_the_result_holds(trees, name):
    known = numbers(trees(name))
    compared = 0
    for key, drawing in studies.drawings(name, trees(name)):
        if (name, key) in DERIVED or not hasattr(drawing.figure, "get_axes"):
            continue
        for line in (line for ax in drawing.figure.get_axes() for line in ax.lines):
            if any(word in str(line.get_label()) for word in COMPUTED):
                continue
            y = np.asarray(line.get_ydata(orig=True), float)
            if line.get_gid() and len(y):
                np.testing.assert_array_equal(strangers(y, known), [], f"{key}: {line.get_label()}")
                compared += 1
        plt.close(drawing.figure)
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


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_a_saved_study_is_reported_without_jax(trees, name, tmp_path):
    results.save(trees(name), tmp_path / "saved.nc")
    code = (
        "import sys, matplotlib; matplotlib.use('agg');"
        "from thalweg import report, results;"
        f"report.write(results.load({str(tmp_path / 'saved.nc')!r}), {str(tmp_path / 'out')!r});"
        "assert 'jax' not in sys.modules, 'JAX was loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert len(page) < 8e6
    assert studies.title(name) in page


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
