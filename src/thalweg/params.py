"""Names, flattening and norms of parameter pytrees."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import backend as _backend  # noqa: F401  (64-bit mode, before any array is made)
from thalweg import names
from thalweg.errors import InputError, unknown

Params = Any


def path_name(path: tuple[Any, ...]) -> str:
    """The dotted name of a leaf: `l1.weight`, `0.bias`; `w` for a tree that is one bare array."""
    return ".".join(str(_key(entry)) for entry in path) or "w"


def _key(entry: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def promoted(tree: Any, dtype: Any) -> Any:
    """A pytree with its floating-point arrays in at least this precision, as far as JAX's settings allow."""

    def widened(leaf: Any) -> Any:
        dtype_before = jnp.result_type(leaf)
        dtype_after = jnp.zeros((), jnp.promote_types(dtype_before, dtype)).dtype
        return leaf.astype(dtype_after) if jnp.issubdtype(dtype_before, jnp.floating) else leaf

    return jax.tree_util.tree_map(widened, tree)


@dataclass(frozen=True)
class Layout:
    """How a pytree of parameters is laid out as one vector, in the order of JAX's leaves.

    Made once from a tree (or from its shapes), then used to go both ways.
    """

    treedef: Any
    leaf_names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, tree: Params) -> Layout:
        """The layout of `tree`, whose leaves are arrays or have a shape and a dtype."""
        paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
        return cls(
            treedef,
            tuple(path_name(path) for path, _ in paths),
            tuple(tuple(np.shape(leaf)) for _, leaf in paths),
            tuple(np.dtype(jnp.result_type(leaf)) for _, leaf in paths),
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def like(self) -> Params:
        """The tree of shapes and dtypes, for tracing without computing."""
        leaves = [
            jax.ShapeDtypeStruct(shape, dtype)
            for shape, dtype in zip(self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree_util.tree_unflatten(self.treedef, leaves)

    @property
    def size(self) -> int:
        """The number of parameters, p."""
        return sum(self.sizes)

    @cached_property
    def dtype(self) -> np.dtype:
        """The dtype of the flattened vector: that to which the leaves promote."""
        return jnp.result_type(*self.dtypes) if self.dtypes else np.dtype(float)

    @cached_property
    def names(self) -> Sequence[str]:
        """One name per parameter: the leaf's own where it is a scalar, else with an index."""
        return names.names_of(zip(self.leaf_names, self.shapes, strict=True))

    def index(self, name: str) -> int:
        """The place of the parameter called `name` in the flattened vector."""
        try:
            return self.names.index(name)
        except ValueError:
            raise unknown("parameter", name, self.names) from None

    def matches(self, tree: Any) -> bool:
        """Whether `tree` has this structure and these shapes."""
        leaves, treedef = jax.tree_util.tree_flatten(tree)
        return treedef == self.treedef and all(
            tuple(np.shape(leaf)) == shape for leaf, shape in zip(leaves, self.shapes, strict=True)
        )

    def flatten(self, tree: Params, lead: int = 0) -> Any:
        """`tree` as one vector (p,); with `lead` leading batch axes, (..., p)."""
        leaves, treedef = jax.tree_util.tree_flatten(tree)
        if treedef != self.treedef:
            raise InputError(
                f"parameters have the structure {treedef}, but the problem's have {self.treedef}."
            )
        for name, leaf, shape in zip(self.leaf_names, leaves, self.shapes, strict=True):
            if tuple(np.shape(leaf))[lead:] != shape:
                raise InputError(
                    f"parameter {name!r} has shape {tuple(np.shape(leaf))[lead:]}; expected {shape}."
                )
        if all(isinstance(leaf, (np.ndarray, np.generic)) for leaf in leaves):
            return _joined(self, lead, leaves, np)
        return _joined_by_jax(self, lead, leaves)

    def unflatten(self, vector: Any) -> Params:
        """The tree of a vector (..., p); leading axes become leading axes of each leaf."""
        vector = vector if isinstance(vector, jax.Array) else np.asarray(vector)
        if vector.shape[-1:] != (self.size,):
            raise InputError(
                f"a vector of {self.size} parameters was expected, one of shape {vector.shape} given."
            )
        split = _split_by_jax if isinstance(vector, jax.Array) else _split
        return jax.tree_util.tree_unflatten(self.treedef, split(self, vector))


def _joined(layout: Layout, lead: int, leaves: list[Any], xp: Any = jnp) -> Any:
    parts = [
        xp.reshape(leaf, (*np.shape(leaf)[:lead], size)).astype(layout.dtype)
        for leaf, size in zip(leaves, layout.sizes, strict=True)
    ]
    return xp.concatenate(parts, axis=-1) if parts else xp.zeros(0)


def _split(layout: Layout, vector: Any) -> list[Any]:
    if not layout.sizes:
        return []
    if isinstance(vector, jax.Array):
        # its transpose is a single concatenation; that of slices adds up vectors of zeros
        parts = jax.lax.split(vector, layout.sizes, axis=vector.ndim - 1)
    else:
        parts = np.split(vector, np.cumsum(layout.sizes[:-1]), axis=-1)
    return [
        part.reshape((*vector.shape[:-1], *shape)).astype(dtype)
        for part, shape, dtype in zip(parts, layout.shapes, layout.dtypes, strict=True)
    ]


# Compiled as one program: leaf by leaf, a network of sixty leaves took two seconds to compile
_joined_by_jax = jax.jit(_joined, static_argnames=("layout", "lead"), inline=True)
_split_by_jax = jax.jit(_split, static_argnames="layout", inline=True)


@partial(jax.jit, inline=True)  # one dispatch where it is called from the host
def norm(tree: Params) -> jax.Array:
    """The Euclidean norm of all the entries of `tree`, as one vector; in single precision at least."""
    leaves = jax.tree_util.tree_leaves(tree)
    # in double precision: in single, the square of 1e20 overflows, and that of 1e-23 underflows
    squares = [jnp.sum(jnp.square(leaf.astype(float))) for leaf in leaves]
    return jnp.sqrt(sum(squares)).astype(jnp.result_type(jnp.float32, *leaves))


def difference(a: Params, b: Params) -> Params:
    """a − b, leaf by leaf."""
    return jax.tree_util.tree_map(jnp.subtract, a, b)
