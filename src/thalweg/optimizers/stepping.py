"""An optimizer in the loop: its state before the first step, and one step.

The rule may be a user's. It is given its numbers as Python's own, and containers that it may write into; what
it returns is checked, and has the shapes and dtypes that the loop began with.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import primitives

from thalweg import results
from thalweg.errors import InputError
from thalweg.inputs import written_in_jax
from thalweg.optimizers.base import At, Optimizer, State
from thalweg.params import Params

# Each kind of numbers holds those before it.
_KINDS = (np.bool_, np.integer, np.floating, np.complexfloating)
_REAL = range(3)


def begun(optimizer: Optimizer, params: Params) -> State:
    """The optimizer's state before its first step, in arrays of real numbers: random keys are their data.

    Raises:
        InputError: `init` returns something else.
    """
    with _written_in_jax(optimizer, "init"):
        state = _as_python(optimizer).init(_rebuilt(params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not _is_key(leaf) and _generality(leaf) not in _REAL:
            raise InputError(
                f"{optimizer.name}: init must return a pytree of arrays of real numbers, or of "
                f"jax.random's keys; {jax.tree_util.keystr(path)} is {leaf!r:.80}."
            )
    return jax.tree_util.tree_map(lambda leaf: _strong(_stored(leaf)), state)


def updated(
    optimizer: Optimizer, at: At, params: Params, state: State, step: Any
) -> tuple[Params, State, dict[str, Any]]:
    """One step, in the shapes and dtypes that the loop began with.

    Raises:
        InputError: what `update` returns has another form.
    """
    keyed = _with_keys(optimizer, params, state)
    with _written_in_jax(optimizer, "update"):
        made = _as_python(optimizer).update(_rebuilt(at), _rebuilt(params), _rebuilt(keyed), step)
    if not (isinstance(made, tuple) and len(made) == 3 and isinstance(made[2], dict)):
        raise InputError(
            f"{optimizer.name}: update must return three things: the new parameters, the new state, and a "
            "dict of what to record, {} for nothing."
        )
    params = _as_before(optimizer, "parameters", params, made[0])
    state = _as_before(optimizer, "a state", state, jax.tree_util.tree_map(_stored, made[1]))
    for name, value in made[2].items():
        if name in results.BUILT_IN:
            raise InputError(
                f"{optimizer.name}: update records {name!r}, which a trajectory has already; "
                "choose another name."
            )
        if not isinstance(name, str) or max(
            map(_generality, jax.tree_util.tree_leaves(value)), default=0
        ) == len(_KINDS):
            raise InputError(
                f"{optimizer.name}: update must record arrays of numbers by name; {name!r}: {value!r:.80} "
                "given."
            )
    return params, state, jax.tree_util.tree_map(jnp.asarray, made[2])


def _written_in_jax(optimizer: Optimizer, method: str) -> AbstractContextManager[None]:
    on = "parameters, data or hyperparameters that are no switches"
    return written_in_jax(f"{optimizer.name}.{method}", on)


def _rebuilt(tree: Any) -> Any:
    """The same arrays in containers of their own: a rule may write into dicts that the loop still reads."""
    return jax.tree_util.tree_map(lambda leaf: leaf, tree)


def _as_before(optimizer: Optimizer, what: str, old: Any, new: Any) -> Any:
    """`new` in the dtypes of `old`: a loop needs those it began with, and not every rule keeps them."""
    (leaves, form), (changed, after) = map(jax.tree_util.tree_flatten, (old, new))
    if form != after or list(map(jnp.shape, leaves)) != list(map(jnp.shape, changed)):
        shapes = (jax.tree_util.tree_map(jnp.shape, tree) for tree in (old, new))
        raise InputError(
            f"{optimizer.name}: update must return {what} of the shapes it was given, "
            "{!r:.300}; {!r:.300} given.".format(*shapes)
        )
    for leaf, now in zip(leaves, changed, strict=True):
        if _generality(now) > _generality(leaf):  # it would be rounded towards zero, say
            raise InputError(
                f"{optimizer.name}: update must return {what} of the kinds of numbers it was given; "
                f"{jnp.result_type(now)} given for {leaf.dtype}. Begin with 0.0 what is to hold fractions."
            )
    return form.unflatten(
        [_strong(now).astype(leaf.dtype) for leaf, now in zip(leaves, changed, strict=True)]
    )


def _generality(leaf: Any) -> int:
    """The place of the kind of a leaf's numbers among `_KINDS`, which is their number where it has none."""
    try:
        dtype = jnp.result_type(leaf)
    except TypeError:
        return len(_KINDS)
    return next((i for i, kind in enumerate(_KINDS) if jnp.issubdtype(dtype, kind)), len(_KINDS))


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(leaf: Any) -> Any:
    """A leaf of a state, as an array of numbers where it is a random key."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _with_keys(optimizer: Optimizer, params: Params, state: State) -> State:
    """The stored state, with random keys where `init` made some."""
    kinds: list[Any] = []

    def look(params: Params) -> None:
        leaves = jax.tree_util.tree_leaves(_as_python(optimizer).init(params))
        kinds.extend(jax.random.key_impl(leaf) if _is_key(leaf) else None for leaf in leaves)

    jax.eval_shape(look, params)
    leaves, form = jax.tree_util.tree_flatten(state)
    return form.unflatten(
        [
            leaf if kind is None else jax.random.wrap_key_data(leaf, impl=kind)
            for leaf, kind in zip(leaves, kinds, strict=True)
        ]
    )


def _as_python(optimizer: Optimizer) -> Optimizer:
    """The optimizer with numbers typed as JAX types Python's own: 1 − β is in float64, a product with a
    float32 array in float32."""
    numbers = {name: _weak(number) for name, number in optimizer.hyperparameters().items()}
    return optimizer.with_hyperparameters(numbers)


def _weak(number: Any) -> Any:
    """No public function makes an array whose dtype gives way; the primitive does."""
    number = jnp.asarray(number).astype(float)
    return primitives.convert_element_type_p.bind(
        number, new_dtype=number.dtype, weak_type=True, sharding=None
    )


def _strong(leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return jnp.asarray(leaf, leaf.dtype)
