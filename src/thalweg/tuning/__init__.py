"""Rewrites of programs that XLA runs slowly on a CPU.

The compiled programs that run over and over are rewritten after `vmap` and `grad` were applied: what a model
computes stays as JAX traced it, and only how it is computed changes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax.extend import core

from thalweg import backend
from thalweg.jaxprs import inlined, rewritten
from thalweg.tuning import chains, convolutions, dots, pooling, sines

Function = TypeVar("Function", bound=Callable[..., Any])

# Inlining comes first, as calls hide arithmetic; chains last, when the order of equations is final
_REWRITES = (
    inlined, convolutions.arranged, pooling.arranged, dots.arranged, chains.arranged
)  # fmt: skip


def tuned(function: Function) -> Function:
    """The same function, with sines and cosines of many numbers, matrix products, convolutions, max pooling
    and skip connections rewritten to be fast on a CPU.

    For use directly under `jax.jit`, on functions that are not differentiated any more. Values differ from
    the function's own by rounding. Static arguments, and no others, are passed by keyword.
    """

    @functools.wraps(function)
    def faster(*args: Any, **static: Any) -> Any:
        traceable = functools.partial(function, **static)
        # Users who disable compilation want to see concrete numbers in their model
        if not backend.on_cpu() or backend.setting("disable_jit"):
            return traceable(*args)
        program, shapes = jax.make_jaxpr(traceable, return_shape=True)(*args)
        for rewrite in _REWRITES:
            program = rewritten(program, rewrite)
        if backend.setting("enable_x64"):  # a sine's parts need double precision
            program = rewritten(program, sines.vectorised)
        outputs = core.jaxpr_as_fun(program)(*jax.tree_util.tree_leaves(args))
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), outputs)

    return cast(Function, faster)
