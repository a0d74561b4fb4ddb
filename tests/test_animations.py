"""Animations: the numbers that each frame draws, and the files that hold the frames."""

import base64
import io
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.quiver import Quiver
from PIL import Image

import thalweg as tw
from thalweg import files, plots
from thalweg.errors import MissingExtra
from thalweg.plots import animations, films

STEPS = 12


@pytest.fixture(scope="module")
def problem():
    x = np.linspace(-1, 1, 5)
    y = 2 * x + np.array([0.3, -0.2, 0.1, 0.4, -0.5])
    params = {"a": 2.5, "b": -1.0}
    return tw.Problem(
        lambda w, x: w["a"] * x + w["b"], "mse", x, y, params=params, expected=lambda w: w["a"] ** 2
    )


@pytest.fixture(scope="module")
def surface(problem):
    plane = tw.coordinate_plane(problem, {"a": (-1, 4), "b": (-2, 2)}, points={"a": 9, "b": 7})
    return tw.landscape(problem, plane, risks=("empirical", "expected", "pointwise"))


@pytest.fixture(scope="module")
def descent(problem):
    return tw.descend(problem, tw.SGD(lr=0.1), steps=STEPS, batch_size=1, record=["grad", "batch"])


@pytest.fixture(scope="module")
def sweep(problem):
    """Three learning rates; with the largest the descent diverges."""
    return tw.descend(problem, tw.SGD(lr=[0.05, 0.3, 1e30]), steps=STEPS)


def lines_of(ax, label):
    return [line for line in ax.lines if line.get_label() == label]


# What is drawn -----------------------------------------------------------------------------------


def test_each_frame_of_a_path_is_the_static_picture_of_its_step(surface, sweep):
    animation = animations.path(surface, sweep)
    (ax, _) = animation.figure.axes
    assert animation.steps == tuple(range(STEPS + 1))
    for frame in (0, 1, 5, STEPS):
        animation.draw(frame)
        so_far = sweep.isel(step=slice(0, frame + 1))
        static = plots.contour(surface, so_far)
        # An entry of a legend has no data; it names what is on the whole path.
        drawn = [line for line in ax.lines if line.get_xdata().size]
        expected = [line for line in static.lines if line.get_xdata().size]
        assert len(drawn) == len(expected)
        for one, other in zip(drawn, expected, strict=True):
            np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
            assert one.get_color() == other.get_color()
            assert one.get_marker() == other.get_marker()
        assert f"step {frame}," in ax.get_title()
    text = {t.get_text() for t in ax.get_legend().get_texts()}
    assert {"start", "iterate", "lr = 1e+30 (diverged)"} < text


def test_the_title_tells_the_loss(problem, surface, descent, sweep):
    animation = animations.path(surface, descent, title="Here")
    animation.draw(3)
    loss = float(descent["loss"][3])
    assert animation.figure.axes[0].get_title() == f"Here: step 3, batch loss {loss:.3g}"
    for word, options in (("batch loss", {"batches": [[0], [1]]}), ("loss", {"batch_size": 9})):
        steps = tw.descend(problem, tw.SGD(lr=0.1), steps=2, **options)
        animation = animations.path(surface, steps, title="Here")
        animation.draw(1)
        title = f"Here: step 1, {word} {float(steps['loss'][1]):.3g}"
        assert animation.figure.axes[0].get_title() == title
    animation = animations.path(surface, sweep)
    animation.draw(STEPS)
    low, high = (float(v) for v in sweep["loss"].values[STEPS, [1, 0]])
    assert animation.figure.axes[0].get_title() == (
        f"Empirical risk:\nstep {STEPS}, losses {low:.3g} to {high:.3g}, 1 of 3 diverged"
    )


