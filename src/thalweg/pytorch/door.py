"""The PyTorch door: an `nn.Module` becomes a problem, and parameters become a `state_dict` again.

The module's own Python code runs, once for each program that is compiled, on tensors that stand for JAX
arrays (torchax). Nothing of the user's is touched: the code runs on a copy of the module without
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jax.tree_util import Partial

from thalweg import identity, inputs
from thalweg.errors import InputError, one_of, optional
from thalweg.params import Params
from thalweg.problem import Problem
from thalweg.pytorch import given
from thalweg.pytorch.agreement import agreed
from thalweg.pytorch.model import Model

_BATCH_NORM = ("frozen", "recomputed")


def from_torch(
    module: Any,
    loss: Any,
    x: Any,
    y: Any = None,
    *,
    batch_norm: str = "frozen",
    reduction: str | None = None,
    dtype: Any = None,
    expected: Callable[[Params], Any] | None = None,
    penalty: Callable[[Params], Any] | None = None,
) -> Problem:
    """A PyTorch model as a problem, with its weights as the starting point.

    Parameters bear the names of the `state_dict`; those that do not require a gradient stay as they
    are, and so do buffers. The module, its mode and device, its gradients, and torch's random state are
    left as they were. A module's forward pre-hooks run (old weight norms need them); its forward and
    backward hooks do not.

    Args:
        module: an `nn.Module`. It is evaluated as in `eval()` mode, but for batch norm.
        loss: a name ("mse", "cross_entropy", …), a loss module of `torch.nn`, a function of
            `torch.nn.functional`, or any function of tensors (ŷ, y). One that returns a scalar must be the
            mean or the sum of what it gives for the samples one by one, and is checked for that.
        x, y: tensors or arrays with the samples along the first axis. A tuple x is `module(*x)`, a
            dictionary `module(**x)`. Or x is a `DataLoader` whose items are pairs (x, y): its data set
            is read once, in its own order.
        batch_norm: "frozen" keeps the running statistics of the module, whatever the parameters are;
            "recomputed" takes those of all the samples given (in a descent: of the batch) at each point.
        reduction: "mean" or "sum" over the samples; without it, that of the loss.
        dtype, expected, penalty: as for `Problem`.

    Raises:
        InputError: dropout in training mode, an operation that has no translation, data that do not fit.
        MissingExtra: torchax is not installed.
    """
    torch = optional("torch", "PyTorch models need", "torch")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"an nn.Module was expected, {type(module).__name__} given.")
    one_of("batch_norm policy", batch_norm, _BATCH_NORM)
    given.refuse_dropout(module)
    with _random_state_kept(torch), torch.inference_mode(False):
        if isinstance(x, torch.utils.data.DataLoader):
            if y is not None:
                raise InputError("a DataLoader brings its own y; leave y= out.")
            x, y = given.read(x)
        x, y = map(given.plain, (x, y))
        entries, module = module.state_dict(keep_vars=True), inputs.unwrapped(module)
        model = Model(module, batch_norm, entries, x)
        free, held = model.split(module)
        function, own_reduction = given.loss_and_reduction(loss, y)
        problem = Problem(
            Partial(model, held),
            function,
            x,
            y,
            params=free,
            reduction=reduction or own_reduction,
            dtype=dtype,
            expected=expected,
            penalty=penalty,
        )
        # the comparison runs on the CPU and in full precision, whatever the default device, the module's,
        # and the autocast that the caller is within
        with torch.device("cpu"), torch.autocast("cpu", enabled=False):
            return agreed(problem, model, module, loss, reduction)


def to_torch(problem: Problem, params: Params = None) -> dict[str, Any]:
    """A `state_dict` for the module that `from_torch` was given: `module.load_state_dict(...)` takes it.

    Args:
        params: a point, as `Problem.at` takes it; without it the problem's starting point.

    Returns:
        Tensors of the module's own dtypes, on the CPU. Parameters that were held fixed, and buffers,
        are those that the module had.

    Raises:
        InputError: a problem that did not come from PyTorch.
    """
    model = _model_of(problem)
    params = (problem if params is None else problem.at(params)).params
    values = {**model.left_out, **problem.predict.args[0], **params}
    return {name: inputs.to_tensor(values[own]).to(dtype) for name, own, dtype in model.state}


def _model_of(problem: Any) -> Model:
    model = identity.written(getattr(problem, "predict", None))
    if not isinstance(model, Model):
        raise InputError("this problem did not come from PyTorch (thalweg.from_torch).")
    return model


@contextmanager
def _random_state_kept(torch: Any) -> Iterator[None]:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        yield
