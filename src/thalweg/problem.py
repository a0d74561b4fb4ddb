"""`Problem`: a model, a per-sample loss and data, as pure functions from parameters to risks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from thalweg import losses
from thalweg.errors import InputError, unknown
from thalweg.params import Layout, Params, path_name

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_REDUCTIONS = ("mean", "sum")


@jax.tree_util.register_pytree_node_class
class Problem:
    """Everything that turns a parameter point into a risk.

    The pointwise risk of sample k is loss(predict(params, x)_k, y_k); the empirical risk is its mean
    (or sum) over the data, plus the penalty; the expected risk is the one under the true
    distribution, where that is known.

    A problem is a pytree whose leaves are its arrays (data, parameters and whatever sits in a
    `Partial`), so that a compiled program serves every problem with the same functions and shapes.
    It keeps its own copies of the arrays it is given.

    Args:
        predict: pure function (params, x) -> ŷ, batched over the samples: x (n, ...), ŷ (n, ...).
        loss: a name in `thalweg.losses` ("mse", "l1", "huber", "huber:1.35", "smooth_l1",
            "cross_entropy", "bce_with_logits"), or a function (ŷ, y) -> (n,).
        x, y: the data, arrays or pytrees of arrays with n samples along the first axis.
        params: the starting point: any pytree of arrays or numbers.
        init: key -> params, for random starting points (`thalweg.descend(runs=...)`).
        expected: params -> scalar, the expected risk, where it is known.
        penalty: params -> scalar, added to the empirical and the expected risk.
        reduction: "mean" or "sum", over the samples and, for named losses, over their outputs.
        dtype: for all floating-point arrays. Without it arrays keep theirs and Python numbers take
            the data's (float64 where there is no data).

    Raises:
        InputError: shapes that do not match, data that are not finite, an unknown loss.
    """

    predict: Any
    loss: Any
    x: Any
    y: Any
    params: Any
    expected_risk: Any
    penalty: Any
    mask: Any
    reduction: str
    init: Callable[[jax.Array], Params] | None = None
    source: dict[str, Any] | None = None

    def __init__(
        self,
        predict: Callable[[Params, Any], Any],
        loss: str | losses.Loss,
        x: Any,
        y: Any,
        *,
        params: Params = None,
        init: Callable[[jax.Array], Params] | None = None,
        expected: Callable[[Params], Any] | None = None,
        penalty: Callable[[Params], Any] | None = None,
        reduction: str = "mean",
        dtype: Any = None,
    ) -> None:
        if reduction not in _REDUCTIONS:
            raise InputError(f"reduction must be 'mean' or 'sum', {reduction!r} given.")
        if params is None and init is None:
            raise InputError(
                "a problem needs params= (a starting point) or init= (key -> params); neither given."
            )
        dtype = _floating(dtype)
        self.x = _own(x, "x", dtype)
        self.y = _own(y, "y", dtype)
        default = _promoted((self.x, self.y))
        self.params = None if params is None else _own_params(params, dtype, default)
        self.init = init if init is None or dtype is None else _InDtype(init, dtype)
        self.predict = _partial(predict, "predict", dtype)
        self.loss = losses.by_name(loss) if isinstance(loss, str) else _partial(loss, "loss", dtype)
        self.expected_risk = _partial(expected, "expected", dtype) if expected is not None else None
        self.penalty = _partial(penalty, "penalty", dtype) if penalty is not None else None
        self.mask = None
        self.reduction = reduction
        self._check()

    @classmethod
    def from_function(
        cls,
        f: Callable[[Params], Any],
        params: Params = None,
        *,
        init: Callable[[jax.Array], Params] | None = None,
        dtype: Any = None,
    ) -> Problem:
        """The problem of minimising f(params) -> scalar; there are no data."""
        return cls(
            Partial(_without_data, _partial(f, "f")),
            _value,
            None,
            None,
            params=params,
            init=init,
            dtype=dtype,
        )

    @classmethod
    def from_residuals(
        cls,
        r: Callable[[Params], Any],
        params: Params = None,
        *,
        init: Callable[[jax.Array], Params] | None = None,
        dtype: Any = None,
    ) -> Problem:
        """The least-squares problem of residuals r(params) -> (m,); its risk is the sum of squares."""
        return cls(
            Partial(_without_data, _partial(r, "r")),
            "mse",
            None,
            None,
            params=params,
            init=init,
            reduction="sum",
            dtype=dtype,
        )

    @classmethod
    def from_catalogue(cls, name: str, *, dtype: Any = None) -> Problem:
        """A test function of two variables with known minima: "rosenbrock", "himmelblau", …

        A trajectory on it can be run again from its saved result alone.
        """
        from thalweg.catalogue.functions import FUNCTIONS

        if name not in FUNCTIONS:
            raise unknown("catalogue problem", name, FUNCTIONS)
        known = FUNCTIONS[name]
        problem = cls.from_function(
            known.f, params=dict(zip(("x", "y"), known.start, strict=True)), dtype=dtype
        )
        problem.source = {
            "catalogue": name,
            "dtype": None if dtype is None else str(np.dtype(dtype)),
        }
        return problem

    # Risks ------------------------------------------------------------------------------------

    def pointwise(self, params: Params) -> Float[Array, " n"]:
        """The pointwise risks (n,): the loss of each sample. The penalty is not in them."""
        return _pointwise(self, self._checked(params))

    def risk(self, params: Params, penalty: bool = True) -> Float[Array, ""]:
        """The empirical risk: the mean (or sum) of the pointwise risks, plus the penalty."""
        return _risk(self, self._checked(params), penalty=bool(penalty))

    def expected(self, params: Params, penalty: bool = True) -> Float[Array, ""]:
        """The expected risk, plus the penalty. An error where the problem was not given one."""
        if self.expected_risk is None:
            raise InputError(
                "this problem has no expected risk; give it as Problem(..., expected=params -> scalar)."
            )
        return _expected(self, self._checked(params), penalty=bool(penalty))

    def gradient(self, params: Params) -> Params:
        """The gradient of the empirical risk (with the penalty), in the shape of `params`."""
        return _gradient(self, self._checked(params))

    def residuals(self, params: Params) -> Float[Array, " m"]:
        """The residuals (m,) of a least-squares problem: the sum of their squares is the risk.

        Under reduction "mean" they are (ŷ − y)/√m. The penalty is not in them.
        """
        if not losses.is_squared_error(self.loss):
            raise InputError("residuals are defined for least-squares problems only (loss 'mse').")
        return _residuals(self, self._checked(params))

    # Parameters and samples -------------------------------------------------------------------

    @cached_property
    def layout(self) -> Layout:
        """How the parameters are laid out as one vector."""
        if self.params is not None:
            return Layout.of(self.params)
        assert self.init is not None
        return Layout.of(jax.eval_shape(self.init, jax.random.key(0)))

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in the order of JAX's leaves (dictionaries sorted by key)."""
        return self.layout.names

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.layout.size

    @property
    def n_samples(self) -> int:
        """The number of samples, n; 0 for a problem without data."""
        leaves = jax.tree_util.tree_leaves(self.x)
        return int(leaves[0].shape[0]) if leaves else 0

    def flatten(self, params: Params) -> Float[Array, " p"]:
        """`params` as one vector, in the order of `names`."""
        return self.layout.flatten(params)

    def unflatten(self, vector: Any) -> Params:
        """The parameters of a vector (p,); the inverse of `flatten`."""
        return self.layout.unflatten(vector)

    def take(self, index: Any, valid: Any = None) -> Problem:
        """The same problem on the samples `index` (b,), those that `valid` (b,) excludes left out."""
        x, y = jax.tree_util.tree_map(lambda leaf: leaf[index], (self.x, self.y))
        return self.replace(x=x, y=y, mask=valid)

    def at(self, params: Params) -> Problem:
        """The same problem with another starting point."""
        return self.replace(params=self._checked(_own_params(params, None, self.layout.dtype)))

    def replace(self, **changes: Any) -> Problem:
        """The same problem with some fields changed, as they are: nothing is copied or checked."""
        new = object.__new__(type(self))
        new.__dict__.update(
            {k: v for k, v in self.__dict__.items() if k != "layout" or "params" not in changes},
            **changes,
        )
        return new

    def __repr__(self) -> str:
        data = f"{self.n_samples} samples, " if self.n_samples else ""
        return f"<Problem: {data}{self.size} parameters, reduction {self.reduction!r}>"

    # As a pytree: arrays are leaves; functions and the reduction are static. `init` and `source`
    # are of use on the host alone, and a fresh `init` must not compile anything anew.

    def tree_flatten(self) -> tuple[tuple[Any, ...], str]:
        return (
            self.predict,
            self.loss,
            self.x,
            self.y,
            self.params,
            self.expected_risk,
            self.penalty,
            self.mask,
        ), self.reduction

    @classmethod
    def tree_unflatten(cls, reduction: str, children: tuple[Any, ...]) -> Problem:
        new = object.__new__(cls)
        (
            new.predict,
            new.loss,
            new.x,
            new.y,
            new.params,
            new.expected_risk,
            new.penalty,
            new.mask,
        ) = children
        new.reduction = reduction
        return new

    def _checked(self, params: Params) -> Params:
        """`params`, which must have the problem's structure: other shapes might broadcast."""
        if self.params is None and self.init is None:
            return params  # a problem with init= alone has no layout inside a trace
        layout = self.layout
        if not layout.matches(params):
            given = Layout.of(params)
            raise InputError(
                f"params have the entries {_entries(given)}; expected {_entries(layout)}."
            )
        leaves = [
            jnp.asarray(leaf, dtype) if _is_loose(leaf) else leaf
            for leaf, dtype in zip(jax.tree_util.tree_leaves(params), layout.dtypes, strict=True)
        ]
        return jax.tree_util.tree_unflatten(layout.treedef, leaves)

    def _check(self) -> None:
        """Shapes, once and without computing: the classic silent broadcast is an error here."""
        layout = self.layout
        if layout.size == 0:
            raise InputError("params hold no parameters.")
        for name, dtype in zip(layout.leaf_names, layout.dtypes, strict=True):
            if not jnp.issubdtype(dtype, jnp.floating):
                raise InputError(
                    f"parameter {name!r} must be a real number; init= gives dtype {dtype}."
                )
        if len(set(layout.leaf_names)) != len(layout.leaf_names):
            twice = next(n for n in layout.leaf_names if layout.leaf_names.count(n) > 1)
            raise InputError(f"two parameters have the name {twice!r}; rename one of them.")
        if self.params is not None and self.init is not None:
            drawn = Layout.of(jax.eval_shape(self.init, jax.random.key(0)))
            if (drawn.treedef, drawn.shapes) != (layout.treedef, layout.shapes):
                raise InputError(
                    f"init= and params= must give the same parameters; init= gives "
                    f"{_entries(drawn)}, params= {_entries(layout)}."
                )
        without_data = isinstance(self.predict, Partial) and self.predict.func is _without_data
        if not (jax.tree_util.tree_leaves(self.x) or without_data):
            raise InputError(
                "x holds no data; a model without inputs is Problem.from_function(f) or "
                "Problem.from_residuals(r)."
            )
        if self.x is not None and self.y is None and losses.is_entrywise(self.loss):
            raise InputError("the loss compares predictions with y, and y is None.")
        sizes = {tuple(np.shape(leaf))[:1] for leaf in jax.tree_util.tree_leaves((self.x, self.y))}
        if () in sizes:
            raise InputError(
                "x and y need a first axis over samples; a scalar was given (a tuple is a pytree: "
                "write a list or an array)."
            )
        if len(sizes) > 1:
            raise InputError(
                f"x and y must have the same number of samples; x has {_shapes(self.x)}, "
                f"y has {_shapes(self.y)}."
            )
        if sizes == {(0,)}:
            raise InputError("the data hold no samples: x and y have length 0.")
        like = layout.like
        for name, term in (("expected", self.expected_risk), ("penalty", self.penalty)):
            if term is not None and (given := _shape(jax.eval_shape(term, like))) != ():
                raise InputError(f"{name}(params) must return a scalar; it returns shape {given}.")
        yhat = jax.eval_shape(self.predict, like, self.x)
        if self.x is None:
            wanted = () if getattr(self.loss, "func", None) is _value else (None,)
            if len(getattr(yhat, "shape", (0, 0))) != len(wanted):
                raise InputError(
                    f"the function must return {'a scalar' if wanted == () else 'a vector (m,)'}; "
                    f"it returns {_shapes(yhat)}."
                )
            return
        n = self.n_samples
        for leaf in jax.tree_util.tree_leaves(yhat):
            if leaf.shape[:1] != (n,):
                raise InputError(
                    f"predict(params, x) must return one prediction a sample, {n} along the first "
                    f"axis; it returns shape {leaf.shape}."
                )
        if losses.is_entrywise(self.loss) and not (_is_array(yhat) and _is_array(self.y)):
            raise InputError(
                "a named loss compares one array with one array; predict(params, x) or y is a pytree. "
                "Give loss= as a function (yhat, y) -> (n,)."
            )
        if losses.wants_equal_shapes(self.loss) and _shape(yhat) != _shape(self.y):
            raise InputError(
                f"predictions have shape {_shape(yhat)} but y has shape {_shape(self.y)}; the loss "
                f"would broadcast them against each other. Reshape one: "
                f"{_reshape_hint(_shape(yhat), _shape(self.y))}."
            )
        if losses.is_entrywise(self.loss) and not losses.wants_equal_shapes(self.loss):
            _check_classes(yhat, self.y)
        losses_shape = _shape(jax.eval_shape(pointwise, self, like))
        if losses_shape != (n,):
            raise InputError(
                f"loss(yhat, y) must return one value a sample, shape ({n},); "
                f"it returns {losses_shape}. Do not average inside it: reduction= does."
            )