def test_each_frame_of_the_pointwise_risk_is_the_left_panel_of_its_step(surface, descent):
    animation = animations.pointwise(surface, descent)
    ax = animation.figure.axes[0]
    for frame in (0, 3, STEPS):
        animation.draw(frame)
        static = plots.step_panels(surface, descent, frame).axes
        drawn, expected = (
            next(c for c in a.collections if hasattr(c, "levels")) for a in (ax, static[0])
        )
        np.testing.assert_array_equal(drawn.levels, expected.levels)
        np.testing.assert_array_equal(drawn.get_facecolor(), expected.get_facecolor())
        for one, other in zip(drawn.get_paths(), expected.get_paths(), strict=True):
            np.testing.assert_array_equal(one.vertices, other.vertices)
        arrow, still = (
            next(c for c in a.collections if isinstance(c, Quiver)) for a in (ax, static[0])
        )
        np.testing.assert_array_equal([arrow.X, arrow.Y], [still.X, still.Y])
        np.testing.assert_array_equal([arrow.U, arrow.V], [still.U, still.V])
        gradient = descent["grad"].values[frame]
        np.testing.assert_allclose([arrow.U[0], arrow.V[0]], -0.1 * gradient, rtol=1e-12)
        (line,) = lines_of(ax, "_trajectory so far")
        (middle,) = lines_of(static[1], "_trajectory so far")
        np.testing.assert_array_equal(line.get_xydata(), middle.get_xydata())
        sample = int(descent["batch"][frame, 0])
        assert ax.get_title().startswith(f"Step {frame}, sample {sample}, loss ")
        assert plots.style.notes(static[0]) == plots.style.notes(ax)


def test_no_arrow_where_the_gradient_is_zero(surface, descent):
    still = descent.copy(deep=True)
    still["grad"][5] = 0.0
    animation = animations.pointwise(surface, still)
    ax = animation.figure.axes[0]
    for frame, arrows in ((4, 1), (5, 0), (6, 1)):
        animation.draw(frame)
        assert sum(isinstance(c, Quiver) for c in ax.collections) == arrows


def curves_of(problem, path, grid):
    """The model's curves along a path, as its own formula has them."""
    a, b = (path["params"].sel(param=name) for name in "ab")
    return (a * xr.DataArray(grid, dims="grid") + b).transpose("step", "grid", ...)


def test_the_fit_is_drawn_beside_the_path(problem, surface):
    grid = np.linspace(-1, 1, 4)
    path = tw.descend(
        problem,
        tw.SGD(lr=0.1),
        steps=STEPS,
        record={"yhat_grid": lambda at: at.problem.predict(at.params, grid)},
    )
    table = xr.Dataset(
        {
            "x": ("sample", np.asarray(problem.x)),
            "y": ("sample", np.asarray(problem.y)),
            "x_grid": ("grid", grid),
            "yhat_grid": path["yhat_grid"].rename(yhat_grid_0="grid"),
        }
    )
    animation = animations.fit(table, surface, path, title="A line")
    left, right = animation.figure.axes[:2]
    for frame in (0, 7, STEPS):
        animation.draw(frame)
        (curve,) = lines_of(left, "fit")
        np.testing.assert_array_equal(curve.get_xdata(), grid)
        expected = curves_of(problem, path, grid)[frame]
        np.testing.assert_allclose(curve.get_ydata(), expected, rtol=1e-12)
        (line,) = lines_of(right, "_path")
        np.testing.assert_array_equal(line.get_xydata(), path["params"][: frame + 1])
        assert animation.figure.get_suptitle().startswith(f"A line: step {frame}, loss ")
    assert len(lines_of(left, "data")[0].get_xdata()) == 5


def test_the_fit_of_several_members_and_of_every_third_step(problem, surface, sweep):
    grid = np.linspace(-1, 1, 4)
    curves = curves_of(problem, sweep, grid)
    table = xr.Dataset(
        {
            "x": ("sample", np.asarray(problem.x)),
            "y": ("sample", np.asarray(problem.y)),
            "x_grid": ("grid", grid),
            "yhat_grid": curves.sel(step=slice(0, None, 3)),
        }
    )
    animation = animations.fit(table, surface, sweep)
    assert animation.steps == (0, 3, 6, 9, 12)
    left = animation.figure.axes[0]
    low, high = left.get_ylim()
    assert -10 < low < high < 10  # a diverging curve does not press the others flat
    for frame, step in enumerate(animation.steps):
        animation.draw(frame)
        for i, name in enumerate(["lr = 0.05", "lr = 0.3", "lr = 1e+30 (not finite)"]):
            (curve,) = lines_of(left, name)
            heights = curves.sel(step=step)[:, i]
            np.testing.assert_array_equal(
                curve.get_ydata(), np.where(np.isfinite(heights), heights, np.nan)
            )


