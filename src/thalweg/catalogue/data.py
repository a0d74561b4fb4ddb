"""Data sets drawn from a seed, as NumPy arrays."""

from __future__ import annotations

import numpy as np


def noisy_line(
    n: int, *, slope: float = 2.0, noise: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """x ~ U(−1, 1) and y = slope·x + ε with ε ~ N(0, noise²), both (n,)."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, n)
    return x, slope * x + noise * rng.standard_normal(n)


def curved_line(n: int = 50, *, seed: int = 20240215) -> tuple[np.ndarray, np.ndarray]:
    """x standard normal and y = ¾x² + x + 2 + 0.3·noise, both (n,) in float32.

    Drawn from NumPy's legacy generator, whose stream is fixed for all time: x is rounded to
    float32 first, then y is computed from it.
    """
    rng = np.random.RandomState(seed)
    x = rng.randn(n).astype(np.float32)
    y = 0.75 * x**2 + x + 2 + 0.3 * rng.randn(n)
    return x, y.astype(np.float32)
