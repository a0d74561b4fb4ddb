"""`Problem`: a model, a per-sample loss and data, which give a parameter point its risks."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.tree_util import Partial

from thalweg import checks, identity, inputs, losses, risks
from thalweg.errors import InputError, one_of
from thalweg.params import Layout, Params, promoted
from thalweg.stateful import model_with_state

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_REDUCTIONS = ("mean", "sum")
# What a compiled program is given of a problem: all but `init` and `source`, which only the host uses. A new
# `init` must not cause a recompilation.
_CHILDREN = ("predict", "loss", "x", "y", "params", "expected_risk", "penalty", "mask")
_children_of = operator.attrgetter(*_CHILDREN)


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
        one_of("reduction", reduction, _REDUCTIONS)
        if params is None and init is None:
            raise InputError(
                "a problem needs params= (a starting point) or init= (key -> params); neither given."
            )
        if init is not None and not callable(init):
            raise InputError(f"init must be a function, key -> params; {init!r:.80} given.")
        dtype = inputs.floating_dtype(dtype)
        self.x = inputs.own_data(x, "x", dtype)
        self.y = inputs.own_data(y, "y", dtype)
        default = inputs.promoted_dtype((self.x, self.y))
        self.params = None if params is None else inputs.own_params(params, dtype, default)
        self.init = init if init is None or dtype is None else inputs.InDtype(init, dtype)
        self.predict = inputs.as_function(predict, "predict", dtype)
        self.loss = (
            losses.by_name(loss)
            if isinstance(loss, str)
            else inputs.as_function(loss, "loss", dtype)
        )
        self.expected_risk = (
            inputs.as_function(expected, "expected", dtype) if expected is not None else None
        )
        self.penalty = (
            inputs.as_function(penalty, "penalty", dtype) if penalty is not None else None
        )
        self.mask = None
        self.reduction = reduction
        checks.check(self)
        self._know_functions()

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
            Partial(_without_data, inputs.as_function(f, "f")),
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
            Partial(_without_data, inputs.as_function(r, "r")),
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

        one_of("catalogue problem", name, FUNCTIONS)
        function = FUNCTIONS[name]
        problem = cls.from_function(
            function.f, params=dict(zip(("x", "y"), function.start, strict=True)), dtype=dtype
        )
        problem.source = {
            "catalogue": name,
            "dtype": None if dtype is None else str(np.dtype(dtype)),
        }
        return problem

    # Risks ------------------------------------------------------------------------------------

    def pointwise(self, params: Params) -> Float[Array, " n"]:
        """The pointwise risks (n,): the loss of each sample. The penalty is not in them."""
        return risks.pointwise(self, self._checked(params))

    def risk(self, params: Params, penalty: bool = True) -> Float[Array, ""]:
        """The empirical risk: the mean (or sum) of the pointwise risks, plus the penalty."""
        return risks.risk(self, self._checked(params), penalty=bool(penalty))

    def expected(self, params: Params, penalty: bool = True) -> Float[Array, ""]:
        """The expected risk, plus the penalty. An error where the problem was not given one."""
        check_has_expected(self)
        return risks.expected(self, self._checked(params), penalty=bool(penalty))

    def gradient(self, params: Params) -> Params:
        """The gradient of the empirical risk (with the penalty), in the shape of `params`."""
        return risks.gradient(self, self._checked(params))

    def residuals(self, params: Params) -> Float[Array, " m"]:
        """The residuals (m,) of a least-squares problem: the sum of their squares is the risk.

        Under reduction "mean" they are (ŷ − y)/√m. The penalty is not in them.
        """
        if not losses.is_squared_error(self.loss):
            raise InputError("residuals are defined for least-squares problems only (loss 'mse').")
        return risks.residuals(self, self._checked(params))

    # Parameters and samples -------------------------------------------------------------------

    @cached_property
    def layout(self) -> Layout:
        """How the parameters are laid out as one vector."""
        if self.params is not None:
            return Layout.of(self.params)
        assert self.init is not None
        return Layout.of(inputs.drawn(self.init))

    @property
    def names(self) -> Sequence[str]:
        """The parameters' names, in the order of JAX's leaves (dictionaries sorted by key): a tuple;
        with more than 65,536 parameters, a sequence that makes each name when it is asked for."""
        return self.layout.names

    @property
    def size(self) -> int:
        """The number of parameters."""
        return self.layout.size

    @property
    def is_without_data(self) -> bool:
        """Whether this was made by `from_function` or `from_residuals`."""
        return getattr(self.predict, "func", None) is _without_data

    @property
    def is_function(self) -> bool:
        """Whether this was made by `from_function`."""
        return getattr(self.loss, "func", None) is _value

    @property
    def n_samples(self) -> int:
        """The number of samples, n; 0 for a problem without data."""
        leaves = jax.tree_util.tree_leaves(self.x)
        return int(leaves[0].shape[0]) if leaves else 0

    def flatten(self, params: Params) -> Float[Array, " p"]:
        """`params` as one vector, in the order of `names`."""
        return self.layout.flatten(self._point(params))

    def unflatten(self, vector: Any) -> Params:
        """The parameters of a vector (p,); the inverse of `flatten`."""
        return self.layout.unflatten(vector)

    def take(self, index: Any, valid: Any = None) -> Problem:
        """The same problem on the samples `index` (b,), those that `valid` (b,) excludes left out.

        Raises:
            InputError: no samples, numbers of samples that there are not, a `valid` that is no mask of them.
        """
        if not isinstance(index, Tracer):
            index = inputs.places("index", index, self.n_samples)
            if not len(index):
                raise InputError("index names no samples, and a problem needs at least one.")
            if valid is not None:
                valid = inputs.mask("valid", valid, len(index))
        x, y, mask = _rows((self.x, self.y, self.mask), index)
        if mask is not None:
            valid = mask if valid is None else mask & valid
        return self.replace(x=x, y=y, mask=valid)

    def without_left_out(self) -> Problem:
        """The same problem on only those samples that count in its risk."""
        if self.mask is None:
            return self
        kept = np.flatnonzero(self.mask)
        if not len(kept):
            raise InputError("all samples of this problem are left out of its risk.")
        return self.take(kept).replace(mask=None)

    def at(self, params: Params) -> Problem:
        """The same problem with another starting point: a pytree like the problem's, a `state_dict` with the
        same entries, a vector (p,), or a trajectory's iterate."""
        start = inputs.own_params(self._point(params), None, self.layout.dtype)
        return self.replace(params=self._checked(start))

    def replace(self, **changes: Any) -> Problem:
        """The same problem with some fields changed, as they are: nothing is copied or checked.

        What it was made from is forgotten, but for another starting point.
        """
        if not set(changes) <= {"params"}:
            changes = {"source": None, **changes}
        new = object.__new__(type(self))
        new.__dict__.update(
            {k: v for k, v in self.__dict__.items() if k != "layout" or "params" not in changes},
            **changes,
        )
        return new

    def __repr__(self) -> str:
        data = f"{self.n_samples} samples, " if self.n_samples else ""
        return f"<Problem: {data}{self.size} parameters, reduction {self.reduction!r}>"

    # As a pytree: arrays are leaves; functions and the reduction are static.

    def tree_flatten(self) -> tuple[tuple[Any, ...], str]:
        return _children_of(self), self.reduction

    @classmethod
    def tree_unflatten(cls, reduction: str, children: tuple[Any, ...]) -> Problem:
        new = object.__new__(cls)
        new.__dict__.update(zip(_CHILDREN, children, strict=True), reduction=reduction)
        return new

    def _know_functions(self) -> None:
        """Identify the user's functions by their programs, so that redefining them does not recompile."""
        like = self.layout.like
        if self.is_without_data:
            f = identity.by_program(self.predict.args[0], like)
            self.predict = Partial(self.predict.func, f)
        else:
            self.predict = identity.by_program(self.predict, like, self.x)
        if not (self.is_function or losses.is_entrywise(self.loss)):
            yhat = jax.eval_shape(self.predict, like, self.x)
            self.loss = identity.by_program(self.loss, yhat, self.y)
        self.expected_risk = identity.by_program(self.expected_risk, like)
        self.penalty = identity.by_program(self.penalty, like)

    def _point(self, params: Any) -> Params:
        """A point converted to the problem's structure; of a module's `state_dict`, only the parameters are
        taken."""
        model = model_with_state(self)
        if model is not None and isinstance(params, Mapping):
            params = model.parameters_of(self.predict.args[0], params)
        return inputs.point(params, self.layout)

    def _checked(self, params: Params) -> Params:
        """`params` in the problem's structure; an error if they do not fit: other shapes might broadcast."""
        if self.params is None and self.init is None:
            return params  # a problem with init= alone has no layout inside a trace
        layout = self.layout
        params = self._point(params)
        if not layout.matches(params):
            try:
                entries = inputs.entries(Layout.of(params))
            except TypeError:  # leaves that are no numbers
                entries = f"{params!r:.80}"
            raise InputError(
                f"params have the entries {entries}; expected {inputs.entries(layout)}."
            )
        leaves = [
            jnp.asarray(leaf, dtype) if inputs.is_loose(leaf) else leaf
            for leaf, dtype in zip(jax.tree_util.tree_leaves(params), layout.dtypes, strict=True)
        ]
        return jax.tree_util.tree_unflatten(layout.treedef, leaves)