# Which frames ------------------------------------------------------------------------------------


def test_frames_are_spread_over_long_paths_and_the_picture_says_so(problem, surface):
    path = tw.descend(problem, tw.SGD(lr=0.01), steps=1000)
    every = animations.path(surface, path)
    assert every.steps == tuple(range(0, 1001, 10))
    assert plots.style.notes(every.figure.axes[0]) == [
        "101 of 1,001 recorded steps shown, evenly spaced"
    ]
    early = animations.path(surface, path, frames=20, spacing="geometric")
    assert early.steps[:3] == (0, 1, 2)
    assert early.steps[-1] == 1000
    assert len(early.steps) <= 20
    assert "closest at the beginning" in plots.style.notes(early.figure.axes[0])[0]
    assert animations.path(surface, path, frames=[0, 10, 1000]).steps == (0, 10, 1000)
    assert animations.path(surface, path, frames=1).steps == (1000,)


def test_several_by_name_move_at_one_pace(problem, surface, sweep):
    paths = {
        "all": tw.descend(problem, tw.SGD(lr=0.05), steps=7),
        "thirds": tw.descend(problem, tw.SGD(lr=0.1), steps=21, every=3),
    }
    animation = animations.path(surface, paths)
    (ax, _) = animation.figure.axes
    # the steps that both recorded and, beyond the end of the one, those of the other
    assert animation.steps == (0, 3, 6, 9, 12, 15, 18, 21)
    for frame, step in enumerate(animation.steps):
        animation.draw(frame)
        for name, path in paths.items():
            (line,) = lines_of(ax, f"_{name}")
            so_far = path.sel(step=slice(0, step))
            np.testing.assert_array_equal(
                line.get_xydata(), so_far["params"].sel(param=["a", "b"]).values
            )
        losses = [path["loss"].sel(step=slice(0, step)).values[-1] for path in paths.values()]
        low, high = min(losses), max(losses)
        text = f"loss {low:.3g}" if step == 0 else f"losses {low:.3g} to {high:.3g}"
        assert ax.get_title().endswith(f"step {step}, {text}")
    chosen = animations.path(surface, paths, frames=[5, 15])
    assert chosen.steps == (5, 15)
    chosen.draw(0)
    (line,) = lines_of(chosen.figure.axes[0], "_thirds")
    assert len(line.get_xdata()) == 2
    ended = animations.path(surface, {"fine": paths["all"], "lost": sweep.isel(lr=2)})
    assert ended.steps == tuple(range(8))  # of what diverges at step 1 there is nothing to see


def test_one_that_begins_later_is_not_seen_before(problem, surface):
    first = tw.descend(problem, tw.SGD(lr=0.05), steps=6)
    more = tw.descend(problem, tw.SGD(lr=0.3), steps=6, resume=first)
    animation = animations.path(surface, {"first": first, "resumed": more})
    (ax, _) = animation.figure.axes
    assert animation.steps == tuple(range(13))
    for frame in (0, 5, 6, 12, 3):
        animation.draw(frame)
        seen = [line for line in lines_of(ax, "_resumed") if line.get_visible()]
        assert len(seen) == (frame >= 6)
        assert all(len(line.get_xdata()) == frame - 5 for line in seen)
    assert ax.get_title().endswith(f"step 3, loss {float(first['loss'][3]):.3g}")


def test_steps_that_only_one_of_several_recorded_are_counted(problem, surface):
    paths = {
        "all": tw.descend(problem, tw.SGD(lr=0.05), steps=9),
        "thirds": tw.descend(problem, tw.SGD(lr=0.1), steps=9, every=3),
    }
    animation = animations.path(surface, paths)
    assert plots.style.notes(animation.figure.axes[0]) == [
        "4 of 10 recorded steps shown, evenly spaced"
    ]
    assert not plots.style.notes(animations.path(surface, paths["all"]).figure.axes[0])


