"""Interactive pictures, tested by their traces' data."""

import base64
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

import thalweg as tw
from thalweg.errors import InputError, MissingExtra
from thalweg.plots.ground import Ground


def twisted(w):
    """Bilinear, so that heights between grid points are the risk itself; and unlike in x and y."""
    return 3.0 + 2.0 * w["x"] - w["y"] + 0.5 * w["x"] * w["y"]


def bowl(w):
    return w["x"] ** 2 + 10.0 * w["y"] ** 2


def landscape(f=twisted, x=(-2.0, 3.0), y=(-1.0, 2.0), points=None):
    problem = tw.Problem.from_function(f, params={"x": 1.0, "y": 0.5})
    plane = tw.coordinate_plane(problem, {"x": x, "y": y}, points or {"x": 11, "y": 7})
    return problem, tw.landscape(problem, plane)


@pytest.fixture(scope="module")
def descended():
    problem, surface = landscape()
    return surface, tw.descend(problem, tw.SGD(lr=0.05), steps=12)


def traces(figure, kind, **wanted):
    return [t for t in figure.data if t.type == kind and all(t[k] == v for k, v in wanted.items())]


def iterates(figure, kind):
    """The traces that say on hover what they are."""
    return [t for t in traces(figure, kind, mode="markers") if t.customdata is not None]


def notes(figure):
    return "".join(a.text for a in figure.layout.annotations).split("<br>")


def height(figure, z, lift=0.015):
    """Heights on the surface, of what is drawn 1.5 % of the picture's height above it."""
    low, high = figure.layout.scene.zaxis.range
    return np.asarray(z, float) - lift * (high - low)


def lines_in_3d(figure):
    """(on the surface, on the floor), without the slider's."""
    found = [t for t in traces(figure, "scatter3d", mode="lines") if t.legendgroup != "now"]
    return found[0::2], found[1::2]


# A surface -------------------------------------------------------------------------------------


def test_both_panels_show_the_landscape_as_it_is(descended):
    surface, _ = descended
    figure = tw.plotly.surface(surface)
    (flat,), (deep,) = traces(figure, "contour"), traces(figure, "surface")
    for trace in (flat, deep):
        np.testing.assert_array_equal(trace.x, surface.x)
        np.testing.assert_array_equal(trace.y, surface.y)
        np.testing.assert_array_equal(trace.z, surface.empirical.transpose("y", "x"))
        assert not trace.showscale
        assert (
            trace.hovertemplate == "x = %{x:.5g}<br>y = %{y:.5g}<br>risk = %{z:.5g}<extra></extra>"
        )
    assert deep.opacity in (None, 1)
    assert figure.layout.xaxis.title.text == figure.layout.scene.xaxis.title.text == "x"
    assert figure.layout.yaxis.title.text == figure.layout.scene.yaxis.title.text == "y"
    assert figure.layout.scene.zaxis.title.text == "risk"
    assert figure.layout.xaxis.range == figure.layout.scene.xaxis.range == (-2.0, 3.0)
    assert not figure.layout.sliders
    assert not figure.frames


