"""Pictures are tested by what their artists hold, not by their pixels."""

from __future__ import annotations

import inspect
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from figure_checks import faults
from matplotlib.colors import to_hex, to_rgb, to_rgba

import thalweg as tw
from thalweg import files, plots, results
from thalweg.errors import InputError
from thalweg.plots import style


@pytest.fixture(autouse=True)
def closed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No figure outlives its test, and none is shown."""
    monkeypatch.setattr(plt, "show", lambda *a, **k: pytest.fail("a plot called show"))
    yield
    plt.close("all")


# Results, made by hand -----------------------------------------------------------------------


def risk(a: Any, b: Any) -> Any:
    """Asymmetric: no two axes can be exchanged unnoticed."""
    return (a - 1) ** 2 + 3 * (b + 0.5) ** 2 + 0.5 * a * b + 2


def landscape(
    na: int = 7, nb: int = 5, p: int = 2, samples: int = 4, values: Any = None, axes: Any = None
) -> xr.Dataset:
    """`risk` on a ∈ [−2, 3] across and b ∈ [−1, 2] up."""
    axes = axes or {"a": np.linspace(-2, 3, na), "b": np.linspace(-1, 2, nb)}
    names = tuple(axes)
    if values is None:
        values = risk(*np.meshgrid(*axes.values(), indexing="ij")) if len(axes) == 2 else 1.0
    values = np.broadcast_to(values, tuple(map(len, axes.values()))).astype(float)
    offsets = np.arange(samples).reshape(-1, *[1] * values.ndim)
    data = {
        "origin": ("param", np.zeros(p)),
        "directions": (("direction", "param"), np.eye(len(axes), p)),
        "empirical": (names, values),
        "expected": (names, values + 0.25),
        "pointwise": (("sample", *names), values * (1 + offsets) - 1),
    }
    params = [*"abcdefgh"[:p]]
    coords = {**axes, "direction": [*names], "param": params}
    return xr.Dataset(data, coords, {"kind": "landscape"})


def trajectory(
    steps: int = 20, lost: Any = (), p: int = 2, first: int = 0, **members: Any
) -> xr.Dataset:
    """Members that spiral in; `lost` are indices of those that diverge at step 4."""
    dims, shape = tuple(members), tuple(len(v) for v in members.values())
    t = np.arange(steps + 1)
    count = int(np.prod(shape))
    turn = 0.3 * np.arange(1, count + 1) / count
    points = np.stack([np.exp(-0.1 * t[:, None]) * f(t[:, None] * turn) for f in (np.cos, np.sin)])
    params = np.concatenate([points, np.zeros((p - 2, *points.shape[1:]))]).swapaxes(0, 1)
    params = params.reshape(steps + 1, p, *shape)
    loss = np.exp(-0.2 * t).reshape(-1, *[1] * len(shape)) * (1 + np.arange(count).reshape(shape))
    status = np.full(shape, "completed")
    diverged_at = np.full(shape, -1)
    for index in lost:
        status[index], diverged_at[index] = "diverged", 4
        loss[(slice(1, 4), *index)] = 10.0 ** (100 * np.arange(1, 4))
        params[(slice(4, None), slice(None), *index)] = np.nan
        loss[(slice(4, None), *index)] = np.nan
    data = {
        "params": (("step", "param", *dims), params),
        "grad": (("step", "param", *dims), 2 * params),
        "start": (("param", *dims), params[0]),
        "loss": (("step", *dims), loss),
        "relative_movement": (("step", *dims), np.linalg.norm(params - params[0], axis=1)),
        "status": (dims, status),
        "diverged_at": (dims, diverged_at),
        "batch": (("step", "in_batch"), (t[:, None] % 4).astype(np.int32)),
    }
    coords = {"step": t + first, "param": [*"abcdefgh"[:p]], **members}
    return xr.Dataset(data, coords, {"kind": "trajectory"})


def fitted(**models: Any) -> xr.Dataset:
    x = np.linspace(-1, 1, 8)
    grid = np.linspace(-1.5, 1.5, 30)
    data = xr.Dataset(
        {
            "x": ("sample", x, {"long_name": "dose", "units": "mg"}),
            "y": ("sample", 2 * x + x**2, {"units": "s"}),
            "yhat": ("sample", 2 * x),
            "x_grid": ("grid", grid),
            "yhat_grid": ("grid", 2 * grid),
        }
    )
    if models:
        ((dim, values),) = models.items()
        curves = np.stack([2 * grid + i * grid**2 for i in range(len(values))], axis=1)
        data = data.drop_vars("yhat_grid").assign_coords({dim: values})
        data["yhat_grid"] = (("grid", dim), curves)
    return data


def lines(ax: Any, label: str) -> list[Any]:
    """The lines of a series, without the proxy that only its legend shows."""
    return [
        line
        for line in ax.lines
        if line.get_label() in (label, f"_{label}") and len(line.get_xdata())
    ]


def legend(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []


def bar(ax: Any) -> Any:
    """The axes of the colour bar."""
    (found,) = [other for other in ax.figure.axes if other.get_label() == "<colorbar>"]
    return found


# Every function --------------------------------------------------------------------------------

ONE = trajectory()
SWEEP = trajectory(run=[0, 1, 2], lr=[0.1, 0.01], lost=[(1, 1)])
LINE = landscape(axes={"t": np.linspace(0, 1, 5)}, values=np.arange(5.0))

CALLS: dict[str, tuple[Any, ...]] = {
    "contour": (landscape(), SWEEP),
    "heatmap": (landscape(), SWEEP),
    "profile": (LINE,),
    "risks": (landscape(), SWEEP),
    "step_panels": (landscape(), ONE, 3),
    "loss": (SWEEP,),
    "movement": (SWEEP,),
    "record": (SWEEP, "loss"),
    "histogram": (SWEEP,),
    "curve": (SWEEP["loss"][-1],),
    "matrix": (SWEEP["relative_movement"][:, :, 0],),
    "spectrum": (np.arange(9.0),),
    "points": (fitted(),),
    "fit": (fitted(),),
    "residuals": (fitted(),),
    "residual_scatter": (fitted(),),
}
OPTIONS: dict[str, dict[str, Any]] = {"risks": {"sample": 1}}


def test_every_public_function_has_its_tests() -> None:
    tests = "".join(p.read_text("utf-8") for p in sorted(Path(__file__).parent.glob("test_*.py")))
    called = set(re.findall(r"plots?\.(\w+)\(", tests)) | set(CALLS)
    assert set(plots.__all__) <= called


@pytest.mark.parametrize("name", CALLS)
def test_inputs_come_out_unchanged_and_every_axis_is_labelled(name: str) -> None:
    before = [a.copy(deep=True) if hasattr(a, "coords") else a for a in CALLS[name]]
    with plt.rc_context({"figure.max_open_warning": 1}):
        drawn = getattr(plots, name)(*CALLS[name], **OPTIONS.get(name, {}))
    figure = drawn if name in ("risks", "step_panels") else drawn.figure
    figure.canvas.draw()
    for old, new in zip(before, CALLS[name], strict=True):
        if hasattr(old, "coords"):
            xr.testing.assert_identical(old, new)
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    for i, ax in enumerate(panels):
        assert ax.get_title()
        assert ax.get_xlabel()
        assert ax.get_ylabel() or i  # panels in a row share the label of the first
    for ax in figure.axes:
        if ax.get_label() == "<colorbar>":
            assert ("movement" if name == "matrix" else "risk") in ax.get_ylabel()
    if "figure" in inspect.signature(getattr(plots, name)).parameters:
        given = plt.figure(layout="constrained")
        assert getattr(plots, name)(*CALLS[name], **OPTIONS.get(name, {}), figure=given) is given
    else:
        _, given = plt.subplots()
        assert getattr(plots, name)(*CALLS[name], ax=given) is given
        assert len(plt.get_fignums()) == 2


def test_text_does_not_overlap() -> None:
    path = trajectory(p=3)
    path["params"][:, 2] = 0.5
    ax = plots.contour(landscape(p=3), path)
    ax.figure.canvas.draw()
    (note,) = [t for t in ax.texts if t.get_text()]
    boxes = [
        artist.get_window_extent()
        for artist in (note, ax.xaxis.label, ax.yaxis.label, ax.title, bar(ax).yaxis.label)
    ]
    boxes += [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
    for i, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[i + 1 :])
        assert ax.figure.bbox.containsx(one.x0)
        assert ax.figure.bbox.containsx(one.x1)
        assert ax.figure.bbox.containsy(one.y0)
        assert ax.figure.bbox.containsy(one.y1)


def test_a_saved_result_draws_without_jax(tmp_path: Any) -> None:
    surface, path = landscape(), SWEEP
    for name, result in (("surface", surface), ("path", path)):
        result.attrs["schema_version"] = results.SCHEMA_VERSION
        files.save(result, tmp_path / f"{name}.nc")
    program = (
        "import sys, matplotlib; matplotlib.use('Agg')\n"
        "from thalweg import files, plots\n"
        f"surface, path = (files.load(r'{tmp_path}/' + n) for n in ('surface.nc', 'path.nc'))\n"
        f"plots.contour(surface, path).figure.savefig(r'{tmp_path}/picture.png')\n"
        "plots.loss(path)\n"
        "assert 'jax' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    assert (tmp_path / "picture.png").stat().st_size > 1000


def test_results_of_the_library_are_drawn() -> None:
    import thalweg as tw

    x = np.linspace(-1, 1, 6)
    problem = tw.Problem(
        lambda p, x: p["a"] * x + p["b"],
        "mse",
        x,
        2 * x + 1,
        params={"a": 3.0, "b": -1.0},
        expected=lambda p: (p["a"] - 2) ** 2 / 3 + (p["b"] - 1) ** 2,
    )
    plane = tw.coordinate_plane(problem, {"a": (-1, 4), "b": (-2, 3)}, points={"a": 9, "b": 6})
    surface = tw.landscape(problem, plane, risks=("empirical", "expected", "pointwise"))
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=6, batch_size=1, record=["grad", "batch"])
    figure = plots.step_panels(surface, path, 4)
    assert figure.get_suptitle() == "Step 4, sample 4"
    ax = plots.heatmap(surface, path)
    np.testing.assert_array_equal(lines(ax, "path")[0].get_xdata(), path["params"].sel(param="a"))
    swept = tw.descend(problem, tw.SGD(lr=[0.1, 3e4]), steps=100, runs=None)
    assert "lr = 30000 (diverged)" in legend(plots.loss(swept))


# Colours ---------------------------------------------------------------------------------------


def lightness(colors: Any) -> np.ndarray:
    """CIE L* of sRGB colours (IEC 61966-2-1)."""
    rgb = np.asarray(colors)[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(y > (6 / 29) ** 3, 116 * np.cbrt(y) - 16, y * (29 / 3) ** 3)


def test_colour_maps_can_be_read_in_grey() -> None:
    sequential = lightness(matplotlib.colormaps[style.SEQUENTIAL](np.linspace(0, 1, 50)))
    assert (np.diff(sequential) > 0).all()
    diverging = lightness(matplotlib.colormaps[style.DIVERGING](np.linspace(0, 1, 101)))
    assert (np.diff(diverging[:51]) > 0).all()
    assert (np.diff(diverging[50:]) < 0).all()


def test_series_differ_in_colour_and_in_dash_or_marker() -> None:
    looks = [style.style(i) for i in range(35)]
    assert len({(look.color, str(look.dash)) for look in looks}) == 35
    assert len({(str(look.dash), look.marker) for look in looks[:10]}) == 10  # in grey


@pytest.mark.parametrize("look", ["default", "dark_background", "ggplot", "grayscale"])
def test_everything_is_seen_on_the_readers_background(look: str) -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(-1, 1, 20)
    data = xr.Dataset({"x": ("sample", x), "y": ("sample", x**2), "yhat": ("sample", x)})
    values = xr.DataArray(rng.uniform(1, 2, (8, 7)), dims=("at", "series"))
    values = values.assign_coords(at=np.arange(8.0), series=np.arange(7))
    with plt.style.context(look):
        axes = [plots.curve(values, "at"), plots.residuals(data), plots.points(data)]
        axes.append(plots.graph(tw.computation_graph(lambda a: (1 - a) ** 2, 0.5)))
        axes.append(plots.spectrum(xr.DataArray([0.0, 1.0, 2.0], dims="eigenvalue")))
        boxes = [p.get_facecolor() for p in axes[3].patches if "node" in str(p.get_gid())]
        ground = axes[0].get_facecolor()
        assert style.shade(1) == to_hex(ground)

    def apart(color: Any, other: Any) -> float:
        """How far two colours are apart in grey."""
        one, two = lightness([to_rgba(color), to_rgba(other)])
        return abs(one - two)

    assert len(boxes) == 4
    for ax in axes:
        for text in ax.texts:
            assert min(apart(text.get_color(), under) for under in [ground, *boxes]) > 25
        for line in ax.lines:
            marks = [line.get_markerfacecolor(), line.get_markeredgecolor()]
            drawn = marks if line.get_linestyle() == "None" else [line.get_color()]
            assert max(apart(color, ground) for color in drawn) > 15


# Landscapes ------------------------------------------------------------------------------------


def test_a_heat_map_shows_the_values_with_the_first_axis_across() -> None:
    surface = landscape(7, 5)
    ax = plots.heatmap(surface)
    (mesh,) = ax.collections
    array = mesh.get_array()
    assert array.shape == (5, 7)
    np.testing.assert_array_equal(array, surface["empirical"].transpose("b", "a"))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    # The centre of each cell is the point of the grid.
    corners = mesh.get_coordinates()
    centers = (corners[1:, 1:] + corners[:-1, :-1]) / 2
    np.testing.assert_allclose(centers[0, :, 0], surface["a"])
    np.testing.assert_allclose(centers[:, 0, 1], surface["b"])


def test_a_surface_with_its_axes_stored_the_other_way_round_looks_the_same() -> None:
    surface = landscape(7, 5)
    turned = surface.transpose("param", "direction", "sample", "b", "a")
    one, two = (plots.heatmap(s).collections[0].get_array() for s in (surface, turned))
    np.testing.assert_array_equal(one, two)


def test_cells_of_uneven_and_descending_grids() -> None:
    surface = landscape(axes={"a": np.array([3.0, 1.0, 0.0]), "b": np.array([2.0])})
    ax = plots.heatmap(surface)
    corners = ax.collections[0].get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], [4, 2, 0.5, -0.5])
    np.testing.assert_allclose(corners[:, 0, 1], [1.5, 2.5])
    assert ax.get_xlim() == (-0.5, 4)


def test_quantile_levels_are_quantiles_and_the_colour_bar_says_so() -> None:
    surface = landscape(40, 30)
    ax = plots.contour(surface, n_levels=8)
    (filled,) = ax.collections
    values = surface["empirical"].values
    np.testing.assert_allclose(filled.levels, np.quantile(values, np.linspace(0, 1, 9)))
    assert "quantiles" in bar(ax).get_ylabel()
    assert ax.get_xlim() == (-2, 3)


def test_contours_pass_where_the_risk_has_the_levels_value() -> None:
    ax = plots.contour(landscape(40, 30), levels=[3.0, 5.0, 9.0, 15.0], filled=False)
    (drawn,) = ax.collections
    for level, path in zip(drawn.levels, drawn.get_paths(), strict=True):
        assert len(path.vertices) > 10
        # Linear interpolation in cells of 0.13 × 0.1: off by at most h² f'' / 8 along each axis.
        np.testing.assert_allclose(risk(*path.vertices.T), level, atol=0.02)


def test_linear_and_given_levels() -> None:
    surface = landscape(20, 10)
    values = surface["empirical"].values
    linear = np.linspace(values.min(), values.max(), 6)
    for options in ({"levels": "linear", "n_levels": 5}, {"levels": 5}, {"levels": linear}):
        ax = plots.contour(surface, **options)
        np.testing.assert_allclose(ax.collections[0].levels, linear)
        assert "quantiles" not in bar(ax).get_ylabel()
        for text, at in zip(bar(ax).get_yticklabels(), bar(ax).get_yticks(), strict=True):
            assert float(text.get_text().replace("−", "-")) == pytest.approx(at, rel=5e-3)


def test_values_beyond_given_levels_are_drawn_and_the_colour_bar_has_arrows() -> None:
    surface = landscape(20, 10)
    drawn = plots.contour(surface, levels=[3.0, 4.0, 5.0]).collections[0]
    assert drawn.extend == "both"
    assert len({to_hex(c) for c in drawn.get_facecolor()}) == 4


def test_log_levels_leave_out_what_is_not_positive_and_count_it() -> None:
    values = np.array([[-1.0, 0.0, 1.0], [10.0, 100.0, 1000.0], [2.0, 3.0, 4.0]])
    surface = landscape(3, 3, values=values)
    ax = plots.heatmap(surface, levels="log", n_levels=3)
    assert ax.collections[0].get_array().mask.sum() == 2
    np.testing.assert_allclose(ax.collections[0].norm.boundaries, [1, 10, 100, 1000])
    assert style.notes(ax) == ["grey: 2 of 9 points ≤ 0 (log levels)"]
    assert "log scale" in bar(ax).get_ylabel()
    nothing = plots.contour(landscape(3, 3, values=-1.0), levels="log")
    assert not nothing.collections
    assert style.notes(nothing) == ["grey: 9 of 9 points ≤ 0 (log levels)"]


@pytest.mark.parametrize("levels", ["quantile", "linear", "log", [2.0, 3.0, 6.0]])
def test_a_stated_centre_lies_between_blue_and_red(levels: Any) -> None:
    ax = plots.contour(landscape(30, 20), levels=levels, center=5.0, n_levels=6)
    drawn = ax.collections[0]
    assert 5.0 in drawn.levels
    below, above = (to_rgb(drawn.cmap(drawn.norm(v))) for v in (4.9, 5.1))
    assert below[2] > below[0]  # blue
    assert above[0] > above[2]  # red
    if not isinstance(levels, list):
        assert "below and above 5" in bar(ax).get_ylabel()
    assert "5" in [t.get_text() for t in bar(ax).get_yticklabels()]


def test_quantile_levels_about_a_centre() -> None:
    one, two = np.arange(1, 11.0), np.arange(11, 21.0)
    levels = plots.quantile_levels(one, two.reshape(2, 5), [np.nan], center=5.5, n=5)
    below, above = np.arange(1, 6), np.arange(6, 21)
    np.testing.assert_allclose(levels[:5], np.quantile(below, [0, 0.2, 0.4, 0.6, 0.8]))
    assert levels[5] == 5.5
    np.testing.assert_allclose(levels[6:], np.quantile(above, [0.2, 0.4, 0.6, 0.8, 1]))
    assert len(plots.quantile_levels(one, center=5.5)) == 21
    np.testing.assert_allclose(plots.quantile_levels([2.0, 3.0], center=1.0, n=1), [1, 3])
    np.testing.assert_allclose(plots.quantile_levels([2.0, 3.0], center=4.0, n=1), [2, 4])
    for bad in ({"center": np.nan}, {"center": 1.0, "n": 0}):
        with pytest.raises(InputError):
            plots.quantile_levels(one, **bad)
    with pytest.raises(InputError, match="finite value"):
        plots.quantile_levels([np.nan], center=1.0)


def test_a_constant_surface() -> None:
    for draw in (plots.contour, plots.heatmap):
        for value in (0.0, 3.0, -2.0):
            ax = draw(landscape(values=value))
            ax.figure.canvas.draw()
            assert "the same everywhere" in bar(ax).get_ylabel()
            assert [float(t) for t in bar(ax).get_yticks()] == [value]
    unfilled = plots.contour(landscape(values=3.0), filled=False)
    assert style.notes(unfilled) == ["no level lies within the risks' range"]


def test_a_surface_that_is_nearly_constant_keeps_its_structure() -> None:
    values = np.zeros((10, 10))
    values[4, 4], values[5, 5] = 1.0, 2.0
    ax = plots.heatmap(landscape(10, 10, values=values), n_levels=4)
    np.testing.assert_allclose(ax.collections[0].norm.boundaries, [0, 0.5, 1, 1.5, 2])
    assert "distinct" in bar(ax).get_ylabel()


def test_what_the_risk_is_called() -> None:
    surface = landscape()
    surface.attrs["settings"] = '{"penalty": true, "n_samples": 4}'
    assert plots.contour(surface).get_title() == "Empirical risk + penalty"
    pointwise = plots.contour(surface, risk="pointwise", sample=0)
    assert pointwise.get_title() == "Pointwise risk, sample 0"
    surface.attrs["settings"] = '{"penalty": false, "n_samples": 0}'
    assert plots.contour(surface).get_title() == "Risk"


def test_missing_values_are_grey_and_counted() -> None:
    values = risk(*np.meshgrid(np.linspace(-2, 3, 7), np.linspace(-1, 2, 5), indexing="ij"))
    values[2, 1], values[0, 0] = np.nan, np.inf
    for draw in (plots.contour, plots.heatmap):
        ax = draw(landscape(values=values))
        assert style.notes(ax) == ["grey: 2 of 35 points not finite"]
        assert to_hex(ax.get_facecolor()) == to_hex(style.MISSING)
    array = ax.collections[0].get_array()
    assert array.mask[1, 2]
    assert array.mask[0, 0]
    assert array.mask.sum() == 2
    nothing = plots.contour(landscape(values=np.nan), ONE)
    nothing.figure.canvas.draw()
    assert "no risk is finite" in style.notes(nothing)


def test_lines_instead_of_bands() -> None:
    for center in (None, 5.0):
        ax = plots.contour(landscape(30, 20), filled=False, center=center, n_levels=6)
        (drawn,) = ax.collections
        assert not drawn.filled
        assert len({to_hex(c) for c in drawn.get_edgecolor()}) == 7
        assert lightness(drawn.get_edgecolor()).max() < 88  # to be seen on white
        ax.figure.canvas.draw()


def test_a_title_a_colour_bars_label_or_none() -> None:
    ax = plots.contour(landscape(), title="Mine", colorbar="penalised risk")
    assert (ax.get_title(), bar(ax).get_ylabel()) == ("Mine", "penalised risk")
    bare = plots.contour(landscape(), colorbar=False, title="")
    assert (len(bare.figure.axes), bare.get_title()) == (1, "")


def test_a_parameters_dollar_signs_are_not_mathematics() -> None:
    surface = landscape().rename(a="a$x$").assign_coords(direction=["a$x$", "b"])
    assert plots.contour(surface).get_xlabel() == r"a\$x\$"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"risk": "expcted"}, "did you mean 'expected'"),
        ({"risk": "origin"}, "unknown risk"),
        ({"risk": "pointwise"}, "from 0 to 3"),
        ({"risk": "pointwise", "sample": 4}, "from 0 to 3"),
        ({"risk": "pointwise", "sample": 1.5}, "from 0 to 3; 1.5 given"),
        ({"risk": "pointwise", "sample": "2"}, "from 0 to 3; '2' given"),
        ({"sample": 1}, "belongs to the pointwise risk"),
        ({"levels": "quantiles"}, "did you mean 'quantile'"),
        ({"levels": [3, 2, 1]}, "increasing"),
        ({"levels": [1.0]}, "increasing"),
        ({"levels": True}, "increasing"),
        ({"n_levels": 1}, "at least 2"),
        ({"n_levels": 4.5}, "whole number of at least 2; 4.5 given"),
        ({"levels": 1}, "levels must be a whole number of at least 2; 1 given"),
        ({"center": np.inf}, "finite"),
        ({"center": -1.0, "levels": "log"}, "positive"),
    ],
)
def test_impossible_options(options: dict[str, Any], words: str) -> None:
    for draw in (plots.contour, plots.heatmap):
        with pytest.raises(InputError, match=words):
            draw(landscape(), **options)
    assert not plt.get_fignums()


def test_planes_of_other_dimensions() -> None:
    with pytest.raises(InputError, match="profile"):
        plots.contour(LINE)
    with pytest.raises(InputError, match="contour or heatmap"):
        plots.profile(landscape())
    cube = landscape(p=3, axes={"a": np.arange(2.0), "b": np.arange(2.0), "c": np.arange(2.0)})
    with pytest.raises(InputError, match="3 \\(a, b, c\\)"):
        plots.heatmap(cube)
    with pytest.raises(InputError, match="heatmap"):
        plots.contour(landscape(1, 5))
    with pytest.raises(InputError, match="landscape was expected"):
        plots.contour(ONE)
    with pytest.raises(InputError, match="trajectory was expected"):
        plots.contour(landscape(), landscape())


def test_a_profile() -> None:
    ax = plots.profile(LINE, risks=("empirical", "pointwise"))
    (line,) = lines(ax, "empirical risk")
    np.testing.assert_array_equal(line.get_xdata(), LINE["t"])
    np.testing.assert_array_equal(line.get_ydata(), LINE["empirical"])
    assert len(lines(ax, "pointwise risk (4 samples)")) == 4
    assert legend(ax) == ["empirical risk", "pointwise risk (4 samples)"]
    log = plots.profile(LINE, y="log")
    assert style.notes(log) == ["1 value ≤ 0 (log axis) not shown"]
    both = plots.profile(LINE, ax=log, label="other")
    assert "other: empirical risk" in legend(both)
    assert log.get_title() == "Risk along t"
    between = LINE.assign_coords(t=LINE["t"].assign_attrs(long_name="from a (0) to b (1)"))
    named = plots.profile(between)
    assert (named.get_title(), named.get_xlabel()) == ("Risk along the line", "from a (0) to b (1)")
    broken = LINE.copy(deep=True)
    broken["empirical"][1] = np.nan
    assert style.notes(plots.profile(broken)) == ["1 value not finite not shown"]
    for risks in ("loss", 3, ["empirical", 3]):
        with pytest.raises(InputError, match="unknown risk"):
            plots.profile(LINE, risks=risks)
    with pytest.raises(InputError, match="names no risk"):
        plots.profile(LINE, risks=[])


# Paths -----------------------------------------------------------------------------------------


def test_a_path_is_drawn_where_it_went() -> None:
    for draw in (plots.contour, plots.heatmap):
        ax = draw(landscape(), ONE)
        (line,) = lines(ax, "path")
        np.testing.assert_array_equal(line.get_xdata(), ONE["params"].sel(param="a"))
        np.testing.assert_array_equal(line.get_ydata(), ONE["params"].sel(param="b"))
        assert legend(ax) == ["path", "start", "end"]
        (start,), (end,) = lines(ax, "_o"), lines(ax, "_*")
        np.testing.assert_array_equal(start.get_xydata(), ONE["params"].values[:1])
        np.testing.assert_array_equal(end.get_xydata(), ONE["params"].values[-1:])
        assert not style.notes(ax)


def test_parameters_in_another_order_than_the_axes() -> None:
    surface = landscape(axes={"b": np.linspace(-1, 2, 5), "a": np.linspace(-2, 3, 7)})
    surface["directions"][:] = [[0, 1], [1, 0]]
    (line,) = lines(plots.contour(surface, ONE), "path")
    np.testing.assert_allclose(line.get_xdata(), ONE["params"].sel(param="b"), atol=1e-15)


def test_members_are_named_and_look_different() -> None:
    ax = plots.contour(landscape(), SWEEP)
    names = [f"lr = {lr}, run {run}" for run in range(3) for lr in (0.1, 0.01)]
    names[3] += " (diverged)"
    assert legend(ax)[:6] == names
    drawn = [line for name in names for line in lines(ax, name.replace(" (diverged)", ""))]
    assert len({(line.get_color(), str(line._dash_pattern)) for line in drawn}) == 6
    for line, index in zip(drawn, np.ndindex(3, 2), strict=True):
        values = SWEEP["params"].values[(slice(None), slice(None), *index)]
        np.testing.assert_allclose(line.get_xydata(), values, atol=1e-15)
    # The cross is at the last finite iterate, of step 3.
    (cross,) = lines(ax, "_X")
    np.testing.assert_allclose(cross.get_xydata()[0], SWEEP["params"].values[3, :, 1, 1])
    assert "last finite iterate" in legend(ax)


def test_many_members_share_a_style() -> None:
    path = trajectory(steps=8, run=np.arange(100), lost=[(3,), (5,), (8,)])
    ax = plots.contour(landscape(), path)
    assert legend(ax)[:2] == ["100 runs", "100 runs: 3 diverged"]
    drawn = lines(ax, "100 runs")
    assert len(drawn) == 100
    assert len({line.get_color() for line in drawn}) == 1
    assert all(line.get_alpha() < 1 for line in drawn)
    swept = trajectory(steps=8, run=np.arange(20), lr=[0.1, 0.2], lost=[(i, 1) for i in range(20)])
    ax = plots.contour(landscape(), swept)
    assert legend(ax)[:2] == ["lr = 0.1 (20 runs)", "lr = 0.2 (20 runs): 20 diverged"]
    grid = trajectory(steps=3, lr=np.arange(6.0), momentum=np.arange(4.0))
    assert legend(plots.contour(landscape(), grid))[0] == "24 descents"


def test_a_thousand_runs() -> None:
    path = trajectory(steps=5, run=np.arange(1000), lost=[(7,)])
    ax = plots.contour(landscape(), path)
    assert legend(ax)[:2] == ["1,000 runs", "1,000 runs: 1 diverged"]
    ax.figure.canvas.draw()


def test_all_runs_diverged_even_at_the_start() -> None:
    path = trajectory(run=[0, 1], lost=[(0,), (1,)])
    path["params"][:] = np.nan
    path["loss"][:] = np.nan
    ax = plots.contour(landscape(), path)
    assert legend(ax) == ["run 0 (diverged)", "run 1 (diverged)"]
    ax.figure.canvas.draw()
    ax = plots.loss(path, band=None)
    assert legend(ax) == ["2 diverged"]
    ax.figure.canvas.draw()
    ax = plots.histogram(path)
    assert legend(ax) == ["2 members, 2 diverged"]
    assert "no value can be shown" in style.notes(ax)
    ax.figure.canvas.draw()


def several() -> dict[str, xr.Dataset]:
    """Trajectories that have neither length nor members nor recorded steps in common."""
    return {
        "SGD": trajectory(steps=20),
        "$Adam$": trajectory(steps=60).isel(step=slice(None, None, 10)),
        "sweep": trajectory(steps=30, lost=[(1,)], lr=[0.1, 0.5]),
    }


def drawn(ax: Any) -> list[Any]:
    """All of what lines and notes hold."""
    legend = ax.get_legend()
    lines = [
        (np.asarray(line.get_data()).tolist(), line.get_color(), str(line.get_linestyle()))
        for line in ax.lines
    ]
    names = [text.get_text() for text in legend.get_texts()]
    return [repr(lines), names, style.notes(ax), ax.get_xlim(), ax.get_ylim()]


@pytest.mark.parametrize(
    "draw",
    [
        lambda path, ax, **o: plots.path(landscape(), path, ax=ax, **o),
        lambda path, ax, **o: plots.loss(path, ax=ax, **o),
        lambda path, ax, **o: plots.record(path, "relative_movement", x="log", ax=ax, **o),
        lambda path, ax, **o: plots.movement(path, ax=ax, **o),
    ],
)
def test_several_by_name_are_drawn_as_one_after_the_other(draw: Any) -> None:
    together, apart = (plt.subplots()[1] for _ in range(2))
    assert draw(several(), together) is together
    for name, path in several().items():
        draw(path, apart, label=name)
    assert drawn(together) == drawn(apart)
    assert {"SGD", r"\$Adam\$", "sweep: lr = 0.1"} < set(drawn(together)[1])


@pytest.mark.parametrize("draw", [plots.contour, plots.heatmap, plots.surface])
def test_a_landscape_with_several_paths(draw: Any) -> None:
    ax = draw(landscape(), several())
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[:4] == ["SGD", r"\$Adam\$", "sweep: lr = 0.1", "sweep: lr = 0.5 (diverged)"]
    lines = [line for line in ax.lines if str(line.get_gid()).startswith(style.SERIES)]
    assert len({line.get_color() for line in lines}) == 4


def test_a_path_may_be_called_start() -> None:
    for ax in (
        plots.contour(landscape(), {"start": trajectory(), "end": trajectory(9)}),
        plots.contour(landscape(), trajectory(), label="start"),
    ):
        names = [text.get_text() for text in ax.get_legend().get_texts()]
        assert names.count("start") == 2


@pytest.mark.parametrize(
    ("paths", "label", "words"),
    [
        ({}, None, "at least one trajectory is needed"),
        ({"a": trajectory()}, "b", "several have their own"),
        ({"a": trajectory(), "b": landscape()}, None, "b: a trajectory was expected"),
        ([trajectory(), trajectory()], None, "Name several, as in {'SGD': first"),
    ],
)
def test_several_that_cannot_be_drawn(paths: Any, label: str | None, words: str) -> None:
    for draw in (
        lambda: plots.loss(paths, label=label),
        lambda: plots.movement(paths, label=label),
        lambda: plots.contour(landscape(), paths, label=label),
        lambda: plots.surface(landscape(), paths, label=label),
    ):
        with pytest.raises(InputError, match=re.escape(words)):
            draw()
    assert not plt.get_fignums()


@pytest.mark.parametrize("order", [("fine", "lost"), ("lost", "fine")])
def test_a_diverged_one_of_several_does_not_flatten_the_others(order: Any) -> None:
    runs = {"fine": trajectory(), "lost": trajectory(lost=[()])}
    paths = {name: runs[name] for name in order}
    (left, *_) = plots.convergence(paths, ["loss"]).axes
    for ax in (plots.loss(paths), left):
        assert ax.get_ylim()[1] < 1e4
        assert style.notes(ax) == ["the diverged run leaves the window"]
    # a call of its own follows what an earlier one drew
    ax = plots.loss(runs["fine"])
    assert plots.loss(runs["lost"], ax=ax, label="lost").get_ylim()[1] < 1e4
    assert plots.loss({"one": runs["lost"], "two": runs["lost"]}).get_ylim()[1] > 1e299


def test_several_panels_and_limits_are_checked_before_there_is_a_figure() -> None:
    paths = {"a": trajectory(), "b": trajectory().drop_vars("relative_movement")}
    for name in ("relative_movement", "params"):
        with pytest.raises(InputError, match=r"unknown record|is not one number per step"):
            plots.convergence(paths, ["loss", name])
        with pytest.raises(InputError, match=r"unknown record|is not one number per step"):
            plots.sharpness(paths, name)
    with pytest.raises(InputError, match="unknown y"):
        plots.convergence(paths, ["loss"], y="lgo")
    assert not plt.get_fignums()


def test_several_with_times_and_with_steps_are_not_on_one_axis() -> None:
    path = trajectory()
    flow = path.assign_coords(time=("step", 0.1 * path["step"].values))
    with pytest.raises(InputError, match="draw them apart"):
        plots.loss({"descent": path, "flow": flow})
    for draw in (plots.sharpness, plots.record):
        with pytest.raises(InputError, match="draw them apart"):
            draw({"descent": path, "flow": flow}, "loss")
    with pytest.raises(InputError, match="draw them apart"):
        plots.convergence({"descent": path, "flow": flow}, ["loss"])
    timed = path.assign_coords(time=0.1 * path["step"])  # as the message says
    assert plots.loss({"descent": timed, "flow": flow}).get_xlabel() == "time"
    with pytest.raises(InputError, match="these trajectories share no record of the movement"):
        plots.movement({"a": path, "b": path.drop_vars("relative_movement")})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (trajectory().drop_vars("params"), "b: this trajectory has no recorded params"),
        (trajectory().isel(step=slice(0, 0)), "b: this trajectory has no recorded steps"),
        (trajectory(p=3), "b: the points must have the plane's 2 parameters"),
    ],
)
def test_an_error_names_which_of_several_it_is_about(path: xr.Dataset, words: str) -> None:
    for draw in (plots.contour, plots.heatmap, plots.surface, tw.animate.path, tw.plotly.surface):
        with pytest.raises(InputError, match=f"^{re.escape(words)}"):
            draw(landscape(), {"a": trajectory(), "b": path})
        with pytest.raises(InputError, match=f"^{re.escape(words[3:])}"):
            draw(landscape(), path)
    assert not plt.get_fignums()


def test_a_path_that_leaves_the_window_says_so_and_does_not_move_it() -> None:
    path = ONE.copy(deep=True)
    path["params"][5:, 0] = 50.0
    path["params"][8:, 1] = 1e300
    ax = plots.contour(landscape(), path)
    ax.figure.canvas.draw()
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2, 3), (-1, 2))
    assert style.notes(ax) == ["the path leaves the window"]
    assert legend(ax) == ["path", "start"]  # the end is not to be seen
    runs = trajectory(run=[0, 1, 2])
    runs["params"][5:, 0, 1] = 50.0
    assert style.notes(plots.heatmap(landscape(), runs)) == ["1 of 3 paths leaves the window"]


def test_a_path_that_hardly_moves_in_the_plane_says_so() -> None:
    path = trajectory(p=3, run=[0, 1])
    path["params"][:] = 0.5 + 0.001 * path["params"]
    path["params"][:, 2] = 0.1 * path["step"]
    ax = plots.contour(landscape(p=3), path, label="a")
    flat = path["params"].isel(param=[0, 1])
    shown = np.linalg.norm(flat - flat[0], axis=1).max() / 2
    assert style.notes(ax) == [
        f"a: iterates lie up to 2 off the plane, which shows {100 * shown:.2g} % of their movement"
    ]
    note = next(a.text for a in tw.plotly.surface(landscape(p=3), path).layout.annotations)
    assert style.notes(ax)[0].removeprefix("a: ") in note.split("<br>")


def test_a_path_off_the_plane_says_how_far() -> None:
    path = trajectory(p=3)
    path["params"][:, 2] = np.linspace(0, 0.37, 21)
    ax = plots.contour(landscape(p=3), path)
    assert style.notes(ax) == ["iterates lie up to 0.37 off the plane"]
    # Rounding is not a distance.
    path["params"][:, 2] = 0.0
    path["params"] = path["params"].astype(np.float32)
    surface = landscape(p=3)
    surface["origin"][:] = [0.1, 0.2, 1e-8]
    assert not style.notes(plots.contour(surface, path))


def test_paths_without_what_is_needed() -> None:
    with pytest.raises(InputError, match="record="):
        plots.contour(landscape(), ONE.drop_vars("params"))
    with pytest.raises(InputError, match="different parameters"):
        plots.contour(landscape(), ONE.assign_coords(param=["u", "v"]))
    with pytest.raises(InputError, match="2 parameters"):
        plots.contour(landscape(), trajectory(p=3))


def test_one_step_one_run_and_a_path_that_goes_on() -> None:
    path = trajectory(steps=0, run=[0], first=37)
    ax = plots.contour(landscape(), path, label="SGD")
    assert legend(ax) == ["SGD", "step 37", "end"]
    plots.loss(path).figure.canvas.draw()
    plots.loss(trajectory(steps=0), x="log").figure.canvas.draw()


def test_several_trajectories_and_a_marked_point() -> None:
    surface = landscape()
    ax = plots.contour(surface, ONE, label="SGD")
    assert plots.path(surface, ONE, ax=ax, label="Adam") is ax
    assert plots.mark(surface, [1.0, -0.5], ax=ax, label="minimum") is ax
    assert legend(ax) == ["SGD", "Adam", "minimum", "start", "end"]
    colors = {lines(ax, name)[0].get_color() for name in ("SGD", "Adam")}
    assert len(colors) == 2
    np.testing.assert_array_equal(lines(ax, "minimum")[0].get_xydata(), [[1.0, -0.5]])
    plots.mark(landscape(p=3), np.array([9.0, 0.0, 0.5]), ax=ax, label="far")
    assert "far, 0.5 off the plane" in legend(ax)
    assert style.notes(ax) == ["far lies outside the window"]
    with pytest.raises(InputError, match="one point"):
        plots.mark(surface, np.zeros((2, 2)), ax=ax, label="two")
    first, second = surface["param"].values
    plots.mark(surface, {second: -0.5, first: 1.0}, ax=ax, label="by name")
    np.testing.assert_array_equal(lines(ax, "by name")[0].get_xydata(), [[1.0, -0.5]])
    for wrong in ({first: 1.0}, {first: 1.0, "c": 2.0}, {first: [1.0, 2.0], second: 1.0}):
        with pytest.raises(InputError, match="one number for each of the parameters"):
            plots.mark(surface, wrong, ax=ax, label="wrong")
    _, fresh = plt.subplots()
    assert plots.path(surface, ONE, ax=fresh).get_xlim() == (-2, 3)
    assert not style.notes(fresh)
    with pytest.raises(InputError, match="two axes"):
        plots.path(LINE, ONE, ax=ax)


# Panels ----------------------------------------------------------------------------------------


def test_a_grid_of_panels() -> None:
    figure, axes = plots.grid(2, 3, title="Six")
    assert axes.shape == (2, 3)
    assert figure.get_suptitle() == "Six"
    assert plots.grid(1, 1)[1].shape == (1, 1)
    with pytest.raises(InputError, match="row"):
        plots.grid(0, 2)


def test_the_three_risks_share_levels_and_one_colour_bar() -> None:
    surface = landscape(20, 15)
    figure = plots.risks(surface, ONE, sample=2, center=5.0, title="All", label="SGD")
    left, middle, right, color_bar = figure.axes
    assert [ax.get_title() for ax in (left, middle, right)] == [
        "Pointwise risk, sample 2",
        "Empirical risk",
        "Expected risk",
    ]
    levels = [ax.collections[0].levels for ax in (left, middle, right)]
    together = plots.quantile_levels(surface["empirical"], surface["expected"], center=5.0)
    np.testing.assert_allclose(levels[1], together)
    np.testing.assert_array_equal(levels[1], levels[2])
    np.testing.assert_array_equal(levels[0][1:-1], together[1:-1])
    own = surface["pointwise"].isel(sample=2)
    assert levels[0][-1] == max(own.max(), together[-1])
    assert levels[0][0] == min(own.min(), together[0])
    colors = [[to_hex(c) for c in ax.collections[0].get_facecolor()] for ax in (left, middle)]
    assert colors[0] == colors[1]
    assert "quantiles below and above 5" in color_bar.get_ylabel()
    assert "reach" in style.notes(left)[0]
    assert all("SGD" in legend(ax) for ax in (left, middle, right))


def test_a_step_of_stochastic_descent() -> None:
    surface = landscape(20, 16)
    figure = plots.step_panels(surface, ONE, 6)
    left, middle, right, _ = figure.axes
    assert figure.get_suptitle() == "Step 6, sample 2"  # 6 mod 4
    here = ONE["params"].values[6]
    for ax in (left, right):
        (dot,) = lines(ax, "iterate 6")
        np.testing.assert_allclose(dot.get_xydata(), [here])
    (arrow,) = [c for c in left.collections if hasattr(c, "U")]
    np.testing.assert_allclose([arrow.U[0], arrow.V[0]], -0.1 * ONE["grad"].values[6])
    np.testing.assert_allclose(arrow.XY, [here])
    assert "−0.1 × stochastic gradient" in legend(left)
    (so_far,) = lines(middle, "trajectory so far")
    np.testing.assert_allclose(so_far.get_xydata(), ONE["params"].values[:7])
    assert legend(middle) == ["trajectory so far", "start", "iterate 6"]
    # Blue and red meet at the expected risk in the grid's middle.
    assert surface["expected"].values[10, 8] in middle.collections[0].levels


def test_no_arrow_where_the_gradient_is_zero_or_not_wanted() -> None:
    still = ONE.copy(deep=True)
    still["grad"][:] = 0.0
    left = plots.step_panels(landscape(), still, 2).axes[0]
    assert not [c for c in left.collections if hasattr(c, "U")]
    assert "stochastic gradient is zero" in legend(left)
    bare = ONE.drop_vars("grad")
    left = plots.step_panels(landscape(), bare, 2, arrow=None, sample=0).axes[0]
    assert legend(left) == ["iterate 2"]
    wide = trajectory(p=3)
    left = plots.step_panels(landscape(p=3), wide, 2).axes[0]
    assert "−0.1 × stochastic gradient, its part in the plane" in legend(left)
    lost = ONE.copy(deep=True)
    lost["grad"][:] = lost["params"][:] = np.nan
    plots.step_panels(landscape(), lost, 2).canvas.draw()


def test_step_panels_say_what_they_lack() -> None:
    surface = landscape()
    with pytest.raises(InputError, match="record=\\['grad'\\]"):
        plots.step_panels(surface, ONE.drop_vars("grad"), 2)
    with pytest.raises(InputError, match="record=\\['batch'\\]"):
        plots.step_panels(surface, ONE.drop_vars("batch"), 2)
    two = ONE.assign(batch=(("step", "in_batch"), np.ones((21, 2), np.int32)))
    with pytest.raises(InputError, match="2 samples"):
        plots.step_panels(surface, two, 2)
    with pytest.raises(InputError, match="not among"):
        plots.step_panels(surface, ONE, 99)
    with pytest.raises(InputError, match=r"step \[1\] is not among"):
        plots.step_panels(surface, ONE, [1])
    with pytest.raises(InputError, match="arrow must be a finite number, or None; 'long' given"):
        plots.step_panels(surface, ONE, 2, arrow="long")
    assert not plt.get_fignums()
    with pytest.raises(InputError, match="isel"):
        plots.step_panels(surface, SWEEP, 2)
    with pytest.raises(InputError, match="unknown risk 'expected'"):
        plots.risks(surface.drop_vars("expected"), sample=0)


# Curves ----------------------------------------------------------------------------------------


def test_a_loss_curve() -> None:
    ax = plots.loss(ONE)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), ONE["step"])
    np.testing.assert_array_equal(line.get_ydata(), ONE["loss"])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("step", "loss", "Loss")
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    assert legend(ax) == ["loss"]


def test_the_median_and_a_band_over_runs_that_did_not_diverge() -> None:
    path = trajectory(run=np.arange(10), lr=[0.1, 0.2], lost=[(4, 1), (6, 1)])
    ax = plots.loss(path)
    assert legend(ax) == [
        "lr = 0.1: median of 10 runs, 10–90 %",
        "lr = 0.2: median of 8 runs, 10–90 %",
        "lr = 0.2: 2 diverged",
    ]
    kept = path["loss"].sel(lr=0.2).values[:, [0, 1, 2, 3, 5, 7, 8, 9]]
    (median,) = lines(ax, "lr = 0.2: median of 8 runs, 10–90 %")
    np.testing.assert_allclose(median.get_ydata(), np.median(kept, axis=1))
    edge = ax.collections[1].get_paths()[0].vertices
    for q in (0.1, 0.9):
        for step, value in enumerate(np.quantile(kept, q, axis=1)):
            assert np.isclose(edge, [step, value]).all(axis=1).any()
    # 1e300 does not set the limits.
    ax.figure.canvas.draw()
    assert ax.get_ylim()[1] < 1e6
    assert "2 diverged runs leave the window" in style.notes(ax)


def test_each_run_without_a_band() -> None:
    path = trajectory(run=np.arange(4))
    ax = plots.loss(path, band=None, label="SGD", y="linear")
    assert legend(ax) == ["SGD: 4 runs"]
    assert len(ax.lines) == 4
    for line, run in zip(ax.lines, range(4), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), path["loss"].isel(run=run))


def test_each_swept_value_is_a_line_and_more_than_ten_are_alike() -> None:
    few = plots.loss(trajectory(lr=[0.1, 0.2], lost=[(1,)]))
    assert legend(few) == ["lr = 0.1", "lr = 0.2 (diverged)"]
    assert len({line.get_color() for line in few.lines}) == 2
    (lost,) = [line for line in few.lines if "diverged" in line.get_label()]
    assert lost.get_marker() == "X"
    assert lost.get_markevery() == [3]
    many = trajectory(run=[0, 1, 2], lr=np.arange(1, 13) / 10, lost=[(0, 4)])
    ax = plots.loss(many)
    assert legend(ax) == ["12 settings, median of up to 3 runs", "1 diverged"]
    assert legend(plots.loss(many, band=None)) == ["12 settings, 3 runs each", "1 diverged"]
    assert legend(plots.loss(trajectory(lr=np.arange(12.0)))) == ["12 settings"]


@pytest.mark.parametrize("draw", [plots.loss, plots.movement])
def test_a_record_has_the_colour_it_is_given(draw: Any) -> None:
    path = trajectory(lr=[0.1, 0.2], run=np.arange(3), lost=[(0, 1)])
    ax = draw(path, color="tab:purple")
    assert {line.get_color() for line in ax.lines} == {"tab:purple"}
    assert {to_hex(band.get_facecolor()[0]) for band in ax.collections} == {to_hex("tab:purple")}
    assert len(legend(ax)) == 3


def test_the_learning_rate_is_named_in_words() -> None:
    path = trajectory()
    path["lr"] = 0.1 + 0 * path["loss"]
    for ax in (plots.record(path, "lr"), plots.curve(path["lr"], "step")):
        assert ax.get_ylabel() == "learning rate"
        assert ax.get_title() in ("Learning rate", "Learning rate against step")


def test_log_axes_say_what_they_leave_out() -> None:
    path = ONE.copy(deep=True)
    path["loss"][3:5] = 0.0
    path["loss"][5] = -1.0
    ax = plots.loss(path, x="log")
    assert style.notes(ax) == ["step 0 not shown (log axis)", "3 values ≤ 0 not shown (log axis)"]
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), path["step"][1:])
    assert np.isnan(line.get_ydata()).sum() == 3
    runs = trajectory(run=np.arange(5))
    runs["loss"][2, 1:] = 0.0
    runs["loss"][3, :] = 0.0
    ax = plots.loss(runs)
    ax.figure.canvas.draw()
    assert "no band where it reaches down to 0" in style.notes(ax)
    nothing = ONE.copy(deep=True)
    nothing["loss"][:] = 0.0
    plots.loss(nothing).figure.canvas.draw()


def test_further_calls_go_on_with_the_styles() -> None:
    ax = plots.loss(ONE, label="SGD")
    plots.record(ONE, "relative_movement", ax=ax, label="moved")
    assert legend(ax) == ["SGD", "moved"]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()


def test_movement() -> None:
    ax = plots.movement(ONE)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), ONE["relative_movement"])
    assert "w_0" in ax.get_ylabel()
    assert not style.notes(ax)
    path = trajectory(run=[0, 1])
    path["start"][:, 1] = 0.0
    ax = plots.movement(path, y="log")
    assert "absolute for 1 of 2 starts: the start is zero" in style.notes(ax)
    named = plots.movement(path.rename(relative_movement="moved"), "moved")
    assert named.get_ylabel() == "moved"
    with pytest.raises(InputError, match="relative_movement"):
        plots.movement(path.drop_vars("relative_movement"))


def test_units_of_a_record() -> None:
    path = ONE.copy(deep=True)
    path["loss"].attrs.update(long_name="squared error", units="s²")
    assert plots.loss(path).get_ylabel() == "squared error (s²)"


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("los", {}, "did you mean 'loss'"),
        ("params", {}, "param.*isel"),
        ("start", {}, "not recorded step by step"),
        ("loss", {"x": "logit"}, "unknown x"),
        ("loss", {"y": "lin"}, "unknown y"),
        ("loss", {"band": (0.9, 0.1)}, "increasing quantiles"),
        ("loss", {"dash": "dotted"}, "dash must be a whole number; 'dotted' given"),
    ],
)
def test_impossible_records(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plots.record(ONE, name, **options)
    assert not plt.get_fignums()


# Fits ------------------------------------------------------------------------------------------


def test_data_and_fit() -> None:
    data = fitted()
    ax = plots.fit(data)
    np.testing.assert_array_equal(lines(ax, "data")[0].get_xydata(), np.c_[data["x"], data["y"]])
    np.testing.assert_array_equal(lines(ax, "fit")[0].get_ydata(), data["yhat_grid"])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("dose (mg)", "y (s)")
    models = fitted(model=["line", "parabola"])
    assert legend(plots.fit(models)) == ["data", "line", "parabola"]
    swept = fitted(lr=[0.1, 0.2])
    swept["yhat_grid"][:, 1] = np.nan
    assert legend(plots.fit(swept)) == ["data", "lr = 0.1", "lr = 0.2 (not finite)"]
    runs = fitted(run=np.arange(25))
    runs["yhat_grid"][3, 7] = np.inf
    ax = plots.fit(runs)
    assert legend(ax) == ["data", "25 fits"]
    assert style.notes(ax) == ["1 fit not finite"]
    broken = data.copy(deep=True)
    broken["y"][2] = np.nan
    assert style.notes(plots.points(broken)) == ["1 of 8 points not finite"]


def test_residuals_as_segments_and_against_x() -> None:
    data = fitted()
    x, y, yhat = (data[n].values for n in ("x", "y", "yhat"))
    segments = plots.residuals(data).collections[0].get_segments()
    np.testing.assert_allclose(segments, np.stack([np.c_[x, yhat], np.c_[x, y]], axis=1))
    bare = plots.residuals(data.drop_vars(["x_grid", "yhat_grid"]))
    assert legend(bare) == ["data", "residual y − ŷ", "fit"]
    ax = plots.residual_scatter(data)
    (dots,) = lines(ax, "residual y − ŷ")
    np.testing.assert_allclose(dots.get_xydata(), np.c_[x, y - yhat])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("dose (mg)", "residual y − ŷ (s)")


def test_fits_of_another_shape() -> None:
    with pytest.raises(InputError, match="no 'yhat'"):
        plots.residuals(fitted().drop_vars("yhat"))
    with pytest.raises(InputError, match="'sample'"):
        plots.points(fitted().rename(sample="row"))
    with pytest.raises(InputError, match="'grid'"):
        plots.fit(fitted().assign(yhat_grid=("sample", np.zeros(8))))
    with pytest.raises(InputError, match="ndarray given"):
        plots.points(np.zeros((2, 2)))


# Histograms ------------------------------------------------------------------------------------


def test_histograms_share_bins_and_count_the_diverged() -> None:
    path = trajectory(run=np.arange(20), lr=[0.1, 0.2], lost=[(2, 1)])
    ax = plots.histogram(path, bins=6)
    assert legend(ax) == ["lr = 0.1: 20 members", "lr = 0.2: 20 members, 1 diverged"]
    outlines = [p for p in ax.patches if p.get_label() in legend(ax)]
    final = path["loss"].isel(step=-1)
    edges = np.histogram_bin_edges(final.values[np.isfinite(final.values)], 6)
    for patch, lr in zip(outlines, (0.1, 0.2), strict=True):
        counts, _ = np.histogram(final.sel(lr=lr).dropna("run"), edges)
        np.testing.assert_allclose(np.unique(patch.get_xy()[:, 0]), edges)
        assert set(counts) <= set(patch.get_xy()[:, 1])
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("final loss", "members")


def test_histograms_of_arrays_and_several_trajectories() -> None:
    ax = plots.histogram({"one": [1.0, 2.0, np.nan], "two": [3.0]}, "risk", bins=[0, 1.5, 2.5])
    assert legend(ax) == ["one: 3 values, 1 not finite", "two: 1 value"]
    assert style.notes(ax) == ["1 value outside the bins not shown"]
    assert ax.get_xlabel() == "empirical risk"
    log = plots.histogram([0.0, 1.0, 100.0], x="log", bins=2, label="all")
    assert style.notes(log) == ["1 value ≤ 0 not shown (log axis)"]
    assert legend(log) == ["all: 3 values"]
    np.testing.assert_allclose(np.unique(log.patches[-1].get_xy()[:, 0]), [1, 10, 100])
    plots.histogram([2.0, 2.0], x="log").figure.canvas.draw()
    plots.histogram([], x="log").figure.canvas.draw()
    for bad in (0, "auto", [1.0, 1.0], True):
        with pytest.raises(InputError, match="bins"):
            plots.histogram([1.0], bins=bad)
    with pytest.raises(InputError, match="unknown x"):
        plots.histogram([1.0], x="sqrt")
    for wrong in ("ab", None, ["a"], [1j]):
        with pytest.raises(InputError, match="values must be real numbers"):
            plots.histogram(wrong)
    with pytest.raises(InputError, match="did you mean 'loss'"):
        plots.histogram(ONE, "lss")


def test_a_single_point_is_seen_and_no_points_are_said():
    problem = tw.Problem.from_function(_square, params={"x": 2.0})
    ax = plots.loss(tw.descend(problem, tw.SGD(lr=0.1), steps=0))
    (line,) = ax.lines
    assert line.get_marker() not in ("", "None", None)
    np.testing.assert_array_equal(line.get_ydata(), [4.0])
    overflowing = tw.Problem.from_function(_square, params={"x": 1e200})
    ax = plots.loss(tw.descend(overflowing, tw.SGD(lr=0.1), steps=3))
    assert "no finite values" in plots.style.notes(ax)


def _square(w):
    return w["x"] ** 2


def test_names_that_begin_with_an_underscore_are_in_the_legend():
    problem = tw.Problem.from_function(lambda w: w["_a"] ** 2 + w["b"] ** 2, {"_a": 1.0, "b": 0.5})
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=4, record={"moved": tw.movement_by_parameter})
    for ax, names in (
        (tw.plot.movement_by_parameter(path), ["_a", "b"]),
        (tw.plot.loss(path, label="_mine"), ["_mine"]),
    ):
        assert [t.get_text().strip() for t in ax.get_legend().get_texts()] == names


@pytest.mark.parametrize("steps", [92, 96, 100])
def test_losses_over_hundreds_of_decades_are_drawn(steps):
    """On some such axes matplotlib's own ticks overflow."""
    problem = tw.Problem.from_function(lambda w: w["a"] ** 2, {"a": 1.0})
    path = tw.descend(problem, tw.SGD(lr=14.0), steps=steps)
    ax = tw.plot.loss(path)
    ax.figure.canvas.draw()
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), path["loss"])


