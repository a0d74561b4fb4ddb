"""Curvature operators against the dense matrices that JAX's own derivatives give in float64."""

import threading
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from jax.tree_util import Partial
from problems import for_a_cpu

import thalweg as tw
from thalweg import backend, blocks, curvature, lanczos, passes, products
from thalweg.catalogue import models
from thalweg.errors import InputError, NotConverged

WIDTHS = (3, 16, 16, 4)  # 404 parameters: more than are decomposed densely


def network(params, x):
    hidden = x
    for number in range(1, len(params) + 1):
        layer = params[f"l{number}"]
        hidden = hidden @ layer["weight"].T + layer["bias"]
        hidden = jnp.tanh(hidden) if number < len(params) else hidden
    return hidden


def decay(params):
    return 0.01 * sum((leaf**2).sum() for leaf in jax.tree_util.tree_leaves(params))


def made(loss, widths=WIDTHS, n=20, reduction="mean", dtype="float64", penalty=None):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, widths[0]))
    y = rng.standard_normal((n, widths[-1]))
    if loss == "cross_entropy":
        y = rng.integers(0, widths[-1], n)
    if loss == "bce_with_logits":
        y = (y > 0).astype(float)
    params = models.init_mlp(widths, jax.random.key(1))
    return tw.Problem(
        network, loss, x, y, params=params, reduction=reduction, dtype=dtype, penalty=penalty
    )


def dense_hessian(problem):
    risk_of = jax.jit(jax.hessian(lambda v: problem.risk(problem.unflatten(v))))
    return np.asarray(risk_of(problem.flatten(problem.params)))


def sample_gradients(problem):
    vector = problem.flatten(problem.params)
    rows = jax.jit(jax.jacobian(lambda v: problem.pointwise(problem.unflatten(v))))
    return np.asarray(rows(vector))


def given(yhat, params, x):
    return yhat


def dense_gauss_newton(problem):
    """Jᵀ H_ℓ J from the two of its factors, each formed."""
    vector = problem.flatten(problem.params)
    rows = np.asarray(tw.jacobian(problem, problem.params))
    yhat = problem.predict(problem.params, problem.x)

    def risk_of(flat):
        fixed = problem.replace(predict=Partial(given, flat.reshape(yhat.shape)))
        return fixed.risk(problem.params, penalty=False)

    inner = np.asarray(jax.jit(jax.hessian(risk_of))(yhat.reshape(-1)))
    total = rows.T @ inner @ rows
    if problem.penalty is not None:
        penalty = jax.jit(jax.hessian(lambda v: problem.penalty(problem.unflatten(v))))
        total = total + np.asarray(penalty(vector))
    return total


LOSSES = ("mse", "huber", "cross_entropy", "bce_with_logits")
CASES = [
    (loss, reduction, pen) for loss in LOSSES for reduction, pen in (("mean", None), ("sum", decay))
]


@pytest.fixture(params=CASES, ids=lambda c: f"{c[0]}-{c[1]}")
def problem(request):
    loss, reduction, penalty = request.param
    return made(loss, (3, 5, 4), reduction=reduction, penalty=penalty)