def test_both_panels_have_the_levels_colours_and_one_bar_tells_them(descended):
    surface, _ = descended
    figure = tw.plotly.surface(surface, n_levels=4)
    edges = np.quantile(surface.empirical, np.linspace(0, 1, 5))
    (flat,), (deep,) = traces(figure, "contour"), traces(figure, "surface")
    # a colour from each level to the next
    stops = [stop for stop, _ in flat.colorscale]
    np.testing.assert_allclose(stops[0::2], (edges[:-1] - edges[0]) / (edges[-1] - edges[0]))
    np.testing.assert_allclose(stops[1::2], (edges[1:] - edges[0]) / (edges[-1] - edges[0]))
    colors = [color for _, color in flat.colorscale]
    assert colors[0::2] == colors[1::2] == [color for _, color in deep.colorscale][0::2]
    assert (flat.zmin, flat.zmax) == (edges[0], edges[-1])
    # band k runs from k to k + 1
    band = np.interp(deep.z, edges, [0, 1, 2, 3, 4])
    np.testing.assert_allclose(deep.surfacecolor, band, rtol=1e-6)
    assert (deep.cmin, deep.cmax) == (0, 4)
    (bar,) = (t.marker.colorbar for t in traces(figure, "scatter") if t.marker.showscale)
    np.testing.assert_allclose(bar.tickvals, [0, 1, 2, 3, 4])
    np.testing.assert_allclose([float(t.replace("−", "-")) for t in bar.ticktext], edges, rtol=5e-3)
    assert "levels are quantiles" in bar.title.text
    below = tw.plotly.surface(surface, levels=[2.0, 4.0, 6.0])
    scale = traces(below, "contour")[0]
    assert (scale.zmin, scale.zmax) == (surface.empirical.min(), surface.empirical.max())


def test_the_path_lies_on_the_surface_and_its_shadow_on_the_floor(descended):
    surface, path = descended
    figure = tw.plotly.surface(surface, path)
    x, y = path.params.sel(param="x"), path.params.sel(param="y")
    for (trace,) in (iterates(figure, "scatter"), iterates(figure, "scatter3d")):
        # a gap follows the member
        np.testing.assert_array_equal(trace.x[:-1], x)
        np.testing.assert_array_equal(trace.y[:-1], y)
        step, loss, here, *params = trace.customdata[:-1].T
        np.testing.assert_array_equal(step, path.step)
        np.testing.assert_array_equal(loss, path.loss)
        np.testing.assert_allclose(here, path.loss, rtol=1e-12)
        np.testing.assert_array_equal(np.stack(params, axis=1), path.params)
        for said in ("step %{customdata[0]:.0f}", "loss = %{customdata[1]", "x = %{customdata[3]"):
            assert said in trace.hovertemplate
    (deep,) = iterates(figure, "scatter3d")
    np.testing.assert_allclose(height(figure, deep.z)[:-1], path.loss, rtol=1e-12)
    ((line,), (shadow,)) = lines_in_3d(figure)
    finite = np.isfinite(line.x)
    np.testing.assert_allclose(
        height(figure, line.z)[finite], twisted({"x": line.x, "y": line.y})[finite], rtol=1e-5
    )
    np.testing.assert_array_equal(shadow.x, line.x)
    floor, ceiling = figure.layout.scene.zaxis.range
    np.testing.assert_allclose(shadow.z[finite], floor, rtol=1e-6)
    assert floor < surface.empirical.min() < surface.empirical.max() < ceiling
    assert not any("recorded loss" in note for note in notes(figure))


def test_the_slider_moves_a_marker_along_the_path(descended):
    surface, path = descended
    figure = tw.plotly.surface(surface, path)
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == [str(k) for k in range(13)]
    assert [step.args[0] for step in slider.steps] == [(f.name,) for f in figure.frames]
    for k, frame in enumerate(figure.frames):
        flat, deep, plumb = frame.data
        assert [figure.data[i].type for i in frame.traces] == ["scatter", "scatter3d", "scatter3d"]
        x, y = path.params.sel(param=["x", "y"]).values[k]
        for trace in (flat, deep):
            assert (trace.x[0], trace.y[0]) == (x, y)
        np.testing.assert_allclose(height(figure, deep.z, lift=0.03), path.loss[k], rtol=1e-12)
        low, _ = figure.layout.scene.zaxis.range
        np.testing.assert_allclose(plumb.z[:2], [deep.z[0], low])
    play, pause = figure.layout.updatemenus[0].buttons
    assert "Play" in play.label
    assert play.args[0] is None, "plotly's word for all frames"
    assert pause.args[0] == (None,)