def test_a_run_far_off_at_the_first_shown_step_does_not_flatten_the_others() -> None:
    square = tw.Problem.from_function(lambda w: 0.5 * w["x"] ** 2, params={"x": 1.0})
    path = tw.descend(square, tw.SGD(lr=[0.1, 1e3]), steps=600, every=20)
    ax = tw.plot.loss(path, x="log")  # step 0 is not shown
    assert ax.get_ylim()[1] < 1e4  # with its margin, of 56 decades
    assert ax.get_xlim()[1] > 599
    assert style.notes(ax) == ["step 0 not shown (log axis)", "the diverged run leaves the window"]


def several_records() -> Any:
    square = tw.Problem.from_function(lambda w: 0.5 * w["x"] ** 2, params={"x": 1.0})
    record = {"grad_norm": True, "held_out": lambda at: 1 + at.params["x"]}
    return tw.descend(square, tw.SGD(lr=[0.1, 0.2]), steps=20, record=record)


def test_several_records_share_the_colours_and_differ_in_dashes() -> None:
    path = several_records()
    ax = tw.plot.record(path, ["loss", "held_out"])
    entries = [f"{what}: lr = {lr}" for what in ("loss", "held out") for lr in (0.1, 0.2)]
    assert [line.get_label() for line in ax.lines] == entries
    for line, (name, lr) in zip(
        ax.lines, itertools.product(("loss", "held_out"), range(2)), strict=True
    ):
        np.testing.assert_array_equal(line.get_ydata(), path[name].isel(lr=lr))
        assert line.get_color() == style.COLORS[lr]
        assert line.get_linestyle() == ("-" if name == "loss" else "--")
    assert (ax.get_title(), ax.get_ylabel()) == ("Loss and held out", "loss, held_out")
    # another call goes on with the next colour
    tw.plot.record(path.isel(lr=0), ["loss", "held_out"], ax=ax, label="again")
    assert {line.get_color() for line in ax.lines[4:]} == {style.COLORS[2]}
    assert [line.get_label() for line in ax.lines[4:]] == ["again: loss", "again: held out"]


