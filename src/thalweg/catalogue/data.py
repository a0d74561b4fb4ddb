"""Data sets drawn from a seed, as NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from thalweg.errors import InputError, one_of


def noisy_line(
    n: int, *, slope: float = 2.0, noise: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """x ~ U(−1, 1) and y = slope·x + ε with ε ~ N(0, noise²), both (n,)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    return x, slope * x + noise * rng.standard_normal(n)


def spirals(
    n: int = 200, *, turns: float = 1.0, noise: float = 0.03, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Two spirals wound into each other, in turns: x (n, 2) within about the unit disc, y (n,) 0.0 or 1.0.

    Points lie at r·(cos 2πtr, sin 2πtr) and opposite, for t `turns`, with r² uniform on (0.02, 1) and
    normal noise on both coordinates.
    """
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    r = np.sqrt(rng.uniform(0.02, 1, n))
    angle = 2 * np.pi * turns * r + np.pi * y
    x = r[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return x + noise * rng.standard_normal((n, 2)), y.astype(float)


def curved_line(n: int = 50, *, seed: int = 20240215) -> tuple[np.ndarray, np.ndarray]:
    """x standard normal and y = ¾x² + x + 2 + 0.3·noise, both (n,) in float32.

    Drawn from NumPy's legacy generator, whose stream is fixed for all time: x is rounded to
    float32 first, then y is computed from it.
    """
    rng = np.random.RandomState(seed)
    x = rng.randn(n).astype(np.float32)
    y = 0.75 * x**2 + x + 2 + 0.3 * rng.randn(n)
    return x, y.astype(np.float32)


def parabola_with_outlier(
    n: int = 100,
    *,
    noise: float = 0.7,
    outlier: tuple[float, float] | None = (-1.5, 10.0),
    seed: int = 42,
) -> tuple[np.ndarray, np.ndarray]:
    """x ~ U(−1, 1), sorted, and y = 1 + 3x − 4x² + noise·N(0, 1), both (n,); the first is the outlier.

    Drawn from NumPy's legacy generator, whose stream is fixed for all time: all x, then all noise.
    """
    rng = np.random.RandomState(seed)
    x = np.sort(2 * rng.rand(n) - 1)
    y = 1 + 3 * x - 4 * x**2 + noise * rng.randn(n)
    if outlier is not None:
        x[0], y[0] = outlier
    return x, y


@dataclass(frozen=True)
class Target:
    """A function on [−1, 1] to be learnt: y = target(x), entry by entry, in float64.

    `kinks` are the points inside the interval where its slope jumps: between them it is smooth, so
    that a quadrature that stops there is exact to rounding.
    """

    f: Callable[[np.ndarray], np.ndarray]
    formula: str
    kinks: tuple[float, ...] = ()

    def __call__(self, x: object) -> np.ndarray:
        return self.f(np.asarray(x, float))


def _simple(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.3 * x, 0)


def _middle(x: np.ndarray) -> np.ndarray:
    return np.abs(x + 0.5) - 2 * np.maximum(x - 0.5, 0) - 0.4


def _complex(x: np.ndarray) -> np.ndarray:
    return np.sin(10 * x) * np.cos(2 * x + 1)


TARGETS = {
    "simple": Target(_simple, "max(0.3x, 0)", (0.0,)),
    "middle": Target(_middle, "|x + 0.5| − 2 max(x − 0.5, 0) − 0.4", (-0.5, 0.5)),
    "complex": Target(_complex, "sin(10x) cos(2x + 1)"),
}


def regression(
    target: str, n: int, *, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """x ~ U(−1, 1) and y = target(x) + ε with ε ~ N(0, noise²), both (n,).

    With the same seed the x are the same whatever the target and the noise.

    Raises:
        InputError: a target that is not in `TARGETS`, less than one sample, a negative noise or seed.
    """
    one_of("target", target, TARGETS)
    if n < 1 or not 0 <= noise < np.inf or seed < 0:
        raise InputError(
            "regression data need at least one sample, and a noise and a seed of at least 0; "
            f"{n} samples, noise {noise:g} and seed {seed} given."
        )
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    return x, TARGETS[target](x) + noise * rng.standard_normal(n)
