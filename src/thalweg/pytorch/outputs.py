"""What PyTorch code returns, as a pytree that both JAX and PyTorch know."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax

from thalweg.errors import InputError


def output(tree: Any) -> Any:
    """The output of PyTorch code as a pytree for both JAX and PyTorch; leaves that hold no numbers become
    `_LeftOut`."""
    import torch

    _make_known(tree)

    def known(path: Any, leaf: Any) -> Any:
        is_number = isinstance(leaf, (jax.Array, torch.Tensor, int, float, complex))
        return leaf if is_number else _LeftOut(type(leaf).__name__, jax.tree_util.keystr(path))

    return jax.tree_util.tree_map_with_path(known, tree)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _LeftOut:
    """Stands for a part of an output that is no tensor (a language model's cache); its use is an error."""

    kind: str
    place: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        raise InputError(
            f"the loss takes the output {self.place}, which is {self.kind}, and not made of tensors."
        )


def _make_known(tree: Any) -> None:
    """Register with JAX the pytree classes of PyTorch's in `tree`, such as Hugging Face's `ModelOutput`."""
    from torch.utils import _pytree

    node_kinds = _pytree.SUPPORTED_NODES
    while kinds := {type(leaf) for leaf in jax.tree_util.tree_leaves(tree)} & node_kinds.keys():
        for kind in kinds:
            _make_kind_known(kind, node_kinds[kind])


def _make_kind_known(kind: type, node: Any) -> None:
    def parts(value: Any) -> tuple[Any, _Context]:
        values, context = node.flatten_fn(value)
        return values, _Context(context)

    def named_parts(value: Any) -> tuple[Any, _Context]:
        values, context = parts(value)
        if node.flatten_with_keys_fn is None:
            return list(map(_at, range(len(values)), values)), context
        return [(_name(key), v) for key, v in node.flatten_with_keys_fn(value)[0]], context

    def whole(context: _Context, values: Any) -> Any:
        return node.unflatten_fn(list(values), context.context)

    jax.tree_util.register_pytree_with_keys(kind, named_parts, whole, parts)


@dataclass(frozen=True)
class _Context:
    """PyTorch's context of a pytree node, made hashable (its contexts need not be), as JAX requires."""

    context: Any = field(hash=False)


def _at(place: int, value: Any) -> tuple[Any, Any]:
    return jax.tree_util.SequenceKey(place), value


def _name(key: Any) -> Any:
    return jax.tree_util.DictKey(getattr(key, "key", str(key)))
