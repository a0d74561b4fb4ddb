"""Every figure of every study is labelled, explained and readable; drawing needs no JAX."""

import subprocess
import sys

import matplotlib.pyplot as plt
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
