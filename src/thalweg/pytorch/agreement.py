"""Compare a translated PyTorch module with the original: predictions, losses, derivatives on some samples."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg.backend import compiled_quickly
from thalweg.errors import InputError, first_line
from thalweg.inputs import constants, of_tensor, to_tensor
from thalweg.params import Params
from thalweg.problem import Problem
from thalweg.pytorch.model import Model
from thalweg.risks import predicting

# How many samples are compared: the first ones (and as many spread over the rest), and one for each class
_CHECKED, _CLASSES = 8, 16
_SEARCHED = 2**20  # entries of y that are searched for classes
# How far float32 results of the same arithmetic in another order may differ, relative to their size;
# a wrong translation is off by more than that.
_AGREES, _AGREES_IN_DOUBLE = 1e-3, 1e-6
_DOUBLE = float(np.finfo(np.float64).eps)
_ROUNDINGS = 64  # units of the dtype's precision that are allowed, if that is more: half precision
_STEEPER = 10  # times these tolerances for derivatives, which accumulate more rounding
_SMALL = 1e-2  # of the largest derivative: smaller tensors' tolerances are relative to this size
# Results may also differ by this many times the change of PyTorch's own when its inputs' last digits change:
# differences of large numbers and solutions of ill-conditioned systems keep few digits.
_NUDGES = 64
# Further points that are compared, and their distance relative to each tensor's size: where a layer is zero,
# as at many starts, a wrong translation may not show, and a sum may look like a mean.
_OTHERS, _AWAY = 2, 0.1
_NOT_FOLLOWED = (
    "what autograd is told beside the numbers (a hook on a node of its graph) is not followed. For values "
    "f(x) with the derivative of g(x) write g(x) + (f(x) - g(x)).detach(). Anything else please report."
)
# Lower precisions than double, by their names in jaxprs
_LOWER = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
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

    The predictions are compared with their derivatives by the parameters; then the losses, both computed from
    PyTorch's predictions, because near a minimum a loss is a small difference of large numbers.
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
    # one point may lack a derivative (a tie at a start of zeros) and the conventions differ; not all of them
    if not any(followed):
        raise InputError(f"predictions are PyTorch's, and their derivative is not: {_NOT_FOLLOWED}")
    if isinstance(loss, str):
        return problem
    loss = _on_the_cpu(loss)
    pairs = [(theirs.yhat, theirs.y) for theirs in results]
    pairs.append((_milder(results[0].yhat), results[0].y))
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
            nudged = _nudged(yhat)
            rough = _each(loss, nudged, y) if _is_finite(loss, nudged, y) else losses
            _compare(
                "losses", some, predicting(some, predictions).pointwise(some.params), losses, rough
            )
            followed.append(_are_followed(some, predictions, loss, yhat, nudged, y))
        if not any(followed):
            raise InputError(f"the loss is PyTorch's, and its derivative is not: {_NOT_FOLLOWED}")
    return problem


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
            found = _slope(whole.mean(), free)
        return found and list(found.values())

    theirs = slope(yhat)
    rough = slope(nudged) if _is_finite(loss, nudged, y) else theirs
    if theirs is None or rough is None:
        return True
    ours = jax.tree_util.tree_leaves(_loss_slope(some, given))
    return _are_near(some, ours, theirs, rough)


def _moved(params: Params, seed: int) -> Params:
    """Random parameters near these, at a distance relative to each tensor's size."""
    rng = np.random.default_rng(seed)

    def moved(leaf: Any) -> Any:
        leaf = np.asarray(leaf)
        size = np.sqrt(np.mean(np.square(leaf, dtype=float))) if leaf.size else 0
        noise = rng.standard_normal(leaf.shape) * _AWAY * (size or 1)
        return jnp.asarray(leaf + noise.astype(leaf.dtype))

    return jax.tree_util.tree_map(moved, params)


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
        off = _AGREES * max(abs(whole), np.abs(values).max())
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


def _row(tree: Any, i: int) -> Any:
    return jax.tree_util.tree_map(lambda tensor: tensor[i : i + 1], tree)


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
        _compare(what, some, mine, their, near)
    if slope is None or theirs.slope is None or steeper is None:
        return True
    return _are_near(some, slope, theirs.slope, steeper)


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


@compiled_quickly
def _loss_slope(some: Problem, given: Any) -> Any:
    """The derivative of the risk by the predictions."""
    return jax.grad(lambda given: predicting(some, given).risk(some.params))(given)


def _weights(shape: Any) -> np.ndarray:
    """Random weights that add up the predictions, so that one gradient tests all of them."""
    return np.random.default_rng(0).standard_normal(tuple(shape))


def _are_near(some: Problem, ours: Any, theirs: Any, nudged: Any) -> bool:
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


def _size(array: Any) -> float:
    return float(np.abs(np.asarray(array)).max(initial=0))


def _closeness(*arrays: Any) -> float:
    """The relative difference that is allowed between numbers of these precisions."""
    kinds = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.inexact)]
    eps = max((float(jnp.finfo(kind).eps) for kind in kinds), default=0.0)
    return max(_AGREES if eps > _DOUBLE else _AGREES_IN_DOUBLE, _ROUNDINGS * eps)


def _compare(what: str, some: Problem, ours: Any, theirs: Any, nudged: Any) -> None:
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
                lambda yhat: _slope(_weighted(jax.tree_util.tree_leaves(yhat)), free),
            )
        return jax.tree_util.tree_map(lambda t: t.detach(), yhat), slope

    yhat, slope = told(state, free, x)
    try:
        nudged = told(*_nudged((state, free, x)))
    except InputError:  # the nudged parameters may be invalid
        nudged = yhat, slope
    return _Told(yhat, y, slope, nudged)


def _milder(yhat: Any) -> Any:
    """Moderate predictions, at which a loss's derivatives are informative; those of a good fit may vanish."""

    def milder(leaf: Any) -> Any:
        return 0.1 * leaf + 0.25 if leaf.is_floating_point() else leaf

    return jax.tree_util.tree_map(milder, yhat)


def _nudged(tree: Any) -> Any:
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


def _weighted(leaves: list[Any]) -> Any:
    """The weighted sum of the predictions."""
    import torch

    real = [leaf.real + leaf.imag if leaf.is_complex() else leaf for leaf in leaves]
    parts = [(leaf.double() * torch.from_numpy(_weights(leaf.shape))).sum() for leaf in real]
    return torch.stack(parts).sum()


def _slope(total: Any, free: dict[str, Any]) -> dict[str, Any] | None:
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