@partial(jax.jit, inline=True)
def _rows(tree: Any, index: Any) -> Any:
    """The rows `index` of each array, in one program."""
    return jax.tree_util.tree_map(lambda leaf: leaf[index], tree)


def _without_data(f: Any, params: Params, x: Any) -> Any:
    return jax.tree_util.tree_map(jnp.asarray, f(params))  # f may return a Python number


def _value(yhat: Any, y: Any) -> Any:
    """The loss of a problem that is a plain function: its value, as that of one sample."""
    return jnp.reshape(yhat, (1,))


def check_is_problem(value: Any) -> None:
    """An InputError where something else was given."""
    if not isinstance(value, Problem):
        raise InputError(f"a thalweg.Problem was expected, {type(value).__name__} given.")


def check_has_expected(problem: Problem) -> None:
    """An InputError where a problem has no expected risk."""
    if problem.expected_risk is None:
        raise InputError(
            "this problem has no expected risk; give it as Problem(..., expected=params -> scalar)."
        )


def vector_of(problem: Problem, params: Params) -> Any:
    """A point of a problem as a vector (p,); one that is a vector already keeps its precision.

    Raises:
        InputError: not a problem, or a point that does not fit it.
    """
    check_is_problem(problem)
    is_vector = isinstance(params, (np.ndarray, jax.Array)) and params.shape == (problem.size,)
    if is_vector and inputs.is_real(params.dtype):
        return params
    return problem.flatten(problem.at(params).params)


def described(problem: Problem) -> dict[str, Any]:
    """What a result's settings say of a problem."""
    model = model_with_state(problem)
    return {
        "source": problem.source,
        "loss": losses.name_of(problem.loss),
        "reduction": problem.reduction,
        "n_samples": problem.n_samples,
        "n_parameters": problem.size,
        **(model.described() if model is not None else {}),
    }


def in_precision(problem: Problem, dtype: Any) -> Problem:
    """The problem with its parameters and data in at least this precision, as far as JAX's settings allow."""
    init = problem.init and inputs.InDtype(
        problem.init, jnp.promote_types(problem.layout.dtype, dtype)
    )
    x, y, params = promoted((problem.x, problem.y, problem.params), dtype)
    problem = problem.replace(x=x, y=y, params=params, init=init)
    if model_with_state(problem) is None:
        return problem
    held = promoted(problem.predict.args[0], dtype)
    return problem.replace(predict=Partial(problem.predict.func, held))
