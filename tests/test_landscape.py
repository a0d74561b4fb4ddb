"""Risks on a plane, against the same risks computed densely in NumPy."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import bowl, bowl_problem, data, for_a_cpu, line, line_problem

import thalweg as tw
from thalweg import backend, chunks, identity, landscapes, passes, tiling
from thalweg.errors import InputError

TOLERANCE = 1e-12
RANGES = {"weight": (-5, 8), "bias": (-4, 5)}
ALL = ("empirical", "expected", "pointwise")
POINTS = {"weight": 14, "bias": 10}  # whole numbers, and so the start (6, −3) is among them


def line_plane(problem, points=POINTS):
    return tw.coordinate_plane(problem, RANGES, points)


def dense(n=50, dtype=float):
    """Squared errors (sample, weight, bias) of the line, all at once."""
    x, y = data(n, dtype)
    weight, bias = np.arange(-5.0, 9)[:, None], np.arange(-4.0, 6)
    return (weight * x[:, None, None] + bias - y[:, None, None]) ** 2


def true_risk(w):
    """With x ~ N(0, 1) and y = 2x + 1 + ε, ε ~ N(0, 0.3²)."""
    return (w["weight"] - 2) ** 2 + (w["bias"] - 1) ** 2 + 0.3**2


def decay(w):
    return 0.1 * (w["weight"] ** 2 + w["bias"] ** 2)


# Trap 1: axes swapped, coordinates that drift -------------------------------------------------


def test_a_planted_quadratic_is_exact_on_a_rectangular_grid():
    problem = bowl_problem()
    plane = tw.coordinate_plane(problem, {"x": (-3, 4), "y": (-5, 1)}, {"x": 29, "y": 13})
    surface = tw.landscape(problem, plane)
    assert surface.empirical.dims == ("x", "y")
    assert surface.empirical.shape == (29, 13)
    assert surface.empirical.dtype == np.float64
    x, y = np.linspace(-3, 4, 29)[:, None], np.linspace(-5, 1, 13)
    np.testing.assert_allclose(surface.empirical, bowl({"x": x, "y": y}), rtol=TOLERANCE)
    # by label: the minimum is 0 at (1, −2), and (2, −3) is 1 + 3 − 1
    assert surface.empirical.sel(x=1, y=-2) == 0
    assert surface.empirical.sel(x=2, y=-3) == 3
    # the axes follow the user's order
    other = tw.landscape(problem, tw.coordinate_plane(problem, {"y": (-5, 1), "x": (-3, 4)}, 5))
    assert other.empirical.dims == ("y", "x")
    np.testing.assert_allclose(
        other.empirical, surface.empirical[::7, ::3].transpose("y", "x"), rtol=TOLERANCE
    )


def test_the_value_at_the_start_is_the_risk_there():
    problem = line_problem(penalty=decay, expected=true_risk)
    surface = tw.landscape(problem, line_plane(problem), ALL)
    here = surface.sel(weight=6, bias=-3)
    np.testing.assert_allclose(here.empirical, problem.risk(problem.params), rtol=TOLERANCE)
    np.testing.assert_allclose(here.expected, problem.expected(problem.params), rtol=TOLERANCE)
    np.testing.assert_allclose(here.pointwise, problem.pointwise(problem.params), rtol=TOLERANCE)


# The three risks ----------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("penalty", [True, False])
def test_the_three_risks(reduction, penalty):
    problem = line_problem(penalty=decay, expected=true_risk, reduction=reduction)
    plane = line_plane(problem)
    surface = tw.landscape(problem, plane, ALL, penalty=penalty)
    w = {"weight": np.arange(-5.0, 9)[:, None], "bias": np.arange(-4.0, 6)}
    added = decay(w) if penalty else 0
    empirical = getattr(dense(), reduction)(axis=0) + added
    assert surface.pointwise.dims == ("sample", "weight", "bias")
    np.testing.assert_allclose(surface.pointwise, dense(), rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(surface.empirical, empirical, rtol=TOLERANCE)
    np.testing.assert_allclose(surface.expected, true_risk(w) + added, rtol=TOLERANCE)
    # the empirical risk alone takes another way through the samples
    alone = tw.landscape(problem, plane, "empirical", penalty=penalty)
    assert "pointwise" not in alone
    np.testing.assert_allclose(alone.empirical, empirical, rtol=TOLERANCE)


def test_the_result_holds_its_plane():
    problem = line_problem()
    plane = line_plane(problem)
    surface = tw.landscape(problem, plane)
    np.testing.assert_array_equal(surface.origin, plane.origin)
    np.testing.assert_array_equal(surface.directions, plane.directions)
    assert list(surface.direction.values) == ["weight", "bias"]
    assert list(surface.param.values) == ["bias", "weight"]
    assert {type(value) for value in surface.attrs.values()} <= {str, int, float}


def test_a_line_is_a_landscape_with_one_axis():
    problem = line_problem()
    a, b = {"weight": 6.0, "bias": -3.0}, {"weight": 2.0, "bias": 1.0}
    surface = tw.landscape(problem, tw.line(problem, a, b, points=5), ("empirical", "pointwise"))
    assert surface.empirical.dims == ("t",)
    assert surface.pointwise.dims == ("sample", "t")
    np.testing.assert_allclose(surface.empirical[0], problem.risk(a), rtol=TOLERANCE)
    np.testing.assert_allclose(surface.empirical[-1], problem.risk(b), rtol=TOLERANCE)
    middle = problem.risk({"weight": 4.0, "bias": -1.0})
    np.testing.assert_allclose(surface.empirical[2], middle, rtol=TOLERANCE)


def mlp(w, x):
    return jnp.tanh(x[:, None] * w["l1"]["weight"] + w["l1"]["bias"]) @ w["l2"]


def mlp_problem(loss="mse", n=50, dtype=float, width=3):
    rng = np.random.default_rng(11)
    params = {
        "l1": {"weight": rng.standard_normal(width), "bias": rng.standard_normal(width)},
        "l2": rng.standard_normal(width),
    }
    params = jax.tree_util.tree_map(lambda leaf: leaf.astype(dtype), params)
    return tw.Problem(mlp, loss, *data(n, dtype), params=params)


MLP_RANGES = {"l2[1]": (-2, 2), "l1.weight[0]": (-1, 3)}


def test_in_a_network_the_other_parameters_stay_where_they_are():
    problem = mlp_problem()
    plane = tw.coordinate_plane(problem, MLP_RANGES, {"l2[1]": 5, "l1.weight[0]": 3})
    surface = tw.landscape(problem, plane)
    x, y = data()
    weight, bias = (np.array(problem.params["l1"][k]) for k in ("weight", "bias"))
    out = np.array(problem.params["l2"])
    for i, out[1] in enumerate([-2, -1, 0, 1, 2]):
        for j, weight[0] in enumerate([-1, 1, 3]):
            e = np.tanh(x[:, None] * weight + bias) @ out - y
            np.testing.assert_allclose(surface.empirical[i, j], np.mean(e**2), rtol=TOLERANCE)


def products(w):
    return jnp.array([w["a"] - 1, w["b"], w["a"] * w["b"]])


def test_the_pointwise_risks_of_residuals_are_their_squares():
    problem = tw.Problem.from_residuals(products, params={"a": 0.0, "b": 0.0})
    plane = tw.coordinate_plane(problem, {"a": (0, 4), "b": (0, 2)}, {"a": 5, "b": 3})
    surface = tw.landscape(problem, plane, ("empirical", "pointwise"))
    np.testing.assert_array_equal(surface.pointwise.sel(a=3, b=2), [4, 4, 36])
    np.testing.assert_array_equal(surface.empirical.sel(a=3, b=2), 44)


def test_a_problem_with_init_alone_has_a_landscape():
    start = {"weight": 6.0, "bias": -3.0}
    drawn = tw.Problem(line, "mse", *data(), init=draw)
    plane = tw.coordinate_plane(drawn, RANGES, POINTS)
    np.testing.assert_allclose(
        tw.landscape(drawn, plane).empirical.sel(weight=6, bias=-3),
        line_problem().risk(start),
        rtol=TOLERANCE,
    )


def draw(key, dtype=float):
    return {"weight": jax.random.normal(key, dtype=dtype), "bias": jnp.zeros((), dtype)}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_init_draws_decides_the_dtype(dtype):
    drawn = tw.Problem(line, "mse", *data(dtype=np.float32), init=partial(draw, dtype=dtype))
    surface = tw.landscape(drawn, tw.coordinate_plane(drawn, RANGES, 3), "pointwise")
    assert surface.pointwise.dtype == dtype


def two_classes(w, x):
    return jnp.stack([jnp.zeros_like(x), line(w, x)], axis=1)


def test_class_labels_are_data_too():
    x, y = data()
    labels = (y > 1).astype(np.int32)
    problem = tw.Problem(
        two_classes, "cross_entropy", x, labels, params={"weight": 6.0, "bias": -3.0}
    )
    surface = tw.landscape(problem, line_plane(problem), ("empirical", "pointwise"))
    # two classes with logits (0, z): −log p is log(1 + e^z) for class 0, log(1 + e^−z) for class 1
    z = np.arange(-5.0, 9)[:, None] * x[:, None, None] + np.arange(-4.0, 6)
    sign = np.where(labels, -1, 1)[:, None, None]
    expected = np.logaddexp(0, sign * z)
    # log-softmax gives a loss near 0 as a difference of logits: to 1e-16 of those, as in PyTorch
    np.testing.assert_allclose(surface.pointwise, expected, rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_allclose(surface.empirical, expected.mean(axis=0), rtol=TOLERANCE)


def wrong_side(yhat, y):
    return ((yhat > 0) != (y > 0)).astype(np.int32)


def test_a_loss_that_counts_is_a_share():
    problem = line_problem(wrong_side)
    surface = tw.landscape(problem, line_plane(problem), ("empirical", "pointwise"))
    x, y = data()
    z = np.arange(-5.0, 9)[:, None] * x[:, None, None] + np.arange(-4.0, 6)
    wrong = (z > 0) != (y > 0)[:, None, None]
    np.testing.assert_array_equal(surface.pointwise, wrong)
    np.testing.assert_allclose(surface.empirical, wrong.mean(axis=0), rtol=TOLERANCE)


def pole(w):
    return 1 / w["x"] + jnp.log(w["y"]) + jnp.exp(w["x"])


def test_what_is_not_finite_stays_as_it_is():
    problem = tw.Problem.from_function(pole, params={"x": 1.0, "y": 1.0})
    plane = tw.coordinate_plane(problem, {"x": (-1000, 1000), "y": (-1, 1)}, {"x": 5, "y": 3})
    surface = tw.landscape(problem, plane)
    x, y = np.array([-1000, -500, 0, 500, 1000])[:, None], np.array([-1, 0, 1])
    with np.errstate(all="ignore"):
        expected = (
            1 / x + np.log(y) + np.exp(x)
        )  # 1/0, e^1000 and log 0 are not finite, log −1 is NaN
    assert np.isnan(expected[:, 0]).all()  # y = −1
    assert np.isinf(expected[:, 1:]).any()
    np.testing.assert_allclose(surface.empirical, expected, rtol=TOLERANCE)


# Samples and points in chunks ---------------------------------------------------------------


@pytest.fixture
def tiled(monkeypatch):
    """Cut landscapes into chunks of a given size, whatever is fastest."""

    def cut(points, samples, entrywise):
        cut = tiling.Tiling(points, samples, entrywise)
        monkeypatch.setattr(landscapes, "tiling_of", lambda *_: cut)

    return cut


# 50 samples: one by one, in chunks that do not divide them, that do, and at once
@pytest.mark.parametrize("samples", [1, 7, 10, 50])
@pytest.mark.parametrize("entrywise", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_streaming_changes_nothing(tiled, samples, entrywise, reduction):
    tiled(9, samples, entrywise)  # 140 points: the last chunk holds five
    problem = line_problem(penalty=decay, reduction=reduction)
    surface = tw.landscape(problem, line_plane(problem))
    w = {"weight": np.arange(-5.0, 9)[:, None], "bias": np.arange(-4.0, 6)}
    expected = getattr(dense(), reduction)(axis=0) + decay(w)
    np.testing.assert_allclose(surface.empirical, expected, rtol=TOLERANCE)


@pytest.mark.parametrize("cut", [(1, 7, False), (4, 10, False), (4, 7, True)])
def test_a_network_in_small_chunks_changes_nothing(tiled, cut):
    problem = mlp_problem()
    plane = tw.coordinate_plane(problem, MLP_RANGES, {"l2[1]": 5, "l1.weight[0]": 3})
    whole = tw.landscape(problem, plane, ("empirical", "pointwise"))
    tiled(*cut)
    parts = tw.landscape(problem, plane, ("empirical", "pointwise"))
    np.testing.assert_allclose(parts.empirical, whole.empirical, rtol=TOLERANCE)
    np.testing.assert_allclose(parts.pointwise, whole.pointwise, rtol=TOLERANCE)


def test_rows_of_results_are_collected_in_parts(tiled, monkeypatch):
    problem = bowl_problem()
    plane = tw.coordinate_plane(problem, {"x": (-3, 4), "y": (-5, 1)}, {"x": 29, "y": 13})
    whole = tw.landscape(problem, plane)
    tiled(10, 1, True)
    monkeypatch.setattr(tiling, "_ROWS", 3 * 10 * 8)  # three chunks on the device at a time
    np.testing.assert_array_equal(tw.landscape(problem, plane).empirical, whole.empirical)


def test_sums_over_many_float32_samples_are_accurate():
    # Both add the same float32 errors, here in float64. A float32 running sum is off by 1e-5.
    n = 100_000
    problem = line_problem(n=n, dtype=np.float32)
    surface = tw.landscape(problem, line_plane(problem, 2))
    x, y = data(n, np.float32)
    e = np.float32(8) * x + np.float32(-4) - y
    np.testing.assert_allclose(
        surface.empirical.sel(weight=8, bias=-4), np.mean(e.astype(float) ** 2), rtol=1e-7
    )
    assert surface.empirical.dtype == np.float64


def sizes(jaxpr):
    """The sizes of all arrays in a jaxpr, those of inner ones included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.size for v in equation.outvars)
        for inner in jax.tree_util.tree_leaves(
            tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


@for_a_cpu
@pytest.mark.parametrize("make", [line_problem, partial(mlp_problem, width=16)])
def test_nothing_of_size_samples_by_grid_is_made(make):
    # one number a sample and point would be 20,000 · 100² · 8 bytes = 1.5 GiB
    problem = make(n=20_000)
    first, second = problem.names[:2]
    plane = tw.coordinate_plane(problem, {first: (0, 1), second: (0, 1)}, 100)
    cut = tiling.tiling_of(problem, 100 * 100, False)
    made = chunks.risks_of_chunks.trace(
        problem,
        plane.origin,
        plane.directions,
        plane.coordinates,
        0,
        2,
        wanted=("empirical",),
        layout=problem.layout,
        penalty=True,
        tiling=cut,
        room=2,
    )
    assert 8 * max(sizes(made.jaxpr)) <= 2**26  # 64 MiB


def by_the_number(w, x):
    return line(w, x) / len(x)


def by_the_first(w, x):
    return line(w, x - x[:1])


def by_the_mean(w, x):
    return line(w, x - x.mean())


PLACES = jnp.linspace(1, 2, 40)


def by_its_place(w, x):
    return line(w, x) * PLACES


@pytest.mark.parametrize("predict", [by_the_number, by_the_first, by_the_mean, by_its_place])
@pytest.mark.parametrize("risks", ["empirical", ("empirical", "pointwise")])
def test_a_model_of_all_samples_together_is_given_them_together(predict, risks):
    x, y = data(40)
    problem = tw.Problem(predict, "mse", x, y, params={"weight": 6.0, "bias": -3.0})
    surface = tw.landscape(problem, tw.coordinate_plane(problem, RANGES, 4), risks)
    at = {"weight": float(surface.weight[1]), "bias": float(surface.bias[2])}
    there = surface.empirical.isel(weight=1, bias=2)
    np.testing.assert_allclose(there, problem.risk(at), rtol=TOLERANCE)


# What is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("points", "risks", "says"),
    [
        (10**6, "empirical", r"1000000 × 1000000 points would need \d+\.\d [TP]iB.*lower points="),
        (
            {"weight": 20_000, "bias": 20_000},
            ("empirical", "pointwise"),
            r"20000 × 20000 points × 2000 samples would need 5\.8 TiB.*leave out the pointwise",
        ),
    ],
)
def test_a_grid_that_does_not_fit_is_refused_before_it_is_made(points, risks, says):
    # 20,000² points × 2,000 samples × 8 bytes are 5.8 TiB
    problem = line_problem(n=2000)
    plane = line_plane(problem, points)
    with pytest.raises(InputError, match=says) as caught:
        tw.landscape(problem, plane, risks)
    assert isinstance(caught.value, MemoryError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("risks", "says"),
    [
        ("emprical", "unknown risk 'emprical'; did you mean 'empirical'"),
        (("empirical", "loss"), "unknown risk 'loss'"),
        ((), "risks= is empty"),
        ("expected", "no expected risk; give it as"),
    ],
)
def test_risks_that_there_are_not(risks, says):
    problem = line_problem()
    with pytest.raises(InputError, match=re.escape(says)):
        tw.landscape(problem, line_plane(problem), risks)