def _without_data(f: Any, params: Params, x: Any) -> Any:
    return f(params)


def _value(yhat: Any, y: Any) -> Any:
    """The loss of a problem that is a plain function: its value, as that of one sample."""
    return jnp.reshape(yhat, (1,))


class _InDtype:
    """`init` with its floating-point arrays cast to one dtype."""

    def __init__(self, init: Callable[[jax.Array], Params], dtype: np.dtype) -> None:
        self.init, self.dtype = init, dtype

    def __call__(self, key: jax.Array) -> Params:
        def cast(leaf: Any) -> Any:
            leaf = jnp.asarray(leaf)
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(self.dtype) if floating else leaf

        return jax.tree_util.tree_map(cast, self.init(key))


def _partial(f: Any, name: str, dtype: np.dtype | None = None) -> Any:
    if not callable(f):
        raise InputError(f"{name} must be a function, {type(f).__name__} given.")
    leaves, treedef = jax.tree_util.tree_flatten(f)
    if jax.tree_util.treedef_is_leaf(treedef) or not (leaves or isinstance(f, Partial)):
        return Partial(f)

    # A callable that is a pytree itself keeps its arrays as leaves: they are traced, not baked in.
    def copy(leaf: Any) -> Any:
        if not isinstance(leaf, (np.ndarray, jax.Array)):
            return leaf
        array = jnp.array(leaf)
        return array.astype(dtype) if dtype and jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree_util.tree_map(copy, f)


