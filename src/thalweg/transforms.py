"""PyTorch's functions of functions (`torch.func`, `torch.autograd.functional`), and the derivatives that code
gives itself (`torch.autograd.Function`), as JAX's.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.errors import InputError
from thalweg.reruns import at_work, is_tensor


def replacements(env: Any, translated: Callable[..., Any]) -> Iterator[tuple[Any, str, Any]]:
    """What stands in for PyTorch's own while tensors stand for arrays: a module or class, a name in it, and
    what is called in its place by code at work here.

    Args:
        env: torchax's environment.
        translated: makes a function of arrays of one of tensors, which may be called at any time.
    """
    import torch
    from torch._functorch import apis, eager_transforms
    from torch.autograd.function import _SingleLevelFunction
    from torch.utils.checkpoint import CheckpointFunction

    def grad_and_value(f: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
        derived = jax.value_and_grad(_of_arrays(env, f, kwargs), argnums, has_aux)
        value, slope = derived(*env.t2j_iso(args))
        return _kept(env, (slope, value))

    def vmap(
        f: Any, in_dims: Any, out_dims: Any, _: Any, __: Any, *args: Any, **kwargs: Any
    ) -> Any:
        mapped = jax.vmap(_of_arrays(env, f, kwargs), in_dims, out_dims)
        return env.j2t_iso(mapped(*env.t2j_iso(args)))

    def vjp(f: Any, *primals: Any, argnums: Any = None, has_aux: bool = False) -> Any:
        f, some = _by(env, f, primals, argnums)
        value, back, *aux = jax.vjp(f, *some, has_aux=has_aux)

        def pulled(slopes: Any, **_: Any) -> Any:
            found = _kept(env, back(env.t2j_iso(slopes)))
            return found[0] if isinstance(argnums, int) else found

        return (_kept(env, value), pulled, *env.j2t_iso(aux))

    def jvp(f: Any, primals: Any, tangents: Any, argnums: Any, *, has_aux: bool, **_: Any) -> Any:
        f, some = _by(env, f, primals, argnums)
        return _kept(env, jax.jvp(f, some, tuple(env.t2j_iso(tangents)), has_aux=has_aux))

    def basis(tensors: Any, sizes: Any, chunk_size: Any = None) -> Any:
        ends = list(itertools.accumulate(sizes))
        eye = jnp.eye(ends[-1])
        for start in range(0, ends[-1], chunk_size or ends[-1]):
            rows = eye[start : start + (chunk_size or ends[-1])]
            parts = zip(jnp.split(rows, ends[:-1], axis=1), tensors, strict=True)
            yield tuple(
                env.j2t_iso(part.astype(t.jax().dtype)).reshape(-1, *t.shape) for part, t in parts
            )

    def grad(
        outputs: Any,
        inputs: Any,
        grad_outputs: Any = None,
        create_graph: bool = False,
        retain_graph: Any = None,
        is_grads_batched: bool = False,
    ) -> Any:
        how = {"create_graph": create_graph, "is_grads_batched": is_grads_batched}
        return torch.autograd.grad(outputs, inputs, grad_outputs, allow_unused=True, **how)

    def new(inputs: Any, create_graph: bool, need_graph: bool) -> Any:
        return tuple(x.view_as(x) if create_graph else x.detach().requires_grad_() for x in inputs)

    def apply(kind: Any, *args: Any) -> Any:
        if at_work() is None:
            theirs: Any = super(_SingleLevelFunction, kind)
            return theirs.apply(*args)
        if kind is CheckpointFunction:  # who saves memory that XLA decides about
            run, _, *rest = args
            return run(*rest)
        return _applied(env, translated, kind, args)

    for where, name, ours in (
        (apis, "vmap_impl", vmap),
        (eager_transforms, "grad_and_value_impl", grad_and_value),
        (eager_transforms, "_vjp_with_argnums", vjp),
        (eager_transforms, "_jvp_with_argnums", jvp),
        (eager_transforms, "_chunked_standard_basis_for_", basis),
        (torch.autograd.functional, "_autograd_grad", grad),
        (torch.autograd.functional, "_grad_preprocess", new),
    ):
        yield where, name, functools.partial(_here, ours, getattr(where, name))
    yield _SingleLevelFunction, "apply", classmethod(apply)


def _here(ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Ours for code at work in this thread; others may train with PyTorch meanwhile."""
    return (theirs if at_work() is None else ours)(*args, **kwargs)


def _of_arrays(env: Any, f: Callable[..., Any], kwargs: Any) -> Callable[..., Any]:
    """A function of tensors as one of arrays, right here; autograd is on in it."""
    import torch

    def of_arrays(*args: Any) -> Any:
        with torch.enable_grad():
            return env.t2j_iso(f(*env.j2t_iso(args), **kwargs))

    return of_arrays


