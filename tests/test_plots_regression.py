"""Targets and models as functions, tested by what is drawn."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from figure_checks import faults

import thalweg as tw
from thalweg import plots

GRID = np.linspace(-1, 1, 5)


def table(sampled="bent"):
    return xr.Dataset(
        {
            "x": ("sample", [-0.5, 0.25, 0.75]),
            "y": ("sample", [0.5, 0.25, 0.75]),
            "x_grid": ("grid", GRID),
            "y_grid": (("target", "grid"), np.stack([abs(GRID), 2 * GRID])),
        },
        coords={"target": ["bent", "steep"], "formula": ("target", ["|x|", "2x"])},
        attrs={"target": sampled},
    )


def models(**members):
    """Functions that are 100·moment + 10·member + x, members counted in the order given."""
    shape = tuple(len(values) for values in members.values())
    level = 10.0 * np.arange(int(np.prod(shape))).reshape(shape)
    values = np.stack([np.moveaxis(100 * m + level[..., None] + GRID, -1, 0) for m in (0, 1)])
    return xr.Dataset(
        {"x_grid": ("grid", GRID), "yhat_grid": (("moment", "grid", *members), values)},
        coords={"moment": ["at the start", "after 7 steps"], **members},
    )


def curves(ax):
    """What is drawn of the models: a level and a colour each."""
    lines = [line for line in ax.lines if line.get_label() == "_model"]
    return [(float(line.get_ydata()[2]), line.get_color()) for line in lines]


def entries(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_targets_draws_every_function_and_the_samples():
    ax = plots.targets(table("steep"))
    bent, steep, samples = ax.lines
    np.testing.assert_array_equal(bent.get_ydata(), abs(GRID))
    np.testing.assert_array_equal(steep.get_ydata(), 2 * GRID)
    assert steep.get_linewidth() > bent.get_linewidth()
    np.testing.assert_array_equal(samples.get_xdata(), [-0.5, 0.25, 0.75])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "bent: |x|", "steep: 2x", "data: steep",
    ]  # fmt: skip
    assert faults(ax.figure) == []


def test_a_text_coordinate_stands_by_itself():
    named = entries(plots.functions(table(), models(descent=["α = 1", "α = 100"])))
    assert named[-2:] == ["α = 1", "α = 100"]
    assert entries(plots.functions(table(), models(width=[5, 10])))[-1] == "width 10"


def test_functions_is_a_panel_a_moment():
    figure = plots.functions(table(), models(), title="One model")
    left, right = figure.axes
    assert [ax.get_title() for ax in figure.axes] == ["At the start", "After 7 steps"]
    assert [level for level, _ in curves(left)] == [0]
    assert [level for level, _ in curves(right)] == [100]
    assert left.get_ylim() == right.get_ylim()
    target = next(line for line in left.lines if line.get_label() == "target")
    np.testing.assert_array_equal(target.get_ydata(), abs(GRID))
    assert entries(figure) == ["target", "data", "model"]
    assert faults(figure) == []


def test_runs_are_alike_and_settings_are_not():
    drawn = models(width=[5, 1000], run=[0, 1, 2])
    figure = plots.functions(table(), drawn, sharey=False)
    seen = curves(figure.axes[1])
    assert [level for level, _ in seen] == [100, 110, 120, 130, 140, 150]
    colors = [color for _, color in seen]
    assert len(set(colors[:3])) == len(set(colors[3:])) == 1
    assert colors[0] != colors[3]
    assert entries(figure) == ["target", "data", "width 5: 3 runs", "width 1000: 3 runs"]
    assert figure.axes[0].get_ylim() != figure.axes[1].get_ylim()
    assert faults(figure) == []


def test_more_settings_than_a_legend_names_share_a_style():
    figure = plots.functions(table(), models(width=list(range(1, 13)), run=[0, 1]))
    assert len({color for _, color in curves(figure.axes[0])}) == 1
    assert entries(figure)[2:] == ["24 models"]


def test_diverged_models_are_left_out_and_counted():
    drawn = models(run=[0, 1, 2])
    drawn["yhat_grid"][1, :, 1] = np.nan
    figure = plots.functions(table(), drawn)
    left, right = figure.axes
    assert len(curves(left)) == 3
    assert [level for level, _ in curves(right)] == [100, 120]
    assert plots.style.notes(left) == []
    assert plots.style.notes(right) == ["1 of 3 models not finite (diverged)"]
    assert faults(figure) == []


def test_a_part_of_the_range_shows_that_part_of_the_target():
    drawn = models().isel(grid=slice(1, 4))
    figure = plots.functions(table(), drawn)
    target = next(line for line in figure.axes[0].lines if line.get_label() == "target")
    np.testing.assert_array_equal(target.get_xdata(), GRID[1:4])


def test_what_is_missing_is_named():
    with pytest.raises(tw.InputError, match="no 'y_grid'; it has"):
        plots.targets(table().drop_vars("y_grid"))
    with pytest.raises(tw.InputError, match="needs the dimensions moment and grid"):
        plots.functions(table(), models().isel(moment=0, drop=True))
    with pytest.raises(tw.InputError, match="a dataset was expected; list given"):
        plots.functions(table(), [])
    with pytest.raises(tw.InputError, match="no 'target'"):
        plots.targets(table().drop_vars("target"))
    with pytest.raises(tw.InputError, match="no 'target'"):
        plots.functions(table().drop_vars("target"), models())
    with pytest.raises(tw.InputError, match="no 'moment'"):
        plots.functions(table(), models().drop_vars("moment"))
    assert not plt.get_fignums()


def test_a_legend_of_long_names_stays_in_the_figure():
    long = {"a_name_of_a_dimension_as_long_as_they_come": np.arange(8), "run": np.arange(2)}
    figure = plots.functions(table(), models(**long))
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.width
