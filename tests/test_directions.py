"""Planes through models: what they are by hand, and what they must not change."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import thalweg as tw
from thalweg import components
from thalweg.errors import InputError

P = 12
rng = np.random.default_rng(5)
MATRIX = rng.standard_normal((P, P))
MATRIX = MATRIX + MATRIX.T + np.diag(np.arange(P))  # indefinite, and of no symmetry in its axes
SLOPE = rng.standard_normal(P)
SHAPES = {"a": (3, 2), "b": (4,), "c": (2, 1, 1)}


def quadratic(matrix, slope, w):
    v = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree_util.tree_leaves(w)])
    return 0.5 * v @ matrix @ v + slope @ v + 3.0


def by_hand(points):
    return 0.5 * np.einsum("...i,ij,...j", points, MATRIX, points) + points @ SLOPE + 3.0


@pytest.fixture(scope="module")
def problem():
    start = {name: np.random.default_rng(6).standard_normal(s) for name, s in SHAPES.items()}
    return tw.Problem.from_function(
        Partial(quadratic, jnp.asarray(MATRIX), jnp.asarray(SLOPE)), params=start
    )


def walk(n=40, seed=7):
    return np.cumsum(np.random.default_rng(seed).standard_normal((n, P)), axis=0)


KINDS = {
    "filter": lambda p, **o: tw.random_plane(p, p.params, seed=3, **o),
    "layer": lambda p, **o: tw.random_plane(p, p.params, normalize="layer", vectors=True, **o),
    "none": lambda p, **o: tw.random_plane(p, p.params, normalize="none", vectors=True, **o),
    "principal": lambda p, **o: tw.pca_plane(p, walk(), **o),
    "hessian": lambda p, **o: tw.hessian_plane(p, p.params, **o),
    "two minima": lambda p, **o: tw.interpolation(p, p.params, p.unflatten(walk()[-1]), **o),
    "three minima": lambda p, **o: tw.interpolation(p, p.params, *map(p.unflatten, walk()[-2:]), **o),
    "coordinates": lambda p, points, span: tw.coordinate_plane(
        p, {"b[1]": span, "a[2,0]": span}, points
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_quadratic_is_exact_at_every_point(problem, kind):
    axes = KINDS[kind](problem, points=3, span=(-1, 2)).axes
    counts = dict(
        zip(axes, (7, 4), strict=False)
    )  # nx ≠ ny; the origin is a grid point: −1 + 2 · ½
    plane = KINDS[kind](problem, points=counts, span=(-1, 2))
    surface = tw.landscape(problem, plane)
    assert surface.empirical.shape == (7, 4)[: len(axes)]
    grids = np.meshgrid(*(surface[a].values for a in axes), indexing="ij")
    points = surface.origin.values + np.stack(grids, axis=-1) @ surface.directions.values
    np.testing.assert_allclose(surface.empirical, by_hand(points), rtol=1e-12, atol=1e-11)
    at_origin = surface.empirical.sel(dict.fromkeys(axes, 0.0)) if kind != "coordinates" else None
    if at_origin is not None:
        risk = float(problem.risk(problem.unflatten(surface.origin.values)))
        assert float(at_origin) == pytest.approx(risk, rel=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plane_says_what_its_directions_are(problem, kind):
    plane = KINDS[kind](problem, points=3, span=(-1, 2))
    told, used = plane.dataset(), plane.directions
    np.testing.assert_allclose(told["length"], np.linalg.norm(used, axis=1))
    units = used / np.linalg.norm(used, axis=1)[:, None]
    np.testing.assert_allclose(told["cosine"], units @ units.T, atol=1e-15)


def test_the_curvature_at_the_origin_is_said(problem):
    plane = KINDS["filter"](problem, points=3, span=(-1, 1))
    surface = tw.landscape(problem, plane, curvature=True)
    values = np.linalg.eigvalsh(MATRIX)
    assert float(surface.largest_eigenvalue) == pytest.approx(values[-1], rel=1e-12)
    assert float(surface.smallest_eigenvalue) == pytest.approx(values[0], rel=1e-12)
    assert float(surface.trace) == pytest.approx(values.sum(), rel=1e-12)
    for d, along in zip(plane.directions, surface.directional_curvature.values, strict=True):
        assert along == pytest.approx(d @ MATRIX @ d / (d @ d), rel=1e-12)


def test_expected_curvature_along_random_directions_is_the_trace_over_p(problem):
    """Li et al. (2018), section 6: for a Gaussian direction, E dᵀHd / ‖d‖² = tr(H)/p."""
    found = []
    for seed in range(200):
        plane = tw.random_plane(
            problem,
            problem.params,
            seed=seed,
            normalize="none",
            vectors=True,
            directions=1,
            points=3,
        )
        d = plane.directions[0]
        found.append(d @ np.asarray(tw.hessian(problem, problem.params) @ d) / (d @ d))
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - np.trace(MATRIX) / P) < 4 * error
    assert error < 0.1 * np.ptp(np.linalg.eigvalsh(MATRIX))


def test_the_risk_on_a_path_and_in_its_plane(problem):
    points = walk()
    plane = tw.pca_plane(problem, points)
    seen = plane.project(points, problem)
    place = np.stack([seen[a].values for a in plane.axes], axis=1)
    inside = plane.origin + place @ plane.directions
    np.testing.assert_allclose(seen["risk"], by_hand(points), rtol=1e-10)
    np.testing.assert_allclose(seen["risk_in_plane"], by_hand(inside), rtol=1e-10)
    np.testing.assert_allclose(seen["residual"], np.linalg.norm(points - inside, axis=1), rtol=1e-9)
    assert float(seen["residual"][-1]) < 1e-9  # the last iterate is the origin


# Random directions -----------------------------------------------------------------------------


def test_filters_have_the_models_norms(problem):
    plane = tw.random_plane(problem, problem.params, directions=3, vectors=True)
    for row in plane.directions:
        direction = problem.unflatten(row)
        for name, w in problem.params.items():
            d, w = np.asarray(direction[name]), np.asarray(w)
            over = tuple(range(1, w.ndim)) or None  # a vector is one filter
            np.testing.assert_allclose((d**2).sum(over), (w**2).sum(over), rtol=1e-12)
    last = tw.random_plane(problem, problem.params, filter_axis=-1)
    assert json.loads(last.dataset().attrs["plane_filter_axis"]) == {"a": -1, "c": -1}
    d, w = np.asarray(problem.unflatten(last.directions[0])["a"]), np.asarray(problem.params["a"])
    np.testing.assert_allclose((d**2).sum(0), (w**2).sum(0), rtol=1e-12)
    layer = tw.random_plane(problem, problem.params, normalize="layer")
    d = np.asarray(problem.unflatten(layer.directions[0])["a"])
    np.testing.assert_allclose((d**2).sum(), (w**2).sum(), rtol=1e-12)


def test_each_weight_has_its_filters_along_its_own_axis():
    """Flax has them last in its kernels, and an embedding's are its rows."""
    drawn = np.random.default_rng(0).standard_normal((3, 4, 2))
    start = {"embedding": drawn[0], "kernel": drawn[1], "other": {"kernel": {"value": drawn[2]}}}
    problem = tw.Problem.from_function(
        lambda w: sum(jnp.sum(leaf**2) for leaf in jax.tree_util.tree_leaves(w)), start
    )
    own = tw.random_plane(problem, start)
    told = tw.random_plane(
        problem, start, filter_axis=lambda name, shape: 0 if name == "embedding" else len(shape) - 1
    )
    np.testing.assert_array_equal(own.directions, told.directions)
    d = problem.unflatten(own.directions[0])
    for direction, weight, over in (
        (d["embedding"], start["embedding"], 1),
        (d["kernel"], start["kernel"], 0),
        (d["other"]["kernel"]["value"], start["other"]["kernel"]["value"], 0),
    ):
        np.testing.assert_allclose((direction**2).sum(over), (weight**2).sum(over), rtol=1e-12)
    named = json.loads(own.dataset().attrs["plane_filter_axis"])
    assert named == {"kernel": -1, "other.kernel.value": -1}
    with pytest.raises(InputError, match=r"'embedding' has 2, 'rows' given"):
        tw.random_plane(problem, start, filter_axis=lambda name, shape: "rows")