def _by(env: Any, f: Callable[..., Any], primals: Any, argnums: Any) -> tuple[Any, tuple[Any, ...]]:
    """A function of some of its arguments, and those."""
    every = range(len(primals)) if argnums is None else argnums
    numbers = (every,) if isinstance(every, int) else tuple(every)
    arrays = env.t2j_iso(primals)

    def of_some(*some: Any) -> Any:
        args = list(arrays)
        for number, value in zip(numbers, some, strict=True):
            args[number] = value
        return _of_arrays(env, f, {})(*args)

    return of_some, tuple(arrays[number] for number in numbers)


def _kept(env: Any, arrays: Any) -> Any:
    """As tensors, which have no derivative where autograd is off."""
    import torch

    return env.j2t_iso(arrays if torch.is_grad_enabled() else jax.lax.stop_gradient(arrays))


def _applied(env: Any, translated: Callable[..., Any], kind: Any, args: Sequence[Any]) -> Any:
    """What a `torch.autograd.Function` returns, with the derivatives that its backward tells."""
    import torch
    from torch.autograd.function import _is_setup_context_defined
    from torch.utils import _pytree

    own = kind.backward
    once = own.__globals__ is vars(torch.autograd.function) and hasattr(own, "__wrapped__")
    own = own.__wrapped__ if once else own  # of once_differentiable
    places = [k for k, value in enumerate(args) if is_tensor(value)]
    inputs = env.t2j_iso([args[k] for k in places])
    # what forward leaves beside arrays, the same in each of its runs
    left: dict[str, Any] = {}

    def forward(*tensors: Any) -> tuple[Any, list[Any]]:
        given = list(args)
        for k, tensor in zip(places, tensors, strict=True):
            given[k] = tensor
        context = _context()()
        context.needs_input_grad = tuple(is_tensor(v) and v.is_floating_point() for v in given)
        if _is_setup_context_defined(kind.setup_context):
            out = kind.forward(*given)
            kind.setup_context(context, tuple(given), out)
        else:
            out = kind.forward(context, *given)
        flat = out if isinstance(out, tuple) else (out,)
        left["still"] = [any(t is each for each in context.non_differentiable) for t in flat]
        leaves, left["structure"] = _pytree.tree_flatten(vars(context))
        left["fixed"] = [_TENSOR if is_tensor(leaf) else leaf for leaf in leaves]
        return out, [leaf for leaf in leaves if is_tensor(leaf)]

    def backward(saved: list[Any], slopes: Any) -> list[Any]:
        rest = iter(saved)
        leaves = [next(rest) if leaf is _TENSOR else leaf for leaf in left["fixed"]]
        context = _context()()
        vars(context).update(_pytree.tree_unflatten(leaves, left["structure"]))
        found = own(context, *(slopes if isinstance(slopes, tuple) else (slopes,)))
        found = found if isinstance(found, tuple) else (found,)
        return [found[k] for k in places]

    def where() -> str:
        return f" of the torch.autograd.Function {kind.__name__}"

    on_arrays, back_on_arrays = translated(forward, where), translated(backward, where)

    def back(saved: list[Any], slopes: Any) -> tuple[Any, ...]:
        def array(value: Any) -> Any:  # of NumPy's is what does not depend on anything
            return (
                jnp.zeros(value.shape) if value.dtype == jax.dtypes.float0 else jnp.asarray(value)
            )

        found = back_on_arrays(*jax.tree_util.tree_map(array, (saved, slopes)))
        found = [_summed(where(), slope, x) for slope, x in zip(found, inputs, strict=True)]
        return tuple(_once(where(), found) if once else found)

    applied = jax.custom_vjp(lambda *arrays: on_arrays(*arrays)[0])
    applied.defvjp(on_arrays, back)
    out = applied(*inputs)
    if isinstance(out, tuple):
        pairs = zip(out, left["still"], strict=True)
        out = tuple(jax.lax.stop_gradient(each) if still else each for each, still in pairs)
    return _kept(env, out)


_TENSOR = object()  # in the place of one


@functools.cache
def _context() -> type:
    """What a Function's forward leaves for its backward."""
    from torch.autograd.function import FunctionCtx

    class Context(FunctionCtx):
        to_save = non_differentiable = ()
        saved_tensors = property(lambda context: context.to_save)

    return Context


def _summed(where: str, slope: Any, x: Any) -> Any:
    """A derivative by x, which may have gone along axes that x lacks."""
    if slope is None or not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    try:
        back = jax.linear_transpose(lambda x: jnp.broadcast_to(x, slope.shape), x)
    except ValueError as error:
        raise InputError(
            f"the backward{where} returns a derivative of shape {slope.shape} by a tensor of shape {x.shape}."
        ) from error
    return back(slope.astype(x.dtype))[0]


def _once(where: str, slopes: list[Any]) -> list[Any]:
    """Derivatives that have none themselves, which PyTorch refuses too."""

    @jax.custom_jvp
    def once(slopes: list[Any]) -> list[Any]:
        return slopes

    @once.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise InputError(
            f"the backward{where} is marked as once_differentiable: there are no second derivatives."
        )

    return once(slopes)