def test_a_plane_of_another_problem():
    with pytest.raises(InputError, match="belongs to another problem"):
        tw.landscape(bowl_problem(), line_plane(line_problem()))
    with pytest.raises(InputError, match="a plane was expected, Dataset given"):
        tw.landscape(line_problem(), line_plane(line_problem()).dataset())


# Other numbers are the same program ---------------------------------------------------------


def test_another_plane_of_the_same_shape_compiles_nothing():
    first, second = line_problem(), line_problem().at({"weight": 1.0, "bias": 2.0})
    tw.landscape(first, line_plane(first))
    before = chunks.risks_of_chunks._cache_size()
    # even one in other directions: as many points, so the counts are the other way round
    plane = tw.coordinate_plane(
        second, {"bias": (0, 1), "weight": (9, 2)}, {"bias": 14, "weight": 10}
    )
    tw.landscape(second, plane)
    assert chunks.risks_of_chunks._cache_size() == before


def test_a_device_by_its_name():
    problem = bowl_problem()
    drawn = tw.Problem.from_function(bowl, init=lambda key: {"x": jnp.zeros(()), "y": jnp.ones(())})
    plane = tw.coordinate_plane(problem, {"x": (-1, 1), "y": (-1, 1)}, 3)
    plain = tw.landscape(problem, plane)
    for given in (problem, drawn):
        surface = tw.landscape(given, plane, device="cpu")
        np.testing.assert_array_equal(surface.empirical, plain.empirical)
        assert surface.attrs["device"].startswith("cpu")
    for device in ("gpuu", 7):
        with pytest.raises(InputError, match="unknown device"):
            tw.landscape(problem, plane, device=device)


