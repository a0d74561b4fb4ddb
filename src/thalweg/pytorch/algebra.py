"""Linear algebra with the outputs and the derivatives of PyTorch's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def solve(a: Any, b: Any, *, left: bool = True, check_errors: bool = False) -> tuple[Any, ...]:
    """The solution, with empty factors and the error code 0."""
    return _solution(a, b, left), *_factors(), jnp.zeros(a.shape[:-2], jnp.int32)


def _factors() -> tuple[Any, Any]:
    """Empty placeholders for the factors that PyTorch returns for its own backward pass."""
    return jnp.empty(0), jnp.empty(0)


def _solution(a: Any, b: Any, left: bool) -> Any:
    if not left:
        return jnp.swapaxes(
            _solution(jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2), True), -1, -2
        )
    solution = jnp.linalg.solve(a, b[..., None] if _are_vectors(a, b) else b)
    return solution[..., 0] if _are_vectors(a, b) else solution


def _are_vectors(a: Any, b: Any) -> bool:
    """Whether the right-hand sides b of a system are vectors, not matrices."""
    return b.ndim == 1 or (b.ndim == a.ndim - 1 and b.shape == a.shape[:-1])


def least_squares(
    a: Any, b: Any, rcond: float | None = None, *, driver: str | None = None
) -> tuple[Any, ...]:
    """The minimum-norm solution, and its squared residuals and the rank where PyTorch returns them."""
    m, n = a.shape[-2:]
    rcond = float(jnp.finfo(a.dtype).eps) * max(m, n) if rcond is None else rcond
    columns = b[..., None] if _are_vectors(a, b) else b
    x = jnp.linalg.pinv(a, rtol=rcond) @ columns
    squares = jnp.empty(0, a.dtype)
    if m > n and driver not in (None, "gelsy"):
        squares = jnp.square(jnp.abs(a @ x - columns)).sum(-2)
    x = x[..., 0] if _are_vectors(a, b) else x
    rank = jnp.linalg.matrix_rank(a, rtol=rcond) if driver != "gels" else jnp.empty(0, int)
    return x, squares, rank, jnp.empty(0, a.dtype)


def _mirrored(a: Any, upper: bool) -> Any:
    """The Hermitian matrix that one triangle determines; both triangles get the gradient, as in PyTorch."""
    whole = (a + jnp.swapaxes(a, -1, -2).conj()) / 2
    half = jnp.triu(a, 1) if upper else jnp.tril(a, -1)
    diagonal = jnp.eye(a.shape[-1], dtype=a.dtype) * jnp.real(a)
    read = half + jnp.swapaxes(half, -1, -2).conj() + diagonal
    return whole + jax.lax.stop_gradient(read - whole)


def cholesky(a: Any, upper: bool = False) -> Any:
    return jnp.linalg.cholesky(_mirrored(a, upper), upper=upper, symmetrize_input=False)


def cholesky_and_no_error(
    a: Any, *, upper: bool = False, check_errors: bool = False
) -> tuple[Any, Any]:
    return cholesky(a, upper), jnp.zeros(a.shape[:-2], jnp.int32)


def cholesky_solve(b: Any, factor: Any, upper: bool = False) -> Any:
    return jax.scipy.linalg.cho_solve((factor, not upper), b)


def cholesky_inverse(factor: Any, upper: bool = False) -> Any:
    one = jnp.eye(factor.shape[-1], dtype=factor.dtype)
    return cholesky_solve(jnp.broadcast_to(one, factor.shape), factor, upper)


def eigh(a: Any, uplo: str = "L", compute_v: bool = True) -> tuple[Any, Any]:
    return jnp.linalg.eigh(_mirrored(a, uplo.upper() == "U"), symmetrize_input=False)


def eig(a: Any) -> tuple[Any, Any]:
    """Eigenvalues and eigenvectors; as in PyTorch, gradients hold for functions that are invariant to the
    eigenvectors' phases."""
    values, vectors = jax.lax.linalg.eig(
        a, compute_left_eigenvectors=False, enable_eigvec_derivs=True
    )
    return values, vectors


def determinant(a: Any) -> tuple[Any, ...]:
    return jnp.linalg.det(a), *_factors()


def log_determinant(a: Any) -> tuple[Any, ...]:
    return *jnp.linalg.slogdet(a), *_factors()


def covariance(
    input: Any, *, correction: int = 1, fweights: Any = None, aweights: Any = None
) -> Any:
    return jnp.cov(input, ddof=correction, fweights=fweights, aweights=aweights)


def householder_product(a: Any, tau: Any) -> Any:
    """The first columns of a product of reflections, applied one by one: XLA's has no derivative."""
    rows = jnp.arange(a.shape[-2])
    q = jnp.broadcast_to(jnp.eye(*a.shape[-2:], dtype=a.dtype), a.shape)

    def reflected(q: Any, k: Any) -> Any:
        v = jnp.take(a, k, axis=-1)
        v = jnp.where(rows > k, v, (rows == k).astype(a.dtype))
        along = jnp.einsum("...m,...mn->...n", v.conj(), q)
        scale = jnp.take(tau, k, axis=-1)[..., None, None]
        return q - scale * v[..., :, None] * along[..., None, :], None

    return jax.lax.scan(reflected, q, jnp.arange(tau.shape[-1]), reverse=True)[0]


def grouped_product(
    x: Any, matrices: Any, offs: Any = None, bias: Any = None, out_dtype: Any = None
) -> Any:
    """Each group of rows of x times the group's matrix (mixtures of experts); `offs` holds the groups'
    ends."""
    import torchax

    if (x.ndim, matrices.ndim) != (2, 3) or bias is not None or out_dtype is not None:
        raise torchax.tensor.OperatorNotFound(
            "Operator with name aten::_grouped_mm has no lowering"
        )
    return jax.lax.ragged_dot(x, matrices, jnp.diff(offs, prepend=0))
