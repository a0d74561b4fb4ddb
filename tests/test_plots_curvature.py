"""Pictures of curvature, by what they draw."""

import jax
import numpy as np
import pytest
from figure_checks import faults
from test_edge import regression

import thalweg as tw
from thalweg.errors import InputError
from thalweg.plots.style import notes


def series(ax):
    return {line.get_label(): line for line in ax.lines}


@pytest.fixture(scope="module")
def problem():
    return regression()


@pytest.mark.parametrize("y", ["log", "linear"])
def test_a_density(problem, y):
    spectrum = tw.hessian(problem, problem.params).density(width=0.2)
    ax = tw.plot.density(spectrum, y=y, label="at the start")
    line = series(ax)["at the start"]
    np.testing.assert_array_equal(line.get_xdata(), spectrum["eigenvalue"])
    np.testing.assert_array_equal(line.get_ydata(), spectrum["density"])
    assert ax.get_yscale() == y
    assert faults(ax.figure) == []
    assert any("standard deviation 0.2" in text.get_text() for text in ax.texts)
    assert (y == "log") == any("are not shown" in text.get_text() for text in ax.texts)
    ax = tw.plot.density(spectrum, ax=ax, label="again")
    assert len({line.get_color() for line in ax.lines}) == 2


def test_sharpness_and_what_is_stable(problem):
    path = tw.descend(
        problem, tw.SGD(lr=[0.05, 0.1]), steps=40, every=10, record={"sharpness": tw.sharpness}
    )
    ax = tw.plot.sharpness(path)
    lines = series(ax)
    for lr in (0.05, 0.1):
        np.testing.assert_allclose(lines[f"lr = {lr:g}"].get_ydata(), path["sharpness"].sel(lr=lr))
    for name, limit in (("stable below 40, 20", 40), ("_limit", 20)):
        np.testing.assert_allclose(lines[name].get_ydata(), limit)
    colors = [lines[name].get_color() for name in ("lr = 0.05", "stable below 40, 20")]
    assert colors[0] == colors[1]
    assert faults(ax.figure) == []
    one = tw.plot.sharpness(path.isel(lr=0), title="One")
    assert "stable below 40" in series(one)
    assert one.get_title() == "One"


def test_a_note_about_the_limit_says_whose(problem):
    record = {"sharpness": tw.sharpness}
    paths = {
        name: tw.descend(problem, tw.SGD(lr=0.05), steps=3, batch_size=size, record=record)
        for name, size in (("all", None), ("some", 2))
    }
    assert notes(tw.plot.sharpness(paths)) == ["some: the limit is that of full batches"]
    size = problem.n_samples
    batches = (
        ([], {"batch_size": size, "shuffle": True}),
        (["the limit is that of full batches"], {"batch_size": size, "replacement": True}),
        (["the limit is that of full batches"], {"batches": [[0, 1], [2, 3]]}),
    )
    for note, options in batches:
        path = tw.descend(problem, tw.SGD(lr=0.05), steps=2, record=record, **options)
        assert notes(tw.plot.sharpness(path)) == note
    unknown = (
        paths["all"]
        .drop_attrs()
        .assign_attrs(settings='{"optimizer": {"name": "SGD", "lr": null}}')
    )
    ax = tw.plot.sharpness({"one": paths["all"], "loop": unknown})
    assert notes(ax) == ["loop: its limit of stability is not known"]


@pytest.mark.parametrize("y", ["linear", "log"])
def test_the_axis_follows_the_sharpness_where_the_limit_goes_to_infinity(problem, y):
    path = tw.descend(
        problem,
        tw.SGD(lr=lambda t: 0.1 * (1 - t / 20)),
        steps=21,
        record={"sharpness": tw.sharpness},
    )
    ax = tw.plot.sharpness(path, y=y, label="a")
    limit = series(ax)["a: limit of stability"].get_ydata()
    np.testing.assert_array_equal(limit, tw.stability_threshold(path))
    assert np.isinf(limit[-1])
    highest = path["sharpness"].values.max()
    assert limit[0] < ax.get_ylim()[1] < (1.5 * limit[0] if y == "linear" else 300 * highest)
    assert "a: the limit of stability leaves the window and is infinite at some steps" in notes(ax)
    assert faults(ax.figure) == []
    # a second trajectory, sharper than the axis was high, is seen as well
    higher = path.assign(sharpness=10 * path["sharpness"])
    tw.plot.sharpness(higher, y=y, ax=ax, label="b")
    assert ax.get_ylim()[1] > 10 * highest


def test_a_limit_above_the_sharpness_is_seen(problem):
    path = tw.descend(problem, tw.SGD(lr=[0.001, 0.1]), steps=4, record={"sharpness": tw.sharpness})
    ax = tw.plot.sharpness(path)
    assert ax.get_ylim()[1] > 2000
    assert notes(ax) == []
    slowly = tw.descend(
        problem,
        tw.SGD(lr=lambda t: 0.1 - 0.001 * t),
        steps=4,
        record={"sharpness": tw.sharpness},
    )
    assert notes(tw.plot.sharpness(slowly)) == []


def test_a_schedules_threshold_moves(problem):
    path = tw.descend(
        problem,
        tw.SGD(lr=lambda t: 0.1 / (1 + t)),
        steps=4,
        record={"sharp": tw.sharpness},
    )
    ax = tw.plot.sharpness(path, "sharp")
    np.testing.assert_allclose(
        series(ax)["limit of stability"].get_ydata(), 20 * np.array([1, 2, 3, 4, 4])
    )
    with pytest.raises(InputError, match="did you mean 'sharp'"):
        tw.plot.sharpness(path, "shap")


def test_variance_explained(problem):
    path = tw.descend(problem, tw.SGD(lr=0.1), steps=30)
    plane = tw.pca_plane(problem, path, points=3).dataset()
    ax = tw.plot.explained_variance(plane, components=5)
    lines = series(ax)
    np.testing.assert_allclose(
        lines["this path"].get_ydata(), 100 * plane["explained_variance"][:5]
    )
    walk = lines["random walk of 31 iterates"].get_ydata()
    np.testing.assert_allclose(walk, 100 * plane["random_walk_variance"][:5])
    assert faults(ax.figure) == []
    with pytest.raises(InputError, match="pca_plane"):
        tw.plot.explained_variance(tw.line(problem, problem.params, *_other(problem)).dataset())


def _other(problem):
    return (jax.tree_util.tree_map(lambda leaf: leaf + 1, problem.params),)


def test_a_limit_is_drawn_only_where_it_belongs(problem):
    path = tw.descend(
        problem,
        tw.Adam(lr=0.01),
        steps=4,
        record={"plain": tw.sharpness, "own": tw.preconditioned_sharpness},
    )
    assert not any("stable" in name for name in series(tw.plot.sharpness(path, "plain")))
    lines = series(tw.plot.sharpness(path, "own", preconditioned=True))
    np.testing.assert_allclose(lines["stable below 3.8e+03"].get_ydata(), 3800)
    other = tw.descend(problem, tw.NAdam(lr=0.01), steps=4, record={"sharpness": tw.sharpness})
    assert list(series(tw.plot.sharpness(other))) == ["sharpness"]