def test_several_records_of_one_run_are_told_apart_by_name() -> None:
    one = several_records().isel(lr=0)
    ax = tw.plot.record(one, ["loss", "grad_norm", "held_out"])
    assert [line.get_label() for line in ax.lines] == ["loss", "gradient norm", "held out"]
    assert ax.get_title() == "Loss, gradient norm and held out"
    for wrong in ([], ["loss", "lost"], ["loss", "params"]):
        with pytest.raises(tw.InputError, match=r"record|not one number"):
            tw.plot.record(one, wrong)
    assert len(plt.get_fignums()) == 1


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("rate", [1.5, 1e3, 1e100])
def test_a_run_that_diverges_alone_is_shown_to_its_end(rate: float) -> None:
    with np.errstate(over="ignore"):
        losses = 3 * rate ** np.arange(900.0)
    losses[~np.isfinite(losses)] = np.nan
    path = trajectory(steps=899)
    path["loss"] = ("step", losses)
    if np.isnan(losses).any():
        path["status"], path["diverged_at"] = "diverged", int(np.argmax(np.isnan(losses)))
    ax = plots.loss(path)
    ax.get_figure().draw_without_rendering()
    there = np.flatnonzero(np.isfinite(losses))
    assert ax.get_xlim()[1] >= there[-1]
    assert ax.get_ylim()[0] <= 1.001 * losses[0]
    assert ax.get_ylim()[1] >= 0.999 * losses[there[-1]]
    assert not style.notes(ax)