def test_products_are_those_of_the_dense_matrices(problem):
    vector = np.random.default_rng(1).standard_normal(problem.size)
    for operator, matrix in (
        (tw.hessian(problem, problem.params), dense_hessian(problem)),
        (tw.gauss_newton(problem, problem.params), dense_gauss_newton(problem)),
    ):
        np.testing.assert_allclose(operator @ vector, matrix @ vector, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(operator.dense(), matrix, rtol=1e-9, atol=1e-10)


def test_moments_of_the_gradients(problem):
    rows = sample_gradients(problem)
    second = rows.T @ rows / len(rows)
    off = rows - rows.mean(axis=0)
    empirical = tw.fisher(problem, problem.params, empirical=True)
    noise = tw.gradient_covariance(problem, problem.params)
    np.testing.assert_allclose(empirical.dense(), second, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(noise.dense(), off.T @ off / len(rows), rtol=1e-9, atol=1e-12)
    norms = tw.gradient_norms(problem, problem.params)
    np.testing.assert_allclose(norms, np.linalg.norm(rows, axis=1), rtol=1e-9)
    # the trace of the covariance is the mean squared norm of the noise
    np.testing.assert_allclose(noise.trace().value, (off**2).sum() / len(rows), rtol=1e-9)


def test_the_fisher_information_of_classes_is_an_average_over_them():
    problem = made("cross_entropy", (3, 5, 4))
    vector = problem.flatten(problem.params)

    def log_p(v):
        return jax.nn.log_softmax(problem.predict(problem.unflatten(v), problem.x))

    slopes = np.asarray(jax.jit(jax.jacobian(log_p))(vector))  # (n, classes, p)
    weights = np.exp(log_p(vector))
    expected = np.einsum("nc,ncp,ncq->pq", weights, slopes, slopes) / problem.n_samples
    operator = tw.fisher(problem, problem.params)
    np.testing.assert_allclose(operator.dense(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["mse", "bce_with_logits"])
def test_the_fisher_information_of_outputs_on_their_own(loss, reduction):
    """E[s sᵀ] of the scores s = (y − mean) dŷ/dw of coins, and s = 2 (y − ŷ) dŷ/dw of Gaussians, whose
    variance is ½; a penalty has no part in it."""
    problem = made(loss, (3, 5, 4), reduction=reduction, penalty=decay)
    rows = np.asarray(tw.jacobian(problem, problem.params))
    heads = 1 / (1 + np.exp(-np.asarray(problem.predict(problem.params, problem.x)).ravel()))
    square = heads * (1 - heads) if loss == "bce_with_logits" else 4 * 0.5
    expected = rows.T @ (np.reshape(square, (-1, 1)) * rows)
    expected /= len(rows) if reduction == "mean" else 1
    operator = tw.fisher(problem, problem.params)
    np.testing.assert_allclose(operator.dense(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1, 7, 20])
@pytest.mark.parametrize("kind", products.KINDS)
def test_samples_stream(kind, size, masked):
    problem = made("mse", (3, 5, 4))
    if masked:
        problem = problem.take(np.arange(20), np.arange(20) % 3 > 0)
    vector = np.random.default_rng(1).standard_normal(problem.size)
    point = problem.flatten(problem.params)
    center = products.mean_gradient(problem, size, point) if kind == "covariance" else None
    whole = products.product(kind, problem, 20, point, vector, center)
    part = products.product(kind, problem, size, point, vector, center)
    np.testing.assert_allclose(part, whole, rtol=1e-12, atol=1e-14)


@for_a_cpu
@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 97, 512, 1000])
def test_parts_fit_a_pass_and_hardly_overlap(n, workers, monkeypatch):
    monkeypatch.setattr(backend, "workers", lambda: workers)
    monkeypatch.setattr(passes, "_PASS", 64 * 30)  # of a model that counts 64 bytes a sample
    x = np.linspace(-1, 1, n)
    problem = tw.Problem(lambda w, x: w["a"] * x, "mse", x, x, params={"a": 0.0})
    size = passes.samples_at_a_time(problem)
    parts = -(-n // size)
    if n <= 30:
        assert size == n
        return
    assert 1 <= size <= 30
    assert parts * size < n + max(workers, 0.05 * n)

    threads = set()
    one_pass = passes._one_pass

    def watched(*arguments, **how):
        threads.add(threading.get_ident())
        return one_pass(*arguments, **how)

    def step(part, scale):
        counts = jnp.ones(size, bool) if part.mask is None else part.mask
        return (scale * jnp.where(counts, part.x, 0)).sum(), (part.x, counts)

    monkeypatch.setattr(passes, "_one_pass", watched)
    for in_one_program in (False, True):
        monkeypatch.setattr(passes, "in_one_program", lambda told=in_one_program: told)
        total, rows = passes.over_samples(problem, size, step, (), 3.0)
        np.testing.assert_allclose(total, 3 * x.sum(), atol=1e-12)
        if in_one_program:
            rows = zip(*rows, strict=True)
        kept = [np.asarray(part)[np.asarray(counts)] for part, counts in rows]
        assert len(kept) == parts
        np.testing.assert_array_equal(np.concatenate(kept), x)  # each once, in order
    assert len(threads) <= min(workers, parts)


def test_an_error_in_one_worker_stops_the_others(monkeypatch):
    monkeypatch.setattr(backend, "workers", lambda: 2)
    problem = made("mse", (3, 5, 4))
    seen = []

    def one_pass(problem, where, total, operands, **how):
        if int(where[1]) == 0:
            raise KeyboardInterrupt
        time.sleep(0.05)
        seen.append(int(where[1]))
        return total, None

    monkeypatch.setattr(passes, "_one_pass", one_pass)
    with pytest.raises(KeyboardInterrupt):
        passes.over_samples(problem, 1, lambda part: (0.0, None), ())
    assert len(seen) < 5  # of the other's ten parts


@pytest.mark.parametrize(
    ("in_one_program", "in_full"), [(False, False), (True, False), (True, True)]
)
@pytest.mark.parametrize("matrix", [tw.hessian, tw.gauss_newton, tw.gradient_covariance])
def test_parts_that_overlap_are_the_same_in_one_program(
    matrix, in_one_program, in_full, monkeypatch
):
    """As a GPU has them."""
    problem = made("cross_entropy", (3, 5, 4)).replace(mask=np.arange(20) % 3 > 0)
    at_once = matrix(problem, problem.params).dense()
    monkeypatch.setattr(passes, "in_one_program", lambda: in_one_program)
    monkeypatch.setattr(backend, "in_full_precision", lambda: in_full)
    monkeypatch.setattr(passes, "samples_at_a_time", lambda _: 7)
    in_parts = matrix(problem, problem.params).dense()
    np.testing.assert_allclose(in_parts, at_once, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1, 7, 20])
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_norms_of_gradients_in_parts(size, workers, monkeypatch):
    problem = made("mse", (3, 5, 4))
    monkeypatch.setattr(backend, "workers", lambda: workers)
    monkeypatch.setattr(products, "gradients_at_a_time", lambda *_: size)
    single = [problem.take(np.array([k])).gradient(problem.params) for k in range(20)]
    expected = [np.linalg.norm(problem.flatten(g)) for g in single]
    found = tw.gradient_norms(problem, problem.params)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_of_a_risk_without_samples_the_penalty_alone_bends():
    problem = tw.Problem(
        lambda w, x: x @ w, "mse", np.ones((4, 2)), np.ones(4),
        params=np.zeros(2), penalty=lambda w: jnp.sum(w**2),
    ).take(np.arange(2), np.zeros(2, bool))  # fmt: skip
    np.testing.assert_array_equal(tw.hessian(problem, problem.params).dense(), 2 * np.eye(2))
    np.testing.assert_array_equal(tw.gradient_covariance(problem, problem.params).dense(), 0)


def test_samples_that_a_mask_leaves_out_do_not_count():
    problem = made("mse", (3, 5, 4))
    masked = problem.take(np.arange(20), jnp.arange(20) < 13)
    kept = problem.take(np.arange(13))
    for operator in (tw.hessian, tw.gauss_newton, tw.gradient_covariance):
        np.testing.assert_allclose(
            operator(masked, problem.params).dense(),
            operator(kept, problem.params).dense(),
            rtol=1e-9,
            atol=1e-12,
        )


def test_functions_and_residuals_have_curvature_too():
    f = tw.Problem.from_catalogue("himmelblau")
    # https://en.wikipedia.org/wiki/Himmelblau's_function: f = (x² + y − 11)² + (x + y² − 7)²; by hand
    # f_xx = 12x² + 4y − 42, f_xy = 4(x + y), f_yy = 12y² + 4x − 26 at (3, 2)
    operator = tw.hessian(f, {"x": 3.0, "y": 2.0})
    np.testing.assert_allclose(operator.dense(), [[74, 20], [20, 34]], rtol=1e-12)
    values, vectors = operator.top(2)
    np.testing.assert_allclose(values, 54 + np.array([1, -1]) * np.sqrt(800), rtol=1e-12)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(2), atol=1e-12)
    r = tw.Problem.from_residuals(
        lambda w: jnp.stack([w["a"] ** 2, 3 * w["b"]]), {"a": 2.0, "b": 1.0}
    )
    # r = (a², 3b): 2 JᵀJ = diag(8a², 18), and the Hessian has 2 r r'' = 4a² more
    np.testing.assert_allclose(tw.gauss_newton(r, r.params).dense(), np.diag([32, 18]))
    np.testing.assert_allclose(tw.hessian(r, r.params).dense(), np.diag([48, 18]))


