"""Trace and spectral density of a symmetric matrix A (p, p), from its products with random vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import blocks, lanczos
from thalweg.errors import InputError

METHODS = ("hutch++", "hutchinson")


class Estimate(NamedTuple):
    """A number and its standard error: 0 where the number is exact."""

    value: float
    error: float

    @classmethod
    def of(cls, values: np.ndarray, exact: float) -> Estimate:
        """Of `exact` plus the mean of independent values (n,)."""
        error = float(np.std(values, ddof=1) / np.sqrt(len(values)))
        return cls(exact + float(np.mean(values)), error)


def trace_terms(
    images: Callable[[Any], np.ndarray],
    p: int,
    dtype: np.dtype,
    *,
    samples: int,
    method: str,
    seed: int,
    together: int,
) -> tuple[float, np.ndarray]:
    """What the trace is made of: its exact part, and independent values (n,) whose mean is the rest.

    Args:
        images: (k, p) -> (k, p), A times each row.
        samples: products to spend.
        method: of METHODS; see `Curvature.trace`.
        together: how many products are best computed together.
    """
    rng = np.random.default_rng(seed)

    def signs(count: int) -> np.ndarray:
        return 2 * rng.integers(0, 2, (count, p), np.int8).astype(dtype) - 1

    parts: Iterable[Any]
    if method == "hutch++":
        third = samples // 3
        blocks.check_memory(
            6 * third * p * dtype.itemsize,
            f"{third} directions of {p} numbers",
            "lower samples=, or take method='hutchinson'",
        )
        basis = np.asarray(lanczos.orthonormal(images(signs(third))))
        exact = float(np.sum(basis * images(basis), dtype=float))
        parts = [np.asarray(lanczos.outside(basis, signs(samples - 2 * third)))]
    else:
        exact = 0.0
        parts = (signs(min(together, samples - done)) for done in range(0, samples, together))
    values = np.concatenate([np.sum(z * images(z), axis=1, dtype=float) for z in parts])
    return exact, values


def quadrature(
    product: Callable[[Any], Any], p: int, dtype: np.dtype, probes: int, steps: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (probes, steps) of Gauss quadrature in the spectrum's measure, by stochastic Lanczos
    quadrature; NaN among the nodes where a product is not finite.

    Args:
        product: (p,) -> (p,), A times a vector.
    """
    blocks.check_memory(
        3 * (steps + 1) * p * dtype.itemsize,
        f"{steps} Lanczos vectors of {p} numbers",
        "lower steps=",
    )
    nodes, weights = np.empty((probes, steps)), np.empty((probes, steps))
    key = jax.random.key(seed)
    for probe in range(probes):
        key, probe_key = jax.random.split(key)
        start = jax.random.rademacher(probe_key, (p,), dtype)
        projected = lanczos.projected(product, start, steps, probe_key)
        if not np.isfinite(projected).all():
            return np.full(nodes.shape, np.nan), weights
        values, vectors = np.linalg.eigh(projected)
        nodes[probe], weights[probe] = values, vectors[0] ** 2
    return nodes, weights


def smoothed(
    nodes: np.ndarray, weights: np.ndarray, width: float | None, points: int, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, float]:
    """The density on a grid of `points`, each node (probes, n) drawn as a Gaussian: grid, density (points,),
    and the Gaussians' standard deviation, by default a hundredth of the span of the nodes.

    Args:
        dtype: in whose precision the nodes were found.

    Raises:
        InputError: too few points for the width.
    """
    span, size = float(np.ptp(nodes)), float(np.abs(nodes).max())
    rounding = 1e3 * float(jnp.finfo(dtype).eps) * size
    span = span if span > rounding else size or 1.0  # of one eigenvalue
    width = span / 100 if width is None else float(width)
    needed = int(np.ceil(2 * (np.ptp(nodes) + 8 * width) / width))
    if points < needed:
        raise InputError(
            f"points={points} are too few for a width of {width:.3g}: {needed} or more are needed."
        )
    grid = np.linspace(nodes.min() - 4 * width, nodes.max() + 4 * width, points)
    with np.errstate(under="ignore"):  # far from its node a bell underflows to 0
        bells = np.exp(-0.5 * ((grid[:, None] - nodes.ravel()) / width) ** 2)
        density = bells @ weights.ravel() / (len(nodes) * width * np.sqrt(2 * np.pi))
    return grid, density, width
