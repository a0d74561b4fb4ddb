"""Problems made from a problem: its linearisation, and its centred and scaled output.

Both are problems again, so that descents, landscapes and curvature take them as they are. w₀ and α are
traced arrays: another point or another α recompiles nothing.

The data, the loss, the reduction and the penalty, which is a function of the parameters alone, are kept;
w₀ is the starting point. The expected risk is dropped, as it is that of the original model, and so is
`init`, whose draws are not w₀ (other starts are given by `starts=`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from thalweg import forward
from thalweg.errors import InputError
from thalweg.params import Params, difference
from thalweg.problem import Problem, check_is_problem


def linearize(problem: Problem, params: Params) -> Problem:
    """The problem whose model is the tangent of the problem's model f at w₀ = `params`.

    Its prediction is f(w₀, x) + Df(w₀, x)(w − w₀), linear in w − w₀; under squared error its risk is
    the quadratic of a Gauss–Newton step at w₀. For a problem without data it is the tangent of the
    function, or of the residuals.

    Raises:
        InputError: params that are not finite or do not have the problem's structure.
    """
    return _around(problem, params, lambda f, start: Partial(_tangent, f, start))


def scale_output(problem: Problem, params: Params, alpha: float = 100.0) -> Problem:
    """The problem whose model is α (f(w, x) − f(w₀, x)), with w₀ = `params`.

    The larger α, the less the parameters need to move for the same change of the output: training
    becomes lazy. With a learning rate divided by α² this is the descent of R(α (f − f₀)) / α²
    (Chizat, Oyallon & Bach, 2019, "On lazy training in differentiable programming", section 2).

    The difference is taken in float64 whatever the problem's dtype, and then rounded to it: in
    float32 α (f − f₀) would keep no digit for large α. What remains is the rounding of the parameters
    themselves, and a step smaller than that is lost: for α beyond a thousand or so the parameters
    should be float64 too (`Problem(..., dtype="float64")`).

    Args:
        alpha: a number above 0.

    Raises:
        InputError: params that are not finite or do not have the problem's structure; an impossible
            α; a problem without data, whose targets are part of the function.
    """
    try:
        number = float(alpha)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise InputError(
            f"alpha must be a number above 0, {alpha!r} given; for several, make a problem for each: "
            f"they are one program."
        )
    if isinstance(problem, Problem) and problem.is_without_data:
        raise InputError(
            "scale_output needs a model and data: the targets of a function or of residuals are a "
            "part of it, and would be taken away with its value at the start."
        )
    return _around(
        problem, params, lambda f, start: Partial(_scaled, f, start, jnp.asarray(number, float))
    )


def _around(problem: Problem, params: Params, made: Callable[[Any, Params], Any]) -> Problem:
    """The problem with its model replaced by made(model, w₀), starting at w₀."""
    check_is_problem(problem)
    start = problem.at(params).params
    if problem.is_without_data:  # predict wraps the function of the parameters
        wrapped, (f,) = problem.predict.func, problem.predict.args
        predict = Partial(wrapped, made(f, start))
    else:
        predict = made(problem.predict, start)
    return problem.replace(predict=predict, params=start, init=None, expected_risk=None)


def _tangent(f: Any, start: Params, params: Params, *x: Any) -> Any:
    """f(w₀) + Df(w₀)(w − w₀)."""
    change = jax.tree_util.tree_map(
        lambda d, w: d.astype(w.dtype), difference(params, start), start
    )
    value, slope = forward.jvp(lambda w: f(w, *x), start, change)
    return jax.tree_util.tree_map(jnp.add, value, slope)


def _scaled(f: Any, start: Params, alpha: Any, params: Params, x: Any) -> Any:
    """α (f(w) − f(w₀)), the difference in float64."""
    dtypes = jax.tree_util.tree_map(lambda leaf: leaf.dtype, jax.eval_shape(f, params, x))
    f, start, params, x = jax.tree_util.tree_map(_in_double, (f, start, params, x))
    return jax.tree_util.tree_map(
        lambda now, before, dtype: (alpha * (now - before)).astype(dtype),
        f(params, x),
        f(start, x),
        dtypes,
    )


def _in_double(leaf: Any) -> Any:
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return jnp.asarray(leaf, float) if floating else leaf
