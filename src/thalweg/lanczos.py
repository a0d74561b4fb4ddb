"""Lanczos' method with full reorthogonalisation: extreme eigenpairs of a symmetric operator.

Written as a symmetric Krylov–Schur iteration (Stewart, 2002; thick-restart Lanczos of Wu & Simon, 2000):
the projected matrix holds the coefficients of the orthogonalisation themselves, so that a restart keeps
the best Ritz vectors and goes on as if nothing had happened. Each new vector is orthogonalised twice
against all before it (Daniel et al., 1976); otherwise converged eigenvalues reappear as ghosts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.backend import matmul
from thalweg.params import norm

if TYPE_CHECKING:
    from jaxtyping import Float

Product = Callable[[Any], Any]  # (p,) -> (p,), a symmetric matrix times a vector

_MOST_RESTARTS = 60
# Convergence is first checked at this many Krylov vectors, and then after every so many more
_FIRST_LOOK = 16
_LOOKS = 8
# Ritz vectors that `leading` keeps at a restart
_KEPT = 4


class Pairs(NamedTuple):
    """Eigenpairs, the largest value first, each with the norm of A v − λ v."""

    values: Float[np.ndarray, " k"]
    vectors: Float[np.ndarray, "k p"]
    residuals: Float[np.ndarray, " k"]
    products: int
    converged: bool


def _vectors_for(count: int, size: int) -> int:
    """The largest Krylov dimension before a restart, for `count` eigenpairs of a matrix of this size."""
    return min(size, max(2 * count + 20, 40))


def room_for(count: int, size: int) -> int:
    """How many vectors of length `size` are in memory at once, to find `count` eigenpairs."""
    return _vectors_for(count, size) + count + 2


def extreme(
    product: Product,
    size: int,
    count: int,
    dtype: Any,
    tolerance: float,
    seed: int = 0,
) -> Pairs:
    """The `count` largest eigenvalues of an operator, and their vectors; the smallest are the negatives
    of those of its negative.

    An eigenvalue has converged where ‖A v − λ v‖ ≤ tolerance · max|λ|. One starting vector finds only one
    copy of a multiple eigenvalue: where several pairs are wanted, further searches, orthogonal to the pairs
    found so far, look for more copies until there are none.
    """
    key = jax.random.key(seed)
    pairs = _search(product, size, count, dtype, tolerance, key)
    while count > 1 and len(pairs.values) < size and np.isfinite(pairs.values).all():
        key = jax.random.fold_in(key, 1)
        least = pairs.values[count - 1]
        only_above = least + tolerance * max(abs(pairs.values[0]), abs(least))
        further = _search(product, size, 1, dtype, tolerance, key, pairs.vectors, only_above)
        products = pairs.products + further.products
        if not len(further.values):
            pairs = pairs._replace(products=products)
            break
        order = np.argsort(-np.append(pairs.values, further.values), kind="stable")
        pairs = Pairs(
            np.append(pairs.values, further.values)[order],
            np.append(pairs.vectors, further.vectors, axis=0)[order],
            np.append(pairs.residuals, further.residuals)[order],
            products,
            pairs.converged and further.converged,
        )
    return pairs._replace(
        values=pairs.values[:count],
        vectors=pairs.vectors[:count],
        residuals=pairs.residuals[:count],
    )


def _search(
    product: Product,
    size: int,
    count: int,
    dtype: Any,
    tolerance: float,
    key: Any,
    found: Any = None,
    only_above: float = -np.inf,
) -> Pairs:
    """The largest `count` pairs, from one Krylov space that is grown and restarted, orthogonal to the vectors
    `found` (l, p) before. The search ends early, without pairs, once no eigenvalue can lie `only_above`."""
    locked = 0 if found is None else len(found)
    free = size - locked
    count = min(count, free)
    most = _vectors_for(count, free)
    basis = jnp.zeros((locked + most + 1, size), dtype)
    if found is not None:
        basis = basis.at[:locked].set(found)
    basis, _, _ = absorb(basis, jax.random.normal(key, (size,), dtype), locked, 0.0, key)
    projected = np.zeros((most, most))
    scale, held, restarts, products = 0.0, 0, 0, 0
    while True:
        image = product(basis[locked + held])
        held, products = held + 1, products + 1
        scale = max(scale, float(norm(image)))
        basis, coefficients, left = absorb(
            basis, image, locked + held, scale, jax.random.fold_in(key, products)
        )
        # sliced on the host: JAX would compile a program for each length
        column = np.asarray(coefficients)[locked : locked + held]
        if not np.isfinite(column).all():
            return _nothing(count, size, products)
        projected[:held, held - 1] = column
        if held < most and (held < max(count, _FIRST_LOOK) or held % _LOOKS):
            continue
        values, vectors = np.linalg.eigh(projected[:held, :held], UPLO="U")
        values, vectors = values[::-1], vectors[:, ::-1]
        residuals = abs(float(left) * vectors[-1])
        size_of_all = max(abs(values[0]), abs(values[-1]))
        good = residuals[:count] <= tolerance * size_of_all
        done = good.all() or held == free
        if values[0] + (0 if done else residuals[0]) <= only_above:
            return Pairs(np.empty(0), np.empty((0, size)), np.empty(0), products, True)
        if done or (held == most and restarts == _MOST_RESTARTS):
            weights = np.zeros((count, most), dtype)  # padded to one shape, for one compilation
            weights[:, :held] = vectors[:, :count].T
            kept = np.asarray(matmul(weights, basis[locked : locked + most]))
            return Pairs(values[:count], kept, residuals[:count], products, bool(done))
        if held == most:
            # Keep the wanted Ritz vectors, some more, and the next Krylov vector.
            held, restarts = min(count + max(count // 2, 8), most - 2), restarts + 1
            basis = _restarted(basis, vectors[:, :held].T.astype(dtype), locked)
            projected = np.zeros((most, most))
            projected[range(held), range(held)] = values[:held]


def _nothing(count: int, size: int, products: int) -> Pairs:
    """The result for an operator that is not finite: NaN."""
    return Pairs(
        np.full(count, np.nan),
        np.full((count, size), np.nan),
        np.full(count, np.nan),
        products,
        False,
    )


@partial(jax.jit, donate_argnums=0)
def _restarted(basis: Any, vectors: Any, locked: Any) -> Any:
    filled, most = vectors.shape
    after = jax.lax.dynamic_slice_in_dim(basis, locked, most + 1)
    rows = jnp.concatenate(
        [matmul(vectors, after[:most]), after[most:], jnp.zeros_like(after[: most - filled])]
    )
    return jax.lax.dynamic_update_slice_in_dim(basis, rows, locked, 0)


@partial(jax.jit, donate_argnums=0)
def absorb(basis: Any, image: Any, row: Any, scale: Any, key: Any) -> tuple[Any, Any, Any]:
    """Orthogonalise `image` (p,) against `basis` (m, p), whose rows from `row` on are zeros, and put the
    normalised rest into `row`.

    Where the rest is zero up to rounding of numbers of size `scale`, the basis spans an invariant subspace,
    and a random direction orthogonal to it is put there: so further copies of an eigenvalue are found.

    Returns:
        The new basis, the coefficients (m,) of `image` in the old one, and the length of the rest.
    """
    coefficients, new = _orthogonal(basis, image)
    length = norm(new)
    floor = 8 * jnp.finfo(basis.dtype).eps * jnp.maximum(scale, norm(image))

    def random() -> Any:
        other = _orthogonal(basis, jax.random.normal(key, image.shape, image.dtype))[1]
        size = norm(other)
        # a basis of the whole space leaves only rounding
        return jnp.where(size > 1e-3, other / jnp.where(size == 0, 1, size), 0)

    exhausted = length <= floor
    following = jax.lax.cond(exhausted, random, lambda: new / jnp.where(length == 0, 1, length))
    return basis.at[row].set(following), coefficients, jnp.where(exhausted, 0, length)


def _orthogonal(basis: Any, vector: Any) -> tuple[Any, Any]:
    """The coefficients of a vector in a basis with orthonormal (or zero) rows, and the rest orthogonal to
    it; by Gram–Schmidt, twice."""
    first = matmul(basis, vector)
    left = vector - matmul(first, basis)
    second = matmul(basis, left)
    return first + second, left - matmul(second, basis)


def projected(
    product: Product,
    start: Any,
    steps: int,
    key: Any,
) -> Float[np.ndarray, "m m"]:
    """An operator's projection (steps, steps) on the Krylov space from `start` (p,), the product being called
    from the host; NaN where it is not finite."""
    basis = jnp.zeros((steps + 1, start.shape[0]), start.dtype)
    basis = basis.at[0].set(start / norm(start))
    columns, scale = np.zeros((steps, steps)), 0.0
    for j in range(steps):
        image = product(basis[j])
        scale = max(scale, float(norm(image)))
        basis, column, _ = absorb(basis, image, j + 1, scale, jax.random.fold_in(key, j))
        columns[: j + 1, j] = np.asarray(column)[: j + 1]
        if not np.isfinite(columns[: j + 1, j]).all():
            return np.full(columns.shape, np.nan)
    return np.triu(columns) + np.triu(columns, 1).T


def leading(
    product: Product, start: Any, steps: int, tolerance: float, most: int
) -> tuple[Any, Any]:
    """The largest eigenvalue of an operator and its vector (p,), from Krylov spaces that grow from `start`
    by `steps` products at a time and then restart from the best vectors; for use inside a trace.

    It stops once ‖A v − λ v‖ ≤ tolerance · |λ|, at the latest after `most` restarts.
    """
    p = start.shape[0]
    kept = min(_KEPT, max(p - steps, 0))
    full = min(p, kept + steps)

    def grown(j: Any, carry: Any) -> Any:
        basis, projected, scale, _ = carry
        image = product(basis[j])
        scale = jnp.maximum(scale, norm(image))
        key = jax.random.fold_in(jax.random.key(0), j)
        basis, column, left = absorb(basis, image, j + 1, scale, key)
        return basis, projected.at[:, j].set(column[:full]), scale, left

    def closer(carry: Any) -> Any:
        basis, ritz, scale, _, _, _, count = carry
        projected = jnp.zeros((full, full), start.dtype)
        space = (basis, projected, scale, jnp.zeros((), start.dtype))
        basis, projected, scale, left = jax.lax.fori_loop(kept, full, grown, space)
        # where no vectors are kept yet, their places are below all eigenvalues
        ritz = jnp.where(count == 0, -2 * jnp.abs(projected).sum(), ritz)
        upper = jnp.triu(projected).at[:kept, :kept].set(jnp.diag(ritz))
        values, vectors = jnp.linalg.eigh(upper + jnp.triu(upper, 1).T, symmetrize_input=False)
        off = left * abs(vectors[-1, -1])
        # rounding sets a floor where eigenvalues of the other sign are far larger
        floor = jnp.finfo(start.dtype).eps ** 0.75 * scale
        enough = jnp.maximum(tolerance * abs(values[-1]), floor)
        best = matmul(vectors[:, full - max(kept, 1) :].T, basis[:full])
        # the best vectors, and the one that the space would have been grown by next
        rest = jnp.zeros((full - kept, p), start.dtype)
        basis = jnp.concatenate([best[len(best) - kept :], basis[full:], rest])
        return basis, values[full - kept :], scale, best[-1], values[-1], off - enough, count + 1

    def far(carry: Any) -> Any:
        *_, excess, count = carry
        return (excess > 0) & (count < most)

    none = jnp.zeros((), start.dtype)
    basis = jnp.zeros((full + 1, p), start.dtype).at[kept].set(start / norm(start))
    ritz = jnp.zeros(kept, start.dtype)
    carry = (basis, ritz, none, start, none, none + 1, 0)
    _, _, _, vector, value, *_ = jax.lax.while_loop(far, closer, carry)
    return value, vector


@jax.jit
def orthonormal(rows: Any) -> Any:
    """Orthonormal rows (k, p) with the span of `rows` (k, p); the surplus rows are zero where the rank is
    below k.

    From the eigenvectors of the rows' Gram matrix, in double precision; repeated once to remove what
    rounding left. NumPy's QR decomposition would do, but its threads keep spinning and take half of the
    processor from the products that follow.
    """
    for _ in range(2):
        wide = rows.astype(float)  # with preferred_element_type a GPU would widen only the result
        products = wide @ wide.T
        values, vectors = jnp.linalg.eigh(products)
        significant = values > len(rows) * jnp.finfo(products.dtype).eps * values[-1]
        lengths = jnp.where(significant, values, 1) ** 0.5
        units = matmul((vectors / lengths).T.astype(rows.dtype), rows)
        rows = jnp.where(significant[:, None], units, 0)
    return rows


@jax.jit
def outside(basis: Any, vectors: Any) -> Any:
    """The part of `vectors` (k, p) orthogonal to the span of the basis' orthonormal rows."""
    return vectors - matmul(matmul(vectors, basis.T), basis)