def test_notes_say_whose_they_are() -> None:
    surface = landscape(7, 5)
    path = trajectory()
    path["params"] = 50 * path["params"]
    ax = plots.contour(surface, path, label="one")
    plots.path(surface, path, ax=ax, label="two")
    assert {"one: the path leaves the window", "two: the path leaves the window"} <= set(
        style.notes(ax)
    )


def test_a_value_between_missing_ones_is_seen() -> None:
    """Of a line through it alone there is nothing to see, wherever on the line it stands."""
    alone = [np.nan, np.nan, np.nan, 2.0, np.nan, 1.0, 1.0]
    axis = np.linspace(-1, 1, len(alone))
    surface = landscape(p=1, axes={"a": axis}, values=alone)
    path = trajectory(steps=len(alone) - 1).assign(loss=("step", alone))
    table = xr.DataArray(alone, {"width": axis}, "width", "loss")
    data = xr.Dataset({"x": ("sample", [0.0]), "y": ("sample", [0.0]), "x_grid": ("grid", axis)})
    drawn = [
        *plots.profile(surface).lines,
        *plots.profile(surface, risks="pointwise").lines[:1],
        *plots.loss(path).lines,
        *plots.curve(table, points=False).lines,
        *plots.fit(data.assign(yhat_grid=("grid", alone))).lines[1:],
    ]
    assert len(drawn) == 6
    for line in drawn:
        assert 3 in line.get_markevery()
        assert line.get_marker() in style.MARKERS