# The ends of the spectrum ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def large():
    problem = made("mse")
    return problem, tw.hessian(problem, problem.params), np.linalg.eigvalsh(dense_hessian(problem))


def test_eigenpairs_are_the_dense_ones(large):
    problem, operator, expected = large
    assert problem.size > curvature._SMALL
    for k in (1, 6):
        for values, vectors, known in (
            (*operator.top(k), expected[::-1][:k]),
            (*operator.bottom(k), expected[:k]),
        ):
            np.testing.assert_allclose(values, known, rtol=1e-9, atol=1e-9 * expected[-1])
            np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-9)
            images = np.stack([operator @ v for v in vectors])
            off = np.linalg.norm(images - values[:, None] * vectors, axis=1)
            assert (off < 1e-6 * expected[-1]).all()


def diagonal(entries):
    """A problem whose Hessian is diag(entries)."""
    entries = jnp.asarray(entries, float)
    return tw.Problem.from_function(
        lambda w: 0.5 * (entries * w["w"] ** 2).sum(), {"w": np.zeros(len(entries))}
    )


def quadratic(matrix, w):
    return 0.5 * w["w"] @ matrix @ w["w"]


def test_no_ghosts_and_no_copy_is_missed():
    entries = np.concatenate([[9.0, 9.0, 9.0, 5.0], np.linspace(0, 1, 396)])
    problem = diagonal(entries)
    operator = tw.hessian(problem, problem.params)
    np.testing.assert_allclose(operator.top(5)[0], [9, 9, 9, 5, 1], rtol=1e-8)
    flat = diagonal(np.concatenate([np.zeros(300), np.arange(1.0, 101)]))
    values, vectors = tw.hessian(flat, flat.params).bottom(4)
    np.testing.assert_allclose(values, np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(4), atol=1e-8)
    same = diagonal(np.full(300, 2.0))
    np.testing.assert_allclose(tw.hessian(same, same.params).top(3)[0], [2, 2, 2])


