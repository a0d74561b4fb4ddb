"""What a user gives to a problem: read, copied and checked.

The user's own arrays are neither kept nor changed. An input that does not fit raises an error of one clear
line, before anything is computed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from thalweg import names, weights
from thalweg.errors import InputError
from thalweg.params import Layout, Params, path_name


@dataclass(frozen=True)
class InDtype:
    """`init` with its floating-point arrays cast to one dtype. Instances of equal `init` and dtype are equal,
    so that they share compiled programs."""

    init: Callable[[jax.Array], Params]
    dtype: np.dtype

    def __call__(self, key: jax.Array) -> Params:
        def cast(leaf: Any) -> Any:
            leaf = jnp.asarray(leaf)
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(self.dtype) if floating else leaf

        return jax.tree_util.tree_map(cast, weights.all_trained(self.init(key)))


def drawn(init: Callable[[jax.Array], Params]) -> Params:
    """The shapes of what `init` draws."""
    return jax.eval_shape(lambda key: weights.all_trained(init(key)), jax.random.key(0))


def as_function(f: Any, name: str, dtype: np.dtype | None = None) -> Any:
    if not callable(f):
        raise InputError(f"{name} must be a function, {type(f).__name__} given.")
    if str(getattr(f, "__module__", "")).split(".")[0] == "torch":
        raise InputError(
            f"{name} is PyTorch's {getattr(f, '__name__', type(f).__name__)}, which takes tensors: it goes "
            f"with thalweg.from_torch. Here give a name such as 'mse', or a function written with jax.numpy."
        )
    leaves, treedef = jax.tree_util.tree_flatten(f)
    if jax.tree_util.treedef_is_leaf(treedef) or not (leaves or isinstance(f, Partial)):
        return Partial(f)

    # A callable that is a pytree keeps its arrays as leaves, so that they are traced, not compiled in.
    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, (np.ndarray, jax.Array)):
            return leaf
        array = jnp.array(leaf)
        return array.astype(dtype) if dtype and jnp.issubdtype(array.dtype, jnp.floating) else array

    leaves = [copy(leaf) for leaf in leaves]
    if all(isinstance(leaf, (jax.Array, int, float)) for leaf in leaves):
        return treedef.unflatten(leaves)
    # Equinox's filter_jit has functions and strings among its leaves, which cannot be traced
    is_array = [isinstance(leaf, jax.Array) for leaf in leaves]

    def with_arrays(arrays: list[jax.Array], *args: Any) -> Any:
        remaining = iter(arrays)
        call_leaves = (
            next(remaining) if ours else leaf for ours, leaf in zip(is_array, leaves, strict=True)
        )
        return treedef.unflatten(call_leaves)(*args)

    return Partial(with_arrays, [leaf for leaf in leaves if isinstance(leaf, jax.Array)])


def own_data(data: Any, name: str, dtype: np.dtype | None) -> Any:
    """The data as device arrays of our own."""

    def copy(path: Any, leaf: Any) -> jax.Array:
        where = name + jax.tree_util.keystr(path)
        array = _array(leaf, where)
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        if floating and dtype is not None:
            array = array.astype(dtype)
        if floating and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))
            raise InputError(
                f"{where} holds values that are not finite: {len(bad)} of {array.size}, the first at "
                f"{where}[{', '.join(map(str, bad[0]))}]; drop or fill them first."
            )
        return jax.device_put(array)

    # A list of numbers is one array, not a tree of scalars.
    return jax.tree_util.tree_map_with_path(copy, data, is_leaf=lambda node: isinstance(node, list))


def own_params(params: Params, dtype: np.dtype | None, default: np.dtype) -> Params:
    """The parameters as device arrays of our own: Python numbers and integers in `default`."""

    def copy(path: Any, leaf: Any) -> jax.Array:
        array = _array(leaf, f"parameter {path_name(path)!r}")
        number = isinstance(leaf, (int, float)) and not isinstance(leaf, np.generic)
        if array.dtype == bool and not number:
            raise InputError(
                f"parameter {path_name(path)!r} holds booleans, which no optimizer can change: keep it "
                f"out of params, where the model reads it from outside."
            )
        if dtype is not None or number or not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(default if dtype is None else dtype)
        if not np.isfinite(array).all():
            raise InputError(f"parameter {path_name(path)!r} holds values that are not finite.")
        return jax.device_put(array)

    try:
        copied = jax.tree_util.tree_map_with_path(copy, weights.all_trained(params))
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        # JAX sorts dictionaries by key
        raise InputError(
            f"params: a dictionary's keys must all be strings; {params!r:.80} given."
        ) from None
    return copied


def point(params: Any, layout: Layout) -> Params:
    """A point converted to the structure of `layout`: from another mapping with the same entries, such as an
    ordered `state_dict`, a vector (p,), or a trajectory's iterate; torch tensors become arrays. What does not
    fit is returned as it is."""
    # an xarray Dataset is a trajectory with a single step selected
    params = params["params"] if hasattr(params, "data_vars") and "params" in params else params
    if hasattr(params, "dims") and hasattr(params, "coords"):
        if tuple(params.dims) != ("param",):
            raise InputError(
                f"a point is one iterate, on the dimension 'param' alone; this has {', '.join(params.dims)}. "
                f"Select it, as in path['params'].isel(step=-1)."
            )
        if not names.same(params, layout.names):
            raise InputError("this iterate has other parameters than the problem.")
        params = params.values
    if hasattr(params, "state_dict"):
        raise InputError("a module is not a point: give its state_dict().")
    if is_tensor(params) and len(layout.leaf_names) > 1:
        raise InputError(
            "a vector of torch's has the parameters in their module's order, and here they are sorted by "
            "name: give the module's state_dict()."
        )
    params = weights.trained(params)
    if not layout.matches(params):
        params = _in_dicts(params)
        leaves = jax.tree_util.tree_leaves_with_path(params)
        if isinstance(params, (np.ndarray, jax.Array)) and params.shape == (layout.size,):
            if not is_real(params.dtype):
                raise InputError(f"a point must hold real numbers; dtype {params.dtype} given.")
            params = layout.unflatten(params)
        elif tuple(path_name(path) for path, _ in leaves) == layout.leaf_names:
            params = layout.treedef.unflatten([leaf for _, leaf in leaves])
    return jax.tree_util.tree_map(lambda leaf: of_tensor(leaf) if is_tensor(leaf) else leaf, params)


def is_tensor(value: Any) -> bool:
    """Whether this is a PyTorch tensor; PyTorch need not be installed."""
    return hasattr(value, "detach")


def of_tensor(tensor: Any) -> np.ndarray:
    """A tensor as an array, which shares the tensor's memory if that is on the CPU; bfloat16, which NumPy
    lacks, becomes float32."""
    if str(tensor.layout) != "torch.strided":
        raise InputError(f"a tensor is {tensor.layout}; make it dense first, with to_dense().")
    tensor = tensor.detach().cpu()
    return np.asarray(tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor)


def to_tensor(array: Any) -> Any:
    """An array copied to a tensor on the CPU; bfloat16, which NumPy lacks, becomes float32."""
    import torch

    copied = np.array(array, np.float32 if array.dtype == jnp.bfloat16 else None)
    return torch.tensor(copied, device="cpu")


def constants(loss: Any) -> Iterator[tuple[str, Any]]:
    """The tensors of a PyTorch loss module that are not trained: buffers, such as class weights, and frozen
    parameters."""
    yield from loss.named_buffers()
    for name, parameter in loss.named_parameters():
        if not parameter.requires_grad:
            yield name, parameter


def unwrapped(module: Any) -> Any:
    """The user's own module, without wrappers by `torch.compile` or parallel training."""
    while True:
        if hasattr(module, "_orig_mod"):
            module = module._orig_mod
        elif type(module).__name__ in ("DataParallel", "DistributedDataParallel"):
            module = module.module
        else:
            return module


