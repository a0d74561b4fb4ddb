"""Minima of a problem with few parameters: found by Newton's method, verified, and each surrounded by a ball
in which the Hessian is positive definite."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import backend
from thalweg.params import Layout
from thalweg.problem import Problem
from thalweg.risks import value_and_gradient

_ITERATIONS = 100
_DIRECTIONS = 48  # in which the Hessian is sampled around a minimum
_RADII = 0.75 ** np.arange(48)  # at which it is sampled, relative to the search's scale
_SAME = 1e-6  # of the search's scale: points closer than this are the same minimum


class Minima:
    """The minima found so far, in the order in which they were found.

    Attributes:
        points: (m, p).
        losses: (m,).
        eigenvalues: (m, p) of the Hessian, ascending; all are positive.
        gradients: (m,) norms of the gradient, which rounding alone keeps from zero.
        radii: (m,) of balls in which the Hessian's eigenvalues were found between 0 and `bound`; 0
            where that fails nearest to the minimum.
    """

    def __init__(self, problem: Problem, scale: float, bound: float) -> None:
        self.problem, self.scale, self.bound = problem, scale, bound
        p = problem.size
        self.points, self.eigenvalues = np.empty((0, p)), np.empty((0, p))
        self.losses, self.gradients, self.radii = (np.empty(0) for _ in range(3))
        directions = np.random.default_rng(0).standard_normal((_DIRECTIONS, p))
        if p == 2:  # evenly spread
            angle = 2 * np.pi * np.arange(_DIRECTIONS) / _DIRECTIONS
            directions = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)

    def search(self, candidates: np.ndarray) -> None:
        """Add the minima that Newton's method reaches from candidates (n, p), unless they are known."""
        layout = self.problem.layout
        reached = _polished(self.problem, candidates, np.float64(self.scale), layout=layout)
        points, losses, gradients, eigenvalues = map(np.asarray, reached)
        # The remaining gradient corresponds to a Newton step far below the distance that separates minima.
        low = eigenvalues[:, 0]
        with np.errstate(all="ignore"):
            is_minimum = (low > 0) & (gradients <= 0.01 * _SAME * self.scale * low)
        for i in np.flatnonzero(is_minimum):
            distances = np.linalg.norm(self.points - points[i], axis=1)
            if (distances > _SAME * self.scale).all():
                self.points = np.append(self.points, points[i : i + 1], axis=0)
                self.eigenvalues = np.append(self.eigenvalues, eigenvalues[i : i + 1], axis=0)
                self.losses = np.append(self.losses, losses[i])
                self.gradients = np.append(self.gradients, gradients[i])
        fresh = self.points[len(self.radii) :]
        if len(fresh):
            self.radii = np.append(self.radii, self._fenced(fresh))

    def _fenced(self, points: np.ndarray) -> np.ndarray:
        """(n,) per minimum, the largest radius up to which all sampled points are well curved, or 0."""
        layout = self.problem.layout
        rungs = self.scale * _RADII
        good = _well_curved(
            self.problem, _padded(points, 64), rungs, self.directions, self.bound, layout=layout
        )
        # count radii from the smallest on, up to the first that fails
        holds = np.cumprod(np.asarray(good)[: len(points), ::-1], axis=1).sum(axis=1)
        return np.where(holds > 0, rungs[::-1][np.maximum(holds, 1) - 1], 0.0)

    def holding(self, points: np.ndarray, share: float = 1.0) -> np.ndarray:
        """(n,) the minimum in whose ball, shrunk to a share of its radius, each point lies, or −1."""
        if not len(self.radii):
            return np.full(len(points), -1)
        count, padded = len(self.radii), _padded(self.points, 64)
        radii = np.pad(share * self.radii, (0, len(padded) - count))
        size = _CHUNK if backend.on_cpu() else _CHUNK_ACCELERATED
        nearest = np.empty(len(points), int)
        for first in range(0, len(points), size):
            chunk = points[first : first + size]
            holders = _holder(_padded(chunk, size), padded, radii, np.int32(count))
            nearest[first : first + size] = holders[: len(chunk)]
        return nearest