def test_the_largest_is_not_the_largest_in_size():
    problem = diagonal(np.concatenate([[-50.0], np.linspace(-1, 3, 299)]))
    operator = tw.hessian(problem, problem.params)
    np.testing.assert_allclose(operator.top(1)[0], [3], rtol=1e-8)
    np.testing.assert_allclose(operator.bottom(1)[0], [-50], rtol=1e-8)


def test_scipy_agrees(large):
    _, operator, _ = large
    with np.errstate(all="ignore"):
        theirs = scipy.sparse.linalg.eigsh(
            scipy.sparse.linalg.aslinearoperator(operator),
            k=3,
            which="LA",
            return_eigenvectors=False,
        )
    np.testing.assert_allclose(operator.top(3)[0], np.sort(theirs)[::-1], rtol=1e-8)


def test_what_has_not_converged_says_so(large, monkeypatch):
    _, operator, _ = large
    monkeypatch.setattr(tw.curvature.lanczos, "_MOST_RESTARTS", 1)
    with pytest.warns(NotConverged, match="residual is still"):
        operator.bottom(6, tolerance=1e-14)


def root(w):
    return jnp.sqrt(jnp.abs(w["w"])).sum()


def test_where_there_is_no_curvature_it_is_one_line():
    problem = tw.Problem.from_function(root, {"w": np.zeros(300)})
    operator = tw.hessian(problem, problem.params)
    for call in (operator.top, operator.trace, operator.density):
        with pytest.raises(InputError, match="not finite at this point"):
            call()