def bare_name(name: str) -> str:
    """The name that an entry of a wrapped module's `state_dict` has in the module itself."""
    while name.startswith(("_orig_mod.", "module.")):
        name = name.split(".", 1)[1]
    return name


def is_real(dtype: Any) -> bool:
    """Whether a dtype holds real numbers; NumPy does not know JAX's half-precision dtypes."""
    return getattr(dtype, "kind", "key") in "fiub" or bool(jnp.issubdtype(dtype, jnp.floating))


def _in_dicts(tree: Any) -> Any:
    """A pytree with plain dictionaries for its mappings."""

    def plain(node: Any) -> Any:
        is_mapping = isinstance(node, Mapping)
        return {key: _in_dicts(value) for key, value in node.items()} if is_mapping else node

    return jax.tree_util.tree_map(plain, tree, is_leaf=lambda node: isinstance(node, Mapping))


def _array(leaf: Any, name: str) -> np.ndarray | jax.Array:
    """`leaf` as our own array of real numbers: a copy, but for JAX arrays, which are immutable."""
    if np.ma.is_masked(leaf):
        raise InputError(f"{name} holds masked values; drop or fill them first.")
    try:
        leaf = of_tensor(leaf) if is_tensor(leaf) else leaf
        array = leaf if isinstance(leaf, jax.Array) else np.array(leaf)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be read as an array of numbers: {error}") from None
    if not is_real(array.dtype):
        given = f"{leaf!r:.60}" if array.ndim == 0 else f"dtype {array.dtype}"
        raise InputError(f"{name} must hold real numbers; {given} given.")
    return array


