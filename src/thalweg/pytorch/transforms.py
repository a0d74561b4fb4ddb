"""PyTorch's function transforms (`torch.func`, `torch.autograd.functional`) as JAX's, and custom derivative
rules (`torch.autograd.Function`) as `jax.custom_vjp`.
"""

from __future__ import annotations

import functools
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.errors import InputError
from thalweg.pytorch.reruns import at_work, conjugated, is_tensor, needs_gradient, written


def replacements(env: Any, translated: Callable[..., Any]) -> Iterator[tuple[Any, str, Any]]:
    """Replacements in PyTorch while translated code runs: (module or class, attribute, replacement).

    Args:
        env: torchax's environment.
        translated: turns a function of tensors into one of arrays, which may be called at any time.
    """
    import torch
    from torch._functorch import apis, eager_transforms
    from torch._functorch.vmap import _process_batched_inputs
    from torch.autograd.function import _SingleLevelFunction
    from torch.utils import _pytree
    from torch.utils.checkpoint import CheckpointFunction
    from torchax.tensor import Tensor
    from torchax.view import View

    def grad_and_value(f: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
        g = _Flat(env, functools.partial(f, **kwargs), args, argnums, has_aux)
        value, back, aux = jax.vjp(g, *g.arrays, has_aux=True)
        if [v.shape for v in value] != [()]:
            raise RuntimeError("grad(f)(*args): Expected f(*args) to return a scalar tensor")
        slopes = conjugated(list(back(list(map(jnp.ones_like, value)))))
        out = g.outputs(value)
        return g.inputs(slopes), (out, g.others(aux)) if has_aux else out

    def vmap(
        f: Any, in_dims: Any, out_dims: Any, _: Any, __: Any, *args: Any, **kwargs: Any
    ) -> Any:
        g = _Flat(env, functools.partial(f, **kwargs), args, derives=False)
        axes, leaves = _process_batched_inputs(in_dims, args, f)[1:3]
        axes = [axis for axis, leaf in zip(axes, leaves, strict=True) if is_tensor(leaf)]
        mapped, _ = jax.vmap(g, axes)(*g.arrays)
        places: Any = _pytree._broadcast_to_and_flatten(out_dims, g.out)
        pairs = zip(mapped, places, strict=True)
        return g.outputs([jnp.moveaxis(array, 0, place) for array, place in pairs])

    def vjp(f: Any, *primals: Any, argnums: Any = None, has_aux: bool = False) -> Any:
        g = _Flat(env, f, primals, argnums, has_aux)
        value, back, aux = jax.vjp(g, *g.arrays, has_aux=True)

        def pulled(slopes: Any, **_: Any) -> Any:
            pairs = zip(env.t2j_iso(_pytree.tree_leaves(slopes)), value, strict=True)
            given = conjugated([slope.astype(v.dtype) for slope, v in pairs])
            return g.inputs(conjugated(list(back(given))))

        return (g.outputs(value), pulled, *([g.others(aux)] if has_aux else []))

    def jvp(f: Any, primals: Any, tangents: Any, argnums: Any, *, has_aux: bool, **_: Any) -> Any:
        g = _Flat(env, f, primals, argnums, has_aux)
        moved = env.t2j_iso(_pytree.tree_leaves(tangents))
        value, slope, aux = jax.jvp(g, g.arrays, moved, has_aux=True)
        return (g.outputs(value), g.outputs(slope), *([g.others(aux)] if has_aux else []))

    def basis(tensors: Any, sizes: Any, chunk_size: Any = None) -> Any:
        for part in flat_basis(tensors, sizes, chunk_size):
            yield tuple(u.reshape(-1, *t.shape) for u, t in zip(part, tensors, strict=True))

    def flat_basis(tensors: Any, sizes: Any, chunk_size: Any = None) -> Any:
        ends = list(itertools.accumulate(sizes))
        eye = jnp.eye(ends[-1])
        for start in range(0, ends[-1], chunk_size or ends[-1]):
            rows = jnp.split(eye[start : start + (chunk_size or ends[-1])], ends[:-1], axis=1)
            pairs = zip(rows, tensors, strict=True)
            yield env.j2t_iso(tuple(part.astype(t.jax().dtype) for part, t in pairs))

    def apply(kind: Any, *args: Any) -> Any:
        run = at_work()
        if run is None:
            theirs: Any = super(_SingleLevelFunction, kind)
            return theirs.apply(*args)
        if kind is CheckpointFunction:  # checkpointing saves memory, which is XLA's to decide
            function, _, *rest = args
            return function(*rest)
        return run.call("apply", args, {}, functools.partial(_applied, env, translated, kind))

    def register_hook(tensor: Any, hook: Callable[..., Any]) -> Any:
        hooks, array = getattr(tensor, "_hooks", (None, None))
        if hooks is None or array is not getattr(tensor, "_elem", None):
            hooks = OrderedDict()
            written(tensor, _applied(env, translated, _hooked(hooks), tensor).jax())
            tensor._hooks = hooks, tensor._elem
        handle = torch.utils.hooks.RemovableHandle(hooks)
        hooks[handle.id] = hook
        return handle

    yield Tensor, "register_hook", register_hook
    yield View, "register_hook", register_hook
    for where, name, ours in (
        (apis, "vmap_impl", vmap),
        (eager_transforms, "grad_and_value_impl", grad_and_value),
        (eager_transforms, "_vjp_with_argnums", vjp),
        (eager_transforms, "_jvp_with_argnums", jvp),
        (eager_transforms, "_chunked_standard_basis_for_", basis),
        (
            torch.autograd.functional,
            "_construct_standard_basis_for",
            lambda *of: next(flat_basis(*of)),
        ),
    ):
        yield where, name, functools.partial(_here, name, ours, getattr(where, name))
    yield _SingleLevelFunction, "apply", classmethod(apply)


def _here(
    name: str, ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Call ours in translated code, PyTorch's otherwise: other threads may be training with PyTorch."""
    run = at_work()
    return theirs(*args, **kwargs) if run is None else run.call(name, args, kwargs, ours)


class _Flat:
    """A function of tensors within translated code as one of flat arrays, for JAX to transform.

    It takes the tensors of the chosen arguments as arrays, in PyTorch's order (JAX sorts dictionaries), and
    returns the outputs and the auxiliary outputs, each as a list of arrays.

    Args:
        argnums: which arguments are transformed over: one, several, or by default all.
        has_aux: whether the function returns a pair (outputs, auxiliary outputs).
        derives: whether it is differentiated, and not mapped over.
    """

    def __init__(
        self,
        env: Any,
        f: Callable[..., Any],
        args: Sequence[Any],
        argnums: Any = None,
        has_aux: bool = False,
        derives: bool = True,
    ) -> None:
        from torch.utils import _pytree

        self.env, self.f, self.args, self.argnums, self.has_aux = env, f, args, argnums, has_aux
        every = range(len(args)) if argnums is None else argnums
        self.numbers = (every,) if isinstance(every, int) else tuple(every)
        some = tuple(args[number] for number in self.numbers)
        self.leaves, self.structure = _pytree.tree_flatten(some)
        self.arrays = env.t2j_iso([leaf for leaf in self.leaves if is_tensor(leaf)])
        self.derives = derives
        self.out: Any = None
        self.aux: Any = None

    def __call__(self, *arrays: Any) -> tuple[list[Any], list[Any]]:
        import torch
        from torch.utils import _pytree

        run: Any = at_work()
        tensors = run.call("inputs", (), {}, lambda: self.env.j2t_iso(list(arrays)))
        if not self.derives:
            for tensor, own in zip(tensors, filter(is_tensor, self.leaves), strict=True):
                tensor._made = tensor._made._replace(needs=needs_gradient(own))
        args = list(self.args)
        for number, value in zip(self.numbers, self._like_inputs(tensors), strict=True):
            args[number] = value
        with run.inside(), torch.enable_grad():
            out = self.f(*args)
        out, aux = out if self.has_aux else (out, ())
        flat, self.out = _pytree.tree_flatten(out)
        beside, self.aux = _pytree.tree_flatten(aux)
        return self.env.t2j_iso(flat), self.env.t2j_iso(beside)

    def inputs(self, arrays: Sequence[Any]) -> Any:
        """Arrays as tensors, structured as the arguments are."""
        tensors = self._like_inputs(_kept(arrays))
        return tensors[0] if isinstance(self.argnums, int) else tensors

    def outputs(self, arrays: Sequence[Any]) -> Any:
        """Arrays as tensors, structured as the function's outputs are."""
        return self._structured(_kept(arrays), self.out)

    def others(self, arrays: Sequence[Any]) -> Any:
        """Arrays as tensors, structured as the auxiliary outputs are."""
        return self._structured(arrays, self.aux)

    def _like_inputs(self, arrays: Sequence[Any]) -> Any:
        rest = iter(arrays)
        leaves = [next(rest) if is_tensor(leaf) else leaf for leaf in self.leaves]
        return self._structured(leaves, self.structure)

    def _structured(self, leaves: Sequence[Any], structure: Any) -> Any:
        from torch.utils import _pytree

        return _pytree.tree_unflatten(self.env.j2t_iso(list(leaves)), structure)


def _kept(arrays: Any) -> Any:
    """The arrays, with gradients stopped where autograd is off."""
    import torch

    return arrays if torch.is_grad_enabled() else jax.lax.stop_gradient(arrays)


def _applied(env: Any, translated: Callable[..., Any], kind: Any, *args: Any) -> Any:
    """Apply a `torch.autograd.Function` of class `kind`, with its backward as the derivative rule."""
    import torch
    from torch.autograd.function import _is_setup_context_defined
    from torch.utils import _pytree

    own_backward = kind.backward
    once = own_backward.__globals__ is vars(torch.autograd.function) and hasattr(
        own_backward, "__wrapped__"
    )
    # undo the decorator once_differentiable
    own_backward = own_backward.__wrapped__ if once else own_backward
    places = [k for k, value in enumerate(args) if is_tensor(value)]
    inputs = env.t2j_iso([args[k] for k in places])
    needed = tuple(is_tensor(value) and needs_gradient(value) for value in args)
    # what forward leaves in its context apart from arrays; each trace of it leaves the same
    left: dict[str, Any] = {}

    def forward(*tensors: Any) -> tuple[Any, list[Any]]:
        arguments = list(args)
        for k, tensor in zip(places, tensors, strict=True):
            arguments[k] = tensor
        context = _context()()
        context.needs_input_grad = needed
        if _is_setup_context_defined(kind.setup_context):
            out = kind.forward(*arguments)
            kind.setup_context(context, tuple(arguments), out)
        else:
            out = kind.forward(context, *arguments)
        flat = out if isinstance(out, tuple) else (out,)
        left["still"] = [any(t is each for each in context.non_differentiable) for t in flat]
        leaves, left["structure"] = _pytree.tree_flatten(vars(context))
        left["leaves"], saved = [], []
        for leaf in leaves:
            output = next((k for k, tensor in enumerate(flat) if tensor is leaf), None)
            if output is not None:
                left["leaves"].append((_OUTPUT, output))
            elif is_tensor(leaf):
                left["leaves"].append((_SAVED, len(saved)))
                saved.append(leaf)
            else:
                left["leaves"].append((None, leaf))
        return out, saved

    def backward(saved: list[Any], out: Any, slopes: Any) -> list[Any]:
        flat = out if isinstance(out, tuple) else (out,)
        kept = {_OUTPUT: flat, _SAVED: saved}
        leaves = [kept[where][leaf] if where else leaf for where, leaf in left["leaves"]]
        context = _context()()
        vars(context).update(_pytree.tree_unflatten(leaves, left["structure"]))
        input_slopes = own_backward(context, *(slopes if isinstance(slopes, tuple) else (slopes,)))
        input_slopes = input_slopes if isinstance(input_slopes, tuple) else (input_slopes,)
        if len(input_slopes) < len(args) or not all(
            each is None or is_tensor(each) for each in input_slopes
        ):
            raise RuntimeError(
                f"backward must return a tensor or None for each of {len(args)} arguments"
            )
        return [input_slopes[k] for k in places]

    def where() -> str:
        return f" of the torch.autograd.Function {kind.__name__}"

    def free(*tensors: Any) -> list[Any]:
        return [tensor for tensor, k in zip(tensors, places, strict=True) if needed[k]]

    on_arrays, back_on_arrays = translated(forward, where, free), translated(backward, where)

    def forth(*arrays: Any) -> Any:
        # through `applied`, so that a second derivative also uses the custom rule
        saved, out = on_arrays(*arrays)[1], applied(*arrays)
        return out, (saved, out)

    def back(left: tuple[list[Any], Any], slopes: Any) -> tuple[Any, ...]:
        def array(value: Any) -> Any:  # NumPy float0 arrays are JAX's cotangents of integer outputs
            if value.dtype == jax.dtypes.float0:
                return jnp.zeros(value.shape)
            return conjugated([jnp.asarray(value)])[0]

        saved, out = jax.tree_util.tree_map(jnp.asarray, left)
        input_slopes = back_on_arrays(saved, out, jax.tree_util.tree_map(array, slopes))
        input_slopes = [
            _summed(where(), slope, x) for slope, x in zip(input_slopes, inputs, strict=True)
        ]
        return tuple(_once(where(), input_slopes) if once else input_slopes)

    applied = jax.custom_vjp(lambda *arrays: on_arrays(*arrays)[0])
    applied.defvjp(forth, back)
    out = applied(*inputs)
    if isinstance(out, tuple):
        pairs = zip(out, left["still"], strict=True)
        out = tuple(jax.lax.stop_gradient(each) if still else each for each, still in pairs)
    return env.j2t_iso(_kept(out))


_SAVED, _OUTPUT = "saved", "output"


def _hooked(hooks: OrderedDict[int, Callable[..., Any]]) -> Any:
    """The identity, whose backward pass calls the hooks in order."""
    import torch

    class Hooks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *slopes: Any) -> Any:
            (slope,) = slopes
            for hook in hooks.values():
                found = hook(slope)
                slope = slope if found is None else found
            return slope

    return Hooks


@functools.cache
def _context() -> type:
    """The class of a Function's `ctx`."""
    from torch.autograd.function import FunctionCtx

    class Context(FunctionCtx):
        to_save = non_differentiable = ()
        saved_tensors = property(lambda context: context.to_save)

        def mark_dirty(self, *tensors: Any) -> None:
            raise RuntimeError("what a torch.autograd.Function writes into its arguments is lost")

    return Context


def _summed(where: str, slope: Any, x: Any) -> Any:
    """A derivative by x, summed over the axes along which x was broadcast."""
    if slope is None or not jnp.issubdtype(x.dtype, jnp.inexact):
        return None
    try:
        back = jax.linear_transpose(lambda x: jnp.broadcast_to(x, slope.shape), x)
    except ValueError as error:
        raise InputError(
            f"the backward{where} returns a derivative of shape {slope.shape} for a tensor of shape "
            f"{x.shape}."
        ) from error
    return back(conjugated([slope.astype(x.dtype)])[0])[0]


def _once(where: str, slopes: list[Any]) -> list[Any]:
    """Derivatives that cannot be differentiated again: doing so is an error, as in PyTorch."""

    @jax.custom_jvp
    def once(slopes: list[Any]) -> list[Any]:
        return slopes

    @once.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        raise InputError(
            f"the backward{where} is marked as once_differentiable: there are no second derivatives."
        )

    return once(slopes)