def test_a_picture_of_the_contours_lies_beneath_them_where_there_is_an_animation(descended):
    surface, path = descended
    surface = surface.copy(deep=True)
    surface["empirical"][5, 3] = np.nan
    figure = tw.plotly.surface(surface, path, n_levels=4)
    (picture,) = figure.layout.images
    assert (picture.xref, picture.yref, picture.layer) == ("x", "y", "below")
    assert (picture.x, picture.y, picture.sizex, picture.sizey) == (-2.0, 2.0, 5.0, 3.0)
    file = io.BytesIO(base64.b64decode(picture.source.partition(",")[2]))
    colors = np.asarray(Image.open(file).convert("RGB"))
    assert {to_hex(c / 255) for c in np.unique(colors.reshape(-1, 3), axis=0)} == {
        "#cccccc",
        *(color for _, color in traces(figure, "contour")[0].colorscale),
    }
    # one pixel of each cell, by the risk there
    edges = np.nanquantile(surface.empirical, np.linspace(0, 1, 5))
    x, y = np.linspace(-2, 3, colors.shape[1]), np.linspace(2, -1, colors.shape[0])
    scale = [color for _, color in traces(figure, "contour")[0].colorscale][::2]
    for row in range(80, 1000, 167):
        for column in range(50, 1000, 100):
            risk = twisted({"x": x[column], "y": y[row]})
            missing = 0 < x[column] < 1 and 0 < y[row] < 1  # the cells around (0.5, 0.5)
            band = np.clip(np.searchsorted(edges, risk) - 1, 0, 3)
            assert to_hex(colors[row, column] / 255) == ("#cccccc" if missing else scale[band])
    assert not tw.plotly.surface(surface).layout.images


def test_long_paths_are_thinned_and_many_members_are_one_series():
    problem, surface = landscape(bowl)
    starts = np.random.default_rng(0).uniform(-1, 1, (40, 2))
    path = tw.descend(problem, tw.SGD(lr=0.01), steps=400, starts=starts)
    figure = tw.plotly.surface(surface, path)
    assert "62 of 401 recorded steps are drawn" in notes(figure)
    (trace,) = iterates(figure, "scatter3d")
    shown = trace.customdata.reshape(40, 63, -1)
    assert {0, 400} <= set(shown[0, :-1, 0])
    np.testing.assert_array_equal(shown[:, 0, 3:], starts)
    assert len(figure.frames) <= 60
    assert [f.name for f in figure.frames][0 :: len(figure.frames) - 1] == ["0", "400"]
    assert [t.name for t in traces(figure, "scatter", mode="lines") if t.showlegend] == ["40 runs"]
    (slider_marker,) = (t for t in traces(figure, "scatter") if t.name == "the slider's step")
    assert len(slider_marker.x) == 40


