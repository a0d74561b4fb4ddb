"""Test functions of two variables with their known minima."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from thalweg import backend as _backend  # noqa: F401


@dataclass(frozen=True)
class TestFunction:
    """A function of {"x", "y"}, where it is usually started, where to look and what is known of it."""

    __test__ = False  # the name would make pytest collect it

    f: Callable[[dict[str, Any]], Any]
    start: tuple[float, float]
    window: tuple[tuple[float, float], tuple[float, float]]
    minima: tuple[tuple[float, float], ...] = ()
    lowest: float | None = None


def rosenbrock(p: dict[str, Any]) -> Any:
    """(1 − x)² + 100 (y − x²)²."""
    x, y = p["x"], p["y"]
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def himmelblau(p: dict[str, Any]) -> Any:
    """(x² + y − 11)² + (x + y² − 7)²."""
    x, y = p["x"], p["y"]
    return (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2


def beale(p: dict[str, Any]) -> Any:
    """(1.5 − x + xy)² + (2.25 − x + xy²)² + (2.625 − x + xy³)²."""
    x, y = p["x"], p["y"]
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def ripples(p: dict[str, Any]) -> Any:
    """sin(x + 4)(cos(3y − 5) + 0.3) + ½ cos(2(x + 2)(y − 4)²): many basins, many scales."""
    x, y = p["x"], p["y"]
    first = jnp.sin(x + 4) * (jnp.cos(3 * y - 5) + 0.3)
    return first + 0.5 * jnp.cos(2 * (x + 2) * (y - 4) ** 2)


# Minima: Rosenbrock (1960); Himmelblau (1972); Beale (1958).
FUNCTIONS = {
    "rosenbrock": TestFunction(
        rosenbrock, (-1.2, 1.0), ((-2.0, 2.0), (-1.0, 3.0)), ((1.0, 1.0),), 0.0
    ),
    "himmelblau": TestFunction(
        himmelblau,
        (0.0, 0.0),
        ((-5.0, 5.0), (-5.0, 5.0)),
        (
            (3.0, 2.0),
            (-2.805118086952745, 3.131312518250573),
            (-3.779310253377747, -3.283185991286170),
            (3.584428340330492, -1.848126526964404),
        ),
        0.0,
    ),
    "beale": TestFunction(beale, (1.0, 1.0), ((-4.5, 4.5), (-4.5, 4.5)), ((3.0, 0.5),), 0.0),
    "ripples": TestFunction(ripples, (0.0, 0.0), ((-3.0, 3.0), (-3.0, 3.0))),
}