def _own(data: Any, name: str, dtype: np.dtype | None) -> Any:
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


def _own_params(params: Params, dtype: np.dtype | None, default: np.dtype) -> Params:
    """The parameters as device arrays of our own: Python numbers and integers in `default`."""

    def copy(path: Any, leaf: Any) -> jax.Array:
        array = _array(leaf, f"parameter {path_name(path)!r}")
        number = isinstance(leaf, (int, float)) and not isinstance(leaf, np.generic)
        if dtype is not None or number or not jnp.issubdtype(array.dtype, jnp.floating):
            array = array.astype(default if dtype is None else dtype)
        if not np.isfinite(array).all():
            raise InputError(f"parameter {path_name(path)!r} holds values that are not finite.")
        return jax.device_put(array)

    return jax.tree_util.tree_map_with_path(copy, params)


def _array(leaf: Any, name: str) -> np.ndarray | jax.Array:
    """`leaf` as an array of real numbers of our own; JAX arrays cannot change and are kept."""
    if np.ma.is_masked(leaf):
        raise InputError(f"{name} holds masked values; drop or fill them first.")
    if hasattr(leaf, "detach"):  # a torch tensor
        leaf = leaf.detach().cpu()
    try:
        # in two steps, because torch tensors cannot copy themselves
        array = leaf if isinstance(leaf, jax.Array) else np.array(np.asarray(leaf))
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be read as an array of numbers: {error}") from None
    if array.dtype.kind not in "fiub" and not jnp.issubdtype(array.dtype, jnp.floating):
        given = f"{leaf!r:.60}" if array.ndim == 0 else f"dtype {array.dtype}"
        raise InputError(f"{name} must hold real numbers; {given} given.")
    return array


