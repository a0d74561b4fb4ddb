"""Wraps optimizers from optax."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, Self

import jax
import numpy as np

from thalweg.errors import InputError, unknown
from thalweg.optimizers.base import At, Optimizer, Params, State

_REQUIRED = inspect.Parameter.empty


def optax(factory: Any, /, **kwargs: Any) -> Optax:
    """An optimizer from optax: a factory with its arguments, or a bare GradientTransformation.

    Which arguments are hyperparameters, so that a list or an array of them is a sweep and a
    function of the step a schedule, is decided by the factory's signature. An argument is one

    - where its default is a float, or it has none: if it is a number, a list or an array of
      numbers, or a function;
    - where its default is None: if it is a float, or a list or an array of floats.

    All others are static and reach the factory as they are: `nesterov`, `memory_size`, `mask`. So
    do the arguments in a `functools.partial`, and the numbers in a bare transformation.

    Transformations that ask for them are given `value`, `grad` and `value_fn`: the line search of
    `optax.lbfgs()` and the step sizes of `optax.polyak_sgd` work.

    Raises:
        InputError: neither a factory nor a transformation; an argument that is unknown or missing;
            a list where the default is a switch or a whole number.
    """
    if _is_transformation(factory):
        if kwargs:
            raise InputError(
                f"optax: a transformation already has its {', '.join(kwargs)}; give the factory, "
                "as in thalweg.optax(optax.sgd, learning_rate=0.1)."
            )
        return Optax(factory, {}, _Settings())
    if not callable(factory):
        raise InputError(
            "optax: a factory such as optax.adam, or a GradientTransformation, was expected; "
            f"{type(factory).__name__} given."
        )
    defaults = _defaults(factory)
    numbers: dict[str, Any] = {}
    settings = _Settings()
    for name, value in kwargs.items():
        if defaults is not None and name not in defaults:
            raise unknown(f"argument of {_name(factory)}", name, defaults)
        default = _REQUIRED if defaults is None else defaults[name]
        if _is_hyperparameter(value, default):
            numbers[name] = value
        elif isinstance(default, int) and np.ndim(value):
            raise InputError(
                f"{_name(factory)}: {name} is static and cannot be swept; {value!r} given."
            )
        else:
            settings[name] = value
    missing = [n for n, d in (defaults or {}).items() if d is _REQUIRED and n not in kwargs]
    if missing:
        raise InputError(f"{_name(factory)} needs {', '.join(missing)}; give it by name.")
    return Optax(factory, numbers, settings)


class _Settings(dict[str, Any]):
    """Static arguments. JAX hashes and compares them between calls, which not all values support."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Settings)
            and list(self) == list(other)
            and all(_same(self[name], other[name]) for name in self)
        )


class Optax(Optimizer):
    """What `thalweg.optax` makes: a factory or transformation, its hyperparameters, the rest."""

    factory: Any
    numbers: dict[str, Any]
    settings: _Settings

    @property
    def name(self) -> str:
        return _name(self.factory)

    def init(self, params: Params) -> State:
        return self._transformation().init(params)

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        import optax

        rule = optax.with_extra_args_support(self._transformation())
        extra_args = {
            "value": at.loss,
            "grad": at.grad,
            "value_fn": lambda params: at.value_and_gradient(params)[0],
        }
        parameters = inspect.signature(rule.update).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            extra_args = {name: value for name, value in extra_args.items() if name in parameters}
        updates, new = rule.update(at.grad, state, params, **extra_args)
        return optax.apply_updates(params, updates), new, {}

    def switches(self) -> dict[str, Any]:
        return dict(self.settings)

    def _transformation(self) -> Any:
        if _is_transformation(self.factory):
            return self.factory
        return self.factory(**self.numbers, **self.settings)

    def _hyper_fields(self) -> Iterator[tuple[str, Any, Any]]:
        for name, value in self.numbers.items():
            low = 0.0 if name == "learning_rate" else -math.inf
            yield name, value, {"low": low, "high": math.inf, "open_high": False}

    def _flatten(self) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(self.numbers.values()), (self.factory, tuple(self.numbers), self.settings)

    @classmethod
    def _unflatten(cls, switches: tuple[Any, ...], children: tuple[Any, ...]) -> Self:
        factory, names, settings = switches
        return cls(factory, dict(zip(names, children, strict=True)), settings)


# Reading a factory's arguments -----------------------------------------------------------------


def _is_transformation(value: Any) -> bool:
    is_instance = not isinstance(value, type)
    return is_instance and all(callable(getattr(value, name, None)) for name in ("init", "update"))


def _defaults(factory: Callable[..., Any]) -> dict[str, Any] | None:
    """The names of the factory's arguments and their defaults; None where it takes any name."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return {p.name: p.default for p in parameters if p.kind is not p.VAR_POSITIONAL}


def _is_hyperparameter(value: Any, default: Any) -> bool:
    if default is None:
        return _kind(value) == "f"
    if default is _REQUIRED or isinstance(default, float):
        is_object = _is_transformation(value) or isinstance(value, type)
        return _kind(value) in ("i", "u", "f") or (callable(value) and not is_object)
    return False


def _kind(value: Any) -> str:
    """NumPy's kind of a number or of a list or array of numbers; "" for anything else."""
    if isinstance(value, (list, int, float, np.generic, np.ndarray, jax.Array)):
        try:
            return np.asarray(value).dtype.kind
        except (TypeError, ValueError):  # a ragged list, or a key of jax.random
            return ""
    return ""


def _name(factory: Any) -> str:
    """The factory's name, as in optax.adam; "optax" for a bare transformation."""
    factory = getattr(factory, "func", factory)
    if not hasattr(factory, "__name__"):
        return "optax"
    package = "optax." if str(factory.__module__).startswith("optax.") else ""
    return package + factory.__name__


def _same(one: Any, other: Any) -> bool:
    if one is other or type(one) is not type(other):
        return one is other
    try:
        return bool(one == other)
    except (TypeError, ValueError):  # arrays have no single truth value
        return False
