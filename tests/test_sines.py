"""Sines of many numbers at a time against the C library's (NumPy), and where they are put."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.tuning import sines, tuned

HALF_PI = np.pi / 2


@jax.jit
@tuned
def both(x):
    return jnp.sin(x), jnp.cos(x)


def ulps(found, exact, dtype):
    """The largest error in units of the last place of what is exact."""
    return np.max(
        np.abs(np.asarray(found, float) - exact) / np.spacing(np.abs(exact).astype(dtype))
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e3, 1e6, 1e8])
def test_values_are_within_two_ulps_of_the_c_librarys(dtype, scale, rng):
    x = rng.uniform(-scale, scale, 100_000).astype(dtype)
    exact = np.sin(x.astype(float)), np.cos(x.astype(float))
    for found, truth in zip(both(x), exact, strict=True):
        assert found.dtype == dtype
        assert ulps(found, truth, dtype) <= 2


@pytest.mark.parametrize("first", [0, 10**4, 8 * 10**7])
def test_values_next_to_multiples_of_a_quarter_turn(first):
    x = np.arange(first, first + 10_000) * HALF_PI
    x = np.stack([np.nextafter(x, -np.inf), x, np.nextafter(x, np.inf)])
    sine, cosine = both(x)
    assert ulps(sine, np.sin(x), float) <= 2
    assert ulps(cosine, np.cos(x), float) <= 2


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_too_large_for_the_polynomials(dtype, rng):
    x = np.concatenate([rng.uniform(-9, 9, 100), [sines._FAR, 1e9, -1e20, 1e37]]).astype(dtype)
    np.testing.assert_array_equal(both(x), [jnp.sin(x), jnp.cos(x)])


@pytest.mark.parametrize("far", [0.0, 1e30])
def test_what_is_not_finite_gives_nan_there_alone(far):
    x = np.full(100, far)
    x[:3] = np.inf, -np.inf, np.nan
    for found in both(x):
        assert np.isnan(found[:3]).all()
        assert np.isfinite(found[3:]).all()


def looped(x):
    return jax.lax.fori_loop(0, 3, lambda _, y: jnp.sin(y), x)


def scanned(x):
    return jax.lax.scan(lambda y, a: (jnp.cos(y) + a, a), x, jnp.arange(3.0))[0]


def branched(x):
    return jax.lax.cond(x.sum() > 0, jnp.sin, lambda x: 2 * jnp.cos(x), x)


def until(x):
    return jax.lax.while_loop(lambda y: (y > 0.9).any(), jnp.sin, x)


@jax.custom_jvp
def own_rule(x):
    return jnp.sin(x) ** 2


own_rule.defjvp(lambda x, dx: (own_rule(*x), jnp.sin(2 * x[0]) * dx[0]))


@jax.custom_vjp
def own_pullback(x):
    return jnp.sin(x) ** 2


own_pullback.defvjp(lambda x: (own_pullback(x), x), lambda x, g: (g * jnp.sin(2 * x),))


def of_sum(f):
    return lambda x: f(x).sum()


def mapped(x):
    return jax.vmap(lambda a: jnp.sin(a) * jnp.cos(3 * a) + jnp.sin(a))(x)


FUNCTIONS = {
    "jit": jax.jit(jnp.sin),
    "loop": looped,
    "scan": scanned,
    "cond": branched,
    "while": until,
    "custom_jvp": own_rule,
    "custom_vjp": own_pullback,
    "vmap": mapped,
    "remat": jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))),
    "gradient": jax.grad(of_sum(mapped)),
    "gradient of a scan": jax.grad(of_sum(scanned)),
    "gradient of custom_jvp": jax.grad(of_sum(own_rule)),
    "gradient of custom_vjp": jax.grad(of_sum(own_pullback)),
    "gradient of remat": jax.grad(of_sum(jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_program_has_its_sines_replaced_and_its_values_kept(name, rng):
    function = FUNCTIONS[name]
    x = rng.uniform(-9, 9, (40, 5))
    faster = tuned(function)
    np.testing.assert_allclose(jax.jit(faster)(x), function(x), rtol=1e-12, atol=1e-12)
    assert "name=sines" in str(jax.make_jaxpr(faster)(x))


def test_a_sine_and_its_derivative_are_found_together():
    program = jax.make_jaxpr(tuned(jax.value_and_grad(of_sum(jnp.sin))))(np.ones(100))
    assert str(program).count("name=sines") == 1


@pytest.mark.parametrize(
    "x", [np.ones(sines._LEAST - 1), np.ones(1000, "float16"), np.ones(1000, complex)],
    ids=["few", "half precision", "complex"],
)  # fmt: skip
def test_what_is_left_as_it_is(x):
    assert "name=sines" not in str(jax.make_jaxpr(tuned(jnp.sin))(x))


def test_without_double_precision_the_sines_are_jaxs(rng):
    x = rng.uniform(-1e6, 1e6, 1000).astype("float32")
    with jax.enable_x64(False):
        assert "name=sines" not in str(jax.make_jaxpr(tuned(jnp.sin))(x))
        np.testing.assert_array_equal(jax.jit(tuned(jnp.sin))(x), jnp.sin(x))


def test_without_compilation_the_model_sees_numbers():
    seen = []

    def model(x):
        seen.append(float(x[0]))
        return jnp.sin(x)

    with jax.disable_jit():
        tuned(model)(jnp.ones(100))
    assert seen == [1.0]


def test_pytrees_and_static_arguments_pass_through(rng):
    @tuned
    def function(tree, *, power):
        return {"sine": jnp.sin(tree["x"]) ** power, "same": tree["y"]}

    x = rng.standard_normal(100)
    found = jax.jit(function, static_argnames="power")({"x": x, "y": 3}, power=2)
    np.testing.assert_allclose(found["sine"], np.sin(x) ** 2, rtol=1e-12)
    assert found["same"] == 3


# In the rooms that loop -----------------------------------------------------------------------


def risk(w):
    return jnp.sin(3 * w["x"]) * jnp.cos(w["y"]) + 0.1 * (w["x"] ** 2 + w["y"] ** 2)


def gradient(x, y):
    return (
        3 * np.cos(3 * x) * np.cos(y) + 0.2 * x,
        -np.sin(3 * x) * np.sin(y) + 0.2 * y,
    )


def test_a_descent_of_many_members_is_numpys(rng):
    starts = rng.uniform(-2, 2, (300, 2))
    x, y = starts.T
    for _ in range(40):
        gx, gy = gradient(x, y)
        x, y = x - 0.05 * gx, y - 0.05 * gy
    path = tw.descend(
        tw.Problem.from_function(risk, params={"x": 0.0, "y": 0.0}),
        tw.SGD(lr=0.05),
        steps=40,
        starts=starts,
    )
    np.testing.assert_allclose(path["final"], [x, y], rtol=1e-10, atol=1e-12)


def test_a_landscape_is_numpys():
    problem = tw.Problem.from_function(risk, params={"x": 0.0, "y": 0.0})
    plane = tw.coordinate_plane(problem, {"x": (-3, 3), "y": (-2, 2)}, points=101)
    surface = tw.landscape(problem, plane)
    x, y = np.meshgrid(surface["x"], surface["y"], indexing="ij")
    exact = np.sin(3 * x) * np.cos(y) + 0.1 * (x**2 + y**2)
    np.testing.assert_allclose(surface["empirical"].transpose("x", "y"), exact, atol=1e-14)