def _floating(dtype: Any) -> np.dtype | None:
    try:
        found = None if dtype is None else jnp.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found is not None and not jnp.issubdtype(found, jnp.floating):
        raise InputError(f"dtype must be a floating-point type such as 'float32'; {dtype!r} given.")
    return found


def _promoted(data: Any) -> np.dtype:
    """The dtype of the data's floating-point arrays together; float64 where there are none."""
    leaves = jax.tree_util.tree_leaves(data)
    floating = [leaf.dtype for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return jnp.result_type(*floating) if floating else np.dtype(float)


def _is_loose(leaf: Any) -> bool:
    """Whether a parameter is a Python number or an integer: it means one of the parameter's dtype,
    so that 2 and 2.0 are one program and have a gradient."""
    if isinstance(leaf, jax.Array):
        return jnp.issubdtype(leaf.dtype, jnp.integer)
    return not isinstance(leaf, np.generic | np.ndarray) or leaf.dtype.kind in "iub"


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def _shape(value: Any) -> Any:
    if _is_array(value):
        return value.shape
    return jax.tree_util.tree_map(lambda v: v.shape, value)


def _entries(layout: Layout) -> str:
    """The names and shapes of a pytree's leaves, for an error."""
    leaves = [f"{n} {s}" for n, s in zip(layout.leaf_names, layout.shapes, strict=True)]
    more = ", …" if len(leaves) > 8 else ""
    return f"{{{', '.join(leaves[:8])}{more}}}"


def _shapes(tree: Any) -> str:
    shapes = [tuple(np.shape(leaf)) for leaf in jax.tree_util.tree_leaves(tree)]
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {shapes}"


def _reshape_hint(yhat: Any, y: Any) -> str:
    if len(yhat) == len(y) + 1 and yhat[-1] == 1:
        return "predict(...)[:, 0], or y[:, None]" if len(y) == 1 else "y[..., None]"
    if len(y) == len(yhat) + 1 and y[-1] == 1:
        return "y[..., 0], or predict(...)[..., None]"
    return "they must agree in every axis"


def _check_classes(yhat: Any, y: Any) -> None:
    if len(yhat.shape) < 2:
        raise InputError(
            f"cross_entropy needs predictions (n, classes); predict returns {yhat.shape}."
        )
    classes = yhat.shape[1]
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape != (yhat.shape[0], *yhat.shape[2:]):
            raise InputError(
                f"cross_entropy: class indices must have shape "
                f"{(yhat.shape[0], *yhat.shape[2:])}; y has {y.shape}."
            )
        low, high = int(np.min(y)), int(np.max(y))
        if low < 0 or high >= classes:
            raise InputError(
                f"cross_entropy: classes go from 0 to {classes - 1}; y holds {low} to {high}."
            )
    elif y.shape != yhat.shape:
        raise InputError(
            f"cross_entropy: y must hold integer classes, or probabilities of shape {yhat.shape}; "
            f"it has dtype {y.dtype} and shape {y.shape}."
        )


# The pure functions behind the methods. They are compiled at the module's level, so that every
# problem with the same functions and shapes shares one program; inside a trace they are inlined.


def pointwise(problem: Problem, params: Params) -> Any:
    """`Problem.pointwise` for use inside a trace."""
    yhat = problem.predict(params, problem.x)
    y = problem.y if problem.y is not None else jnp.zeros((), yhat.dtype)
    values = problem.loss(yhat, y)
    if losses.is_entrywise(problem.loss):
        values = losses.over_outputs(values, problem.reduction)
    return values


def _risk_now(problem: Problem, params: Params, penalty: bool) -> Any:
    values = pointwise(problem, params)
    if problem.mask is None:
        total, count = values.sum(), values.shape[0]
    else:
        total, count = jnp.where(problem.mask, values, 0).sum(), problem.mask.sum()
    risk = total / count if problem.reduction == "mean" else total
    return penalised(problem, params, risk, penalty)


def penalised(problem: Problem, params: Params, risk: Any, penalty: bool) -> Any:
    """`risk` with the problem's penalty at `params` added, where it is wanted and there is one."""
    return risk + problem.penalty(params) if penalty and problem.penalty is not None else risk


def _expected_now(problem: Problem, params: Params, penalty: bool) -> Any:
    risk = jnp.asarray(problem.expected_risk(params))
    return penalised(problem, params, risk, penalty)


def _residuals_now(problem: Problem, params: Params) -> Any:
    yhat = problem.predict(params, problem.x)
    residuals = yhat if problem.y is None else yhat - problem.y
    if problem.mask is not None:
        shape = (-1,) + (1,) * (residuals.ndim - 1)
        residuals = jnp.where(problem.mask.reshape(shape), residuals, 0)
    if problem.reduction == "mean":
        rows = residuals.shape[0] if problem.mask is None else problem.mask.sum()
        outputs = residuals.size // residuals.shape[0]
        residuals = residuals / jnp.sqrt(jnp.asarray(rows * outputs, residuals.dtype))
    return residuals.reshape(-1)


def _gradient_now(problem: Problem, params: Params) -> Any:
    return jax.grad(lambda w: _risk_now(problem, w, True))(params)


_pointwise = jax.jit(pointwise)
_risk = jax.jit(_risk_now, static_argnames="penalty")
_expected = jax.jit(_expected_now, static_argnames="penalty")
_residuals = jax.jit(_residuals_now)
_gradient = jax.jit(_gradient_now)


def value_and_gradient(problem: Problem, params: Params) -> tuple[Any, Params]:
    """The empirical risk with the penalty, and its gradient; for use inside a trace."""
    return jax.value_and_grad(lambda w: _risk_now(problem, w, True))(params)