def test_what_is_counted_has_ticks_at_whole_numbers() -> None:
    def ticks(axis: Any) -> list[float]:
        low, high = sorted(axis.get_view_interval())
        return [float(at) for at in axis.get_majorticklocs() if low <= at <= high]

    assert ticks(plots.loss(trajectory().isel(step=[3])).xaxis) == [3]
    assert ticks(plots.matrix(np.ones((1, 1))).yaxis) == [0]
    for count, shown in ((1, [1]), (3, [1, 2, 3]), (10, list(range(1, 11)))):
        each = ("component", np.linspace(0.2, 0.1, count))
        plane = xr.Dataset({"explained_variance": each, "random_walk_variance": each})
        ax = plots.explained_variance(plane.assign_attrs(plane_iterates=9), components=count)
        assert ticks(ax.xaxis) == shown
    each = ("component", np.linspace(0.2, 0.1, 60))
    plane = xr.Dataset({"explained_variance": each, "random_walk_variance": each})
    ax = plots.explained_variance(plane.assign_attrs(plane_iterates=9), components=60)
    assert len(ticks(ax.xaxis)) <= 13
    assert faults(ax.figure) == []


@pytest.mark.parametrize("draw", [plots.contour, plots.heatmap])
def test_a_picture_that_is_refused_leaves_no_figure_behind(draw):
    for surface, path in (
        (landscape(), trajectory(p=3)),
        (landscape(), trajectory().drop_vars("params")),
    ):
        with pytest.raises(InputError):
            draw(surface, path)
    with pytest.raises(InputError, match="2 × 2"):
        plots.contour(landscape(na=1))
    assert not plt.get_fignums()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.loss(ONE, color="purpel"),
        lambda: plots.movement(ONE, color="purpel"),
        lambda: plots.curve(ONE["loss"], "step", color="purpel"),
    ],
)
def test_a_colour_that_is_none_is_refused_before_there_is_a_figure(draw):
    with pytest.raises(InputError, match="'purpel' given"):
        draw()
    assert not plt.get_fignums()