def test_vectors_are_left_out_and_the_result_says_so(problem):
    plane = tw.random_plane(problem, problem.params)
    assert plane.dataset().attrs["plane_left_out"] == "b"
    assert not np.asarray(problem.unflatten(plane.directions[0])["b"]).any()
    assert np.asarray(problem.unflatten(plane.directions[0])["c"]).all()
    other = tw.random_plane(problem, problem.params, seed=1)
    assert not np.allclose(plane.directions, other.directions)
    again = tw.random_plane(problem, problem.params, seed=0)
    np.testing.assert_array_equal(plane.directions, again.directions)


def test_a_dead_filter_stays_dead():
    params = {"w": np.array([[1.0, 2.0], [0.0, 0.0]])}
    problem = tw.Problem.from_function(lambda w: (w["w"] ** 2).sum(), params)
    plane = tw.random_plane(problem, params)
    np.testing.assert_array_equal(plane.directions[:, 2:], 0)


# Principal components --------------------------------------------------------------------------


@pytest.mark.parametrize("n", [5, 40])  # fewer iterates than parameters, and more
def test_principal_components_are_those_of_the_singular_values(problem, n):
    points = walk(n)
    centered = points - points.mean(axis=0)
    _, values, axes = np.linalg.svd(centered, full_matrices=False)
    plane = tw.pca_plane(problem, points, components=2)
    told = plane.dataset()
    shares = values**2 / (values**2).sum()
    np.testing.assert_allclose(told["explained_variance"][:4], shares[:4], rtol=1e-9)
    np.testing.assert_allclose(np.abs((plane.directions * axes[:2]).sum(axis=1)), 1, rtol=1e-9)
    np.testing.assert_allclose(told["length"], 1, rtol=1e-12)
    np.testing.assert_array_equal(plane.origin, points[-1])
    np.testing.assert_allclose(
        tw.pca_plane(problem, points, origin="mean").origin, points.mean(axis=0)
    )
    seen = plane.project(points)
    for axis in plane.axes:  # all of the path is inside
        low, high = told[axis].values[[0, -1]]
        assert low < float(seen[axis].min())
        assert float(seen[axis].max()) < high


