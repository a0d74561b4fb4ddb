"""Functions of tensors as functions of arrays: torchax runs each of PyTorch's operations in JAX.

Code that has no translation raises a one-line error that names the operation and the submodule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax

from thalweg.errors import InputError, first_line
from thalweg.pytorch import environment, reruns, transforms
from thalweg.pytorch.outputs import output

# JAX's errors where traced code needs a concrete value, or a shape that depends on values (x[mask])
_DECIDING = (
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
)


def translated(
    function: Callable[..., Any],
    where: Callable[[], str],
    free: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """A function of tensors as one of arrays.

    Args:
        where: the place in the user's code, in words, for error messages.
        free: takes the function's arguments and returns the tensors that require a gradient; by default
            all do.
    """
    torchax = environment.library()

    def of_arrays(*arguments: Any) -> Any:
        with environment.ONE_AT_A_TIME:
            return translate(arguments)

    def translate(arguments: Any) -> Any:
        try:
            out = output(reruns.Code(environment.own(), function, arguments, free, _as_arrays)())
            if not jax.tree_util.tree_leaves(out):
                raise InputError(
                    f"the code{where()} returns {getattr(out, 'kind', type(out).__name__)}; tensors were "
                    "expected, or tuples, lists or dictionaries of them."
                )
            return out
        except torchax.tensor.OperatorNotFound as error:
            raise InputError(
                f"the operation {_operation(error)}{where()} has no translation to JAX; write it with "
                f"other operations, or record a training loop in PyTorch (thalweg.record)."
            ) from error
        except environment.DrawnError as error:
            raise InputError(
                f"the code{where()} draws random numbers (dropout by torch.nn.functional, torch.randn), "
                f"which makes the risk random; leave that out."
            ) from error
        except jax.errors.UnexpectedTracerError as error:
            raise InputError(
                f"the code{where()} uses a tensor that another call has left behind; make it anew in each."
            ) from error
        except _DECIDING as error:
            raise InputError(
                f"the code{where()} branches on the values of its tensors (if, .item(), int(tensor)), "
                f"which a compiled program cannot; write it with torch.where."
            ) from error
        except AssertionError as error:
            if "mixed math" not in str(error):
                raise failed(error, arguments) from error
            raise InputError(
                f"the code{where()} uses a tensor that is neither a parameter nor a buffer; make it one "
                f"with self.register_buffer(name, tensor) (in a torch.autograd.Function: an argument)."
            ) from error
        except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise failed(error, arguments) from error

    def failed(error: Exception, arguments: Any) -> InputError:
        error = _pytorchs_error(function, arguments) or error
        return InputError(f"the code{where()} failed: {first_line(error)}.")

    return of_arrays


@contextmanager
def _as_arrays() -> Iterator[None]:
    """A context in which torchax tensors, which wrap JAX arrays, run PyTorch's code."""
    import torch

    env, torchax = environment.own(), environment.library()
    tensor, view = torchax.tensor.Tensor, torchax.view.View
    still = property(lambda x: x.detach(), tensor.data.fset)
    with ExitStack() as stack:
        stack.enter_context(_undecided())
        for where, name, instead in (
            # torchax's versions change the tensor in place, or keep the derivative
            (tensor, "type_as", lambda x, other: x.to(other.dtype)),
            (tensor, "data", still),
            (view, "data", still),
            # torchax defines these on its classes, so they would bypass __torch_function__
            (tensor, "detach", torch.Tensor.detach),
            (tensor, "flatten", torch.Tensor.flatten),
            (tensor, "__setitem__", torch.Tensor.__setitem__),
            (view, "__setitem__", torch.Tensor.__setitem__),
            (torch.autocast, "__enter__", _unless_rounding(torch.autocast.__enter__)),
            *transforms.replacements(env, translated),
        ):
            stack.enter_context(environment.replaced(where, name, instead))
        # torchax cannot make its tensors in inference mode
        for context in (
            torch.inference_mode(False),
            torch.enable_grad(),
            env,
            torch.device(environment.UNNAMED),
        ):
            stack.enter_context(context)
        yield


@contextmanager
def _undecided() -> Iterator[None]:
    """Turn off PyTorch's own branches on values, which serve only speed and error messages."""
    import torch
    from torch.nn.modules import transformer

    distribution = torch.distributions.Distribution
    fast, checks = torch.backends.mha.get_fastpath_enabled(), distribution._validate_args
    with environment.replaced(
        transformer, "_detect_is_causal_mask", lambda mask, given=None, size=None: given is True
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            distribution.set_default_validate_args(checks)


def _pytorchs_error(function: Callable[..., Any], arguments: Any) -> Exception | None:
    """PyTorch's error for arguments of these shapes, which users know better than JAX's; None if none."""
    import torch

    if reruns.at_work() is not None:  # within other translated code, under torchax's modes
        return None

    def like(leaf: Any) -> Any:
        return torch.empty(leaf.shape, dtype=getattr(torch, str(leaf.dtype)), device="meta")

    try:
        with _undecided(), torch.enable_grad(), torch.device("meta"):
            function(*jax.tree_util.tree_map(like, arguments))
    except Exception as error:  # whatever the user's code raises
        unlike = ("meta", "does not require grad")  # errors of this dry run, not of the user's code
        return None if any(words in str(error) for words in unlike) else error
    return None


def _operation(error: Exception) -> str:
    words = str(error).split()
    return words[words.index("name") + 1] if "name" in words[:-1] else str(error)


def _unless_rounding(enter: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def entered(autocast: Any) -> Any:
        if autocast._enabled and reruns.at_work() is not None:  # not in a thread that trains
            raise InputError(
                "the code computes a part in half precision (torch.autocast); a risk is computed in that of "
                "its parameters: leave it out."
            )
        return enter(autocast)

    return entered
