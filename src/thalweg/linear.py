"""Linear least squares: residuals linearised at a point, factorised, and solved.

Never by normal equations, which square the condition number. A QR decomposition of [J r], of which R
alone is kept, turns m residuals into at most p + 1; the singular values of that small matrix then give
the minimum-norm solution, and the damped one for any damping, without another factorisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import blocks, forward, losses
from thalweg.backend import matmul
from thalweg.errors import InputError
from thalweg.params import Layout, Params, norm
from thalweg.problem import Problem, check_is_problem

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Residuals = Callable[[Any], Any]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Linearized:
    """min_h ‖J h + r‖² at a point, in terms of J D⁻¹ = U diag(s) Vᵀ.

    Singular values at or below s_max · max(m, p) · ε count as zero, as in NumPy's `matrix_rank`.
    What is not finite gives steps of NaN.

    Args:
        scale: D (p,), the lengths in which a step is measured.
        values: s (k,), with zeros where they count as zero.
        along: Uᵀr (k,), the residuals in the basis of the left singular vectors.
        directions: Vᵀ (k, p).
        square: ‖r‖².
        largest: the largest entry of the diagonal of D⁻¹JᵀJD⁻¹.
    """

    scale: Any
    values: Any
    along: Any
    directions: Any
    square: Any
    largest: Any

    @property
    def rank(self) -> Any:
        """The number of singular values that count."""
        return jnp.sum(self.values > 0)

    def step(self, damping: Any = 0.0) -> tuple[Any, Any]:
        """The h that minimises ‖J h + r‖² + damping·‖D h‖², and the reduction it promises.

        Without damping it is that of least ‖D h‖. The promised reduction is
        ‖r‖² − ‖J h + r‖² = ‖J h‖² + 2·damping·‖D h‖², a sum without cancellation.
        """
        s, along = self.values.astype(float), self.along.astype(float)
        kept = s > 0
        some = jnp.where(kept, s, 1)
        # not s / (s² + damping): s² may underflow or overflow
        size = jnp.where(kept, 1 / (some + damping / some), 0) * along
        promised = jnp.sum((s * size) ** 2) + 2 * damping * jnp.sum(size**2)
        return -matmul(size.astype(self.directions.dtype), self.directions) / self.scale, promised


def linearized(
    residuals: Residuals, w: Any, columns: bool = False, dtype: Any = None
) -> Linearized:
    """The linear least-squares problem of `residuals`: (p,) -> (m,) at w (p,).

    Args:
        columns: measure steps in the lengths of J's columns (Marquardt), instead of as they are.
        dtype: of the computation after the derivatives; by default theirs, at least float32.

    Raises:
        MemoryEstimateError: a Jacobian that would not fit in memory.
    """
    r, jacobian = value_and_jacobian(residuals, w)
    r, jacobian = (
        a.astype(dtype or jnp.promote_types(a.dtype, jnp.float32)) for a in (r, jacobian)
    )
    # LAPACK may hang on input that is not finite
    finite = jnp.isfinite(r).all() & jnp.isfinite(jacobian).all()
    r, jacobian = jnp.where(finite, r, 0), jnp.where(finite, jacobian, 0)
    m, p = jacobian.shape
    reduced = jnp.linalg.qr(jnp.column_stack([jacobian, r]), mode="r")
    # ‖[J r] z‖ = ‖R z‖ for every z, so R's columns replace J and r
    triangle, c = reduced[:, :p], reduced[:, p]
    lengths = jnp.sqrt(jnp.sum(triangle.astype(float) ** 2, axis=0))
    scale = jnp.where(lengths > 0, lengths, 1) if columns else jnp.ones_like(lengths)
    scale = scale.astype(triangle.dtype)
    u, s, directions = jnp.linalg.svd(triangle / scale, full_matrices=False)
    s = jnp.where(s > s[0] * max(m, p) * jnp.finfo(s.dtype).eps, s, 0)
    return Linearized(
        scale=scale,
        values=s,
        along=jnp.where(finite, matmul(c, u), jnp.nan),
        directions=directions,
        square=jnp.sum(jnp.square(r.astype(float))),
        largest=jnp.square(jnp.max(lengths / scale)),
    )


def value_and_jacobian(residuals: Residuals, w: Any) -> tuple[Any, Any]:
    """Residuals (m,) and their Jacobian (m, p), which must fit in memory."""
    m, p = jax.eval_shape(residuals, w).shape[0], w.shape[0]
    blocks.check_memory(
        # J itself, [J r] for the decomposition, and the decomposition's working copy
        3.0 * m * (p + 1) * w.dtype.itemsize,
        f"the Jacobian of {m} residuals with respect to {p} parameters",
        "take mini-batches (batch_size=), or an optimizer that needs gradients alone",
    )
    return forward.value_and_jacobian(residuals, w)


def check_least_squares(who: str, problem: Problem) -> None:
    """An InputError unless the risk is a sum of squared residuals and nothing else."""
    if not losses.is_squared_error(problem.loss):
        raise InputError(
            f"{who} needs a sum of squares to minimise, and this problem has another loss: make it "
            f"Problem(predict, 'mse', x, y, ...) or Problem.from_residuals(r, ...)."
        )
    if problem.penalty is not None:
        raise InputError(
            f"{who} sees residuals, which this problem's penalty= is not among: write it as residuals "
            f"too, in Problem.from_residuals(r, ...), or leave it out."
        )


def least_squares(problem: Problem) -> Params:
    """The exact minimiser of a least-squares problem whose model is linear in its parameters.

    Of all minimisers the one of least Euclidean norm, −J⁺ r(0), J⁺ being the pseudoinverse (Golub &
    Van Loan, 2013, section 5.5) and r the residuals. Singular values at or below
    s_max · max(m, p) · ε count as zero. Computed in float64, returned in the parameters' dtype.

    Returns:
        Parameters in the problem's structure.

    Raises:
        InputError: another loss than squared error, a penalty, or a model that is not linear (or
            affine) in its parameters.
    """
    check_is_problem(problem)
    check_least_squares("least_squares", problem)
    layout = problem.layout
    probe = layout.unflatten(np.random.default_rng(0).standard_normal(layout.size))
    solution, deviation = _solve(problem, probe)
    # A linear model deviates only by rounding, mostly in its sums over inputs.
    allowed = 1e3 * float(jnp.finfo(layout.dtype).eps)
    if not float(deviation) <= allowed:
        raise InputError(
            f"least_squares needs a model that is linear in its parameters; this one's residuals leave "
            f"their linearisation by {float(deviation):.1e} of their size. Descend with "
            f"LevenbergMarquardt() instead."
        )
    return problem.unflatten(solution)


@jax.jit
def _solve(problem: Problem, probe: Params) -> tuple[Float[Array, " p"], Any]:
    """The minimum-norm solution, and the residuals' largest relative deviation from linearity, there and at
    multiples of `probe`."""
    layout = Layout.of(probe)
    point = layout.flatten(probe)

    def residuals(w: Any) -> Any:
        return problem.residuals(layout.unflatten(w))

    zero = jnp.zeros(layout.size, layout.dtype)
    solution = linearized(residuals, zero, dtype=float).step()[0].astype(layout.dtype)
    at_zero, push = forward.linearize(residuals, zero)

    def deviation(w: Any, summed: Any = 0) -> Any:
        moved = push(w)
        size = norm(at_zero) + jnp.maximum(norm(moved), summed)
        off = norm(residuals(w) - at_zero - moved)
        return jnp.where(off == 0, 0, off / jnp.where(size == 0, 1, size))

    # With nearly dependent columns the solution is large and the terms of J h cancel: rounding is relative to
    # the terms' size, ‖J‖ ‖h‖. J times a random vector of unit variance has about the Frobenius norm of J.
    summed = norm(push(point)) * norm(solution)
    off = [deviation(w) for w in (point, -point, 100 * point)]
    return solution, jnp.max(jnp.stack([deviation(solution, summed), *off]))