def test_several_by_name_are_drawn_together():
    problem, surface = landscape()
    paths = {
        "SGD": tw.descend(problem, tw.SGD(lr=0.05), steps=12),
        "<Adam>": tw.descend(problem, tw.Adam(lr=[0.02, 0.04]), steps=30, every=10),
    }
    figure = tw.plotly.surface(surface, paths)
    legend = [t.name for t in figure.data if t.showlegend]
    assert legend == [
        "SGD",
        *(f"&lt;Adam&gt;: lr = {lr}" for lr in (0.02, 0.04)),
        "start",
        "end",
        "the slider's step",
    ]
    lines = [t for t in traces(figure, "scatter", mode="lines") if t.showlegend]
    assert len({line.line.color for line in lines}) == 3
    at = {"SGD": paths["SGD"]["params"], "low": paths["<Adam>"]["params"].isel(lr=0)}
    np.testing.assert_allclose(lines[0].x[:-1], at["SGD"].sel(param="x"), rtol=1e-6)
    np.testing.assert_allclose(lines[1].x[:-1], at["low"].sel(param="x"), rtol=1e-6)
    order = [t.line.color == "white" for t in traces(figure, "scatter", mode="lines")]
    assert order == [True] * 3 + [False] * 3  # no outline hides another path's line
    # each slider step moves every marker to what that path had recorded by then
    assert [frame.name for frame in figure.frames] == [str(s) for s in (*range(13), 20, 30)]
    for frame in figure.frames:
        step = int(frame.name)
        one, _, _, two, *_ = frame.data
        expected = at["SGD"].sel(step=min(step, 12), param="x")
        np.testing.assert_allclose(one.x, [float(expected)])
        expected = paths["<Adam>"]["params"].sel(step=step // 10 * 10, param="x")
        np.testing.assert_allclose(two.x, expected.values)


def test_one_without_a_line_is_in_the_legend():
    problem, surface = landscape()
    path = tw.descend(problem, tw.SGD(lr=0.05), steps=4)
    figure = tw.plotly.surface(surface, {"path": path, "one step": path.isel(step=[0])})
    (entry,) = [t for t in figure.data if t.showlegend and t.name == "one step"]
    assert len(entry.x) == 1  # plotly names no trace without points
    assert np.isnan(entry.x[0])


def test_the_marker_of_one_that_begins_later_is_not_seen_before():
    problem, surface = landscape()
    first = tw.descend(problem, tw.SGD(lr=0.05), steps=4)
    more = tw.descend(problem, tw.SGD(lr=0.05), steps=4, resume=first)
    figure = tw.plotly.surface(surface, {"first": first, "resumed": more})
    half = len(figure.frames[0].data) // 2
    for frame in figure.frames:
        early, late = frame.data[:half], frame.data[half:]
        assert all(np.isfinite(np.asarray(t.x, float)).any() for t in early)
        assert all(
            np.isfinite(np.asarray(t.x, float)).any() == (int(frame.name) >= 4) for t in late
        )


def test_a_long_legend_has_room_between_the_title_and_the_picture():
    problem, surface = landscape()
    path = tw.descend(problem, tw.SGD(lr=0.05), steps=3)
    few = tw.plotly.surface(surface, {"one": path}).layout
    many = tw.plotly.surface(surface, {f"a descent of number {i}": path for i in range(20)}).layout
    room = many.height - few.height
    assert room > 60
    assert many.margin.t - few.margin.t == room
    # from the top of the page, in pixels
    assert (1 - many.title.y) * many.height == pytest.approx((1 - few.title.y) * few.height)


def test_paths_are_cut_at_the_window_and_diverged_ones_named():
    problem, surface = landscape(bowl, x=(-2.0, 2.0), y=(-1.0, 1.0))
    path = tw.descend(problem, tw.SGD(lr=[0.01, 5.0]), steps=400)
    figure = tw.plotly.surface(surface, path)
    names = [t.name for t in traces(figure, "scatter", mode="lines") if t.showlegend]
    assert names == ["lr = 0.01", "lr = 5 (diverged)"]
    assert "1 of 2 paths leaves the window" in notes(figure)
    on_surface, _ = lines_in_3d(figure)
    for line in on_surface:
        x, y = np.asarray(line.x, float), np.asarray(line.y, float)
        assert np.nanmax(np.abs(x)) <= 2.00001
        assert np.nanmax(np.abs(y)) <= 1.00001
    # the first step leaves upwards: the line ends on the window's edge
    assert np.nanmax(np.abs(on_surface[1].y)) == pytest.approx(1, abs=1e-5)
    lost = iterates(figure, "scatter3d")[1]
    assert np.isfinite(lost.x).sum() == 1
    json.loads(figure.to_json())  # numbers that are not finite have a place in it


def test_cells_without_a_value_are_left_out():
    problem, surface = landscape()
    surface["empirical"][2, 3] = np.nan
    surface["empirical"][5, 1] = np.inf
    path = tw.descend(problem, tw.SGD(lr=0.05), steps=3)
    figure = tw.plotly.surface(surface, path)
    for trace in (*traces(figure, "contour"), *traces(figure, "surface")):
        z = np.asarray(trace.z, float)
        assert np.isnan(z[3, 2])
        assert np.isnan(z[1, 5])
        assert np.isnan(z).sum() == 2
    assert "left out (grey): 2 of 77 points not finite" in notes(figure)
    surface["empirical"][:] = np.nan
    empty = tw.plotly.surface(surface, path)
    assert not traces(empty, "surface")
    assert "left out (grey): 77 of 77 points not finite" in notes(empty)


def test_heights_on_a_log_scale():
    problem, surface = landscape(bowl)
    path = tw.descend(problem, tw.SGD(lr=0.01), steps=5)
    figure = tw.plotly.surface(surface, path, log=True)
    axis = figure.layout.scene.zaxis
    positive = surface.empirical.values[surface.empirical.values > 0]
    assert axis.type == "log"
    assert axis.range[0] < np.log10(positive.min()) < np.log10(positive.max()) < axis.range[1]
    assert "left out (grey): 1 of 77 points ≤ 0 (log scale)" in notes(figure)
    _, (shadow,) = lines_in_3d(figure)
    np.testing.assert_allclose(np.nanmax(shadow.z), 10 ** axis.range[0], rtol=1e-5)


def test_a_path_off_the_plane_is_drawn_below_or_above_it_and_says_so():
    problem = tw.Problem.from_function(
        lambda w: twisted(w) + w["z"] ** 2, params={"x": 1.0, "y": 0.5, "z": 3.0}
    )
    # the plane through z = 3, the problem's own
    plane = tw.coordinate_plane(problem, {"x": (-2, 3), "y": (-1, 2)}, 9)
    surface = tw.landscape(problem, plane)
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=4)
    figure = tw.plotly.surface(surface, path, points={"a & b": [0.0, 1.0, 3.5]})
    (deep,) = iterates(figure, "scatter3d")
    x, y, z = path.params.sel(param=["x", "y", "z"]).values.T
    in_plane = twisted({"x": x, "y": y}) + 9
    np.testing.assert_allclose(height(figure, deep.z)[:-1], in_plane, rtol=1e-12)
    _, loss, here, off, *_ = deep.customdata[:-1].T
    np.testing.assert_array_equal(loss, path.loss)
    np.testing.assert_allclose(here, in_plane, rtol=1e-12)
    np.testing.assert_allclose(off, np.abs(z - 3), atol=1e-12)
    assert "off the plane = %{customdata[3]:.5g}" in deep.hovertemplate
    differ = np.abs(path.loss.values - in_plane).max()
    assert any(note.endswith(f"differs from it by up to {differ:.3g}") for note in notes(figure))
    assert any(note.startswith("iterates lie up to") for note in notes(figure))
    for point in (t for t in figure.data if t.legendgroup == "point a & b"):
        assert point.name == "a &amp; b"
        assert (point.x[0], point.y[0]) == (0.0, 1.0)
        assert "off the plane = 0.5" in point.hovertemplate
        assert "height here = 11<" in point.hovertemplate  # 3 − 1 + 9