def test_losses_of_different_precision(problem, surface):
    paths = {
        name: tw.descend(problem, tw.SGD(lr=lr), steps=3)
        for name, lr in (("float16", 0.05), ("bfloat16", 0.1))
    }
    halves = {
        name: path.assign(loss=path["loss"].astype(jnp.dtype(name))) for name, path in paths.items()
    }
    low, high = sorted(float(path["loss"][-1]) for path in halves.values())
    animation = animations.path(surface, halves)
    title = animation.figure.axes[0].get_title()
    assert title.endswith(f"losses {low:.3g} to {high:.3g}")


def test_a_film_ends_where_all_have_diverged(problem, surface):
    path = tw.descend(problem, tw.SGD(lr=1e30), steps=500, record=["grad"])
    animation = animations.path(surface, path)
    assert animation.steps[-1] == int(path["diverged_at"])
    assert animation.figure.axes[0].get_title().endswith("diverged")
    (cross,) = lines_of(animation.figure.axes[0], "_X")
    last = path["params"].values[np.isfinite(path["params"]).all("param")][-1]
    np.testing.assert_array_equal(cross.get_xydata(), [last])
    finite = animations.pointwise(surface, path, sample=2)
    assert finite.steps == animation.steps[:-1]


@pytest.mark.parametrize("steps", [0, 1])
def test_paths_of_no_and_of_one_step(problem, surface, tmp_path, steps):
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=steps)
    animation = animations.path(surface, path)
    assert animation.steps == tuple(range(steps + 1))
    for suffix in ("gif", "mp4", "html"):
        animation.save(tmp_path / f"film.{suffix}")


def test_a_path_without_a_finite_iterate_is_one_empty_frame(surface, descent):
    lost = descent.copy(deep=True)
    lost["params"][:], lost["loss"][:], lost["batch"][:] = np.nan, np.nan, -1
    lost["status"], lost["diverged_at"] = "diverged", 0
    animation = animations.path(surface, lost)
    assert animation.steps == (0,)
    assert animation.figure.axes[0].get_title() == "Empirical risk: step 0, diverged"
    with pytest.raises(tw.InputError, match="sample"):
        animations.pointwise(surface, lost)


# Pixels and files --------------------------------------------------------------------------------


