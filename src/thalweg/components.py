"""The principal components of many points, and those that a random walk has. NumPy alone."""

from __future__ import annotations

import numpy as np

from thalweg.errors import InputError

_MOST_ROWS = 5000  # iterates (or parameters) whose Gram matrix is decomposed
_AT_A_TIME = 2**16  # parameters (or iterates) that are converted to double precision at a time
_WALK_NUMBERS = 2**24  # entries of a random walk that is simulated; beyond that, a limit is used


def principal(rows: np.ndarray, mean: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of variance of every component of a path's iterates (n, p) about their mean (p,), of at most
    100, and the directions of the first `count` components, (count, p).

    From the smaller one of the Gram matrix of the iterates and the covariance of the parameters.

    Raises:
        InputError: too many iterates to decompose, or iterates that vary in fewer directions.
    """
    n, p = rows.shape
    if min(n, p) > _MOST_ROWS:
        raise InputError(
            f"the principal components of {n} iterates of {p} parameters need a {min(n, p)} × {min(n, p)} "
            f"matrix decomposed; give some of the iterates, as in path.isel(step=slice(None, None, 10))."
        )
    square = np.zeros((min(n, p), min(n, p)))
    for part in _parts(max(n, p)):
        if n <= p:
            centered = rows[:, part] - mean[part]
            square += centered @ centered.T
        else:
            centered = rows[part] - mean
            square += centered.T @ centered
    values, vectors = np.linalg.eigh(square)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    total = values.sum()
    if not total > 0:
        raise InputError("all iterates of the path are the same point.")
    if values[count - 1] <= 1e-13 * values[0]:
        raise InputError(
            f"the path varies in fewer than {count} directions; ask for fewer components."
        )
    if n > p:
        axes = vectors[:, :count].T
    else:
        axes = np.empty((count, p))
        for part in _parts(p):
            axes[:, part] = vectors[:, :count].T @ (rows[:, part] - mean[part])
        axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    return values[: min(n, p, 100)] / total, with_sign(axes)


def centered_product(rows: np.ndarray, point: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """(rows − point) · axis, in double precision, without converting all rows at once."""
    return sum(
        ((rows[:, part] - point[part]) @ axis[part] for part in _parts(len(axis))),
        np.zeros(len(rows)),
    )


def _parts(total: int) -> list[slice]:
    """Slices that split this many parameters (or iterates) into blocks."""
    return [slice(start, start + _AT_A_TIME) for start in range(0, total, _AT_A_TIME)]


def with_sign(axes: np.ndarray) -> np.ndarray:
    """Flip directions so that the largest entry is positive: the sign of an eigenvector is arbitrary."""
    largest = np.take_along_axis(axes, np.argmax(np.abs(axes), axis=1)[:, None], axis=1)
    return axes * np.sign(largest)


def walk_variances(n: int, p: int, count: int) -> np.ndarray:
    """The shares of variance of a random walk of n iterates in p parameters: of a simulated one or, where
    that would be large, in the limit of many parameters."""
    if n * p <= _WALK_NUMBERS:
        walk = np.cumsum(np.random.default_rng(0).standard_normal((n, p)), axis=0)
        values = np.linalg.svd(walk - walk.mean(axis=0), compute_uv=False) ** 2
    else:
        # In the limit a discrete cosine transform diagonalises the centred Gram matrix, with these
        # eigenvalues (Antognini & Sohl-Dickstein, 2018, equation 14).
        values = np.zeros(n)
        values[: n - 1] = 1 / (2 - 2 * np.cos(np.pi * np.arange(1, n) / n))
    return (values / values.sum())[:count]