def mixing(w, x):
    return (x / jnp.abs(x).max(axis=0)) @ w["w"]


def test_a_model_that_mixes_samples_has_no_gradients_of_single_ones():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((12, 3)), rng.standard_normal(12)
    problem = tw.Problem(mixing, "mse", x, y, params={"w": np.ones(3)})
    with pytest.raises(InputError, match="several samples at once"):
        tw.gradient_norms(problem, problem.params)
    pair = problem.take(np.arange(2))
    with pytest.raises(InputError, match="several samples at once"):
        tw.gradient_norms(pair, pair.params)


@pytest.mark.parametrize("size", [0, 64])
def test_a_covariance_far_smaller_than_its_gradients_in_single_precision(size, rng, monkeypatch):
    if size:
        monkeypatch.setattr(passes, "samples_at_a_time", lambda problem: size)
    gradients = (1e4 + rng.standard_normal((300, 60))).astype(np.float32)
    problem = tw.Problem(
        lambda w, x: x @ w, lambda yhat, y: yhat, gradients, None, params=np.zeros(60, np.float32)
    )
    operator = tw.gradient_covariance(problem, problem.params)
    expected = np.linalg.eigvalsh(np.cov(gradients.astype(float).T, bias=True))
    np.testing.assert_allclose(operator.top(3)[0], expected[:-4:-1], rtol=1e-3)
    np.testing.assert_allclose(operator.trace(60).value, expected.sum(), rtol=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_numbers_whose_squares_single_precision_does_not_hold(size):
    curvatures = (size * np.linspace(-1, 2, 300)).astype(np.float32)
    slopes = np.diag(curvatures)[:20]
    operator = tw.hessian(
        tw.Problem.from_function(
            Partial(lambda c, w: 0.5 * jnp.sum(c * w**2), curvatures), np.zeros(300, np.float32)
        ),
        np.zeros(300, np.float32),
    )
    np.testing.assert_allclose(operator.top(2)[0], curvatures[:-3:-1], rtol=1e-3)
    np.testing.assert_allclose(operator.bottom(2)[0], curvatures[:2], rtol=1e-3)
    problem = tw.Problem(
        lambda w, x: x @ w, lambda yhat, y: yhat, slopes, None, params=np.zeros(300, np.float32)
    )
    norms = tw.gradient_norms(problem, problem.params)
    np.testing.assert_allclose(norms, abs(curvatures[:20]), rtol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_the_largest_eigenvalue_are_found_close_above_others(seed):
    curvatures = jnp.asarray([*np.linspace(0, 10, 1000), 10.0])
    problem = tw.Problem.from_function(lambda w: 0.5 * jnp.sum(curvatures * w**2), np.zeros(1001))
    values, _ = tw.hessian(problem, problem.params).top(3, seed=seed)
    np.testing.assert_allclose(values, [10, 10, 9980 / 999], rtol=1e-6)


@pytest.mark.parametrize(("count", "most"), [(1, 24), (3, 32)])
def test_a_search_ends_when_its_pairs_are_found(count, most):
    """A few eigenvalues far above all others, as a network's Hessian has them, take few products."""
    entries = np.r_[np.linspace(0, 1, 997), 40.0, 60.0, 100.0]
    asked = []

    def product(v):
        asked.append(v)
        return entries * v

    key = jax.random.key(0)
    found = lanczos._search(product, 1000, count, np.float64, 1e-8, key)
    assert found.converged
    assert len(asked) == found.products <= most < lanczos._vectors_for(count, 1000)
    np.testing.assert_allclose(found.values, entries[::-1][:count], rtol=1e-14)
    np.testing.assert_allclose(abs(found.vectors[:, ::-1][:, :count]), np.eye(count), atol=1e-8)


# Trace and density -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hutch++", "hutchinson"])
def test_the_trace_lies_within_its_error(large, method):
    _, operator, expected = large
    found = [operator.trace(60, method=method, seed=seed) for seed in range(8)]
    off = np.array([(f.value - expected.sum()) / f.error for f in found])
    # eight draws of about a standard normal variable
    assert abs(off).max() < 4
    assert abs(off).mean() > 0.1, "an error far too large"


def test_hutchpp_is_the_better_estimate_where_few_directions_hold_all():
    # not in its own basis: of a diagonal matrix random signs give the trace exactly
    basis = np.linalg.qr(np.random.default_rng(0).standard_normal((400, 400)))[0]
    matrix = jnp.asarray(basis / np.arange(1.0, 401) ** 2 @ basis.T)
    problem = tw.Problem.from_function(Partial(quadratic, matrix), {"w": np.zeros(400)})
    operator = tw.hessian(problem, problem.params)
    np.testing.assert_allclose(operator.trace().value, np.trace(matrix), rtol=1e-2)
    errors = {m: operator.trace(60, method=m).error for m in ("hutch++", "hutchinson")}
    assert errors["hutch++"] < 0.5 * errors["hutchinson"]


def test_what_a_trace_needs_is_asked_of_its_own_method(large, monkeypatch):
    _, operator, expected = large
    monkeypatch.setattr(blocks, "_ALWAYS_THERE", 0)
    monkeypatch.setattr(blocks, "_available", lambda: 1000)
    with pytest.raises(MemoryError, match="take method='hutchinson'"):
        operator.trace(60)
    found = operator.trace(60, method="hutchinson")
    assert abs(found.value - expected.sum()) < 4 * found.error


def test_a_small_trace_is_exact():
    problem = made("mse", (3, 5, 4))
    found = tw.hessian(problem, problem.params).trace()
    np.testing.assert_allclose(found.value, np.trace(dense_hessian(problem)), rtol=1e-9)
    assert found.error == 0


def test_the_density_is_that_of_the_eigenvalues(large):
    _, operator, expected = large
    spectrum = operator.density(probes=20, steps=60)
    grid, width = spectrum["eigenvalue"].values, spectrum.attrs["width"]
    bells = np.exp(-0.5 * ((grid[:, None] - expected) / width) ** 2)
    exact = bells.mean(axis=1) / (width * np.sqrt(2 * np.pi))
    area = np.trapezoid(abs(spectrum["density"].values - exact), grid)
    assert area < 0.1  # both integrate to 1; twenty probes of 404 numbers are off by a few per cent
    np.testing.assert_allclose(spectrum["weight"].sum("node"), 1, rtol=1e-9)
    # moments: the mean is the trace over p
    mean = float((spectrum["weight"] * spectrum["ritz_value"]).sum("node").mean())
    assert abs(mean - expected.mean()) < 0.1 * abs(expected).mean()


@pytest.mark.parametrize(("size", "dtype"), [(20, "float64"), (300, "float64"), (300, "float32")])
def test_the_density_of_a_multiple_of_the_identity(size, dtype):
    turned = np.linalg.qr(np.random.default_rng(0).standard_normal((size, size)))[0]
    matrix = jnp.asarray(turned @ turned.T, dtype)  # the identity, but for rounding
    problem = tw.Problem.from_function(
        Partial(lambda m, w: 1.5 * w @ (m @ w), matrix), np.zeros(size, dtype)
    )
    spectrum = tw.hessian(problem, problem.params).density()
    assert spectrum.attrs["width"] == pytest.approx(0.03, rel=1e-3)
    grid = spectrum["eigenvalue"].values
    np.testing.assert_allclose(np.trapezoid(spectrum["density"], grid), 1, rtol=1e-3)
    assert abs(grid[np.argmax(spectrum["density"].values)] - 3) < 1e-3


# Bad input -------------------------------------------------------------------------------------


def test_bad_input_is_one_line():
    problem = made("mse", (3, 5, 4))
    operator = tw.hessian(problem, problem.params)
    for call, words in (
        (lambda: operator.top(0), "k must be a whole number of at least 1"),
        (lambda: operator.top(1000), "at most the number of parameters, 44"),
        (lambda: operator @ np.ones(3), "a vector of 44 numbers was expected"),
        (lambda: operator @ np.ones((3, 2)), "a matrix of 44 rows was expected"),
        (lambda: operator.matvec(np.ones((4, 11))), r"shape \(4, 11\) given"),
        (lambda: operator @ {"other": np.ones(44)}, "or a pytree like the parameters; {'other'"),
        (lambda: operator.top(tolerance=-1), "tolerance must be above 0"),
        (lambda: operator.trace(method="hutch"), "did you mean 'hutch\\+\\+'"),
        (lambda: operator.density(width=0), "width must be above 0"),
        (lambda: operator.density(width=1e-4), "are too few for a width"),
        (lambda: operator.preconditioned(np.zeros(44)), "above 0 everywhere"),
        (lambda: operator.preconditioned(np.ones(43)), r"a vector of 44 numbers .*; shape \(43,\) given"),
        (lambda: operator.preconditioned(2.0), r"a vector of 44 numbers .*; shape \(\) given"),
        (lambda: tw.hessian(problem, np.full(44, np.nan)), "not finite"),
        (lambda: tw.hessian(3, None), "Problem was expected"),
        (lambda: tw.fisher(made("huber", (3, 5, 4)), problem.params), "empirical=True"),
        (lambda: tw.gauss_newton(tw.Problem.from_catalogue("beale"), {"x": 0.0, "y": 0.0}), "plain function"),
        (lambda: tw.gradient_norms(tw.Problem.from_catalogue("beale"), {"x": 0.0, "y": 0.0}), "no data"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=words) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_preconditioned_matrix():
    problem = made("mse", (3, 5, 4))
    diagonal = np.random.default_rng(0).uniform(0.5, 2, problem.size)
    matrix = dense_hessian(problem)
    operator = tw.hessian(problem, problem.params).preconditioned(diagonal)
    expected = matrix / np.sqrt(diagonal) / np.sqrt(diagonal)[:, None]
    np.testing.assert_allclose(operator.dense(), expected, rtol=1e-9, atol=1e-12)
    other = np.linalg.eigvals(matrix / diagonal[:, None])
    np.testing.assert_allclose(operator.top(1)[0], other.real.max(), rtol=1e-9)


def test_another_point_and_other_data_compile_nothing(compilations):
    problem, other = made("mse", (3, 5, 4)), made("mse", (3, 5, 4))
    other = other.replace(x=other.x + 1)
    vector = np.ones(problem.size)
    there = np.asarray(other.flatten(other.params)) + 1
    tw.hessian(problem, there - 1) @ vector
    compilations.clear()
    tw.hessian(other, there) @ vector
    assert len(compilations) == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6])
def test_orthonormal_rows_span_what_was_given(dtype, spread):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 300)) * np.geomspace(1, spread, 12)[:, None]
    rows = (rng.standard_normal((12, 12)) @ rows).astype(dtype)
    basis = np.asarray(lanczos.orthonormal(rows))
    assert basis.dtype == dtype
    small = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(basis @ basis.T, np.eye(12), atol=small)
    q = np.linalg.qr(rows.T.astype(float))[0]
    # a direction is known as well as its share of the rows is
    np.testing.assert_allclose(basis.T @ basis, q @ q.T, atol=small * spread)