_CHUNK = 8192  # points that are compared with the minima at a time
_CHUNK_ACCELERATED = 2**18
_SEVERAL = 8  # minima per iteration of that loop


def _padded(points: np.ndarray, to: int) -> np.ndarray:
    """`points` (n, p) with the last one repeated up to a multiple of `to`: few shapes compile."""
    return np.pad(points, ((0, -len(points) % to), (0, 0)), mode="edge")


@jax.jit
def _holder(points: Any, known: Any, radii: Any, count: Any) -> Any:
    """For each point the nearest of the first `count` of the `known` minima (the rest are padding) in whose
    ball it lies, or −1. A loop over minima: an argmin over them does not vectorise, and takes seven times as
    long."""

    def nearer(turn: Any, so_far: Any) -> Any:
        nearest, holder = so_far
        for i in (_SEVERAL * turn + k for k in range(_SEVERAL)):
            distance = sum((points[:, k] - known[i, k]) ** 2 for k in range(known.shape[1]))
            holds = (distance < radii[i] ** 2) & (distance < nearest)
            nearest, holder = jnp.where(holds, distance, nearest), jnp.where(holds, i, holder)
        return nearest, holder

    none = jnp.full(len(points), jnp.inf), jnp.full(len(points), -1)
    return jax.lax.fori_loop(0, -(-count // _SEVERAL), nearer, none)[1]


def _of_vector(problem: Problem, layout: Layout) -> tuple[Any, Any]:
    """(value and gradient, Hessian) as functions of a vector (p,)."""

    def both(vector: Any) -> Any:
        loss, grad = value_and_gradient(problem, layout.unflatten(vector))
        return loss, layout.flatten(grad)

    return both, jax.jacfwd(lambda vector: both(vector)[1])


@partial(jax.jit, static_argnames="layout")
def _polished(problem: Problem, candidates: Any, scale: Any, *, layout: Layout) -> Any:
    """Newton's method with the eigenvalues' absolute values, which leaves saddles downhill (Dauphin et al.,
    2014); steps are limited to a fiftieth of the scale, and divided by four until the loss decreases."""
    both, hessian = _of_vector(problem, layout)

    def one(vector: Any) -> Any:
        def improve(_: Any, vector: Any) -> Any:
            loss, grad = both(vector)
            values, basis = jnp.linalg.eigh(hessian(vector))
            size = jnp.maximum(jnp.abs(values), 1e-12 * jnp.abs(values).max())
            step = -basis @ (basis.T @ grad / size)
            step = step * jnp.minimum(1, scale / 50 / jnp.linalg.norm(step))
            tries = vector + step * 0.5 ** jnp.arange(0, 12, 2)[:, None]
            losses = jax.vmap(lambda v: both(v)[0])(tries)
            # near a minimum rounding hides the decrease, so that much is tolerated
            well = losses <= loss + 8 * jnp.finfo(loss.dtype).eps * jnp.abs(loss)
            return jnp.where(well.any() & jnp.isfinite(step).all(), tries[jnp.argmax(well)], vector)

        vector = jax.lax.fori_loop(0, _ITERATIONS, improve, vector)
        loss, grad = both(vector)
        return vector, loss, jnp.linalg.norm(grad), jnp.linalg.eigvalsh(hessian(vector))

    return jax.vmap(one)(candidates)


@partial(jax.jit, static_argnames="layout")
def _well_curved(
    problem: Problem, points: Any, radii: Any, directions: Any, bound: Any, *, layout: Layout
) -> Any:
    """(n, radii) whether all eigenvalues lie between 0 and the bound, in every direction sampled."""
    _, hessian = _of_vector(problem, layout)

    def at(point: Any, radius: Any, direction: Any) -> Any:
        values = jnp.linalg.eigvalsh(hessian(point + radius * direction))
        return (values[0] > 0) & (values[-1] < bound)

    over = jax.vmap(jax.vmap(jax.vmap(at, (None, None, 0)), (None, 0, None)), (0, None, None))
    return over(points, radii, directions).all(axis=2)
