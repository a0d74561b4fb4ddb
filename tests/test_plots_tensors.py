"""Movements by parameter, tested by what is drawn."""

import numpy as np
import pytest
from figure_checks import faults
from problems import line_problem

import thalweg as tw
from thalweg import plots
from thalweg.catalogue import models
from thalweg.plots import style

X = np.linspace(-1, 1, 9)


def path(widths=(1, 4, 1), **options):
    def init(key):
        return models.init_mlp(widths, key)

    problem = tw.Problem(models.mlp, "mse", X, X**2, init=init)
    record = {"params": False, "moved": tw.movement_by_parameter}
    return tw.descend(
        problem, tw.SGD(lr=options.pop("lr", 0.1)), steps=20, record=record, **options
    )


def by_name(ax):
    return {line.get_label(): line for line in ax.lines}


def test_a_line_a_tensor_in_the_colour_of_its_layer():
    made = path()
    ax = plots.movement_by_parameter(made)
    lines = by_name(ax)
    assert set(lines) == {"l1.bias", "l1.weight", "l2.bias", "l2.weight"}
    for name, line in lines.items():
        np.testing.assert_array_equal(line.get_xdata(), made["step"])
        np.testing.assert_array_equal(line.get_ydata(), made[f"moved_{name}"])
    assert lines["l1.bias"].get_color() == lines["l1.weight"].get_color()
    assert lines["l1.weight"].get_color() != lines["l2.weight"].get_color()
    assert lines["l1.bias"].get_linestyle() != lines["l1.weight"].get_linestyle()
    assert lines["l1.weight"].get_linestyle() == lines["l2.weight"].get_linestyle() == "-"
    assert faults(ax.figure) == []


def test_several_runs_are_their_median():
    made = path(runs=5)
    ax = plots.movement_by_parameter(made, x="log", y="log", title="Five")
    drawn = by_name(ax)["l2.weight"]
    median = np.median(made["moved_l2.weight"], axis=1)
    np.testing.assert_array_equal(drawn.get_xdata(), np.arange(1, 21))
    np.testing.assert_array_equal(drawn.get_ydata(), median[1:])
    assert style.notes(ax) == ["step 0 not shown (log axis)", "median of 5 runs"]
    assert ax.get_title() == "Five"
    assert faults(ax.figure) == []


def test_diverged_runs_are_left_out_and_counted():
    made = path(lr=[0.1, 1e9])
    ax = plots.movement_by_parameter(made)
    kept = made["moved_l1.weight"].isel(lr=0)
    np.testing.assert_array_equal(by_name(ax)["l1.weight"].get_ydata(), kept)
    assert style.notes(ax) == ["median of 1 descent over lr, 1 diverged"]


def test_a_deep_networks_legend_stands_beside_it():
    ax = plots.movement_by_parameter(path((1, *[3] * 5, 1)))
    assert len(ax.get_legend().get_texts()) == 12
    assert faults(ax.figure) == []


def test_a_tensor_that_starts_at_zero_is_said_to_move_absolutely():
    problem = tw.Problem(models.line, "mse", X, X + 1, params={"weight": 0.0, "bias": 1.0})
    record = {"moved": tw.movement_by_parameter}
    ax = plots.movement_by_parameter(tw.descend(problem, tw.SGD(lr=0.1), steps=5, record=record))
    assert style.notes(ax) == ["absolute for weight: the start is zero"]


def test_what_is_missing_is_named():
    with pytest.raises(tw.InputError, match="no record 'moved'"):
        plots.movement_by_parameter(tw.descend(line_problem(), tw.SGD(lr=0.1), steps=2))
    with pytest.raises(tw.InputError, match="unknown x 'loog'"):
        plots.movement_by_parameter(path(), x="loog")