def test_orthonormal_rows_of_lower_rank_end_in_zeros():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((9, 4)) @ rng.standard_normal((4, 50))
    basis = np.asarray(lanczos.orthonormal(rows))
    lengths = np.sort(np.linalg.norm(basis, axis=1))
    np.testing.assert_allclose(lengths, [0] * 5 + [1] * 4, atol=1e-12)
    np.testing.assert_allclose(rows @ basis.T @ basis, rows, atol=1e-10)
    vectors = rng.standard_normal((3, 50))
    left = np.asarray(lanczos.outside(basis, vectors))
    np.testing.assert_allclose(left @ rows.T, 0, atol=1e-10)
    np.testing.assert_allclose(left - vectors, -vectors @ basis.T @ basis, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 5, 7, 8])
def test_products_in_batches_are_those_of_the_dense_matrix(count, monkeypatch):
    problem = made("mse", (3, 5, 4))
    monkeypatch.setattr(products, "at_once", lambda problem: 3)
    operator = tw.hessian(problem, problem.params)
    columns = np.random.default_rng(0).standard_normal((problem.size, count))
    np.testing.assert_allclose(operator @ columns, dense_hessian(problem) @ columns, atol=1e-12)
    # Again, with the matrix scaled
    scales = np.linspace(0.5, 2, problem.size)
    scaled = dense_hessian(problem) / np.sqrt(np.outer(scales, scales))
    scaled_columns = operator.preconditioned(scales) @ columns
    np.testing.assert_allclose(scaled_columns, scaled @ columns, atol=1e-12)


