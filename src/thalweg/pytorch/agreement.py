"""Compare a translated PyTorch module with the original: predictions, losses, derivatives on some samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.backend import compiled_quickly
from thalweg.errors import InputError, first_line
from thalweg.inputs import of_tensor, to_tensor
from thalweg.params import Params
from thalweg.problem import Problem
from thalweg.pytorch.closeness import are_near, check_followed, compare, nudge, slope_in_torch
from thalweg.pytorch.loss_agreement import agreed_loss
from thalweg.pytorch.model import Model

# How many samples are compared: the first ones (and as many spread over the rest), and one for each class
_CHECKED, _CLASSES = 8, 16
_SEARCHED = 2**20  # entries of y that are searched for classes
# Further points that are compared, and their distance relative to each tensor's size: where a layer is zero,
# as at many starts, a wrong translation may not show, and a sum may look like a mean.
_OTHERS, _AWAY = 2, 0.1
# JAX's errors where a derivative rule closes over what is being differentiated
_LEFT_BEHIND = {"CustomVJPException", "UnexpectedTracerError"}


class _Told(NamedTuple):
    """PyTorch's results on some samples."""

    yhat: Any
    y: Any
    slope: dict[str, Any] | None  # the gradient of a weighted sum of the predictions, by parameter
    nudged: Any  # predictions and slope after inputs and parameters changed in their last digit


def agreed(
    problem: Problem, model: Model, module: Any, loss: Any, reduction: str | None
) -> Problem:
    """The problem with the reduction of the user's loss, once it agrees with PyTorch on a few samples.

    The predictions are compared with their derivatives by the parameters, then the losses.
    """
    some = problem.take(_telling(problem))
    results = [_torchs_predictions(model, module, some, some.params)]
    followed = [_compare_predictions("predictions", some, some.params, results[0])]
    for seed in range(_OTHERS):
        params = _moved(some.params, seed)
        try:
            theirs = _torchs_predictions(model, module, some, params)
        except InputError:  # the moved parameters may be invalid (a matrix to be factorised)
            continue
        if all(bool(t.isfinite().all()) for t in jax.tree_util.tree_leaves(theirs.yhat)):
            near = _compare_predictions("predictions at other parameters", some, params, theirs)
            followed.append(near)
            results.append(theirs)
    check_followed("predictions are PyTorch's, and their derivative is not", followed)
    if isinstance(loss, str):
        return problem
    told = [(theirs.yhat, theirs.y) for theirs in results]
    return agreed_loss(problem, some, loss, told, reduction)