def test_what_stands_still_is_drawn_once_and_looks_the_same(surface, sweep, descent):
    for animation in (animations.path(surface, sweep), animations.pointwise(surface, descent)):
        frames = list(animation.frames())
        assert len(frames) == len(animation.steps)
        # The last frame, against the whole figure drawn anew. Contours lie below the axes' ticks in
        # one and above them in the other, which a few pixels along the frame show.
        canvas = FigureCanvasAgg(animation.figure)
        canvas.draw()
        whole = np.asarray(canvas.buffer_rgba())[..., :3]
        assert whole.shape == frames[-1].shape
        differ = (np.abs(whole.astype(int) - frames[-1]) > 8).any(axis=2).mean()
        assert differ < 0.002
        for one, other in zip(frames, animation.frames(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_dpi_scales_a_frame(surface, descent):
    small, large = (
        next(animations.path(surface, descent, dpi=dpi).frames()).shape for dpi in (50, 150)
    )
    assert np.array_equal(3 * np.array(small[:2]), large[:2])


def check_colors(stored, frame):
    """A palette's colours, of 255: exact but at edges, where they are near."""
    differ = np.abs(stored - frame).max(axis=2)
    assert (differ > 0).mean() < 0.03
    assert differ.max() < 60


def test_a_gif_holds_every_frame(surface, descent, tmp_path):
    animation = animations.pointwise(surface, descent, fps=5)
    tw.animate.save(animation, tmp_path / "film.gif")
    frames = list(animation.frames())
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == len(frames)
        assert film.info["loop"] == 0
        for i, frame in enumerate(frames):
            film.seek(i)
            assert film.info["duration"] == (200 if i < len(frames) - 1 else 1500)
            check_colors(np.asarray(film.convert("RGB"), int), frame)


def test_an_mp4_holds_every_frame_and_plays_in_browsers(surface, descent, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    animation = animations.path(surface, descent, fps=8, dpi=77.5)  # 465 × 341 pixels
    file = animation.save(tmp_path / "film.mp4")
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    said = subprocess.run([ffmpeg, "-i", file], capture_output=True, text=True).stderr
    found = re.search(r"Video: h264 .*yuv420p\(tv, bt709.*?, (\d+)x(\d+).*, 8 fps", said)
    assert found, said
    width, height = map(int, found.groups())
    assert (width, height) == (466, 342)
    command = [ffmpeg, "-v", "error", "-i", file, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    stored = subprocess.run(command, capture_output=True, check=True).stdout
    stored = np.frombuffer(stored, np.uint8).reshape(-1, height, width, 3)
    frames = list(animation.frames())
    assert len(stored) == len(frames) == STEPS + 1
    for one, other in zip(stored, frames, strict=True):
        difference = one[: other.shape[0], : other.shape[1]].astype(int) - other
        assert np.abs(difference).mean() < 4  # of 255: colours are stored at half the resolution
    # faststart: the index stands before the pictures
    held = file.read_bytes()
    assert held.index(b"moov") < held.index(b"mdat")


def test_a_page_holds_every_frame_and_needs_no_network(surface, descent, tmp_path):
    animation = animations.path(surface, descent)
    text = animation.save(tmp_path / "film.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=\"?https?:", text)
    assert text.count('"iVBOR') == STEPS + 1
    assert f'"step {STEPS}"' in text
    shown = animation._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert shown.count("iframe") == 2


def test_a_page_shows_each_frame_over_the_last(surface, descent):
    animation = animations.pointwise(surface, descent)
    text = animation.to_html()
    (last,) = re.findall(r'src="data:image/png;base64,([^"{]+)"', text)
    stored = re.findall(r'"(iVBOR[^"]+)"', text)
    last, *stored = (
        Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA") for png in (last, *stored)
    )
    for over, frame in zip(stored, animation.frames(), strict=True):
        check_colors(np.asarray(Image.alpha_composite(last, over).convert("RGB"), int), frame)


@pytest.mark.parametrize("suffix", ["gif", "mp4", "html"])
def test_a_film_that_fails_leaves_what_was_there(surface, descent, tmp_path, suffix):
    animation = animations.path(surface, descent)
    file = tmp_path / f"film.{suffix}"
    file.write_text("before")

    def fails(frame):
        if frame == 3:
            raise KeyboardInterrupt
        return animation.draw(frame)

    broken = animations.Animation(animation.figure, fails, animation.steps, "broken")
    with pytest.raises(KeyboardInterrupt):
        broken.save(file)
    assert file.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == [file.name]
    animation.save(file)
    assert file.stat().st_size > 1000
    assert [p.name for p in tmp_path.iterdir()] == [file.name]


def test_saving_says_what_is_wrong(surface, descent, tmp_path, monkeypatch):
    animation = animations.path(surface, descent, frames=2)
    with pytest.raises(tw.InputError, match=r"suffix.*'\.mp3'; did you mean '\.mp4'"):
        animation.save(tmp_path / "film.mp3")
    with pytest.raises(tw.InputError, match=r"the folder .* does not exist"):
        animation.save(tmp_path / "no" / "film.gif")
    with pytest.raises(tw.InputError, match="an animation was expected; str given"):
        tw.animate.save("film", tmp_path / "film.gif")
    with pytest.raises(tw.InputError, match="a file's path was expected; None given"):
        animation.save(None)
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(tw.InputError, match="it is a folder"):
        animation.save(tmp_path / "folder.gif")

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imageio_ffmpeg", None)
        with pytest.raises(MissingExtra, match=r"imageio-ffmpeg: pip install 'thalweg\[video\]'"):
            animation.save(tmp_path / "film.mp4")
        animation.save(tmp_path / "film.gif")

    # installed from source, imageio-ffmpeg has no program; a report then takes a GIF, as without it
    def nothing():
        raise RuntimeError("No ffmpeg exe could be found.")

    monkeypatch.setattr("imageio_ffmpeg.get_ffmpeg_exe", nothing)
    with pytest.raises(MissingExtra, match="no ffmpeg was found: No ffmpeg exe"):
        animation.save(tmp_path / "film.mp4")


@pytest.mark.parametrize("program", ["false", "cat"])
def test_ffmpeg_that_fails_is_one_line(surface, descent, tmp_path, monkeypatch, program):
    animation = animations.path(surface, descent, frames=3)
    monkeypatch.setattr(films, "_ffmpeg", lambda: program)
    with pytest.raises(tw.InputError, match=r"ffmpeg could not write the video: .") as caught:
        animation.save(tmp_path / "film.mp4")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_nothing_outside_is_changed(surface, sweep, tmp_path, capfd):
    import matplotlib
    import matplotlib.pyplot as plt

    before = dict(matplotlib.rcParams)
    held = surface.copy(deep=True), sweep.copy(deep=True)
    animation = animations.path(surface, sweep)
    dpi = animation.figure.dpi
    for suffix in ("gif", "mp4", "html"):
        animation.save(tmp_path / f"film.{suffix}")
    assert dict(matplotlib.rcParams) == before
    assert held[0].identical(surface)
    assert held[1].identical(sweep)
    assert animation.figure.dpi == dpi
    assert not plt.get_fignums()
    assert not any(artist.get_animated() for artist in animation.figure.axes[0].get_children())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "at least 1 frame"),
        ({"frames": [0, 99]}, "steps that were recorded"),
        ({"frames": "all"}, "frames must be a number"),
        ({"spacing": "geometrc"}, "did you mean 'geometric'"),
        ({"fps": 0}, "fps must be a positive number"),
        ({"dpi": float("nan")}, "dpi must be a positive number"),
        ({"fps": "fast"}, "fps must be a positive number; 'fast' given"),
        ({"risk": "emprical"}, "did you mean 'empirical'"),
    ],
)
def test_options_that_cannot_be(surface, descent, options, words):
    with pytest.raises(tw.InputError, match=words):
        animations.path(surface, descent, **options)


def test_results_that_cannot_be_animated(surface, descent, sweep):
    with pytest.raises(tw.InputError, match="a trajectory was expected"):
        animations.path(surface, surface)
    with pytest.raises(tw.InputError, match=r"a trajectory was expected.*; NoneType given"):
        animations.path(surface, None)
    with pytest.raises(tw.InputError, match="a landscape was expected"):
        animations.path(descent, descent)
    with pytest.raises(tw.InputError, match="no recorded params"):
        animations.path(surface, descent.drop_vars("params"))
    with pytest.raises(tw.InputError, match="draws one member"):
        animations.pointwise(surface, sweep)
    with pytest.raises(tw.InputError, match="the arrow needs the gradient"):
        animations.pointwise(surface, descent.drop_vars("grad"))
    with pytest.raises(tw.InputError, match="which sample"):
        animations.pointwise(surface, descent.drop_vars("batch"))
    with pytest.raises(tw.InputError, match="the curves need a step"):
        animations.fit(xr.Dataset({"x": ("sample", [1.0])}), surface, descent)
    table = xr.Dataset({"yhat_grid": (("step", "grid"), np.zeros((1, 2)))}, coords={"step": [99]})
    with pytest.raises(tw.InputError, match="no step in common"):
        animations.fit(table, surface, descent)


def test_a_saved_result_is_animated_without_jax(surface, descent, tmp_path):
    files.save(surface, tmp_path / "surface.nc")
    files.save(descent, tmp_path / "path.nc")
    code = (
        "import sys, thalweg as tw;"
        "film = tw.animate.pointwise(tw.load('surface.nc'), tw.load('path.nc'), frames=3);"
        "film.save('film.gif');"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
