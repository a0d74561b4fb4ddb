"""Results on disk and back, and points seen on a plane."""

import json
import subprocess
import sys
from pathlib import Path

import h5netcdf
import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import bowl_problem, line_problem

import thalweg as tw
from thalweg import projection, results, show
from thalweg.errors import InputError


def example(**attrs):
    """All kinds of values that a result may hold."""
    return xr.Dataset(
        {
            "params": (("step", "param"), np.array([[1.0, np.nan], [np.inf, -0.0], [1e-300, 2.0]])),
            "single": ("step", np.array([1, np.nan, np.inf], np.float32)),
            "index": ("step", np.array([0, -1, 2**40])),
            "small": ("step", np.array([0, -1, 2], np.int32)),
            "flag": ("step", np.array([True, False, True])),
            "text": ("step", np.array(["diverged", "", "µ → ∞"])),
            "status": ((), "completed"),
            "nothing": ("none", np.zeros(0)),
        },
        coords={
            "step": np.arange(3),
            "param": np.array(["bias", "weight[0,1]"]),
            "lr": ("step", [0.1, 0.2, 0.3]),
        },
        attrs=results.provenance("trajectory", {"lr": [0.1, 0.2]}, seed=3, empty="", **attrs),
    )


def assert_round_trip(result, path):
    back = tw.load(tw.save(result, path))
    xr.testing.assert_identical(back, result)
    pairs = (
        [(back, result)]
        if isinstance(result, xr.Dataset)
        else [(back[node.path], node) for node in result.subtree]
    )
    for one, other in pairs:
        assert {k: v.dtype for k, v in one.variables.items()} == {
            k: v.dtype for k, v in other.variables.items()
        }
        assert {k: type(v) for k, v in one.attrs.items()} == {
            k: type(v) for k, v in other.attrs.items()
        }


def test_a_dataset_comes_back_as_it_was(tmp_path):
    assert_round_trip(example(ratio=0.1), tmp_path / "results.nc")


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = xr.DataTree.from_dict(
        {
            "/": xr.Dataset(attrs=results.provenance("study", {"n": 1})),
            "/path/mse": example(),
            "/path/l1": example(),
            "/notes": xr.Dataset(attrs={"words": "no variables here"}),
        }
    )
    assert_round_trip(tree, tmp_path / "results.nc")


def test_a_trajectory_and_a_landscape_come_back_as_they_were(tmp_path):
    problem = line_problem()
    path = tw.descend(
        problem, tw.SGD(lr=[0.1, 0.2]), epochs=2, batch_size=20, record=["batch", "grad_norm"]
    )
    surface = tw.landscape(
        problem,
        tw.coordinate_plane(problem, {"weight": (-5, 8), "bias": (-5, 5)}, 5),
        ("empirical", "pointwise"),
    )
    assert_round_trip(path, tmp_path / "path.nc")
    assert_round_trip(surface, tmp_path / "surface.nc")
    for result in (path, surface):
        assert {type(value) for value in result.attrs.values()} <= {str, int, float}
        assert results.settings_of(result)
        assert "jax" in json.loads(result.attrs["versions"])


def test_a_landscape_in_half_precision_can_be_saved(tmp_path):
    # netCDF has no half precision
    problem = bowl_problem(dtype=np.float16)
    plane = tw.coordinate_plane(problem, {"x": (0, 1), "y": (0, 1)}, 3)
    surface = tw.landscape(problem, plane, ("empirical", "pointwise"))
    assert surface.pointwise.dtype == np.float64
    assert_round_trip(surface, tmp_path / "surface.nc")


def test_settings_are_json_whatever_they_hold():
    settings = {"a": np.arange(2), "b": np.float32(0.5), "f": np.sin, "c": object}
    assert json.loads(results.to_json(settings)) == {
        "a": [0, 1],
        "b": 0.5,
        "f": "<sin>",
        "c": "<object>",
    }


# What cannot be saved or loaded -------------------------------------------------------------


def fails_to_write(path, content):
    with path.open("wb") as file:
        file.write(content[:100])
    raise OSError("no space left on device")