@for_a_cpu
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_point_by_point_is_the_same(monkeypatch, workers):
    """As a model too large for chunks of points is evaluated: in parts, that workers share."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((23, 3)), rng.standard_normal(23)
    problem = tw.Problem(dot, "mse", x, y, params={"w": np.ones(3)}, penalty=norm2, expected=norm2)
    plane = tw.random_plane(problem, problem.params, vectors=True, points=(4))
    risks = ("empirical", "expected", "pointwise")
    plain = {p: tw.landscape(problem, plane, risks, penalty=p) for p in (True, False)}
    monkeypatch.setattr(tiling, "_LARGE", 1)
    monkeypatch.setattr(passes, "_PASS", 64 * 5)
    monkeypatch.setattr(backend, "workers", lambda: workers)
    assert passes.samples_at_a_time(problem) <= 5
    for penalty, expected in plain.items():
        found = tw.landscape(problem, plane, risks, penalty=penalty)
        for risk in risks:
            np.testing.assert_allclose(found[risk], expected[risk], rtol=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("points", [1, 3, 4])
def test_workers_share_the_chunks(monkeypatch, workers, points):
    """As a model is evaluated that hands arrays from layer to layer, in chunks of two points."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((23, 3)), rng.standard_normal(23)
    problem = tw.Problem(dot, "mse", x, y, params={"w": np.ones(3)})
    plane = tw.random_plane(problem, problem.params, vectors=True, points=points)
    rows = np.moveaxis(np.meshgrid(*plane.coordinates, indexing="ij"), 0, -1) @ plane.directions
    expected = (np.einsum("abp,np->nab", plane.origin + rows, x) - y[:, None, None]) ** 2
    monkeypatch.setattr(tiling, "_CACHE", 2 * 23 * 40)
    monkeypatch.setattr(backend, "workers", lambda: workers)
    found = tw.landscape(problem, plane, ("empirical", "pointwise"))
    np.testing.assert_allclose(found["pointwise"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["empirical"], expected.mean(axis=0), rtol=1e-12)


@for_a_cpu
def test_workers_wait_for_one_compilation(monkeypatch, compilations):
    x = np.linspace(-1, 1, 40)[:, None]
    problem = tw.Problem(dot, "mse", x, x[:, 0], params={"w": np.ones(1)})
    plane = tw.random_plane(problem, problem.params, vectors=True, points=3)
    monkeypatch.setattr(tiling, "_LARGE", 1)
    monkeypatch.setattr(passes, "_PASS", 64 * 5)
    for workers in (1, 4):
        monkeypatch.setattr(backend, "workers", lambda workers=workers: workers)
        assert passes.samples_at_a_time(problem) <= 5
        tw.landscape(problem, plane)  # so that all but one program is there
        passes._one_pass.clear_cache()
        compilations.clear()
        tw.landscape(problem, plane)
        assert len(compilations) == 1


@for_a_cpu
def test_one_point_of_a_large_model_streams_too(monkeypatch):
    sizes = set()

    def predict(w, x):
        sizes.add(len(x))
        return dot(w, x)

    x = np.linspace(-1, 1, 40)[:, None]
    # which looks at the program for all of them
    monkeypatch.setattr(identity, "by_program", lambda function, *_: function)
    problem = tw.Problem(predict, "mse", x, 3 * x[:, 0], params={"w": np.ones(1)})
    plane = tw.random_plane(problem, problem.params, vectors=True, points=1, span=(0, 0))
    monkeypatch.setattr(tiling, "_LARGE", 1)
    monkeypatch.setattr(passes, "_PASS", 64 * 5)
    monkeypatch.setattr(backend, "workers", lambda: 2)
    assert passes.samples_at_a_time(problem) <= 5  # which looks at all of them
    sizes.clear()
    surface = tw.landscape(problem, plane)
    assert max(sizes) <= 5
    np.testing.assert_allclose(surface.empirical, problem.risk(problem.params), rtol=1e-12)


@pytest.mark.parametrize("large", [1, 2**30])
def test_samples_that_a_mask_leaves_out_have_no_part(monkeypatch, large):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((23, 3)), rng.standard_normal(23)
    whole = tw.Problem(dot, "mse", x, y, params={"w": np.ones(3)})
    masked = whole.take(np.arange(23), np.arange(23) % 2 > 0)
    monkeypatch.setattr(tiling, "_LARGE", large)
    plane = tw.random_plane(masked, masked.params, vectors=True, points=3)
    surface = tw.landscape(masked, plane, ("empirical", "pointwise"))
    assert float(surface.empirical[1, 1]) == pytest.approx(float(masked.risk(masked.params)))
    assert surface.sizes["sample"] == 11


def convolved(w, x):
    hidden = jax.nn.relu(jax.lax.conv(x, w["a"], (1, 1), "SAME"))
    return hidden.mean((2, 3)) @ w["w"]


def hidden_layers(w, x):
    for name in sorted(w)[:-1]:
        x = jnp.tanh(x @ w[name])
    return x @ w["w"]


# What is chosen: samples at a time, points at a time (None: whatever), or points one by one
CUTS = {
    "wide layers": (hidden_layers, (1000, 2), {"a": (2, 60), "w": (60, 1)}, (500, 2)),
    "wide inputs": (hidden_layers, (500, 300), {"a": (300, 5), "w": (5, 1)}, (500, 2)),
    "weights larger than a core's cache": (
        hidden_layers, (900, 2), {"a": (2, 400), "b": (400, 400), "w": (400, 1)}, (100, 2),
    ),
    "a sample larger than the caches": (hidden_layers, (2, 2**21), {"a": (2**21, 1), "w": (1, 1)}, None),
    "few samples": (hidden_layers, (6, 2), {"a": (2, 4), "w": (4, 1)}, (6, 81)),
    "small convolutions": (convolved, (6, 1, 4, 4), {"a": (2, 1, 3, 3), "w": (2, 1)}, (6, None)),
    "convolutions": (convolved, (90, 3, 16, 16), {"a": (4, 3, 3, 3), "w": (4, 1)}, None),
}  # fmt: skip


@for_a_cpu
@pytest.mark.parametrize("what", CUTS)
def test_a_point_has_its_risk_however_samples_and_points_are_cut(what):
    predict, shape, weights, cut = CUTS[what]
    rng = np.random.default_rng(0)
    params = {n: rng.standard_normal(s) / np.prod(s[:-1]) ** 0.5 for n, s in weights.items()}
    x, y = rng.standard_normal(shape), rng.standard_normal((shape[0], 1))
    problem = tw.Problem(predict, "mse", x, y, params=params)
    plane = tw.random_plane(problem, params, vectors=True, points=9)
    found = tiling.tiling_of(problem, 81, False)
    assert found.one_by_one == (cut is None)
    if cut is not None:
        assert found.samples == cut[0]
        assert found.points == cut[1] or cut[1] is None
    surface = tw.landscape(problem, plane)
    for i, j in ((0, 0), (3, 5), (8, 8)):
        point = plane.origin + sum(
            c[k] * d for c, k, d in zip(plane.coordinates, (i, j), plane.directions, strict=True)
        )
        expected = problem.risk(problem.unflatten(point))
        np.testing.assert_allclose(surface.empirical[i, j], expected, rtol=1e-12)


def test_a_function_of_products_without_data():
    matrix = np.arange(6.0).reshape(3, 2)
    problem = tw.Problem.from_function(
        lambda w: ((matrix @ w["w"]) ** 2).sum(), params={"w": np.ones((2, 1))}
    )
    plane = tw.coordinate_plane(problem, {"w[0,0]": (0, 1), "w[1,0]": (0, 2)}, points=3)
    expected = [[((matrix @ [a, b]) ** 2).sum() for b in (0, 1, 2)] for a in (0, 0.5, 1)]
    np.testing.assert_allclose(tw.landscape(problem, plane).empirical, expected, rtol=1e-12)


def dot(w, x):
    return x @ w["w"]


def norm2(w):
    return (w["w"] ** 2).sum()


@pytest.mark.parametrize("side", [3, 16, 101, 464, 1000])
def test_chunks_of_an_entrywise_model_are_whole_vectors(side):
    points = tiling.tiling_of(line_problem(), side * side, False).points
    assert points % tiling._WHOLE_VECTORS == 0 or points == side * side < 256


# A GPU takes microseconds to begin a chunk, whatever its size --------------------------------


def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(backend, "on_cpu", lambda: False)


@pytest.mark.parametrize("n", [1, 50, 9973])  # the last one a prime
@pytest.mark.parametrize("risks", ["empirical", ("empirical", "pointwise")])
@pytest.mark.parametrize("make", [line_problem, mlp_problem])
def test_a_gpus_chunks_hold_the_same(monkeypatch, n, risks, make):
    problem = make(n=n)
    plane = tw.random_plane(problem, problem.params, vectors=True, points=7)
    whole = tw.landscape(problem, plane, risks)
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(passes, "ACTIVATIONS", 2**20)
    cut = tiling.tiling_of(problem, 49, False)
    assert not cut.entrywise
    assert (cut.points < 49) == (n == 9973)
    parts = tw.landscape(problem, plane, risks)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=TOLERANCE)


