"""Products of matrices against NumPy's, and which of them are put in order."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg.catalogue import models
from thalweg.jaxprs import rewritten
from thalweg.tuning import dots, tuned


@pytest.fixture
def numbers(rng):
    def drawn(*shape, dtype="float32"):
        return rng.standard_normal(shape).astype(dtype)

    return drawn


def arranged(function, *arguments):
    """How many of a function's products are put in order."""
    return str(jax.make_jaxpr(tuned(function))(*arguments)).count("name=arranged_dot")


@pytest.mark.parametrize(
    ("subscripts", "left", "right"),
    [
        ("mni,mio->mno", (5, 15, 10), (5, 10, 7)),
        ("mni,moi->mno", (5, 15, 10), (5, 7, 10)),
        ("mni,mno->mio", (5, 15, 10), (5, 15, 7)),
        ("nim,iom->nom", (15, 10, 5), (10, 7, 5)),
        ("abni,abio->abno", (2, 3, 4, 5), (2, 3, 5, 6)),
        ("bnia,aibo->abno", (3, 4, 5, 2), (2, 5, 3, 6)),
        ("mnij,mijo->mno", (5, 8, 2, 3), (5, 2, 3, 4)),
        ("mni,mijk->mnjk", (5, 8, 4), (5, 4, 2, 3)),
        ("ni,io->no", (15, 10), (10, 7)),
        ("no,ni->oi", (50, 30), (50, 40)),
        ("in,jnk->ijk", (30, 40), (5, 40, 6)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_products_are_numpys(subscripts, left, right, dtype, numbers):
    a, b = numbers(*left, dtype=dtype), numbers(*right, dtype=dtype)

    def product(a, b):
        return jnp.einsum(subscripts, a, b)

    assert arranged(product, a, b) == 1
    exact = np.einsum(subscripts, a.astype(float), b.astype(float))
    # sums of some ten to fifty products of the order of one
    rounding = 1e-5 if dtype == "float32" else 1e-13
    found = jax.jit(tuned(product))(a, b)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, exact, rtol=rounding, atol=rounding)


@pytest.mark.parametrize(
    ("left", "right", "dtype"),
    [
        ((5, 15, 100), (5, 100, 100), "float32"),
        ((5, 1000, 10), (5, 10, 7), "float32"),
        ((2000, 100), (100, 8), "float64"),
        ((5, 15, 10), (5, 10, 1), "float32"),
        ((5, 15, 1), (5, 1, 7), "float32"),
        ((0, 10), (10, 7), "float64"),
        ((5, 15, 10), (5, 10, 7), "float16"),
    ],
    ids=["wide", "long", "few columns", "a vector", "an outer product", "empty", "half precision"],
)
def test_what_is_left_as_it_is(left, right, dtype, numbers):
    a, b = numbers(*left, dtype=dtype), numbers(*right, dtype=dtype)
    assert arranged(jnp.matmul, a, b) == 0
    np.testing.assert_array_equal(jax.jit(tuned(jnp.matmul))(a, b), jax.jit(jnp.matmul)(a, b))


def deep(weights, x):
    hidden = x
    for weight in weights:
        hidden = jnp.tanh(hidden @ weight.T)
    return (hidden**2).mean()


@pytest.fixture
def networks(numbers):
    """Six networks of three layers of 8 on 9 samples."""
    return [numbers(6, 8, 8) for _ in range(3)], numbers(9, 8)


def test_a_networks_gradient_has_no_product_the_other_way_round(networks):
    """Three products forward and five backward, of which the first layer's are one for all networks; and XLA
    leaves the others in order."""
    weights, x = networks
    gradient = jax.vmap(jax.grad(deep), in_axes=(0, None))
    assert arranged(gradient, weights, x) == 8
    program = jax.jit(tuned(gradient)).lower(weights, x).compile().as_text()
    products = re.findall(
        r"dot\(.*lhs_batch_dims=\{0\}, lhs_contracting_dims=\{(.)\}.*rhs_contracting_dims=\{(.)\}",
        program,
    )
    assert len(products) >= 6
    assert set(products) == {("2", "1")}
    for found, exact in zip(
        jax.jit(tuned(gradient))(weights, x), jax.jit(gradient)(weights, x), strict=True
    ):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


def test_in_double_precision_the_left_matrix_alone_is_put_in_order(numbers):
    a, b = numbers(500, 80, dtype="float64"), numbers(500, 90, dtype="float64")

    def weights_gradient(a, b):
        return a.T @ b

    program = str(jax.make_jaxpr(tuned(weights_gradient))(a, b))
    assert program.count("optimization_barrier") == 1
    np.testing.assert_allclose(
        jax.jit(tuned(weights_gradient))(a, b), a.T @ b, rtol=1e-11, atol=1e-11
    )


def test_products_in_loops_and_branches(networks):
    weights, x = networks

    def step(weights):
        slopes = jax.vmap(jax.grad(deep), in_axes=(0, None))(weights, x)
        return [weight - 0.1 * slope for weight, slope in zip(weights, slopes, strict=True)]

    def descent(weights):
        moved = jax.lax.fori_loop(0, 5, lambda _, w: step(w), weights)
        return jax.lax.cond(moved[0].sum() > 0, step, lambda w: w, moved)

    assert arranged(descent, weights) == 16
    for found, exact in zip(
        jax.jit(tuned(descent))(weights), jax.jit(descent)(weights), strict=True
    ):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


def test_without_compilation_or_double_precision(numbers):
    a, b = numbers(5, 15, 10), numbers(5, 10, 7)
    with jax.enable_x64(False):
        assert arranged(jnp.matmul, a, b) == 1
    with jax.disable_jit():
        np.testing.assert_allclose(tuned(jnp.matmul)(a, b), a @ b, rtol=1e-5, atol=1e-5)


def small(a, b):
    return jnp.tanh(jnp.sin(a) @ b)


def test_a_linear_solve_with_products_and_sines_inside(numbers):
    """Its programs are in a named tuple."""
    a, b = numbers(6, 8, 8) + 8 * np.eye(8, dtype="float32"), numbers(6, 8, 5)

    def by_products(a, b):
        def matvec(x):
            return a @ x + 0.01 * jnp.sin(b).mean() * x

        return jax.scipy.sparse.linalg.gmres(matvec, b, tol=1e-7)[0]

    for solve in (jnp.linalg.solve, by_products):
        function = jax.vmap(solve)
        found = jax.jit(tuned(function))(a, b)
        np.testing.assert_allclose(found, jax.jit(function)(a, b), rtol=1e-4, atol=1e-5)
    assert arranged(jax.vmap(by_products), a, b)


def test_what_is_called_often_is_compiled_once(numbers):
    layer = jax.jit(small)

    def often(a, b):
        x = a
        for _ in range(20):
            x = a + layer(x, b)
        return x

    # weights so small that a layer shrinks a difference: large ones would make a rounding grow twenty times
    a, b = numbers(5, 15, 10), numbers(5, 10, 10) / 10
    program = jax.jit(tuned(often)).lower(a, b).as_text()
    # the program itself, the layer, the product, the sines and their two branches' functions
    assert program.count("func.func") <= 8
    np.testing.assert_allclose(
        jax.jit(tuned(often))(a, b), jax.jit(often)(a, b), rtol=1e-5, atol=1e-5
    )


def test_scopes_keep_their_names(numbers):
    def scoped(a, b):
        with jax.named_scope("mine"):
            return small(a, b)

    a, b = numbers(5, 15, 10), numbers(5, 10, 10)
    program = jax.jit(tuned(scoped)).lower(a, b).compile().as_text()
    assert "mine/jit(arranged_dot)" in program
    assert "mine/jit(sines)" in program


def test_a_shard_mapped_program_stays_as_it_is(numbers):
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))
    axis = jax.sharding.PartitionSpec("i")

    def mapped(a, b):
        def summed(a, b):
            return jax.lax.psum(jnp.matmul(a, b), "i")

        spec = {"mesh": mesh, "in_specs": (axis, axis), "out_specs": jax.sharding.PartitionSpec()}
        return jax.shard_map(summed, **spec)(a, b)

    a, b = numbers(5, 15, 10), numbers(5, 10, 7)
    np.testing.assert_allclose(jax.jit(tuned(mapped))(a, b), a @ b, rtol=1e-4, atol=1e-5)