def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    path = tw.save(example(), tmp_path / "results.nc")
    before = path.read_bytes()
    monkeypatch.setattr(Path, "write_bytes", fails_to_write)
    with pytest.raises(OSError, match="no space left"):
        tw.save(example(ratio=0.1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_program_outlives_a_full_disk(tmp_path):
    """HDF5 would end it, when what it holds of the file is let go."""
    code = f"""
import gc, resource, signal
import numpy as np, xarray as xr
import thalweg as tw
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
small, large = (xr.Dataset({{"a": ("x", np.random.default_rng(0).random(n))}}) for n in (10, 100_000))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for _ in range(2):
    try:
        tw.save(large, {str(tmp_path / "large.nc")!r})
    except OSError as error:
        print(type(error).__name__)
    gc.collect()
tw.load(tw.save(small, {str(tmp_path / "small.nc")!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "OSError\nOSError\n"), done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small.nc"]


def test_a_link_leads_to_what_is_saved(tmp_path):
    there = tmp_path / "there.nc"
    link = tmp_path / "link.nc"
    link.symlink_to(there)
    for note in ("first", "second"):  # of a file that is not there yet, too
        tw.save(example(note=note), link)
        assert link.is_symlink()
        assert tw.load(there).attrs["note"] == note


def test_a_save_replaces_what_was_there(tmp_path):
    path = tw.save(example(), tmp_path / "results.nc")
    tw.save(example(note="second"), path)
    assert tw.load(path).attrs["note"] == "second"
    assert list(tmp_path.iterdir()) == [path]


def of_mixed_types():
    return example().assign(mixed=("step", np.array([{}, 1, "a"], object)))


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (lambda: example(note=None), "'note' is a NoneType; attributes are strings and numbers"),
        (lambda: example(note=True), "'note' is a bool"),
        (lambda: example(note={"a": 1}), "'note' is a dict"),
        (lambda: example().rename(params="a/b"), "the name 'a/b' holds a '/'"),
        (of_mixed_types, "cannot be stored as netCDF"),
        (lambda: {"a": 1}, "dict given"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, result, says):
    with pytest.raises(InputError, match=says) as caught:
        tw.save(result(), tmp_path / "results.nc")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_place_to_save(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        tw.save(example(), tmp_path / "nowhere" / "results.nc")
    with pytest.raises(InputError, match="is a folder"):
        tw.save(example(), tmp_path)


@pytest.mark.parametrize("ending", [".csv", ".JSON", ".npz", ".pt"])
def test_a_file_that_another_program_would_read_is_refused(tmp_path, ending):
    said = (
        rf"netCDF, as in 'p\.nc'; '\{ending}' given\. A table is path\['loss'\]\.to_dataframe\(\)"
    )
    with pytest.raises(InputError, match=said):
        tw.save(example(), tmp_path / f"results{ending}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["results", "results.h5", "run.lr0.1"])
def test_any_other_name_will_do(tmp_path, name):
    assert tw.load(tw.save(example(), tmp_path / name)).attrs == example().attrs


def truncated(path):
    whole = tw.save(example(), path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def with_a_damaged(where):
    def make(path):
        content = tw.save(example(), path).read_bytes()
        with h5py.File(path) as file:
            at = h5py.h5o.get_info(file[where].id).addr
        damage = bytes(byte ^ 255 for byte in content[at : at + 40])
        path.write_bytes(content[:at] + damage + content[at + 40 :])

    return make


def of_another_program(path):
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"x": 2}
        file.create_variable("x", ("x",), data=np.arange(2))


def with_schema(value):
    def make(path):
        example().assign_attrs(schema_version=value).to_netcdf(path, engine="h5netcdf")

    return make


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "there is no file"),
        (lambda path: path.write_text("x,y\n1,2\n"), "is not a result"),
        (lambda path: path.write_bytes(b""), "is not a result"),
        (truncated, "is not a result: .*truncated"),
        (with_a_damaged("step"), "is not a result"),
        (of_another_program, "is not a Thalweg result"),
        (with_schema("one"), "is not a Thalweg result"),
        (with_schema(99), r"newer Thalweg \(schema 99; .* up to 1\); upgrade"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, make, says):
    path = tmp_path / "results.nc"
    make(path)
    with pytest.raises(InputError, match=says) as caught:
        tw.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


# Projection ---------------------------------------------------------------------------------


def plane_of(directions, origin):
    k, p = np.shape(directions)
    return xr.Dataset(
        {
            "origin": ("param", np.asarray(origin, float)),
            "directions": (("direction", "param"), np.asarray(directions, float)),
        },
        coords={"direction": [f"d{i}" for i in range(k)], "param": [f"p{i}" for i in range(p)]},
    )


# Two directions at 45°, of lengths 2 and √2, in the plane z = 3
OBLIQUE = plane_of([[2, 0, 0], [1, 1, 0]], [1, 1, 3])


def test_points_on_the_plane_give_their_coordinates():
    coordinates = np.array([[0, 0], [1, 0], [0, 1], [0.5, -2]])
    points = np.array([1, 1, 3]) + coordinates @ np.array([[2, 0, 0], [1, 1, 0]])
    seen = projection.project(OBLIQUE, points)
    np.testing.assert_allclose(np.stack([seen.d0, seen.d1], axis=1), coordinates, atol=1e-14)
    np.testing.assert_allclose(seen.residual, 0, atol=1e-14)


def test_off_the_plane_the_residual_is_the_distance():
    # (4, 2, 3 ± 5) is 5 above and below 1·(2, 0, 0) + 1·(1, 1, 0) from the origin (1, 1, 3)
    seen = projection.project(OBLIQUE, np.array([[4.0, 2, 8], [4, 2, -2]]))
    np.testing.assert_allclose(seen.d0, 1, rtol=1e-14)
    np.testing.assert_allclose(seen.d1, 1, rtol=1e-14)
    np.testing.assert_allclose(seen.residual, 5, rtol=1e-14)
    single = projection.project(OBLIQUE, np.array([4.0, 2, 8]))
    assert single.residual.dims == ()


vectors = st.lists(st.integers(-10, 10), min_size=4, max_size=4).map(np.array)


@given(vectors, vectors, vectors, vectors)
def test_projection_is_least_squares(origin, first, second, point):
    directions = np.stack([first, second])
    assume(np.linalg.cond(directions) < 1e6)
    seen = projection.project(plane_of(directions, origin), point)
    solution, *_ = np.linalg.lstsq(directions.T, point - origin)
    np.testing.assert_allclose([seen.d0, seen.d1], solution, rtol=1e-8, atol=1e-8)
    nearest = origin + solution @ directions
    np.testing.assert_allclose(seen.residual, np.linalg.norm(point - nearest), atol=1e-8)


@pytest.mark.parametrize(
    "directions", [[[0.1, 0.7, 0.3]] * 2, [[0.1, 0.7, 0.3], [0.3, 2.1, 0.9]], [[1, 0, 0], [0, 0, 0]],
                   np.random.default_rng(0).standard_normal((4, 3))],
)  # fmt: skip
def test_dependent_directions_have_no_coordinates(directions):
    with pytest.raises(InputError, match="a combination of the others"):
        projection.project(plane_of(directions, [0, 0, 0]), np.ones(3))


def test_directions_of_any_lengths_have_coordinates():
    seen = projection.project(
        plane_of([[1e-9, 0, 0], [0, 1e9, 0]], [0, 0, 0]), np.array([1.0, 1, 1])
    )
    np.testing.assert_allclose([seen.d0, seen.d1, seen.residual], [1e9, 1e-9, 1], rtol=1e-14)


def test_a_trajectory_keeps_its_dimensions():
    problem = bowl_problem()
    path = tw.descend(problem, tw.SGD(lr=[0.01, 0.1]), steps=3, starts=np.array([[0.0, 0], [2, 2]]))
    plane = tw.coordinate_plane(problem, {"y": (-3, 3), "x": (-3, 3)}, 3)
    for seen in (plane.project(path), tw.project(tw.landscape(problem, plane), path)):
        assert set(seen.residual.dims) == {"step", "run", "lr"}
        xr.testing.assert_allclose(
            seen.x.drop_vars("param", errors="ignore"),
            path.params.sel(param="x", drop=True).transpose(*seen.x.dims).rename("x"),
        )
        np.testing.assert_allclose(seen.residual, 0, atol=1e-14)
    one = plane.project(path.final)
    assert set(one.residual.dims) == {"run", "lr"}


def test_a_diverging_run_is_seen_without_warnings():
    seen = projection.project(OBLIQUE, np.array([[1.0, 1, 3e200], [1e308] * 3, [np.nan] * 3]))
    np.testing.assert_allclose(seen.residual[:2], [3e200, 1e308], rtol=1e-14)
    assert np.isnan(seen.residual[2])


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (np.zeros((5, 2)), "the plane's 3 parameters"),
        (xr.Dataset({"loss": ("step", [1.0])}), "no recorded params"),
        (
            xr.DataArray(np.zeros(3), dims="param", coords={"param": ["a", "b", "c"]}),
            "different parameters",
        ),
    ],
)
def test_points_of_another_space_are_refused(points, says):
    with pytest.raises(InputError, match=says):
        projection.project(OBLIQUE, points)


def test_a_sweep_named_as_an_axis_is_refused():
    problem = tw.Problem.from_function(
        lambda w: w["lr"] ** 2 + w["y"] ** 2, params={"lr": 1.0, "y": 2.0}
    )
    path = tw.descend(problem, tw.SGD(lr=[0.1, 0.2]), steps=2)
    plane = tw.coordinate_plane(problem, {"lr": (-1, 1), "y": (-1, 1)}, 3)
    with pytest.raises(tw.InputError, match="both an axis of the plane"):
        plane.project(path)
    assert "learning_rate" in plane.project(path.rename(lr="learning_rate")).dims


def test_a_table_of_ones_own_is_saved_too(tmp_path):
    table = xr.Dataset({"best": ("seed", [0.1, 0.2])}, {"seed": [0, 1]})
    again = tw.load(tw.save(table, tmp_path / "table.nc"))
    xr.testing.assert_equal(again, table)
    assert not table.attrs  # what was given stays as it was
    tree = xr.DataTree.from_dict({"one": table, "two/three": table})
    saved = tw.load(tw.save(tree, tmp_path / "tree.nc"))
    xr.testing.assert_equal(saved["two/three"].to_dataset(), table)
    assert not tree.attrs
    assert list(show.lines(again)) == ["result", "", "table: table, seed 2"]


@pytest.mark.parametrize("settings", ["{oops", "[1, 2]", 3])
def test_settings_that_cannot_be_read_are_refused(settings):
    with pytest.raises(InputError, match="settings are JSON, by name"):
        list(show.lines(xr.Dataset(attrs={"settings": settings})))


def test_parts_of_a_trajectory_are_shown():
    whole = xr.Dataset(
        {"status": "completed", "final": ("param", [0.5]), "loss": ("step", [2.0, 1.0])},
        {"param": ["w"], "step": [0, 1]},
        {"kind": "trajectory"},
    )
    assert list(show.lines(whole[["loss"]]))[2:] == ["trajectory: trajectory, step 2"]
    assert list(show.lines(whole.isel(step=-1)))[3:] == ["  completed", "  ends at w = 0.5"]


def test_members_named_by_words_are_shown_by_them():
    named = xr.DataArray(["SGD", "Adam"], dims="optimizer", name="optimizer")
    one = xr.Dataset(
        {"status": "completed", "final": ("param", [0.5]), "loss": ("step", [2.0, 1.0])},
        {"param": ["w"], "step": [0, 1]},
        {"kind": "trajectory"},
    )
    both = xr.concat([one, one], dim=named, combine_attrs="override")
    both = both.assign_coords(step=[0, 1]).assign(status=("optimizer", ["completed"] * 2))
    text = "\n".join(show.lines(both))
    assert "  optimizer = SGD: completed" in text
    assert "  optimizer = Adam: completed" in text
