"""A study's settings: declared, checked, and read from Python values or from text."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from thalweg.errors import InputError, unknown


def setting(default: Any, help: str) -> Any:
    """A study's setting: its default, and a line that says what it does."""
    return dataclasses.field(default=default, metadata={"help": help})


def read(cls: type, given: Mapping[str, Any], name: str) -> Any:
    """The settings `cls` of study `name`, with `given` (Python values, or text as in --set) put in.

    Raises:
        InputError: an unknown setting, a value of another type, a seed out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in given.items():
        if key not in fields:
            raise unknown(f"setting of study {name!r}:", key, fields)
        values[key] = _as(hints[key], key, value)
    settings = cls(**values)
    for key in fields:
        # the range of seeds of both NumPy's and JAX's generators
        if key.endswith("seed") and not 0 <= getattr(settings, key) < 2**32:
            raise InputError(
                f"setting {key!r} must be between 0 and 2³² − 1; {getattr(settings, key)} given."
            )
    return settings


def listed(cls: type) -> list[tuple[str, str, str]]:
    """(name, default, what it does) of every setting."""
    return [
        (field.name, _text(field.default), field.metadata.get("help", ""))
        for field in dataclasses.fields(cls)
    ]


def at_least(settings: Any, **least: int) -> None:
    """An InputError if a setting, or an entry of a tuple setting, is below its least value."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if (min(value) if isinstance(value, tuple) else value) < bound:
            raise InputError(f"setting {name!r} must be at least {bound}; {value} given.")


def different(settings: Any, *names: str) -> None:
    """An InputError unless each of these tuple settings holds different numbers above 0, at least one."""
    for name in names:
        values = getattr(settings, name)
        if not values or len(set(values)) < len(values) or not all(v > 0 for v in values):
            raise InputError(
                f"setting {name!r} must be different numbers above 0, with commas between them; "
                f"{values} given."
            )


def _text(value: Any) -> str:
    return ",".join(map(_text, value)) if isinstance(value, tuple) else f"{value}"


def _as(hint: Any, key: str, value: Any) -> Any:
    """`value` converted to the type `hint`, also from text."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        try:
            return _as_one(option, value)
        except (TypeError, ValueError, OverflowError):
            continue
    expected = " or ".join(map(_in_words, options))
    raise InputError(f"setting {key!r} must be {expected}; {value!r} given.")


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        several = {int: "whole numbers", float: "numbers", str: "words"}
        return f"{several.get(inner, 'values')} with commas between them"
    one = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}
    return one.get(kind, "none")


def _as_one(kind: Any, value: Any) -> Any:
    text = isinstance(value, str)
    if kind is type(None):
        if value is None or (text and value.lower() == "none"):
            return None
        raise ValueError
    if typing.get_origin(kind) is tuple:
        # not at the commas within brackets, as of the parameter l1.weight[0,0]
        parts = [p for p in re.split(r",(?![^\[\]]*\])", value) if p] if text else list(value)
        return tuple(_as_one(typing.get_args(kind)[0], part) for part in parts)
    if kind is bool:
        if isinstance(value, bool):
            return value
        if text and value.lower() in ("true", "false"):
            return value.lower() == "true"
        raise ValueError
    if kind is str:
        if not text:
            raise ValueError
        return value
    if isinstance(value, bool):
        raise ValueError
    number = kind(value)
    if not text and number != value and value == value:
        raise ValueError
    return number