def test_a_longer_search_compiles_no_more_programs(compilations):
    diagonal = jnp.arange(1.0, 61.0)
    times = jax.jit(lambda v: diagonal * v)
    counts = []
    for steps in (11, 37):  # whatever other tests have compiled, it was not of these lengths
        compilations.clear()
        lanczos.projected(times, jnp.ones(60), steps, jax.random.key(0))
        counts.append(len(compilations))
    assert counts[1] <= counts[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_over_many_samples_do_not_leave_half_precision(dtype):
    """The mean over samples is within it; a sum of as many is not (65,504 is the largest of float16)."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20_000, 2)) * 3
    half = jnp.asarray(x, dtype)
    problem = tw.Problem(
        lambda w, x: x @ w, "mse", half, half @ jnp.ones(2, dtype), params=jnp.zeros(2, dtype)
    )
    exact = np.asarray(half, float)
    hessian = 2 * exact.T @ exact / len(exact)
    each = 2 * exact * (exact @ np.ones(2))[:, None]
    # targets are rounded to three or two digits
    close = partial(np.testing.assert_allclose, rtol=5e-3)
    close(problem.risk(problem.params), np.mean((exact @ np.ones(2)) ** 2))
    close(tw.hessian(problem, problem.params).dense(), hessian, atol=0.01)
    close(tw.gradient_covariance(problem, problem.params).trace().value, each.var(axis=0).sum())
    close(tw.hessian(problem, problem.params).top(1)[0], np.linalg.eigvalsh(hessian)[-1:])
    record = {"sharpness": tw.sharpness, "noise": tw.gradient_noise}
    path = tw.descend(problem, tw.SGD(lr=0.0), steps=0, record=record)
    close(path["sharpness"][0], np.linalg.eigvalsh(hessian)[-1])
    close(path["noise"][0], each.var(axis=0).sum())


def test_a_density_under_numpys_strictest_settings():
    problem = tw.Problem.from_function(lambda w: jnp.sum(w**2 * jnp.arange(1, 4)), jnp.ones(3))
    with np.errstate(all="raise"):
        density = tw.hessian(problem, problem.params).density()["density"]
    assert float(density.integrate("eigenvalue")) == pytest.approx(1, rel=1e-3)
