"""First-order structure of a model: the Jacobian of its predictions, and the tangent kernel.

Nothing is assumed of the model: a prediction may depend on several samples, or on how many there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from thalweg import blocks, forward, inputs
from thalweg.backend import matmul
from thalweg.errors import InputError
from thalweg.observables import At, Observable, documented, relative
from thalweg.params import Layout, Params, norm
from thalweg.problem import Problem, check_is_problem

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# The kernel's Jacobian is formed up to this size, which takes half as many passes through the model; beyond
# it, columns of the kernel are computed, as many at a time as rows of the Jacobian would fit.
_JACOBIAN_BYTES = 2**26


def jacobian(problem: Problem, params: Params, x: Any = None) -> Float[Array, "m p"]:
    """The Jacobian of the predictions with respect to the parameters.

    Args:
        problem: its model f and, without `x`, its inputs.
        params: where: a pytree of the problem's structure.
        x: other inputs, shaped like the problem's but for their number.

    Returns:
        ∂f_i/∂w_j, shape (m, p). Rows go over the samples and, within a sample, over its outputs in C
        order (and over the leaves of a prediction that is a pytree); columns follow `problem.names`.
        Without data it is that of f(params) or of the residuals r(params), in m = 1 or m rows. Rows
        of samples that a mask leaves out (`Problem.take`) are zero. The dtype is the parameters'.

    Raises:
        InputError: params or inputs that do not fit; a Jacobian that memory does not hold.
    """
    vector, m = _checked(problem, params, x)
    blocks.check_memory(
        m * vector.size * vector.dtype.itemsize,
        f"the Jacobian of {m} predictions in {vector.size} parameters",
        "take it on fewer samples with x=, or use thalweg.ntk, which does not form it",
    )
    return _jacobian(_on(problem, x), problem.layout.unflatten(vector))


def ntk(problem: Problem, params: Params, x: Any = None) -> Float[Array, "m m2"]:
    """The empirical tangent kernel Θ = J Jᵀ of the predictions (Jacot, Gabriel & Hongler, 2018).

    Rows and columns are ordered as the rows of `jacobian`. For a model of several outputs this is the
    whole kernel, with every pair of outputs. A Jacobian beyond 64 MiB is not formed: the kernel's
    columns are then J (Jᵀ e_j), a reverse and a forward pass each, some of them at a time.

    Args:
        problem, params: as for `jacobian`.
        x: other inputs: the kernel between the problem's data (rows) and these (columns).

    Returns:
        Shape (m, m), or (m, m₂) with `x`; in the parameters' dtype.

    Raises:
        InputError: params or inputs that do not fit; a kernel that memory does not hold.
    """
    vector, m = _checked(problem, params, None)
    columns = m if x is None else _checked(problem, params, x)[1]
    blocks.check_memory(
        m * columns * vector.dtype.itemsize,
        f"the tangent kernel of {m} and {columns} predictions",
        "take it on fewer samples, as in problem.take(index)",
    )
    other = None if x is None else _on(problem, x)
    return _ntk(problem, problem.layout.unflatten(vector), other)


def _first_kernel(at: At) -> Any:
    return _traced_ntk(at.problem, at.start, None)


def _drift(at: At, first: Any) -> tuple[Any, Any]:
    drift = norm(_traced_ntk(at.problem, at.params, None) - first)
    return relative(drift, norm(first)), first


kernel_drift = documented(
    Observable(Partial(_first_kernel), Partial(_drift), relative=True),
    """‖Θ_t − Θ_0‖ / ‖Θ_0‖ in the Frobenius norm: how far the tangent kernel of all the data has moved.

Θ_t is that at the iterate and Θ_0 that at the start; absolute where Θ_0 is zero. Each recorded step costs a
kernel, so that a long descent wants `every=`.""",
)


def _checked(problem: Problem, params: Params, x: Any) -> tuple[Any, int]:
    """The parameters as one vector, and the number of predictions; an InputError if they do not fit."""
    check_is_problem(problem)
    if x is not None and problem.x is None:
        raise InputError("this problem has no data, so there are no other inputs x= to take it on.")
    vector = problem.flatten(params)  # may be a tracer
    like = problem.layout.like
    try:
        with inputs.written_in_jax("predict"):
            shapes = jax.eval_shape(_predictions, _on(problem, x), like)
    except (TypeError, ValueError) as error:
        if x is None or isinstance(error, InputError):
            raise
        raise InputError(
            f"the model cannot take x= of shape {_shapes(x)}; the problem's has {_shapes(problem.x)}."
        ) from error
    return vector, shapes.shape[0]


def _shapes(tree: Any) -> str:
    return ", ".join(str(tuple(jnp.shape(leaf))) for leaf in jax.tree_util.tree_leaves(tree))


def _on(problem: Problem, x: Any) -> Problem:
    """The problem on other inputs, without targets, which predictions do not need."""
    if x is None:
        return problem
    x = inputs.own_data(x, "x", None)
    if any(not leaf.ndim for leaf in jax.tree_util.tree_leaves(x)):
        raise InputError("x needs a first axis over samples; a scalar was given.")
    return problem.replace(x=x, y=None, mask=None)


# The underlying functions, for use inside a trace --------------------------------------------


def _predictions(problem: Problem, params: Params) -> Any:
    """All predictions as one vector (m,)."""
    yhat = problem.predict(params, problem.x)
    n = problem.n_samples or 1
    rows = [jnp.reshape(leaf, (n, -1)) for leaf in jax.tree_util.tree_leaves(yhat)]
    if problem.mask is not None:
        rows = [jnp.where(problem.mask[:, None], row, 0) for row in rows]
    return jnp.concatenate(rows, axis=1).reshape(-1)


def _of_vector(problem: Problem, layout: Layout) -> Callable[[Any], Any]:
    """The predictions (m,) as a function of the parameters as one vector (p,)."""
    return lambda vector: _predictions(problem, layout.unflatten(vector))


def _traced_jacobian(problem: Problem, params: Params) -> Any:
    # not problem.layout: a problem with init= alone has none inside a trace
    layout = Layout.of(params)
    vector = jnp.asarray(layout.flatten(params))
    rows = forward.value_and_jacobian(_of_vector(problem, layout), vector)[1]
    return rows.astype(vector.dtype)


def _traced_ntk(problem: Problem, params: Params, other: Problem | None) -> Any:
    layout = Layout.of(params)
    vector = jnp.asarray(layout.flatten(params))
    f = _of_vector(problem, layout)
    g = f if other is None else _of_vector(other, layout)
    m, columns = (jax.eval_shape(h, vector).shape[0] for h in (f, g))
    row_bytes = max(layout.size * vector.dtype.itemsize, 1)
    if max(m, columns) * row_bytes <= _JACOBIAN_BYTES:
        rows = _traced_jacobian(problem, params)
        return matmul(rows, (rows if other is None else _traced_jacobian(other, params)).T)
    push = forward.linearize(f, vector)[1]
    predicted, pull = jax.vjp(g, vector)

    def column(j: Any) -> Any:
        return push(*pull(jnp.zeros_like(predicted).at[j].set(1)))

    many = max(1, _JACOBIAN_BYTES // row_bytes)
    kernel = jax.lax.map(column, jnp.arange(columns), batch_size=min(many, columns)).T
    return kernel.astype(vector.dtype)


_jacobian = jax.jit(_traced_jacobian)
_ntk = jax.jit(_traced_ntk)
