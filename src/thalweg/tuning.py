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

from thalweg import backend, chains, convolutions, dots, pooling, sines
from thalweg.jaxprs import inlined, rewritten

Function = TypeVar("Function", bound=Callable[..., Any])

# The calls first, which hide arithmetic, and the chains last, when it stands in its final order
_REWRITES = (
    inlined, convolutions.arranged, pooling.arranged, dots.arranged, chains.arranged
)  # fmt: skip


def tuned(function: Function) -> Function:
    """The same function, whose sines and cosines of many numbers, products of matrices, convolutions, max
    pooling and skip connections are fast on a CPU.

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
        for rewrite in _REWRITES:
            program = rewritten(program, rewrite)
        if backend.setting("enable_x64"):  # a sine's parts need double precision
            program = rewritten(program, sines.vectorised)
        found = core.jaxpr_as_fun(program)(*jax.tree_util.tree_leaves(args))
        return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(shapes), found)

    return cast(Function, faster)
