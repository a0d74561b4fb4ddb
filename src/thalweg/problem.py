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
from thalweg.params import Layout, Params

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
        dtype = None if dtype is None else np.dtype(dtype)
        self.x = _own(x, "x", dtype)
        self.y = _own(y, "y", dtype)
        self.params = None if params is None else _own_params(params, dtype, (self.x, self.y))
        self.init = init if init is None or dtype is None else _InDtype(init, dtype)
        self.predict = _partial(predict, "predict")
        self.loss = losses.by_name(loss) if isinstance(loss, str) else _partial(loss, "loss")
        self.expected_risk = _partial(expected, "expected")
        self.penalty = _partial(penalty, "penalty")
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
        return _pointwise(self, params)

    def risk(self, params: Params, penalty: bool = True) -> Float[Array, ""]:
        """The empirical risk: the mean (or sum) of the pointwise risks, plus the penalty."""
        return _risk(self, params, penalty=bool(penalty))

    def expected(self, params: Params, penalty: bool = True) -> Float[Array, ""]:
        """The expected risk, plus the penalty. An error where the problem was not given one."""
        if self.expected_risk is None:
            raise InputError(
                "this problem has no expected risk; give it as Problem(..., expected=params -> scalar)."
            )
        return _expected(self, params, penalty=bool(penalty))

    def gradient(self, params: Params) -> Params:
        """The gradient of the empirical risk (with the penalty), in the shape of `params`."""
        return _gradient(self, params)

    def residuals(self, params: Params) -> Float[Array, " m"]:
        """The residuals (m,) of a least-squares problem: the sum of their squares is the risk.

        Under reduction "mean" they are (ŷ − y)/√m. The penalty is not in them.
        """
        if not losses.is_squared_error(self.loss):
            raise InputError("residuals are defined for least-squares problems only (loss 'mse').")
        return _residuals(self, params)

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
        own = _own_params(params, None, (self.x, self.y))
        if not self.layout.matches(own):
            raise InputError(
                f"params have the structure {Layout.of(own).names[:8]}; "
                f"expected {self.names[:8]} with shapes {self.layout.shapes[:8]}."
            )
        return self.replace(params=own)

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

    def _check(self) -> None:
        """Shapes, once and without computing: the classic silent broadcast is an error here."""
        sizes = {tuple(np.shape(leaf))[:1] for leaf in jax.tree_util.tree_leaves((self.x, self.y))}
        if () in sizes:
            raise InputError("x and y need a first axis over samples; a scalar was given.")
        if len(sizes) > 1:
            raise InputError(
                f"x and y must have the same number of samples; x has {_shapes(self.x)}, "
                f"y has {_shapes(self.y)}."
            )
        if sizes == {(0,)}:
            raise InputError("the data hold no samples: x and y have length 0.")
        like = self.layout.like
        yhat = jax.eval_shape(self.predict, like, self.x)
        if self.x is None:
            wanted = () if self.loss.func is _value else (None,)
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
        if losses.wants_equal_shapes(self.loss) and _shape(yhat) != _shape(self.y):
            raise InputError(
                f"predictions have shape {_shape(yhat)} but y has shape {_shape(self.y)}; the loss "
                f"would broadcast them against each other. Reshape one: "
                f"{_reshape_hint(_shape(yhat), _shape(self.y))}."
            )
        if losses.is_entrywise(self.loss) and not losses.wants_equal_shapes(self.loss):
            _check_classes(yhat, self.y)
        losses_shape = jax.eval_shape(pointwise, self, like).shape
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
        return jax.tree_util.tree_map(
            lambda leaf: (
                leaf.astype(self.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
            ),
            self.init(key),
        )


def _partial(f: Any, name: str) -> Any:
    if f is None or isinstance(f, Partial):
        return f
    if not callable(f):
        raise InputError(f"{name} must be a function, {type(f).__name__} given.")
    leaves, treedef = jax.tree_util.tree_flatten(f)
    # A callable that is a pytree itself keeps its arrays as leaves: they are traced, not baked in.
    return f if not jax.tree_util.treedef_is_leaf(treedef) and leaves else Partial(f)


def _own(data: Any, name: str, dtype: np.dtype | None) -> Any:
    """The data as device arrays of our own; JAX arrays cannot change and are kept as they are."""

    def copy(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array):
            array = leaf
        else:
            array = np.array(leaf)
            if array.dtype.kind not in "fiub":
                raise InputError(f"{name} must hold numbers; its dtype is {array.dtype}.")
        floating = jnp.issubdtype(array.dtype, jnp.floating)
        if floating and dtype is not None:
            array = array.astype(dtype)
        if floating and not np.isfinite(np.asarray(array)).all():
            bad = ~np.isfinite(np.asarray(array))
            first = tuple(int(i) for i in np.argwhere(bad)[0])
            where = f"{name}[{', '.join(map(str, first))}]"
            raise InputError(
                f"{name} holds {int(bad.sum())} values that are not finite, the first at {where}; "
                f"drop or fill them first."
            )
        return jax.device_put(array)

    # A list of numbers is one array, not a tree of scalars.
    return jax.tree_util.tree_map(copy, data, is_leaf=lambda node: isinstance(node, list))


def _own_params(params: Params, dtype: np.dtype | None, data: Any) -> Params:
    floating = [
        leaf.dtype
        for leaf in jax.tree_util.tree_leaves(data)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    default = dtype or (np.result_type(*floating) if floating else np.dtype(float))

    def copy(leaf: Any) -> jax.Array:
        array = leaf if isinstance(leaf, jax.Array) else np.array(leaf)
        if array.dtype.kind in "OSU":
            raise InputError(f"params must hold numbers; {leaf!r} given.")
        if dtype is not None or isinstance(leaf, (int, float)) or array.dtype.kind in "iub":
            array = array.astype(default)
        if not np.isfinite(np.asarray(array)).all():
            raise InputError("params hold values that are not finite.")
        return jax.device_put(array)

    own = jax.tree_util.tree_map(copy, params)
    if not jax.tree_util.tree_leaves(own):
        raise InputError("params hold no parameters.")
    return own


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None) or jax.tree_util.tree_map(lambda v: v.shape, value)


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
