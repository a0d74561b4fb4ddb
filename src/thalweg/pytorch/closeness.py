"""Whether two programs' numbers are the same: relative to their size and precision, and to how much the last
digits of the inputs matter."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.errors import InputError
from thalweg.inputs import of_tensor
from thalweg.problem import Problem

# How far float32 results of the same arithmetic in another order may differ, relative to their size;
# a wrong translation is off by more than that.
AGREES, _AGREES_IN_DOUBLE = 1e-3, 1e-6
_DOUBLE = float(np.finfo(np.float64).eps)
_ROUNDINGS = 64  # units of the dtype's precision that are allowed, if that is more: half precision
_STEEPER = 10  # times these tolerances for derivatives, which accumulate more rounding
_SMALL = 1e-2  # of the largest derivative: smaller tensors' tolerances are relative to this size
# Results may also differ by this many times the change of PyTorch's own when its inputs' last digits change:
# differences of large numbers and solutions of ill-conditioned systems keep few digits.
_NUDGES = 64
# Lower precisions than double, by their names in jaxprs
_LOWER = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}


def compare(what: str, some: Problem, ours: Any, theirs: Any, nudged: Any) -> None:
    """An InputError if numbers differ from PyTorch's, which change to `nudged` with the last digits."""
    theirs, nudged = map(of_tensor, (theirs, nudged))
    if not np.isfinite(theirs).all():
        raise InputError(f"the {what} in PyTorch are not finite.")
    size = max(_size(theirs), np.finfo(float).tiny)
    if not _is_near(some, np.asarray(ours), theirs, nudged, size):
        raise InputError(
            f"the {what} differ from PyTorch's by {_size(ours - theirs):.2g}, so that this model was not "
            f"translated rightly. What is written in place (mul_, masked_fill_) into a view of a tensor is "
            f"lost: use what the operation without the underscore returns. Anything else please report."
        )


def check_followed(what: str, followed: list[bool]) -> None:
    """An InputError if derivatives agree at none of several points. One point may lack a derivative (a tie at
    a start of zeros), and there the conventions differ."""
    if not any(followed):
        raise InputError(
            f"{what}: what autograd is told beside the numbers (a hook on a node of its graph) is not "
            f"followed. For values f(x) with the derivative of g(x) write g(x) + (f(x) - g(x)).detach(). "
            f"Anything else please report."
        )


def are_near(some: Problem, ours: Any, theirs: Any, nudged: Any) -> bool:
    """Whether derivatives agree; True where PyTorch's are not finite."""
    leaves = list(map(jax.tree_util.tree_leaves, (ours, theirs, nudged)))
    largest = max(map(_size, leaves[1]), default=0.0)
    if not np.isfinite(largest):
        return True
    least = max(_SMALL * largest, float(np.finfo(np.float32).eps))
    return all(
        _is_near(some, mine, their, near, _STEEPER * max(_size(their), least))
        for mine, their, near in zip(*leaves, strict=True)
    )


def _is_near(some: Problem, mine: Any, their: Any, nudged: Any, size: float) -> bool:
    """Whether numbers agree, relative to `size` and to the change of PyTorch's own when nudged."""
    mine, their, nudged = map(np.asarray, (mine, their, nudged))
    kind = complex if np.iscomplexobj(their) else float
    off, rough = (_size(array.astype(kind) - their.astype(kind)) for array in (mine, nudged))
    rough = _NUDGES * rough if np.isfinite(rough) else 0.0
    if off <= _closeness(mine, their) * size + rough:
        return True
    # parts of a model may compute in a lower precision than its output's
    program = str(jax.make_jaxpr(some.predict)(some.params, some.x))
    inside = [jnp.empty(0, kind) for name, kind in _LOWER.items() if f"{name}[" in program]
    return bool(off <= _closeness(mine, their, *inside) * size + rough)


def _closeness(*arrays: Any) -> float:
    """The relative difference that is allowed between numbers of these precisions."""
    kinds = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)]
    eps = max((float(jnp.finfo(kind).eps) for kind in kinds), default=0.0)
    return max(AGREES if eps > _DOUBLE else _AGREES_IN_DOUBLE, _ROUNDINGS * eps)


def _size(array: Any) -> float:
    return float(np.abs(np.asarray(array)).max(initial=0))


def nudge(tree: Any) -> Any:
    """Tensors with the last digit of some numbers lowered, and none raised: a probability stays one."""
    import torch

    signs = np.random.default_rng(0)

    def nudged(leaf: Any) -> Any:
        if not leaf.is_floating_point():
            return leaf
        by = torch.from_numpy(signs.choice([-1.0, 0.0], tuple(leaf.shape))).to(leaf.dtype)
        moved = leaf.detach() * (1 + torch.finfo(leaf.dtype).eps * by)
        return moved.requires_grad_(leaf.requires_grad)

    return jax.tree_util.tree_map(nudged, tree)


def slope_in_torch(total: Any, free: dict[str, Any]) -> dict[str, Any] | None:
    """The derivatives of a number by PyTorch; None where it fails."""
    import torch

    slopes: Any = [None] * len(free)
    if total.requires_grad:
        try:
            slopes = torch.autograd.grad(total, list(free.values()), allow_unused=True)
        except Exception:  # written in place, or a user's backward
            return None
    return {
        name: np.zeros(tensor.shape) if by is None else of_tensor(by.to_dense())
        for (name, tensor), by in zip(free.items(), slopes, strict=True)
    }
