"""Compare a loss of PyTorch's with the problem's: reduction, values, derivatives by the predictions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.backend import compiled_quickly
from thalweg.errors import InputError, first_line
from thalweg.inputs import constants, of_tensor
from thalweg.problem import Problem
from thalweg.pytorch.closeness import (
    AGREES,
    are_near,
    check_followed,
    compare,
    nudge,
    slope_in_torch,
)
from thalweg.risks import predicting


def agreed_loss(
    problem: Problem,
    some: Problem,
    loss: Any,
    told: list[tuple[Any, Any]],
    reduction: str | None,
) -> Problem:
    """The problem, with the loss's own reduction unless one was asked for, once both losses agree.

    Both are computed from PyTorch's predictions, because near a minimum a loss is a small difference of large
    numbers.

    Args:
        some: the problem on the samples that are compared.
        told: PyTorch's predictions for them, at several parameters, and their targets.
        reduction: what was asked for.
    """
    loss = _on_the_cpu(loss)
    pairs = [*told, (_milder(told[0][0]), told[0][1])]
    pairs = [pairs[0], *(pair for pair in pairs[1:] if _is_finite(loss, *pair))]
    each = [_each(loss, *pair) for pair in pairs]
    wholes = [loss(*pair) for pair in pairs]
    if any(whole.requires_grad for whole in wholes):
        raise InputError(
            "the loss reads parameters by itself (module.parameters(), its own, what forward has left in an "
            "attribute), which would be constants: give penalty= for what the model's parameters cost, let "
            "the model return the rest, and freeze what is constant (requires_grad_(False))."
        )
    actual = _reduction(wholes, each, problem.reduction)
    problem = problem if reduction else problem.replace(reduction=actual)
    if problem.reduction == actual:
        some, followed = some.replace(reduction=actual), []
        for (yhat, y), losses in zip(pairs, each, strict=True):
            predictions = jax.tree_util.tree_map(lambda t: jnp.array(of_tensor(t)), yhat)
            ours = predicting(some, predictions).pointwise(some.params)
            near = nudge(yhat)
            rough = _each(loss, near, y) if _is_finite(loss, near, y) else losses
            compare("losses", some, ours, losses, rough)
            followed.append(_are_followed(some, predictions, loss, yhat, near, y))
        check_followed("the loss is PyTorch's, and its derivative is not", followed)
    return problem


def _reduction(wholes: list[Any], each: list[Any], preferred: str) -> str:
    """Whether the loss is the "mean" or the "sum" of the single samples' losses, at every one of several
    predictions: both may fit one of them by chance, or where all samples have the same loss."""
    names = {"mean", "sum"}
    for loss, losses in zip(wholes, each, strict=True):
        # a loss with reduction="none" returns one value per sample
        whole = float(loss.double().mean())
        values = losses.double().numpy()
        if np.isfinite(whole) and not np.isfinite(values).all():
            raise InputError(
                "some samples have no loss of their own (ignore_index, a mask): leave them out of the data, "
                "or use reduction='sum'."
            )
        sums = {"mean": values.mean(), "sum": values.sum()}
        off = AGREES * max(abs(whole), np.abs(values).max())
        names = {name for name in names if abs(sums[name] - whole) <= off}
        if not names:
            raise InputError(
                f"on {len(values)} of the samples the loss is {whole:.6g}, and that of the samples one by "
                f"one has the mean {values.mean():.6g} and the sum {values.sum():.6g}: a loss must be one or "
                f"the other (with class weights or ignored padding a mean is neither; use reduction='sum')."
            )
    return preferred if preferred in names else names.pop()


def _is_finite(loss: Any, yhat: Any, y: Any) -> bool:
    """Whether the loss is finite at these predictions; it need not be away from the start (a logarithm)."""
    try:
        return bool(loss(yhat, y).isfinite().all())
    except Exception:  # a user's loss may fail in any way
        return False


def _each(loss: Any, yhat: Any, y: Any) -> Any:
    """The loss of each sample alone (n,)."""
    import torch

    count = len(jax.tree_util.tree_leaves(yhat)[0])
    values = [loss(*(_row(v, i) for v in (yhat, y))).mean() for i in range(count)]
    return torch.stack([value.detach().cpu() for value in values])


def _row(tree: Any, i: int) -> Any:
    return jax.tree_util.tree_map(lambda tensor: tensor[i : i + 1], tree)


def _are_followed(some: Problem, given: Any, loss: Any, yhat: Any, nudged: Any, y: Any) -> bool:
    """Whether the loss's derivative by the predictions is PyTorch's; True where PyTorch has none."""
    import torch

    if not all(leaf.is_floating_point() for leaf in jax.tree_util.tree_leaves(yhat)):
        return True

    def slope(yhat: Any) -> Any:
        leaves, structure = jax.tree_util.tree_flatten(yhat)
        free = {str(k): leaf.clone().requires_grad_() for k, leaf in enumerate(leaves)}
        with torch.enable_grad():
            whole = loss(jax.tree_util.tree_unflatten(structure, free.values()), y)
            found = slope_in_torch(whole.mean(), free)
        return found and list(found.values())

    theirs = slope(yhat)
    rough = slope(nudged) if _is_finite(loss, nudged, y) else theirs
    if theirs is None or rough is None:
        return True
    ours = jax.tree_util.tree_leaves(_loss_slope(some, given))
    return are_near(some, ours, theirs, rough)


@compiled_quickly
def _loss_slope(some: Problem, given: Any) -> Any:
    """The derivative of the risk by the predictions."""
    return jax.grad(lambda given: predicting(some, given).risk(some.params))(given)


def _milder(yhat: Any) -> Any:
    """Moderate predictions, at which a loss's derivatives are informative; those of a good fit may vanish."""

    def milder(leaf: Any) -> Any:
        return 0.1 * leaf + 0.25 if leaf.is_floating_point() else leaf

    return jax.tree_util.tree_map(milder, yhat)


def _on_the_cpu(loss: Any) -> Any:
    """The loss with its class weights on the CPU; its failures become InputErrors."""
    import torch

    is_module = isinstance(loss, torch.nn.Module)
    held = constants(loss) if is_module else ()
    weights = {name: torch.tensor(of_tensor(tensor)) for name, tensor in held}

    def told(yhat: Any, y: Any) -> Any:
        try:
            if is_module:
                return torch.func.functional_call(loss, weights, (yhat, y))
            return loss(yhat, y)
        except Exception as error:  # a user's loss may fail in any way
            raise InputError(f"the loss failed in PyTorch: {first_line(error)}.") from error

    return told
