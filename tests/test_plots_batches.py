"""A fit beside its residuals, and what mini-batches hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

import thalweg as tw


@pytest.fixture
def fitted():
    x = np.linspace(-1, 1, 8)
    columns = {"x": x, "y": 2 * x + x**2, "yhat": 2 * x}
    return xr.Dataset({name: ("sample", values) for name, values in columns.items()})


def test_a_fit_stands_beside_its_residuals(fitted):
    figure = tw.plot.fit_and_residuals(fitted, title="a fit")
    left, right = figure.axes
    (segments,) = left.collections
    ends = np.stack(segments.get_segments())
    np.testing.assert_allclose(ends[:, 0], fitted[["x", "yhat"]].to_array().T)
    np.testing.assert_allclose(ends[:, 1], fitted[["x", "y"]].to_array().T)
    (points,) = [line for line in right.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(points.get_ydata(), fitted.y - fitted.yhat)
    assert figure.get_suptitle() == "a fit"


def test_each_panel_shows_one_batch_among_all_samples(fitted):
    index = [[0, 3, 5], [1, 2, 7], [6, 4, -1], [0, 1, 2]]
    figure = tw.plot.batches(fitted, index)
    panels = [ax for ax in figure.axes if ax.get_visible()]
    assert [ax.get_title() for ax in panels] == ["Batch 1", "Batch 2", "Batch 3", "Batch 4"]
    for ax, rows in zip(panels, index, strict=True):
        every, own = ax.lines
        np.testing.assert_array_equal(every.get_xdata(), fitted.x)
        held = [k for k in rows if k >= 0]
        np.testing.assert_array_equal(own.get_xdata(), fitted.x.values[held])
        np.testing.assert_array_equal(own.get_ydata(), fitted.y.values[held])
    figure.draw_without_rendering()
    # those above an empty place have an axis too
    for ax in panels:
        assert any(label.get_visible() and label.get_text() for label in ax.get_xticklabels())
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["data", "in the batch"]


def test_samples_that_are_not_there_are_refused(fitted):
    with pytest.raises(tw.InputError, match="sample 8 is not among the 8"):
        tw.plot.batches(fitted, [[8]])
    with pytest.raises(tw.InputError, match="sample -5 is not among the 8"):
        tw.plot.batches(fitted, [[0, -5]])
    for wrong in ([[1.5]], [[0], [1, 2]], "ab", None):
        with pytest.raises(tw.InputError, match="index must be"):
            tw.plot.batches(fitted, wrong)
    with pytest.raises(tw.InputError, match="no batches"):
        tw.plot.batches(fitted, [])
    with pytest.raises(tw.InputError, match="one for each of the 2 batches; 1 given"):
        tw.plot.batches(fitted, [[0], [1]], titles=["First"])


def test_a_fit_that_is_refused_leaves_no_figure_behind(fitted):
    grid = fitted.assign(yhat_grid=("grid", [0.0, 1.0]))
    for data, says in (
        (fitted.drop_vars("yhat"), "no 'yhat'"),
        (grid, "no 'x_grid'"),
        (fitted.rename(sample="k"), "needs the one dimension 'sample'"),
    ):
        with pytest.raises(tw.InputError, match=says):
            tw.plot.fit_and_residuals(data)
    assert not plt.get_fignums()


def test_what_is_not_a_figure_is_refused(fitted):
    figure, ax = plt.subplots()
    for draw in (
        lambda: tw.plot.fit_and_residuals(fitted, figure=ax),
        lambda: tw.plot.batches(fitted, [[0]], figure=ax),
    ):
        with pytest.raises(tw.InputError, match=r"as in plt\.figure\(\); Axes given"):
            draw()
    assert figure.axes == [ax]
