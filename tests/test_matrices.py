"""Heat maps of matrices and spectra, tested by what the artists hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import LogNorm

from thalweg import plots
from thalweg.errors import InputError
from thalweg.plots import style


def table():
    """No symmetry: rows and columns cannot be exchanged unnoticed."""
    return xr.DataArray(
        np.arange(12.0).reshape(3, 4) - 2,
        {"eigenvalue": [1.25, 1.0, 0.5], "step": [0, 10, 20, 30]},
        ("eigenvalue", "step"),
        name="moved",
    )


def mesh(ax):
    (found,) = [c for c in ax.collections if type(c).__name__ == "QuadMesh"]
    return found


def bar(ax):
    return mesh(ax).colorbar


def labels(axis):
    axis.figure.canvas.draw()
    return [t.get_text() for t in axis.get_ticklabels() if t.get_text()]


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_rows_run_downwards_and_ticks_name_their_coordinates():
    ax = plots.matrix(table())
    np.testing.assert_array_equal(mesh(ax).get_array(), table())
    assert ax.get_ylim() == (2.5, -0.5)
    assert ax.get_xlim() == (-0.5, 3.5)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("step", "eigenvalue", "Moved")
    assert labels(ax.yaxis) == ["1.25", "1", "0.5"]
    assert labels(ax.xaxis) == ["0", "10", "20", "30"]
    assert bar(ax).ax.get_ylabel() == "moved"
    assert mesh(ax).norm.vmin == -2
    assert mesh(ax).norm.vmax == 9


def written(ax):
    """Cells (row, column) to (number, colour)."""
    return {
        tuple(reversed(text.get_position())): (text.get_text(), text.get_color())
        for text in ax.texts
        if text.get_gid() == "thalweg-number"
    }


def test_large_cells_hold_their_numbers():
    values = xr.DataArray([[1.0, -20.0, 3.14159], [np.nan, 0.5, 80.0]], dims=("lr", "momentum"))
    ax = plots.matrix(values)
    assert {cell: text for cell, (text, _) in written(ax).items()} == {
        (0, 0): "1",
        (0, 1): "−20",
        (0, 2): "3.14",
        (1, 1): "0.5",
        (1, 2): "80",
    }
    assert written(ax)[0, 1][1] == "white", "on the darkest cell"
    assert written(ax)[1, 2][1] == "black", "on the lightest"
    ax.figure.draw_without_rendering()
    cell = ax.get_window_extent().width / 3
    for text in ax.texts:
        if text.get_gid() == "thalweg-number":
            assert text.get_window_extent().width < cell
    assert not written(plots.matrix(np.arange(900.0).reshape(30, 30)))
    assert not written(plots.matrix(np.arange(21).reshape(3, 7) * 1.2345e-11))


def test_a_logarithmic_bar_has_numbers_between_the_powers_of_ten():
    ax = plots.matrix(np.array([[0.011, 0.3], [1.0, 5.0]]), scale="log")
    ax.figure.draw_without_rendering()
    axis = bar(ax).ax.yaxis
    ticks = (*axis.get_major_ticks(), *axis.get_minor_ticks())
    shown = {t.label1.get_text() or t.label2.get_text(): t.get_loc() for t in ticks}
    assert {"0.02", "0.1", "0.3", "1", "3"} <= set(shown)
    assert all(float(text) == pytest.approx(at) for text, at in shown.items() if text)


def test_a_plain_array_and_a_square_one():
    ax = plots.matrix(np.eye(3))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("column", "row")
    assert ax.get_aspect() == 1
    assert labels(ax.xaxis) == ["0", "1", "2"]


def test_limits_are_shared_and_what_lies_beyond_is_said():
    ax = plots.matrix(table(), limits=(0, 4), colorbar="distance")
    assert (mesh(ax).norm.vmin, mesh(ax).norm.vmax) == (0, 4)
    assert bar(ax).extend == "both"
    assert bar(ax).ax.get_ylabel() == "distance"
    assert bar(plots.matrix(table(), colorbar=False)) is None


def test_a_centre_is_the_middle_of_a_diverging_map():
    ax = plots.matrix(table(), center=0)
    assert (mesh(ax).norm.vmin, mesh(ax).norm.vmax) == (-9, 9)
    assert mesh(ax).get_cmap().name == style.DIVERGING


def test_log_colours_leave_zeros_grey_and_say_so():
    values = table()
    values[0, 3] = np.nan
    ax = plots.matrix(values, scale="log")
    assert isinstance(mesh(ax).norm, LogNorm)
    assert (mesh(ax).norm.vmin, mesh(ax).norm.vmax) == (2, 9)
    assert style.notes(ax) == [
        "grey: 1 of 12 entries not finite",
        "grey: 3 of 12 entries ≤ 0 (log colours)",
    ]
    assert mesh(ax).get_array().mask.sum() == 4
    assert plots.matrix(np.zeros((2, 2)), scale="log")
    assert plots.matrix(np.full((2, 2), np.nan))


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.zeros(3), {}, r"shape \(3,\) given"),
        (np.zeros((0, 3)), {}, r"shape \(0, 3\) given"),
        ([["a", "b"]], {}, "values must be real numbers"),
        ([[1], [2, 3]], {}, "values must be real numbers"),
        (1j * np.eye(2), {}, "values must be real numbers"),
        (np.eye(2), {"scale": "logg"}, "did you mean 'log'"),
        (np.eye(2), {"limits": (1, 0)}, "two increasing numbers"),
        (np.eye(2), {"limits": (0, 1), "scale": "log"}, "increasing positive"),
        (np.eye(2), {"limits": 3}, "two increasing numbers; 3 given"),
        (np.eye(2), {"limits": (0,)}, "two increasing numbers"),
        (np.eye(2), {"limits": ("a", "b")}, "two increasing numbers"),
        (np.eye(2), {"center": 0, "scale": "log"}, "linear colours"),
        (np.eye(2), {"center": np.nan}, "finite number"),
        (np.eye(2), {"center": "mean"}, "finite number; 'mean' given"),
    ],
)
def test_bad_input_is_one_line(values, options, words):
    with pytest.raises(InputError, match=words) as caught:
        plots.matrix(values, **options)
    assert "\n" not in str(caught.value)


def test_a_spectrums_bars_are_shares_of_all_eigenvalues():
    values = np.array([0.0, 1e-17, 1.0, 1.2, 2.0, 3.0, np.nan])
    ax = plots.spectrum(values, bins=[0.5, 1.5, 2.5, 4.5])
    (bars,) = ax.patches
    heights, cuts, _ = bars.get_data()
    # of six eigenvalues two are zero; two lie in the first bin, and the last one is 2 wide
    np.testing.assert_allclose(heights, [2 / 6, 1 / 6, 1 / 12])
    np.testing.assert_allclose((heights * np.diff(cuts)).sum(), 4 / 6)
    assert style.notes(ax) == [
        "2 of 6 eigenvalues are zero: no bar",
        "1 of 7 not finite, left out",
    ]
    assert legend(ax) == ["4 eigenvalues"]


def test_a_spectrum_with_a_density_and_its_edges():
    at = np.linspace(0, 4, 9)
    density = xr.DataArray(at / 8, {"eigenvalue": at}, name="theory")
    ax = plots.spectrum([1.0, 3.0, -1.0], density=density, edges=(0.0, 4.0), label="measured")
    drawn = next(one for one in ax.lines if one.get_label() == "theory")
    np.testing.assert_array_equal(drawn.get_ydata(), density)
    assert [one.get_xdata()[0] for one in ax.lines[-2:]] == [0, 4]
    assert sorted(legend(ax)) == ["edges 0, 4", "measured: 3 eigenvalues", "theory"]
    with pytest.raises(InputError, match="labelled array"):
        plots.spectrum([1.0], density=at)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bins": 0}, "whole number of at least 1"),
        ({"bins": 2.5}, "whole number of at least 1"),
        ({"bins": [1, 0]}, "increasing edges"),
        ({"bins": [0, 1, 1, 2]}, "increasing edges"),
        ({"bins": "atuo"}, "'atuo' is not a valid"),
        ({"edges": 4.0}, "a list of eigenvalues to mark; 4.0 given"),
        ({"edges": "ab"}, "a list of eigenvalues to mark"),
        ({"eigenvalues": [1j]}, "eigenvalues must be real numbers"),
        ({"eigenvalues": None}, "eigenvalues must be real numbers; None given"),
    ],
)
def test_impossible_bins_and_edges_leave_no_figure_behind(options, words):
    with pytest.raises(InputError, match=words):
        plots.spectrum(**{"eigenvalues": [1.0, 2.0, 3.0]} | options)
    assert not plt.get_fignums()


@pytest.mark.parametrize("size", [1.0, 1e20])
@pytest.mark.parametrize("bins", [7, "auto"])
def test_eigenvalues_that_are_one_number_to_rounding_have_bars(size, bins):
    near = size * np.array([np.nextafter(1, 0), 1.0, 1.0, np.nextafter(1, 2)])
    (bars,) = plots.spectrum(near, bins=bins).patches
    heights, edges, _ = bars.get_data()
    assert np.sum(heights * np.diff(edges)) == pytest.approx(1)
    assert edges[0] < near.min() < near.max() < edges[-1]
    if bins == 7:
        assert len(plots.histogram(near, bins=bins).patches) == 7 + 1  # bars, and their outline
