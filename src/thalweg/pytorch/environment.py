"""torchax, which runs PyTorch's operations in JAX, prepared for our use.

It is imported without side effects on the rest of the program, and has an environment of our own: with the
operations that we replace, and with what its tensors miss of PyTorch's (in-place writes, autograd off).
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.errors import optional
from thalweg.pytorch import kinks, reruns, substitutes

# Held while a module's code runs: the replacements below are process-wide, and a module has one copy.
ONE_AT_A_TIME = threading.RLock()
UNNAMED = "privateuseone"  # PyTorch's name for a third-party device that was given none


@functools.cache
def library() -> Any:
    """torchax, imported without side effects on the rest of the program's PyTorch.

    Its import turns off PyTorch's fast path for attention and registers an accelerator named "jax", which
    PyTorch then takes for the current one: training on a GPU fails, and so does torch.compile
    (pytorch/xla #9730). Here the device keeps PyTorch's name for unnamed ones. A torchax that the user has
    already imported stays as it is.
    """
    import torch

    with ONE_AT_A_TIME, ExitStack() as meanwhile:
        already_loaded = "torchax" in sys.modules
        fast = torch.backends.mha.get_fastpath_enabled()
        meanwhile.callback(torch.backends.mha.set_fastpath_enabled, fast)
        if not already_loaded:
            as_unnamed = functools.partial(torch._register_device_module, UNNAMED)
            for where, name, instead in (
                (torch.utils, "rename_privateuse1_backend", lambda name: None),
                (torch, "_register_device_module", lambda name, module: as_unnamed(module)),
            ):
                meanwhile.enter_context(replaced(where, name, instead))
        torchax = optional("torchax", "PyTorch models need", "torch")
        if not already_loaded:
            _unname_device(torchax)
    return torchax


def _unname_device(torchax: Any) -> None:
    """Let torchax's tensors report the device `UNNAMED` instead of "jax", and report it as unavailable."""
    import torch

    torchax.device_module.is_available = lambda: False
    tensors = (torchax.tensor.Tensor, torchax.view.View)
    for kind in tensors:
        kind.device = property(lambda tensor: torch.device(UNNAMED, 0))
    environment = torchax.tensor.Environment
    same = environment._is_same_device

    def is_same_device(env: Any, tensor: Any, new: Any) -> bool:
        # PyTorch's C++ code sees these tensors on the device "meta"
        return (new == "meta" and isinstance(tensor, tensors)) or same(env, tensor, new)

    environment._is_same_device = is_same_device


@functools.cache
def own() -> Any:
    """A torchax environment of our own: the user's program may have its own."""
    import torch

    tensor = library().tensor
    # It makes a random key when constructed, and one per thread; eagerly here, or the key would be a tracer
    # of the current trace. Random numbers are refused, so the property needs none.
    with jax.ensure_compile_time_eval():
        environment = tensor.Environment()
    nothing = tensor.RuntimeProperty(mesh=None, prng=None, autocast_dtype=None)
    environment._property = SimpleNamespace(content=nothing)

    def of_tensors(operation: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = environment.t2j_iso((args, kwargs))
            return environment.j2t_iso(operation(*args, **kwargs))

        return called

    environment.get_and_rotate_prng_key = _refuse_to_draw
    _follow(environment)
    for function in substitutes.compositions():
        environment._ops.pop(function, None)
    aten = torch.ops.aten
    # torchax samples these with a fixed key or on a copy, without asking the environment for a key
    for drawing in (aten.exponential_, aten.cauchy_, aten.random_):
        for overload in drawing.overloads():
            environment.override_op_definition(getattr(drawing, overload), _refuse_to_draw)
    for operation, ours in {**kinks.operations(), **substitutes.operations()}.items():
        environment.override_op_definition(operation, of_tensors(ours))
    return environment


def _follow(environment: Any) -> None:
    """Report every call of a PyTorch function to the current run, and stop gradients through what is
    computed with autograd off (`torch.no_grad()`)."""
    import torch
    from torch.utils import _pytree

    torchax = library()
    kinds = (torchax.tensor.Tensor, torchax.view.View)
    setitems = {kind: kind.__setitem__ for kind in kinds}

    def still(tensor: Any) -> Any:
        return environment.j2t_iso(jax.lax.stop_gradient(environment.t2j_iso(tensor)))

    class Mode(torchax.tensor.XLAFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            def called(*args: Any, **kwargs: Any) -> Any:
                if func is torch.Tensor.__setitem__:
                    setitems[type(args[0])](*args)
                    return args[0]
                call = super(Mode, self).__torch_function__
                if not (_writes(func) and args and reruns.is_tensor(args[0])):
                    return call(func, types, args, kwargs)
                call = functools.partial(call, _that_returns(func), types)
                return _written_into(environment, call, args, kwargs)

            def theirs(*args: Any, **kwargs: Any) -> Any:
                if torch.is_grad_enabled():
                    return called(*args, **kwargs)
                into: Any = reruns.source(args[0]) if args and reruns.is_tensor(args[0]) else None
                before = getattr(into, "_elem", None)
                result = called(*args, **kwargs)
                if into is None or result is not args[0]:
                    return _pytree.tree_map_only(kinds, still, result)
                into._elem = _with_derivative_of(before, into._elem)  # written in place
                return result

            run: Any = reruns.at_work()
            return run.call(func, args, kwargs or {}, theirs)

    environment._function_mode = Mode(environment)


def _written_into(environment: Any, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The first argument after an in-place call. It is written here, since torchax writes into a copy of a
    view, and for some functions only returns the result."""
    target, rest = args[0], environment.v2t_iso((args[1:], kwargs))
    values = environment.v2t_iso(target)
    array = call((values, *rest[0]), rest[1]).jax().astype(values.jax().dtype)
    if values is target:
        target._elem = array
    else:
        target.update(array)
    return target


def _writes(func: Any) -> bool:
    """Whether a PyTorch function writes its first argument in place and keeps its shape."""
    name = getattr(func, "__name__", "")
    if name.startswith("__i"):
        return name in {
            f"__i{of}__" for of in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
        }
    others = {
        "squeeze_",
        "unsqueeze_",
        "transpose_",
        "t_",
        "swapaxes_",
        "swapdims_",
        "resize_",
        "set_",
    }
    return name.endswith("_") and not name.endswith("__") and name not in others


def _that_returns(func: Any) -> Any:
    """The out-of-place version of an in-place function: torchax has few of the latter."""
    import torch

    name = func.__name__.removesuffix("_")
    instead = getattr(torch.Tensor, name, None)
    return instead if callable(instead) and not name.endswith("_") else func


def _with_derivative_of(before: Any, after: Any) -> Any:
    """The new value of an array written with autograd off, with the derivative of the old one."""
    still = jax.lax.stop_gradient
    if before.shape != after.shape or not jnp.issubdtype(before.dtype, jnp.inexact):
        return still(after)
    return still(after).astype(before.dtype) + jnp.where(
        jnp.isfinite(before), before - still(before), 0
    )


class DrawnError(Exception):
    """A random number was asked for."""


def _refuse_to_draw(*args: Any, **kwargs: Any) -> Any:
    raise DrawnError


@contextmanager
def replaced(where: Any, name: str, instead: Any) -> Iterator[None]:
    """Temporarily replace an attribute."""
    original = vars(where).get(name, _INHERITED)
    setattr(where, name, instead)
    try:
        yield
    finally:
        if original is _INHERITED:
            delattr(where, name)
        else:
            setattr(where, name, original)


_INHERITED = object()