def test_points_outside_and_axes_that_run_down():
    _, surface = landscape(x=(3.0, -2.0))
    figure = tw.plotly.surface(surface, points={"far": [9.0, 9.0], "near": {"y": 0.0, "x": 0.0}})
    (deep,) = traces(figure, "surface")
    assert (np.diff(deep.x) > 0).all()
    np.testing.assert_array_equal(deep.z, surface.empirical.sortby("x").transpose("y", "x"))
    assert "far lies outside the window" in notes(figure)
    assert [t.type for t in figure.data if t.name == "near"] == ["scatter", "scatter3d"]
    with pytest.raises(InputError, match="one point"):
        tw.plotly.surface(surface, points={"two": np.zeros((2, 2))})


def test_what_cannot_be_a_surface():
    problem, surface = landscape()
    line = tw.landscape(problem, tw.line(problem, {"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 1.0}))
    with pytest.raises(InputError, match="two axes"):
        tw.plotly.surface(line)
    with pytest.raises(InputError, match="did you mean 'empirical'"):
        tw.plotly.surface(surface, risk="empirial")
    with pytest.raises(InputError, match="2 × 2"):
        tw.plotly.surface(surface.isel(x=[0]))
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=2, record={"params": False})
    with pytest.raises(InputError, match="no recorded params"):
        tw.plotly.surface(surface, path)


def test_constant_landscapes_and_paths_of_no_steps_are_drawn():
    problem, surface = landscape(lambda w: 0.0 * w["x"] + 2.0)
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=0)
    figure = tw.plotly.surface(surface, path)
    assert len(figure.frames) == 1
    low, high = figure.layout.scene.zaxis.range
    assert low < 2 < high


# The ground ------------------------------------------------------------------------------------


def test_heights_between_grid_points_are_bilinear():
    x, y = np.array([0.0, 1.0, 4.0]), np.array([0.0, 2.0])
    height = np.array([[0.0, 2.0], [4.0, np.nan], [10.0, 20.0]])
    ground = Ground(x, y, height)
    np.testing.assert_allclose(
        ground.at(np.array([0.0, 0.5, 2.5, 4.0]), np.array([1.0, 0, 0, 2])), [1, 2, 7, 20]
    )
    assert np.isnan(ground.at(np.array([0.5, -1.0, np.nan]), np.array([1.0, 0, 0]))).all()


def test_lines_are_cut_and_follow_the_ground():
    x = y = np.linspace(0, 4, 5)
    ground = Ground(x, y, np.add.outer(np.abs(x - 2), 0 * y))  # a valley along x = 2
    across, up, height = ground.over(np.array([[1.0], [9.0]]), np.array([[1.0], [1.0]]))
    np.testing.assert_allclose(across[[0, -2]], [1, 4], atol=1e-5)
    assert np.isnan(across[-1])
    np.testing.assert_allclose(height[:-1], np.abs(across[:-1] - 2), atol=1e-5)
    assert height[:-1].min() == pytest.approx(0, abs=1e-5), "it goes down into the valley"
    # out, across the window without an iterate in it, and back: two lines
    across, up, _ = ground.over(np.array([[1.0], [1.0], [5.0]]), np.array([[1.0], [9.0], [1.0]]))
    assert np.isnan(across).sum() == 2
    assert np.nanmax(up) <= 4.001
    empty = ground.over(np.array([[np.nan], [1.0]]), np.array([[0.0], [1.0]]))
    assert [c.size for c in empty] == [0, 0, 0]


# A path in 3-D ---------------------------------------------------------------------------------


def three(**options):
    problem = tw.Problem.from_function(
        lambda w: w["a"] ** 2 + 2 * w["b"] ** 2 + 3 * w["c"] ** 2 + w["d"] ** 2,
        params={"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0},
    )
    return tw.descend(problem, **options)


def test_path3d_is_coloured_by_the_step():
    path = three(optimizer=tw.SGD(lr=0.1), steps=10)
    figure = tw.plotly.path3d(
        path, ("d", "a", "c"), points={"minimum": {"a": 1.0, "c": 0.0, "d": 2.0}}
    )
    line = figure.data[0]
    for axis, name in zip("xyz", "dac", strict=True):
        np.testing.assert_array_equal(line[axis][:-1], path.params.sel(param=name))
        assert figure.layout.scene[f"{axis}axis"].title.text == name
    np.testing.assert_array_equal(np.array(line.line.color[:-1], float), path.step)
    assert (line.line.cmin, line.line.cmax) == (0, 10)
    assert line.marker.colorbar.title.text == "step"
    np.testing.assert_array_equal(line.customdata[:-1, 2:], path.params)
    ends = {t.name: (t.x[0], t.y[0], t.z[0]) for t in figure.data[1:3]}
    assert ends["start"] == (4.0, 1.0, 3.0)
    assert ends["end"] == tuple(path.final.sel(param=["d", "a", "c"]).values)
    (point,) = (t for t in figure.data if t.name == "minimum")
    assert (point.x[0], point.y[0], point.z[0]) == (2, 1, 0)
    assert [f.data[0].x[0] for f in figure.frames] == path.params.sel(param="d").values.tolist()


def test_path3d_names_members_where_they_end_and_hides_what_is_far():
    path = three(optimizer=tw.SGD(lr=[0.1, 0.01, 9.0]), steps=400, every=4)
    figure = tw.plotly.path3d(path)
    names = [text for t in figure.data if t.text for text in t.text]
    assert names[:2] == ["lr = 0.1", "lr = 0.01"]
    assert any(
        note.endswith("of diverged paths, far from the others, not shown") for note in notes(figure)
    )
    drawn = np.concatenate([np.asarray(t.x, float) for t in figure.data])
    assert np.nanmax(np.abs(drawn)) < 100
    json.loads(figure.to_json())
    only = tw.plotly.path3d(path.isel(lr=[2]))
    assert np.isfinite(only.data[0].x).sum() > 0


def test_path3d_needs_three_parameters():
    path = three(optimizer=tw.SGD(lr=0.1), steps=2)
    assert tw.plotly.path3d(path).layout.title.text == "The path in a, b, c"
    for bad, said in (
        (("a", "b"), "three different"),
        (("a", "a", "b"), "three different"),
        (("a", "b", "c", "c"), "three different"),
        (("a", "b", "cc"), "unknown parameter 'cc'"),
        ((), "three different parameters; none given"),
        (3, "params are the names of three parameters; 3 given"),
        ("abc", "params are the names of three parameters; 'abc' given"),
    ):
        with pytest.raises(InputError, match=said):
            tw.plotly.path3d(path, bad)
    with pytest.raises(InputError, match="3 numbers"):
        tw.plotly.path3d(path, points={"p": [0.0]})
    with pytest.raises(InputError, match=r"needs 3 numbers; 1\.0 given"):
        tw.plotly.path3d(path, points={"p": 1.0})
    with pytest.raises(InputError, match=r"by what they are called.*; list given"):
        tw.plotly.path3d(path, points=[0.0, 1.0, 2.0])
    with pytest.raises(InputError, match="trajectory was expected"):
        tw.plotly.path3d(np.zeros((3, 3)))


# The library -----------------------------------------------------------------------------------


def test_a_missing_plotly_names_the_extra(descended, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(MissingExtra, match=r"need plotly: pip install 'thalweg\[plotly\]'"):
        tw.plotly.surface(descended[0])


def test_plotly_is_loaded_when_a_figure_is_made():
    code = "import sys, thalweg as tw; tw.plotly.surface; assert 'plotly' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hovers_of_large_models_name_some_parameters():
    problem = tw.Problem.from_function(lambda w: (w["w"] ** 2).sum(), params={"w": np.ones(30)})
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=2)
    line = tw.plotly.path3d(path).data[0]
    assert line.customdata.shape == (4, 2 + 12)
    assert "… (30 parameters)" in line.hovertemplate


@pytest.mark.filterwarnings("error")
def test_a_line_to_infinity_is_cut_at_the_window():
    problem = tw.Problem.from_function(lambda w: w["a"] ** 2 + w["b"] ** 2, {"a": 1.0, "b": 0.5})
    surface = tw.landscape(problem, tw.coordinate_plane(problem, {"a": (-2, 2), "b": (-2, 2)}, 11))
    path = tw.descend(problem, tw.SGD(lr=5.3), steps=400)
    figure = tw.plotly.surface(surface, path)
    lines = [t for t in figure.data if t.type == "scatter" and t.mode == "lines"]
    assert lines
    for line in lines:
        across, up = np.asarray(line.x, float), np.asarray(line.y, float)
        shown = ~np.isnan(across)
        assert shown.any()
        np.testing.assert_allclose(across[shown], 2 * up[shown], rtol=1e-5)
        assert np.abs(across[shown]).max() == pytest.approx(2, rel=1e-4)