def test_a_mark_that_is_refused_leaves_the_axes_as_they_were():
    surface = landscape()
    ax = plots.contour(surface)
    before = len(ax.get_children())
    for draw, says in (
        (lambda: plots.path(surface, trajectory(), ax=ax, color="purpel"), "'purpel' given"),
        (lambda: plots.mark(surface, [0, 0], ax=ax, label="m", color="purpel"), "'purpel' given"),
        (lambda: plots.mark(surface, [0, 0], ax=ax, label="m", marker="q"), "'q' given"),
    ):
        with pytest.raises(InputError, match=says):
            draw()
    assert len(ax.get_children()) == before


# A surface in three dimensions -----------------------------------------------------------------


def bowl(points=9, low=-2.0, high=2.0):
    problem = tw.Problem.from_function(
        lambda p: p["a"] ** 2 + 3 * p["b"] ** 2, {"a": 1.5, "b": -1.0}
    )
    plane = tw.coordinate_plane(problem, {"a": (low, high), "b": (low, high)}, points)
    return problem, tw.landscape(problem, plane)


def cells_of(ax):
    """(n, 4, 3): the corners of the cells that are drawn."""
    (drawn,) = ax.collections
    return np.asarray(drawn._faces)


def test_a_surface_has_the_landscapes_heights():
    problem, landscape = bowl()
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=5)
    ax = plots.surface(landscape, path, points={"minimum": {"b": 0.0, "a": 0.0}}, view=(20, 40))
    x, y, z = np.moveaxis(cells_of(ax), -1, 0)
    assert len(x) == 8 * 8
    np.testing.assert_allclose(z, x**2 + 3 * y**2, atol=1e-12)
    drawn = {line.get_label(): line for line in ax.lines}
    a, b, height = drawn["minimum"].get_data_3d()
    assert (a, b, height) == ([0], [0], [0])
    # the start lies between grid points, where the surface is as high as the planes through them
    start = drawn["_o"].get_data_3d()
    np.testing.assert_allclose(np.ravel(start), [1.5, -1.0, 1.5**2 + 3])
    end = drawn["_*"].get_data_3d()
    np.testing.assert_allclose(np.ravel(end)[:2], path["params"][-1])
    assert (ax.elev, ax.azim) == (20, 40)
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_zlabel()) == ("a", "b", "risk")