def floating_dtype(dtype: Any) -> np.dtype | None:
    try:
        converted = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        converted = np.dtype(object)
    if converted is not None and not jnp.issubdtype(converted, jnp.floating):
        raise InputError(f"dtype must be a floating-point type such as 'float32'; {dtype!r} given.")
    return converted


def promoted_dtype(data: Any) -> np.dtype:
    """The dtype of the data's floating-point arrays together; float64 where there are none."""
    leaves = jax.tree_util.tree_leaves(data)
    floating = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*floating) if floating else np.dtype(float)


def places(name: str, given: Any, count: int) -> np.ndarray:
    """Indices of the selected ones among `count` samples, from indices (b,), a slice or a boolean mask."""
    if not count:
        raise InputError(f"{name} is of samples, and this problem has none; {given!r:.60} given.")
    index = np.arange(count)[given] if isinstance(given, slice) else np.asarray(given)
    if index.dtype == bool and index.shape == (count,):
        return np.flatnonzero(index)
    whole = index.dtype.kind in "iu" or not index.size
    if (
        index.ndim != 1
        or not whole
        or (index.size and not -count <= index.min() <= index.max() < count)
    ):
        raise InputError(
            f"{name} must be a list of whole numbers below {count}, the number of samples; "
            f"{given!r:.60} given."
        )
    return index.astype(np.int64)


def mask(name: str, given: Any, count: int) -> Any:
    """A boolean for each of `count` samples."""
    if isinstance(given, Tracer):
        return given
    given = np.asarray(given)
    if given.dtype != bool or given.shape != (count,):
        raise InputError(
            f"{name} must hold one boolean for each of the {count} samples; shape {given.shape} and dtype "
            f"{given.dtype} given."
        )
    return given


@contextmanager
def written_in_jax(name: str, on: str = "parameters or data") -> Iterator[None]:
    """Turn JAX's errors about functions that cannot be traced into one line about `name`."""
    try:
        yield
    except Exception as error:
        untraced = (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError)
        of_torch = isinstance(error, TypeError) and "torch.Tensor" in str(error)
        if isinstance(error, TypeError) and not of_torch and "not a valid JAX" in str(error):
            what = re.search(r"<class '(.*?)'>|(?<=Value ).*(?= with dtype)", str(error))
            given = f"; {what[1] or what[0]} returned" if what else ""
            raise InputError(f"{name} must return numbers or arrays{given}.") from error
        if not isinstance(error, untraced) and not of_torch:
            raise
        raise InputError(
            f"{name} must be a pure function written with jax.numpy (jnp.exp, not np.exp), without "
            f"float() or if on {on} (jnp.where instead)."
        ) from error


def is_loose(leaf: Any) -> bool:
    """Whether a parameter value is a Python number or an integer. It is then converted to the parameter's
    dtype, so that 2 and 2.0 share one program and have a gradient."""
    if isinstance(leaf, jax.Array):
        return jnp.issubdtype(leaf.dtype, jnp.integer)
    return not isinstance(leaf, np.generic | np.ndarray) or leaf.dtype.kind in "iub"


def entries(layout: Layout) -> str:
    """The names and shapes of a pytree's leaves, for an error."""
    leaves = [f"{n} {s}" for n, s in zip(layout.leaf_names, layout.shapes, strict=True)]
    more = ", …" if len(leaves) > 8 else ""
    return f"{{{', '.join(leaves[:8])}{more}}}"
