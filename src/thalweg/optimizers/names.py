"""Optimizers by name, for settings, commands and saved results."""

from __future__ import annotations

import dataclasses
from typing import Any

from thalweg.errors import InputError, unknown
from thalweg.optimizers.adam import Adam, Adamax, AdamW, NAdam, RAdam
from thalweg.optimizers.adaptive import Adadelta, Adagrad, RMSprop, Rprop
from thalweg.optimizers.base import Optimizer
from thalweg.optimizers.lbfgs import LBFGS
from thalweg.optimizers.least_squares import GaussNewton, LevenbergMarquardt
from thalweg.optimizers.sgd import ASGD, SGD

_CLASSES: dict[str, type[Optimizer]] = {
    cls.__name__: cls
    for cls in (
        SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta, Adamax, NAdam, RAdam, Rprop, ASGD, LBFGS,
        GaussNewton, LevenbergMarquardt,
    )
}  # fmt: skip


def by_name(name: str, **options: Any) -> Optimizer:
    """The optimizer called `name` (in any case) with these options.

    The entries of a pair may be given by themselves: beta1=0.8.

    Raises:
        InputError: an unknown optimizer or option.
    """
    classes = {known.lower(): cls for known, cls in _CLASSES.items()}
    if str(name).lower() not in classes:
        raise unknown("optimizer", name, _CLASSES)
    cls = classes[name.lower()]
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    entries = {
        entry: (pair, place)
        for pair, names in cls.PAIRS.items()
        for place, entry in enumerate(names)
    }
    values: dict[str, Any] = {}
    for option, value in options.items():
        if option in entries:
            pair, place = entries[option]
            both = list(values.get(pair, fields[pair].default))
            both[place] = value
            values[pair] = tuple(both)
        elif option in fields:
            values[option] = _switch(cls, fields[option], value)
        else:
            raise unknown(f"option of {cls.__name__}:", option, [*fields, *entries])
    return cls(**values)


def _switch(cls: type[Optimizer], field: Any, value: Any) -> Any:
    """A switch's value in its own type: a command line's 10 is a float."""
    if field.metadata["hyper"] or value is None:
        return value
    if isinstance(field.default, bool) and not isinstance(value, bool):
        raise InputError(f"{cls.__name__}: {field.name} is true or false; {value!r} given.")
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