def test_precision_and_the_results_type_are_kept(numbers):
    a, b = numbers(5, 15, 10), numbers(5, 10, 7)

    def wide(a, b):
        return jnp.matmul(a, b, precision="highest", preferred_element_type=jnp.float64)

    assert arranged(wide, a, b) == 1
    assert "HIGHEST" in str(jax.make_jaxpr(tuned(wide))(a, b))
    found = jax.jit(tuned(wide))(a, b)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, np.matmul(a, b, dtype=float), rtol=1e-5, atol=1e-5)


def test_a_program_without_any_stays_the_same_object():
    program = jax.make_jaxpr(lambda x: jax.lax.fori_loop(0, 3, lambda _, y: jnp.exp(y), x))(1.0)
    assert rewritten(program, dots.arranged) is program


def test_an_ensemble_of_networks_is_its_members():
    x = np.linspace(-1, 1, 15, dtype="float32")
    starts = [models.init_mlp((1, 10, 10, 1), jax.random.key(k), np.float32) for k in range(4)]
    problem = tw.Problem(models.mlp, "mse", x, x**2, params=starts[0])
    rows = np.stack([problem.flatten(start) for start in starts])
    path = tw.descend(problem, tw.SGD(lr=0.05), steps=50, starts=rows)
    for run, start in enumerate(starts):
        alone = tw.descend(problem.replace(params=start), tw.SGD(lr=0.05), steps=50)
        np.testing.assert_allclose(path["loss"].isel(run=run), alone["loss"], rtol=1e-4, atol=1e-6)
