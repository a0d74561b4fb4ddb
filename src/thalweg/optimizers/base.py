"""What an optimizer is: hyperparameters, which are numbers, and a rule (init, update)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Protocol, Self, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import backend as _backend  # noqa: F401
from thalweg.errors import InputError
from thalweg.params import Params
from thalweg.problem import Problem

State = Any

# torch keeps the scalars of its states (ASGD's eta and mu, NAdam's mu_product) in its default dtype, float32,
# whatever the parameters' dtype is. In float64 the iterates would differ from torch's by 1e-9.
SCALAR = jnp.float32


class At(Protocol):
    """Where an optimizer stands: the iterate, and this step's batch there."""

    @property
    def params(self) -> Params:
        """The iterate."""
        ...

    @property
    def loss(self) -> Any:
        """The risk of this step's batch."""
        ...

    @property
    def grad(self) -> Params:
        """Its gradient."""
        ...

    def value_and_gradient(self, params: Params) -> tuple[Any, Params]:
        """Risk and gradient of this step's batch at another point."""
        ...

    def residuals(self, params: Params) -> Any:
        """Residuals of this step's batch at another point (least-squares problems)."""
        ...


def hyper(
    default: Any, low: float = 0.0, high: float = math.inf, *, open_high: bool = False
) -> Any:
    """A field that is a hyperparameter: a number (or pair) that may be swept and scheduled.

    Args:
        default: its value where none is given.
        low, high: its bounds.
        open_high: whether `high` itself is not allowed.
    """
    return dataclasses.field(
        default=default,
        metadata={"hyper": True, "low": low, "high": high, "open_high": open_high},
    )


def switch(default: Any) -> Any:
    """A field that chooses the arithmetic: Python may branch on it, and another value compiles anew.

    Args:
        default: its value where none is given; of a type that cannot change, as a tuple.
    """
    return dataclasses.field(default=default, metadata={"hyper": False})


