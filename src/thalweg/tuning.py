"""What XLA computes slowly on a CPU, put otherwise.

The compiled programs that run over and over are rewritten after `vmap` and `grad`: all that a model does is
still JAX's own, and only how it is computed is ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
from jax.extend import core

from thalweg import backend, convolutions, dots, pooling, sines, sums
from thalweg.jaxprs import rewritten

Function = TypeVar("Function", bound=Callable[..., Any])


def tuned(function: Function) -> Function:
    """The same function, whose sines and cosines of many numbers, products of matrices, convolutions, max
    pooling and gradients along skip connections are fast on a CPU.

    For what is compiled and not differentiated any more; it stands under `jax.jit`. Values differ from those
    of the function itself by their rounding. What is static goes by keyword, and nothing else does.
    """

    @functools.wraps(function)
    def faster(*args: Any, **static: Any) -> Any:
        now = functools.partial(function, **static)
        # Who turns compilation off wants to see numbers in the model
        if not backend.on_cpu() or backend.setting("disable_jit"):
            return now(*args)
        program, shapes = jax.make_jaxpr(now, return_shape=True)(*args)
        for rewrite in (pooling.arranged, convolutions.arranged, dots.arranged, sums.arranged):
            program = rewritten(program, rewrite)
        if backend.setting("enable_x64"):  # a sine's parts need double precision
            program = rewritten(program, sines.vectorised)
        found = core.jaxpr_as_fun(program)(*jax.tree_util.tree_leaves(args))
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), found)

    return cast(Function, faster)
