"""A quantity against a coordinate, tested by what the artists hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from thalweg import plots
from thalweg.errors import InputError
from thalweg.plots import style

ALPHA = np.array([1.0, 10.0, 100.0, 1000.0])
FACTOR = np.array([1.0, 2.0, 4.0])


def power(exponent=-1.0):
    """factor · α^exponent on (alpha, run): the median's factor is 2, the mean's 7/3."""
    return xr.DataArray(
        FACTOR * ALPHA[:, None] ** exponent,
        {"alpha": ALPHA, "run": range(3)},
        ("alpha", "run"),
        name="drift",
        attrs={"units": "m"},
    )


def line(ax, label):
    (found,) = [one for one in ax.lines if one.get_label() == label]
    return found


def band(ax):
    (filled,) = [c for c in ax.collections if c.get_gid() == style.BAND]
    return filled.get_paths()[0].get_extents()


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def test_runs_are_a_median_with_a_band():
    ax = plots.curve(power(), "alpha", band=(0, 1))
    drawn = line(ax, "median of 3 runs, 0–100 %")
    np.testing.assert_array_equal(drawn.get_xdata(), ALPHA)
    np.testing.assert_allclose(drawn.get_ydata(), 2 / ALPHA)
    assert (band(ax).y0, band(ax).y1) == (1 / 1000, 4)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("alpha", "drift (m)")
    assert ax.get_title() == "Drift against alpha"


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.31, 0.72, ["0.3", "0.4", "0.6"]),
        (0.2, 3, ["0.2", "0.3", "0.4", "0.6", "1", "2", "3"]),
        (1, 80, ["1", "10"]),
        (0.011, 900, [rf"$\mathdefault{{10^{{{k}}}}}$" for k in range(-2, 4)]),
        (3e-7, 9e-7, [rf"$\mathdefault{{{k}\times10^{{-7}}}}$" for k in (3, 4, 6)]),
    ],
)
def test_the_numbers_of_a_short_log_axis_are_plain(low, high, shown):
    ends = np.array([low, high])
    values = xr.DataArray(ends, {"alpha": ends}, name="drift")
    ax = plots.curve(values, "alpha", x="log", y="log")
    ax.figure.draw_without_rendering()
    for axis in (ax.xaxis, ax.yaxis):
        near, far = axis.get_view_interval()
        ticks = {
            tick.get_loc(): tick.label1.get_text()
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
            if tick.label1.get_text() and near <= tick.get_loc() <= far
        }
        assert [text for _, text in sorted(ticks.items())] == shown


def test_one_colour_for_all_curves():
    ax = plots.curve(power(), "alpha", over=(), color="tab:purple")
    assert {one.get_color() for one in ax.lines} == {"tab:purple"}
    assert len({one.get_linestyle() for one in ax.lines}) > 1
    plots.curve(power(), "alpha", ax=ax)
    assert ax.lines[-1].get_color() == style.style(3).color, "the next call goes on"


def test_a_mean_with_two_standard_errors():
    ax = plots.curve(power(), middle="mean", band="error", label="measured")
    drawn = line(ax, "measured: mean of 3 runs ± 2 standard errors")
    np.testing.assert_allclose(drawn.get_ydata(), 7 / 3 / ALPHA)
    # the sample variance of 1, 2, 4 is 7/3, of the mean of three 7/9
    np.testing.assert_allclose(band(ax).y1, 7 / 3 + 2 * np.sqrt(7 / 9))


def test_other_dimensions_are_series_and_a_second_call_goes_on():
    values = xr.concat([power(), power(-2)], "rate").assign_coords(rate=["slow", "fast"])
    ax = plots.curve(values, "alpha", band=None)
    np.testing.assert_allclose(line(ax, "fast: median of 3 runs").get_ydata(), 2 / ALPHA**2)
    assert plots.curve(power()[:, 0], ax=ax, label="third") is ax
    looks = [(one.get_color(), one.get_marker()) for one in ax.lines]
    assert looks == [(style.style(i).color, style.style(i).marker) for i in range(3)]
    crowd = power().expand_dims(seed=np.arange(11))
    assert legend(plots.curve(crowd, "alpha")) == ["11 curves: median of 3 runs"]


def test_along_a_coordinate_in_any_order():
    values = power()[::-1].rename(alpha="place").assign_coords(alpha=("place", ALPHA[::-1]))
    ax = plots.curve(values.drop_vars("place"), "alpha")
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), ALPHA)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 2 / ALPHA)
    pooled = plots.curve(power(), "run", over=["alpha"], band=None)
    assert legend(pooled) == ["median of 4 alphas"]


@given(st.floats(-3, 3), st.floats(0.01, 100))
def test_the_slope_of_a_power_law_is_its_exponent(exponent, factor):
    np.testing.assert_allclose(
        plots.log_slope(ALPHA, factor * ALPHA**exponent), exponent, rtol=1e-9, atol=1e-12
    )


def test_slopes_are_those_of_numpy_and_windows_are_kept():
    y = np.array([3.0, 0.2, 0.01, 0.002])
    by_numpy = np.polyfit(np.log(ALPHA), np.log(y), 1)
    np.testing.assert_allclose(plots.log_slope(ALPHA, y), by_numpy[0], rtol=1e-12)
    ax = plots.curve(xr.DataArray(y, {"alpha": ALPHA}, name="d"), x="log", y="log", slope=True)
    fitted = line(ax, f"slope −{-by_numpy[0]:.3g}")
    np.testing.assert_allclose(
        fitted.get_ydata(), np.exp(np.polyval(by_numpy, np.log(ALPHA[[0, -1]])))
    )
    last = np.log(y[3] / y[2]) / np.log(10)  # through two points
    np.testing.assert_allclose(plots.log_slope(ALPHA, y, (100, 1000)), last)
    ax = plots.curve(
        xr.DataArray(y, {"alpha": ALPHA}, name="d"), x="log", y="log", slope=(100, 1000), label="d"
    )
    assert f"d: slope −{-last:.3g} (fit from 100 to 1000)" in legend(ax)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), y[2:])
    # zeros, infinities and what lies outside do not count
    assert plots.log_slope([0, 1, 2, 4, 8], [5, 1, 2, np.inf, 8]) == pytest.approx(1)
    assert np.isnan(plots.log_slope([1, 1], [1, 2]))
    assert np.isnan(plots.log_slope([], []))


def test_what_is_left_out_is_said():
    values = power()
    values[0, 0], values[1] = np.inf, np.nan
    values = values.assign_coords(alpha=[1.0, 10, 100, 0])
    ax = plots.curve(values, x="log", y="log", slope=True)
    assert style.notes(ax) == ["1 place ≤ 0 not shown", "4 of 9 values not finite, left out"]
    # the median of 2 and 4; nothing; 2/100
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [3, np.nan, 0.02])
    below = plots.curve(power() - 0.5, y="log")
    assert style.notes(below) == [
        "no band where it reaches down to 0",
        "3 values ≤ 0 not shown (log axis)",
    ]
    nothing = plots.curve(power() * np.nan, x="log", y="log", slope=True)
    assert "no slope: fewer than two points to fit" in style.notes(nothing)


def test_one_point_is_seen():
    ax = plots.curve(power()[:1, 0])
    assert ax.lines[0].get_marker() == "o"
    assert legend(ax) == ["drift"]  # a lone curve is named like any other


def test_points_and_lines():
    many = xr.DataArray(np.arange(60.0), {"p": np.arange(60)}, name="risk")
    for options, places, marker, dash in [
        ({}, range(0, 60, 5), "o", "-"),
        ({"points": True}, range(60), "o", "-"),
        ({"points": False}, (), "None", "-"),
        ({"line": False}, range(60), "o", "None"),
    ]:
        (drawn,) = plots.curve(many, **options).lines
        looks = (drawn.get_markevery(), drawn.get_marker(), drawn.get_linestyle())
        assert looks == (list(places), marker, dash), options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"along": "aplha"}, "did you mean 'alpha'"),
        ({"along": "run"}, "drawn along and pooled"),
        ({"over": "lr"}, "dimension 'lr'"),
        ({"over": ()}, "say with along="),
        ({"slope": True}, "x='log' and y='log'"),
        ({"slope": 3, "x": "log", "y": "log"}, "two numbers, where it begins and ends; 3 given"),
        ({"slope": (1,), "x": "log", "y": "log"}, "two numbers"),
        ({"x": "cubic"}, "cubic"),
        ({"middle": "mode"}, "mode"),
        ({"band": (0.9, 0.1)}, "increasing quantiles"),
        ({"band": "error"}, "middle='mean'"),
        ({"band": "all", "middle": "mean"}, "all"),
    ],
)
def test_bad_input_is_one_line(options, words):
    with pytest.raises(InputError, match=words) as caught:
        plots.curve(power(), **options)
    assert "\n" not in str(caught.value)
    assert not plt.get_fignums()


def test_other_bad_input():
    with pytest.raises(InputError, match="labelled array"):
        plots.curve(ALPHA)
    with pytest.raises(InputError, match="not numbers"):
        plots.curve(xr.DataArray([1.0, 2.0], {"name": ["a", "b"]}))
    with pytest.raises(InputError, match="as many x as y"):
        plots.log_slope([1, 2], [1])
    with pytest.raises(InputError, match="values must be real numbers"):
        plots.curve(xr.DataArray(["a", "b"], dims="run_of_text"))
    with pytest.raises(InputError, match="x must be real numbers; 'ab' given"):
        plots.log_slope("ab", [1, 2])
    with pytest.raises(InputError, match="window must be two numbers"):
        plots.log_slope([1, 2], [1, 2], 3)


def test_a_quantity_at_no_places_is_an_empty_picture():
    nowhere = xr.DataArray(np.ones((0, 3)), {"width": [1, 2, 3]}, ("alpha", "width"))
    assert not np.concatenate(
        [line.get_ydata() for line in plots.curve(nowhere, "alpha").lines]
    ).size