# Without field_specifiers, of which type checkers look only for defaults by keyword: hyper(0.1) is a default
@dataclass_transform(frozen_default=True)
class Optimizer:
    """An update rule with explicit state; subclass it to make one of your own.

    A subclass declares its fields by `hyper` and `switch`, and defines `update`, and `init` where the rule
    remembers something. Both are compiled into the loop, so they are written with `jax.numpy`.

    `descend` takes for each hyperparameter a number, a list of them (a sweep), or a function of the step
    index (a schedule); switches are one value. In `update` a hyperparameter is this step's number, and counts
    as Python's own do: its dtype gives way to that of an array.
    """

    # An optimizer is a pytree with one leaf per hyperparameter (two for one of torch's pairs), which the loop
    # rebuilds at each step with that step's numbers, scalars of dtype float64.

    # The names under which the entries of a pair are swept: betas -> beta1, beta2.
    PAIRS: ClassVar[dict[str, tuple[str, str]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, repr=True, eq=False)(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if cls.__dict__.get(field.name, field.default) is not field.default:
                # without a type it is no field: the default would silently stay that of the class above
                raise InputError(
                    f"{cls.__name__}: {field.name} is a field; give it another default with its type, as in "
                    f"{field.name}: Any = hyper(...), or switch(...)."
                )
            if hasattr(Optimizer, field.name):
                raise InputError(
                    f"{cls.__name__}: a field cannot be called {field.name}, which every optimizer has "
                    f"already; call it {field.name}_, say."
                )
        jax.tree_util.register_pytree_node(cls, cls._flatten, cls._unflatten)

    @property
    def name(self) -> str:
        return type(self).__name__

    def init(self, params: Params) -> State:
        """The state before the first step, a pytree of arrays, jax.random's keys among them; none by default.

        The fields hold the first step's numbers.
        """
        return {}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        """One step.

        Args:
            at: the loss and gradient of the step's batch at the iterate, and at any other point.
            params: the iterate, a pytree of arrays.
            state: as `init` made it, or the step before.
            step: how many updates were made before.

        Returns:
            The new parameters, the new state, and the arrays to record of this update, by name.
        """
        raise NotImplementedError

    def preconditioner(self, at: At, params: Params, state: State, step: Any) -> Params | None:
        """What a step along the gradient is divided by, entry by entry: P of w ← w − lr·P⁻¹·g.

        As the update of this step would use it; None of a rule that has none.
        """
        return None

    def check_together(self) -> None:
        """An InputError where values, each in its range, do not go together; `check` calls it."""

    def check_problem(self, problem: Problem) -> None:
        """An InputError where the rule cannot descend this problem; `descend` and `basins` call it."""

    def hyperparameters(self) -> dict[str, Any]:
        """Every hyperparameter by the name it is swept under, pairs entry by entry."""
        return {name: value for name, value, _ in self._hyper_fields()}

    def described(self) -> dict[str, Any]:
        """What a result's settings say of the optimizer."""
        cls = type(self)
        is_ours = cls.__module__.split(".")[0] == "thalweg"
        # a keyword of Python's, so that no field has this name
        own = {} if is_ours else {"class": f"{cls.__module__}.{cls.__qualname__}"}
        return {"name": self.name, **self.hyperparameters(), **self.switches(), **own}

    def switches(self) -> dict[str, Any]:
        """The static settings by name."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if not field.metadata["hyper"]
        }

    def bounds(self) -> dict[str, tuple[float, float, bool]]:
        """(low, high, whether high is excluded) of every hyperparameter."""
        return {
            name: (meta["low"], meta["high"], meta["open_high"])
            for name, _, meta in self._hyper_fields()
        }

    def with_hyperparameters(self, values: dict[str, Any]) -> Self:
        """The same optimizer with other values for all its hyperparameters."""
        return self._unflatten(self._flatten()[1], tuple(values.values()))

    def _hyper_fields(self) -> Iterator[tuple[str, Any, Any]]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if "hyper" not in field.metadata:
                missing = field.default is dataclasses.MISSING
                default = "..." if missing else repr(field.default)
                raise InputError(
                    f"{self.name}: declare {field.name} as hyper({default}), a number that may be swept, or "
                    f"as switch({default})."
                )
            if not field.metadata["hyper"]:
                continue
            value = getattr(self, field.name)
            if field.name in self.PAIRS:
                names = self.PAIRS[field.name]
                if not isinstance(value, tuple) or len(value) != 2:
                    raise InputError(
                        f"{self.name}: {field.name} is a pair, ({names[0]}, {names[1]}), a tuple whose "
                        f"entries may be lists, as sweeps; {value!r} given."
                    )
                for name, entry in zip(names, value, strict=True):
                    yield name, entry, field.metadata
            else:
                yield field.name, value, field.metadata

    def _flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            if field.metadata["hyper"]:
                value = getattr(self, field.name)
                children.extend(value if field.name in self.PAIRS else [value])
        return tuple(children), tuple(self.switches().items())

    @classmethod
    def _unflatten(cls, switches: tuple[Any, ...], children: tuple[Any, ...]) -> Self:
        new = object.__new__(cls)
        remaining = iter(children)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.metadata["hyper"]:
                pair = field.name in cls.PAIRS
                value = (next(remaining), next(remaining)) if pair else next(remaining)
                object.__setattr__(new, field.name, value)
        for name, value in switches:
            object.__setattr__(new, name, value)
        return new


# Checks --------------------------------------------------------------------------------------


def check(optimizer: Any) -> Optimizer:
    """`optimizer`, or an error that names the hyperparameter that is out of its range."""
    if isinstance(optimizer, type) and issubclass(optimizer, Optimizer):
        raise InputError(f"{optimizer.__name__} is a class; give {optimizer.__name__}(...).")
    if not isinstance(optimizer, Optimizer):
        module = type(optimizer).__module__.split(".")[0]
        remedy = {
            "optax": " Wrap it, as in thalweg.optax(...).",
            "torch": " Thalweg has PyTorch's under the same names; or record the loop with thalweg.record.",
        }
        raise InputError(
            f"an optimizer such as thalweg.SGD(lr=0.1) was expected, "
            f"{type(optimizer).__name__} given.{remedy.get(module, '')}"
        )
    if type(optimizer).update is Optimizer.update:
        raise InputError(f"{optimizer.name} has no update.")
    names = [name for name, _, _ in optimizer._hyper_fields()]
    if len(set(names)) < len(names):
        raise InputError(
            f"{optimizer.name}: two hyperparameters are called {max(names, key=names.count)}."
        )
    bounds = optimizer.bounds()
    for name, value in optimizer.hyperparameters().items():
        if callable(value):
            continue
        try:
            # strings and complex numbers
            if value is None or np.asarray(value).dtype.kind in "USc":
                raise TypeError
            numbers = np.asarray(value, float)
        except (TypeError, ValueError):
            raise InputError(
                f"{optimizer.name}: {name} must be a number, a list of numbers or a function of "
                f"the step; {value!r} given."
            ) from None
        check_range(optimizer.name, name, numbers, *bounds[name])
    switches = [f for f in dataclasses.fields(optimizer) if not f.metadata.get("hyper", True)]  # type: ignore[arg-type]
    for field in switches:
        value = getattr(optimizer, field.name)
        # A list of booleans would count as true, whatever it holds.
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise InputError(
                f"{optimizer.name}: {field.name} is True or False and cannot be swept; {value!r} given."
            )
    optimizer.check_together()
    for field in switches:
        value = getattr(optimizer, field.name)
        try:
            hash(value)
        except TypeError:
            # What was compiled for a list or dict would be taken again after it has changed
            raise InputError(
                f"{optimizer.name}: {field.name} must be of a type that cannot change, such as a tuple "
                f"instead of a list; {value!r:.80} given."
            ) from None
    return optimizer


def known(value: Any) -> np.ndarray:
    """The numbers that a hyperparameter takes; none for a schedule, whose numbers are not known here."""
    return np.empty(0) if callable(value) else np.asarray(value, float).ravel()


def check_range(
    owner: str, name: str, numbers: np.ndarray, low: float, high: float, open_high: bool
) -> None:
    """An error unless every number lies in its range."""
    outside = ~((numbers >= low) & ((numbers < high) if open_high else (numbers <= high)))
    if outside.any():
        number = float(np.atleast_1d(numbers)[np.atleast_1d(outside)][0])
        if math.isinf(low) and math.isinf(high):
            span = "a number"
        else:
            span = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            span += f", and below {high:g}" if open_high and not math.isinf(high) else ""
        raise InputError(f"{owner}: {name} must be {span}; {number:g} given.")


# Arithmetic ----------------------------------------------------------------------------------


def zeros(params: Params) -> Params:
    """A state of zeros in the shape of the parameters."""
    return jax.tree_util.tree_map(jnp.zeros_like, params)


def full(params: Params, value: Any) -> Params:
    """A state with one value everywhere, in the shape of the parameters."""
    return jax.tree_util.tree_map(lambda leaf: jnp.full_like(leaf, value), params)


def each(rule: Callable[..., Any], *trees: Params) -> Params:
    """`rule` applied leaf by leaf."""
    return jax.tree_util.tree_map(rule, *trees)


def each_of(rule: Callable[..., tuple[Any, ...]], count: int, *trees: Params) -> tuple[Params, ...]:
    """`rule` applied leaf by leaf, its `count` results each as a tree of its own."""
    leaves, treedef = jax.tree_util.tree_flatten(trees[0])
    rest = [treedef.flatten_up_to(tree) for tree in trees[1:]]
    results = [rule(*args) for args in zip(leaves, *rest, strict=True)]
    return tuple(treedef.unflatten([result[i] for result in results]) for i in range(count))


def like(number: Any, leaf: Any) -> Any:
    """A float64 hyperparameter in the dtype of what it is about to multiply."""
    return jnp.asarray(number).astype(leaf.dtype)


def signed(gradient: Params, maximize: bool) -> Params:
    """The gradient to descend: its negative where the objective is to be maximised."""
    return each(jnp.negative, gradient) if maximize else gradient


def with_decay(gradient: Params, params: Params, weight_decay: Any) -> Params:
    """The gradient with L2 regularisation added: g + λw."""
    return each(lambda g, w: g + like(weight_decay, w) * w, gradient, params)


def running_mean(average: Params, value: Params, new: Any) -> Params:
    """The running average a + new·(x − a), after the value x."""
    return each(lambda a, x: a + like(new, a) * (x - a), average, value)


def running_mean_square(average: Params, value: Params, keep: Any) -> Params:
    """The running average of squares: keep·v + (1 − keep)·x²."""
    return each(lambda v, x: like(keep, v) * v + like(1 - keep, v) * x * x, average, value)


def count(step: Any) -> Any:
    """The number of this step, from 1, in float64: torch keeps its step counts in double."""
    return jnp.asarray(step + 1).astype(float)
