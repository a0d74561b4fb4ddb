"""Which leaves of a JAX library's model are trained. The others must not be in `params`, or a descent would
train them too."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.errors import InputError
from thalweg.params import path_name

_EQUINOX = "as in params, rest = equinox.partition(model, equinox.is_inexact_array)"
_NNX = "as in graph, params, rest = nnx.split(model, nnx.Param, ...)"


def all_trained(params: Any) -> Any:
    """The parameters unchanged; an InputError if they hold what is not trained: functions, dropout rates,
    running statistics, random keys."""
    if isinstance(params, Mapping) and {"params", "batch_stats"} <= set(params):
        raise InputError(
            "params hold running statistics ('batch_stats'), which are not trained: give "
            "params=variables['params'], and let predict read the rest, as in lambda params, x: "
            "model.apply({**variables, 'params': params}, x)."
        )
    is_module = _instance_of("equinox", "Module")
    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_module):
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node) if is_module(node) else ():
            if not _is_floating(leaf):
                raise InputError(
                    f"parameter {path_name((*path, *inner))!r} is {leaf!r:.60}: of a model of Equinox's the "
                    f"only floating-point arrays are trained; {_EQUINOX}."
                )
    is_variable = _instance_of("flax.nnx", "Variable")
    is_param = _instance_of("flax.nnx", "Param")
    for path, node in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_variable):
        name = f"parameter {path_name(path)!r}"
        if is_variable(node):
            if not is_param(node):
                kind = type(node).__name__
                raise InputError(f"{name} is Flax's {kind}, which is not trained; {_NNX}.")
        elif callable(node) or isinstance(node, str) or _is_key(node):
            what = "a key of jax.random" if _is_key(node) else f"{node!r:.60}"
            raise InputError(
                f"{name} must hold real numbers; {what} given. Keep apart what is not trained; {_EQUINOX}."
            )
    return params


def trained(point: Any) -> Any:
    """A point that is a whole Equinox model, with None for all but its trained arrays; others unchanged."""
    if not _instance_of("equinox", "Module")(point):
        return point
    return jax.tree_util.tree_map(lambda leaf: leaf if _is_floating(leaf) else None, point)


def _instance_of(module: str, name: str) -> Any:
    """An isinstance check for a library's class, without importing the library: False if it is not loaded."""
    cls = getattr(sys.modules.get(module), name, ())
    return lambda node: isinstance(node, cls)


def _is_floating(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _is_key(leaf: Any) -> bool:
    if not isinstance(leaf, jax.Array):
        return False
    raw = leaf.dtype == jnp.uint32 and leaf.shape[-1:] == (2,)
    return raw or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
