"""`plots.convergence`: what it draws, by its artists' data."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from figure_checks import faults
from problems import bowl_problem

import thalweg as tw
from thalweg.plots import style


def paths(stop=None):
    record = ["grad_norm"]
    return {
        "descent": tw.descend(
            bowl_problem(), tw.SGD(lr=[0.01, 0.1, 2.0]), steps=400, record=record
        ),
        "tuned": tw.descend(
            bowl_problem(), tw.SGD(lr=0.2), steps=400, record=record, stop={"loss": 1e-8}
        ),
    }


def drawn(ax, label):
    return next(line for line in ax.lines if line.get_label() == label)


def test_a_panel_a_record_and_one_legend():
    given = paths()
    figure = tw.plot.convergence(given, title="Two of them")
    assert [ax.get_ylabel().split()[0] for ax in figure.axes] == ["loss", "gradient"]
    assert faults(figure) == []
    for ax, name in zip(figure.axes, ("loss", "grad_norm"), strict=True):
        line = drawn(ax, "descent: lr = 0.1")
        np.testing.assert_array_equal(line.get_ydata(), given["descent"][name].sel(lr=0.1))
        tuned = drawn(ax, "tuned")
        assert tuned.get_xdata()[-1] == given["tuned"].stopped_at
        assert tuned.get_linestyle() == "--"
        assert line.get_linestyle() == "-"
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    one, two, lost, tuned = named
    assert [one, two, tuned] == ["descent: lr = 0.01", "descent: lr = 0.1", "tuned"]
    assert lost == "descent: lr = 2 (diverged)"
    colors = [drawn(figure.axes[0], name).get_color() for name in (one, two, tuned)]
    assert len(set(colors)) == 3


def test_the_last_step_guides_and_what_stands_behind():
    given = paths()
    guide = xr.DataArray(0.5 ** np.arange(50.0), {"step": np.arange(50)})
    figure = tw.plot.convergence(
        given, last=20, guides={"half": guide}, behind={"again": list(given.values())}
    )
    left, right = figure.axes
    assert drawn(left, "descent: lr = 0.1").get_xdata()[-1] == 20
    np.testing.assert_array_equal(drawn(left, "half").get_ydata(), guide[:21])
    assert not [line for line in right.lines if line.get_label() == "half"]
    behind = drawn(right, "again")
    np.testing.assert_array_equal(behind.get_ydata(), given["descent"]["grad_norm"].isel(lr=0)[:21])
    assert faults(figure) == []
    assert given["descent"].sizes["step"] == 401


def test_dashes_may_be_shared():
    path = paths()["descent"].isel(lr=[0, 1])
    ax = tw.plot.loss(path)
    alone = {line.get_linestyle() for line in ax.lines}
    ax = tw.plot.record(path, "loss", dash=2)
    assert len(alone) == 2
    assert len({line.get_linestyle() for line in ax.lines}) == 1
    assert style.style(3, 1).dash == style.DASHES[1]


def test_bad_input():
    with pytest.raises(tw.InputError, match="at least one trajectory is needed"):
        tw.plot.convergence({})
    with pytest.raises(tw.InputError, match="a trajectory was expected"):
        tw.plot.convergence({"a": xr.Dataset()})
    one = paths()["descent"]
    plain = one.drop_vars("grad_norm")
    for records in (("loss", "grad_norm"), "grad_norm"):
        with pytest.raises(tw.InputError, match=r"record=\['grad_norm'\], or measured afterwards"):
            tw.plot.convergence(plain, records)
    for behind, words in (
        ([one.drop_vars("grad_norm")], "again: unknown record 'grad_norm'"),
        ([xr.Dataset()], "again: a trajectory was expected"),
    ):
        with pytest.raises(tw.InputError, match=words):
            tw.plot.convergence({"a": one}, behind={"again": behind})
    assert not plt.get_fignums()


CURVE = xr.DataArray(np.ones(3), dims="step")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"guides": [CURVE]}, "guides are curves by name.*; list given"),
        ({"guides": CURVE}, "guides are curves by name.*; DataArray given"),
        (
            {"guides": {"1/t": np.ones(3)}},
            r"'1/t' must be an xr\.DataArray over step alone; ndarray",
        ),
        (
            {"guides": {"1/t": CURVE.expand_dims(run=2)}},
            r"over step alone; dimensions \('run', 'step'\)",
        ),
        ({"behind": [CURVE]}, "behind= takes trajectories by the name they share.*; list given"),
        ({"behind": {"again": {}}}, "again: a trajectory was expected"),
        ({"last": "3"}, "last must be a whole number of at least 0; '3' given"),
        ({"last": -1}, "last must be a whole number of at least 0; -1 given"),
    ],
)
def test_what_to_compare_with_is_given_by_name(options, words):
    with pytest.raises(tw.InputError, match=words):
        tw.plot.convergence(paths(), **options)
    assert not plt.get_fignums()


def test_one_trajectory_behind():
    one = paths()["descent"]
    figures = [tw.plot.convergence(one, behind={"again": some}) for some in (one, [one])]
    first, second = ([line.get_ydata() for line in figure.axes[0].lines] for figure in figures)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_stands_behind_keeps_the_limits_and_has_one_entry():
    one = tw.descend(bowl_problem(), tw.SGD(lr=0.1), steps=10)
    larger = one.assign(loss=one.loss * 1.1)  # by less than the margin above the lines
    alone, compared = (
        tw.plot.convergence({"one": one}, "loss", behind=behind)
        for behind in (None, {"again": [larger, larger]})
    )
    (first,), (second,) = alone.axes, compared.axes
    assert second.get_ylim() == first.get_ylim()
    assert np.isfinite(drawn(second, "again").get_ydata()).all()
    assert [line.get_label() for line in second.lines].count("again") == 1
    assert compared.get_figheight() > alone.get_figheight()  # the legend's second row


def test_what_begins_after_the_last_step_is_an_empty_line():
    rule = tw.SGD(lr=[0.01, 0.1])
    first = tw.descend(bowl_problem(), rule, steps=10)
    then = tw.descend(bowl_problem(), rule, steps=10, resume=first)
    figure = tw.plot.convergence(
        {"first": first, "then": then}, "loss", last=5, behind={"on": then}
    )
    for label in ("then: lr = 0.01", "on"):
        assert not len(drawn(figure.axes[0], label).get_xdata())


def test_a_legend_has_the_columns_that_there_is_room_for():
    problem = tw.Problem.from_function(
        lambda w: w["a"] ** 2 + 2 * w["b"] ** 2, {"a": 1.0, "b": 0.5}
    )
    sweep = tw.SGD(lr=[0.1, 0.3, 0.5], momentum=[0.0, 0.9])
    figure = tw.plot.convergence(
        {
            "SGD with momentum": tw.descend(problem, sweep, steps=5),
            "Adam": tw.descend(problem, tw.Adam(lr=[0.1, 0.3]), steps=5),
        },
        ["loss"],
    )
    canvas = figure.canvas
    canvas.draw()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert figure.canvas is canvas


def test_one_record_by_name():
    (ax,) = tw.plot.convergence(paths(), "loss").axes
    assert ax.get_title() == "Loss"