def _telling(problem: Problem) -> np.ndarray:
    """Indices of the samples to compare: the first ones, some spread over the rest, one for each class, and
    those with extreme targets or integer inputs. A loss with class weights is a mean where all samples are of
    one class, and an index out of an embedding's range may come late."""
    n = problem.n_samples
    indices = [*range(min(_CHECKED, n)), *np.linspace(0, n - 1, _CHECKED).astype(int)]
    inputs, targets = map(jax.tree_util.tree_leaves, (problem.x, problem.y))
    for leaf, target in (*((x, False) for x in inputs), *((y, True) for y in targets)):
        flat = np.asarray(leaf).reshape(n, -1)
        if not flat.size or not (target or flat.dtype.kind in "iub"):
            continue
        indices += [int(np.argmin(flat)) // flat.shape[1], int(np.argmax(flat)) // flat.shape[1]]
        if target and flat.dtype.kind in "iub":
            part = flat[: max(1, _SEARCHED // flat.shape[1])]
            first = np.unique(part, return_index=True)[1] // flat.shape[1]
            spread = np.linspace(0, len(first) - 1, min(_CLASSES, len(first))).astype(int)
            indices += first[spread].tolist()
    return np.unique(indices)


def _moved(params: Params, seed: int) -> Params:
    """Random parameters near these, at a distance relative to each tensor's size."""
    rng = np.random.default_rng(seed)

    def moved(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        size = np.sqrt(np.mean(np.square(leaf, dtype=float))) if leaf.size else 0
        noise = rng.standard_normal(leaf.shape) * _AWAY * (size or 1)
        return jnp.asarray(leaf + noise.astype(leaf.dtype))

    return jax.tree_util.tree_map(moved, params)


def _compare_predictions(what: str, some: Problem, params: Params, theirs: _Told) -> bool:
    """An InputError if the predictions differ from PyTorch's; returns whether their derivatives agree, which
    is True where either has none."""
    leaves = jax.tree_util.tree_leaves(theirs.yhat)
    try:
        slope, yhat = _moving(some, params, [_weights(leaf.shape) for leaf in leaves])
    except Exception as error:  # there is no derivative, or a custom backward fails
        slope, yhat = None, some.predict(params, some.x)
        if theirs.slope is not None:
            if isinstance(error, InputError):
                raise
            if isinstance(error, NotImplementedError):
                raise InputError(
                    f"the predictions have a derivative in PyTorch, and none in JAX: {first_line(error)}."
                ) from error
            if type(error).__name__ in _LEFT_BEHIND:
                raise InputError(
                    "the derivative depends on a tensor that a torch.autograd.Function uses and is not "
                    "called with: make it one of its arguments."
                ) from error
    nudged, steeper = theirs.nudged
    trees = yhat, theirs.yhat, nudged
    for mine, their, near in zip(*map(jax.tree_util.tree_leaves, trees), strict=True):
        compare(what, some, mine, their, near)
    if slope is None or theirs.slope is None or steeper is None:
        return True
    return are_near(some, slope, theirs.slope, steeper)


@compiled_quickly
def _moving(some: Problem, params: Params, weights: list[Any]) -> tuple[Params, Any]:
    """The gradient of a weighted sum of the predictions, and the predictions."""

    def weighted(params: Params) -> tuple[Any, Any]:
        yhat = some.predict(params, some.x)
        leaves = jax.tree_util.tree_leaves(yhat)
        each = [
            jnp.sum((jnp.real(leaf) + jnp.imag(leaf) if jnp.iscomplexobj(leaf) else leaf) * by)
            for leaf, by in zip(leaves, weights, strict=True)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
        return sum(each, jnp.zeros(())), yhat

    return jax.grad(weighted, has_aux=True)(params)


def _torchs_predictions(model: Model, module: Any, some: Problem, params: Params) -> _Told:
    """PyTorch's own predictions at `params`, of the module as the problem evaluates it."""
    import torch

    tensors = (*module.named_parameters(), *module.named_buffers())
    state = {n: torch.tensor(of_tensor(t)) for n, t in tensors if n in model.known}
    dtype = next(state[n].dtype for n, p in module.named_parameters() if p.requires_grad)
    free = {n: to_tensor(p).to(state[n].dtype).requires_grad_() for n, p in params.items()}

    def tensor(leaf: Any) -> Any:
        made = to_tensor(leaf)
        return made.to(dtype) if made.is_floating_point() else made

    x, y = jax.tree_util.tree_map(tensor, (some.x, some.y))
    # class labels from NumPy may be int32, and PyTorch's losses take int64
    y = jax.tree_util.tree_map(lambda t: t.long() if t.dtype == torch.int32 else t, y)

    def told(state: Any, free: Any, x: Any) -> tuple[Any, Any]:
        with torch.enable_grad():
            yhat, slope = model.in_torch(
                state | free,
                x,
                lambda yhat: slope_in_torch(_weighted(jax.tree_util.tree_leaves(yhat)), free),
            )
        return jax.tree_util.tree_map(lambda t: t.detach(), yhat), slope

    yhat, slope = told(state, free, x)
    try:
        nudged = told(*nudge((state, free, x)))
    except InputError:  # the nudged parameters may be invalid
        nudged = yhat, slope
    return _Told(yhat, y, slope, nudged)


def _weighted(leaves: list[Any]) -> Any:
    """The weighted sum of the predictions."""
    import torch

    real = [leaf.real + leaf.imag if leaf.is_complex() else leaf for leaf in leaves]
    parts = [(leaf.double() * torch.from_numpy(_weights(leaf.shape))).sum() for leaf in real]
    return torch.stack(parts).sum()


def _weights(shape: Any) -> np.ndarray:
    """Random weights that add up the predictions, so that one gradient tests all of them."""
    return np.random.default_rng(0).standard_normal(tuple(shape))