def test_a_random_walks_variance():
    """0.6079 = 6/π² and a quarter of it in the limit (Antognini & Sohl-Dickstein, 2018, section 3)."""
    limit = components.walk_variances(20_000, 10_000, 3)
    np.testing.assert_allclose(limit, 6 / np.pi**2 / np.arange(1, 4) ** 2, rtol=1e-3)
    drawn = components.walk_variances(200, 20_000, 3)
    steps = np.tril(np.ones((200, 200)))
    centering = np.eye(200) - 1 / 200
    values = np.linalg.eigvalsh(centering @ steps @ steps.T @ centering)[::-1]
    # each is a mean of 20,000 squares, and so off by √(2/20,000) = 1 % of itself
    np.testing.assert_allclose(drawn, values[:3] / values.sum(), rtol=0.04)
    exact = 1 / (2 - 2 * np.cos(np.pi * np.arange(1, 200) / 200))
    np.testing.assert_allclose(values[:199], exact, rtol=1e-9)


def test_many_parameters_need_no_matrix_of_their_size():
    p, n = 300_000, 20
    points = np.random.default_rng(0).standard_normal((n, p)).astype(np.float32).cumsum(axis=0)
    problem = tw.Problem.from_function(
        lambda w: (w["w"] ** 2).sum(), {"w": np.zeros(p, np.float32)}
    )
    plane = tw.pca_plane(problem, points, points=3)
    expected = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) ** 2
    np.testing.assert_allclose(
        plane.dataset()["explained_variance"][:2], (expected / expected.sum())[:2], rtol=1e-4
    )


def test_members_that_diverged_are_left_out(problem):
    path = tw.descend(problem, tw.SGD(lr=[0.001, 10.0]), steps=400)
    assert list(path["status"].values) == ["completed", "diverged"]
    plane, alone = (tw.pca_plane(problem, p) for p in (path, path.isel(lr=0)))
    np.testing.assert_allclose(plane.directions, alone.directions)
    assert plane.dataset().attrs["plane_iterates"] == 401


# Eigenvectors, minima --------------------------------------------------------------------------