def test_a_surface_on_a_log_scale_has_a_hole_where_there_is_no_logarithm():
    _, landscape = bowl(points=5)
    ax = plots.surface(landscape, log=True, colorbar=False)
    x, y, z = np.moveaxis(cells_of(ax), -1, 0)
    assert len(x) == 4 * 4 - 4  # those around the minimum, whose risk is 0
    np.testing.assert_allclose(10**z, x**2 + 3 * y**2)
    assert style.notes(ax) == ["hole: 1 of 25 points ≤ 0 (log levels)"]
    ax.figure.canvas.draw()
    texts = [float(tick.get_text()) for tick in ax.get_zticklabels()]
    np.testing.assert_allclose(texts, 10 ** ax.get_zticks(), rtol=5e-3)  # three digits


def test_a_fine_landscape_is_drawn_from_some_of_its_lines():
    _, landscape = bowl(points=400)
    ax = plots.surface(landscape)
    assert len(cells_of(ax)) == 149 * 149
    assert style.notes(ax) == ["drawn from 150 × 150 of the grid's lines"]
    assert cells_of(ax)[..., :2].min() == -2
    assert cells_of(ax)[..., :2].max() == 2


def test_what_a_surface_cannot_be_drawn_on():
    _, landscape = bowl()
    with pytest.raises(InputError, match="axes of three dimensions"):
        plots.surface(landscape, ax=plt.gca())
    with pytest.raises(InputError, match="view must be two angles"):
        plots.surface(landscape, view=30)
    plt.close("all")
    with pytest.raises(InputError):
        plots.surface(landscape, points={"minimum": [0.0, 1.0, 2.0]})
    for points in ({"minimum": 3.0}, {"minimum": None}):
        with pytest.raises(InputError, match=r"points as an array \(…, 2\), was expected"):
            plots.surface(landscape, points=points)
    with pytest.raises(InputError, match=r"by what they are called.*; list given"):
        plots.surface(landscape, points=[0.0, 1.0])
    assert not plt.get_fignums()
    flat = landscape.assign(empirical=landscape["empirical"] * np.nan)
    assert style.notes(plots.surface(flat)) == ["no risk is finite"]