@pytest.mark.parametrize("points", [256, 10**8])
@pytest.mark.parametrize("n", [1, 100, 10_000_019])
def test_a_gpu_begins_few_chunks(monkeypatch, n, points):
    """XLA writes where each turn of a loop reads its samples into the program: half a million turns of 20
    took minutes to compile."""
    as_on_a_gpu(monkeypatch)
    problem = line_problem(n=n, dtype=np.float32)
    cut = tiling.tiling_of(problem, points, False)
    each = passes.sample_bytes(problem)
    assert cut.points * cut.samples * each <= passes.ACTIVATIONS
    assert cut.points <= tiling._GPU_POINTS
    turns = -(-points // cut.points) * -(-n // cut.samples)
    fewest = points * n * each / passes.ACTIVATIONS + points / tiling._GPU_POINTS
    assert turns <= 2 * fewest + 1
    assert -(-n // cut.samples) <= 10


def test_a_gpus_points_are_no_more_than_it_has_room_for(monkeypatch):
    as_on_a_gpu(monkeypatch)
    problem = mlp_problem(n=1, width=3000)
    points = tiling.tiling_of(problem, 10**6, False).points
    assert passes.ACTIVATIONS // 2 < points * 8 * problem.size <= passes.ACTIVATIONS


@pytest.mark.parametrize(
    ("n", "most", "size"),
    [
        (7, 20, 7),
        (50, 20, 17),
        (100, 64, 50),
        (101, 20, 17),
        (1000, 20, 20),
        (10**9 + 7, 10**6, 999_002),
    ],
)
def test_samples_are_divided_evenly_where_they_can_be(n, most, size):
    assert tiling._divisor(n, most) == size