def test_eigenvectors_by_their_place(problem):
    values, vectors = np.linalg.eigh(MATRIX)
    plane = tw.hessian_plane(problem, problem.params, (0, 2, -1, -3))
    assert plane.axes == ("top1", "top3", "bottom1", "bottom3")
    chosen = [-1, -3, 0, 2]
    np.testing.assert_allclose(plane.dataset()["eigenvalue"], values[chosen], rtol=1e-10)
    along = (plane.directions * vectors[:, chosen].T).sum(axis=1)
    np.testing.assert_allclose(np.abs(along), 1, rtol=1e-9)
    assert tw.hessian_plane(problem, problem.params).axes == ("top1", "bottom1")
    last = tw.hessian_plane(problem, problem.params, (-P, P - 1)).dataset()["eigenvalue"]
    np.testing.assert_allclose(last, values[[-1, 0]], rtol=1e-10)
    surface = tw.landscape(problem, tw.hessian_plane(problem, problem.params, (0,), points=3))
    middle, step = surface.empirical.values, 1.0
    second = (middle[0] - 2 * middle[1] + middle[2]) / step**2
    assert second == pytest.approx(values[-1], rel=1e-9)


def test_three_minima_lie_where_they_are_said_to(problem):
    a, b, c = problem.params, *map(problem.unflatten, walk()[-2:])
    plane = tw.interpolation(problem, a, b, c)
    seen = plane.project(np.stack([problem.flatten(v) for v in (a, b, c)]))
    np.testing.assert_allclose(seen["to_b"], [0, 1, 0], atol=1e-9)
    np.testing.assert_allclose(seen["to_c"], [0, 0, 1], atol=1e-9)
    assert tw.interpolation(problem, a, b).axes == ("t",)


def test_two_parameters_have_two_principal_directions():
    bowl = tw.Problem.from_function(lambda w: (w**2).sum(), np.zeros(2))
    # along (3, 4) five times as far as across
    points = np.array([[3, 4], [-3, -4], [0.8, -0.6], [-0.8, 0.6]])
    plane = tw.pca_plane(bowl, points)
    np.testing.assert_allclose(np.abs(plane.directions), [[0.6, 0.8], [0.8, 0.6]], rtol=1e-12)


def test_minima_of_very_different_distances_span_a_plane():
    flat = tw.Problem.from_function(lambda w: (w**2).sum(), np.zeros(2))
    plane = tw.interpolation(flat, *np.array([[0, 0], [1e-9, 0], [0, 1e9]]))
    np.testing.assert_array_equal(plane.directions, [[1e-9, 0], [0, 1e9]])
    with pytest.raises(InputError, match="not on one line"):
        tw.interpolation(flat, *np.array([[0, 0], [1e-9, 0], [1e9, 0]]))


def test_bad_input_is_one_line(problem):
    start, other = problem.params, problem.unflatten(walk()[-1])
    flat = tw.Problem.from_function(lambda w: (w["x"] ** 2).sum(), {"x": np.ones(3)})
    between = problem.unflatten((problem.flatten(start) + problem.flatten(other)) / 2)
    for call, words in (
        (lambda: tw.random_plane(problem, start, normalize="filters"), "did you mean 'filter'"),
        (lambda: tw.random_plane(flat, flat.params), "vectors=True"),
        (lambda: tw.random_plane(problem, start, directions=0), "at least 1"),
        (lambda: tw.random_plane(problem, start, span={"x": (0, 1)}), "unknown axis in span="),
        (lambda: tw.pca_plane(problem, walk(2)), "need 3 different iterates"),
        (lambda: tw.pca_plane(problem, np.ones((5, P))), "the same point"),
        (
            lambda: tw.pca_plane(problem, np.arange(5.0)[:, None] * np.ones(P)),
            "fewer than 2 directions",
        ),
        (lambda: tw.pca_plane(problem, np.ones((5, 3))), "shape \\(5, 3\\) given"),
        (lambda: tw.pca_plane(problem, walk(), origin="end"), "unknown origin"),
        (lambda: tw.hessian_plane(problem, start, (0, 0)), "different whole numbers"),
        (lambda: tw.hessian_plane(problem, start, (0, P)), "between −12 and 11"),
        (lambda: tw.hessian_plane(problem, start, (0, -P - 1)), "between −12 and 11"),
        (lambda: tw.hessian_plane(problem, start, (0.9, 1.9)), "different whole numbers"),
        (lambda: tw.random_plane(problem, start, filter_axis=7), "filter_axis must be an axis"),
        (lambda: tw.random_plane(problem, start, seed=None), "seed must be a whole number"),
        (lambda: tw.interpolation(problem, start, start), "two different points"),
        (lambda: tw.interpolation(problem, start, other, between), "not on one line"),
    ):
        with pytest.raises(InputError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)
