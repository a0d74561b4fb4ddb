"""`basins`: which minimum an optimizer reaches from every point of a plane."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import numpy as np
import xarray as xr

from thalweg import backend, blocks, results
from thalweg.ensemble import members
from thalweg.errors import InputError, whole_number
from thalweg.feeds import Feed
from thalweg.loop import begin, block, known_turns
from thalweg.minima import Minima
from thalweg.optimizers.base import Optimizer, check
from thalweg.optimizers.sgd import SGD
from thalweg.planes import Plane, check_is_plane_of
from thalweg.problem import Problem, check_is_problem, described, in_precision
from thalweg.programs import is_exclusive
from thalweg.walks import Past, Plan, Span

NOT_YET, DIVERGED = -1, -2

_NEVER = 2**30  # steps between two recorded rows: nothing is recorded
_CHUNK = 1024  # starts that a thread advances together: they fit the innermost cache
_CHUNK_ACCELERATED = 2**18
_VALUES = 2**22  # most pointwise risks of a chunk
_MOST_PARAMETERS = 32  # Hessians are dense
_FIRST_ROUND = 25  # steps until the first check for arrivals
_GROWTH = 1.25  # each round multiplies the number of steps done by this
_CANDIDATES = 512  # points from which new minima are searched after each round
_SETTLED = 0.01  # of a ball's radius: how near a minimum an optimizer must stay that may leave the ball again


def basins(
    problem: Problem,
    optimizer: Optimizer,
    plane: Plane,
    steps: int = 10_000,
    *,
    progress: bool | None = None,
) -> xr.Dataset:
    """Which minimum an optimizer reaches from every point of a plane, within a budget of steps.

    Minima are found on the way: Newton's method starts from a sample of where the descents are, and a
    point that it reaches counts where the gradient is zero to rounding and all of the Hessian's
    eigenvalues are positive. About each minimum there is a ball in which those were found between 0
    and 2/lr, for plain gradient descent with learning rate lr. In such a ball every step brings
    gradient descent nearer to the minimum, by at least the factor max|1 − lr·λ| < 1, so that what
    enters it has arrived and is followed no further. A minimum with an eigenvalue above 2/lr has no
    ball: gradient descent cannot come to rest there. Any other optimizer counts as arrived once it
    was, at two checks in a row, within a hundredth of the radius of a ball of positive eigenvalues.

    What has not arrived is "not there yet", and not guessed. So are starts whose minimum was not found,
    which happens to small basins. Balls are checked in 48 directions and at 48 radii, which is no
    proof.

    Args:
        problem: what is minimised, on all its data; with at most 32 parameters.
        optimizer: one, without sweeps and schedules.
        plane: the starts.
        steps: the budget of each start.
        progress: a progress bar: True, False, or None for one on a terminal after a second.

    Returns:
        An `xarray.Dataset` with `basin` on the plane's axes: the number of the minimum, −1 for not
        there yet, −2 for diverged; `arrived_at`, the step at which it was seen to be there, else −1;
        and a table of the minima, the most often reached first. See docs/results.md.

    Raises:
        InputError: too many parameters, a plane of another problem, sweeps, impossible steps, an
            optimizer that cannot descend this problem.
    """
    check_is_problem(problem)
    check_is_plane_of(problem, plane, taken=(*_VARIABLES, "minimum"))
    check(optimizer).check_problem(problem)
    steps = whole_number("steps", steps, 0)
    if problem.size > _MOST_PARAMETERS:
        raise InputError(
            f"basins needs the Hessian at many points, and takes problems of up to {_MOST_PARAMETERS} "
            f"parameters; this one has {problem.size}."
        )
    blocks.check_memory(
        math.prod(plane.shape) * problem.size * 8 * 6,
        f"the basins of {' × '.join(map(str, plane.shape))} starts",
        "lower points=",
    )
    starts = _points(plane)
    scale = float(np.ptp(starts, axis=0).max())
    if scale == 0:
        raise InputError("basins needs a plane with more than one point.")
    crowd = _Crowd(problem, optimizer, starts, scale)
    with blocks.interruptible(), ThreadPoolExecutor(crowd.workers()) as pool:
        crowd.round(0, pool, 0, 0)  # of no steps: who has arrived or diverged at the start
        _, interrupted = blocks.until(
            steps,
            partial(crowd.round, steps, pool),
            most=1,
            label="basins",
            unit="step",
            progress=progress,
        )
    attrs = results.provenance(
        "basins",
        {
            "optimizer": optimizer.described(),
            "problem": described(problem),
            "steps": steps,
        },
        dtype=str(problem.layout.dtype),
        device=backend.device_name(),
        interrupted=int(interrupted),
    )
    return plane.dataset(_variables(crowd, plane), attrs)


def _points(plane: Plane) -> np.ndarray:
    """(n, p) the plane's points, in C order of its axes."""
    grids = np.meshgrid(*plane.coordinates, indexing="ij")
    return plane.origin + np.stack([g.ravel() for g in grids], axis=1) @ plane.directions


def _span(first: int, last: int) -> Span:
    """From step `first` to step `last`, at which divergence is looked for too; the rows are not used."""
    return Span.of(first, last, every=_NEVER, begun=first, ends=True)


class _Crowd:
    """All starts, and the state of those that have not arrived yet."""

    def __init__(
        self, problem: Problem, optimizer: Optimizer, starts: np.ndarray, scale: float
    ) -> None:
        who = members(problem, optimizer, starts=starts)
        if who.swept or who.schedules:
            raise InputError(
                f"basins follows one optimizer: {', '.join((*who.swept, *who.schedules))} must be a "
                f"single number."
            )
        if not who.hyper.get("lr", 1):
            raise InputError("basins needs a learning rate above 0: with lr=0 no start moves.")
        self.contracts = type(optimizer) is SGD and not any(
            who.hyper.get(name, 0) or optimizer.switches().get(name)
            for name in ("momentum", "weight_decay", "nesterov", "maximize")
        )
        bound = 2 / float(who.hyper["lr"]) if self.contracts else np.inf
        self.minima = Minima(in_precision(problem, np.float64), scale, bound)
        most = _CHUNK if backend.on_cpu() else _CHUNK_ACCELERATED
        self.chunk = max(1, min(most, _VALUES // max(problem.n_samples, 1), len(starts)))
        self.plan = Plan(
            problem=problem,
            optimizer=optimizer.with_hyperparameters(who.hyper),
            observed={},
            lane=np.zeros(self.chunk, np.int32),
            stop=None,
            swept=(),
            scheduled=(),
            batched=True,
            lanes=False,
            kept=(),
        )
        self.layout = problem.layout
        self.basin = np.full(len(starts), NOT_YET, np.int32)
        self.arrived_at = np.full(len(starts), -1, np.int32)
        # of the starts still on their way: numbers, parameters, states, and the minimum each was last near
        self.index = np.arange(len(starts))
        self.params = jax.tree_util.tree_map(np.asarray, who.starts)
        self.state: Any = None
        self.near = np.full(len(starts), -1)
        self.rng = np.random.default_rng(0)

    def round(self, steps: int, pool: ThreadPoolExecutor, done: int, size: int) -> int:
        """Advance all that are on their way by one round, check for arrivals; returns the steps done then."""
        if not len(self.index):
            return steps
        following = min(steps, max(done + _FIRST_ROUND, math.ceil(_GROWTH * done)))
        chunks = range(0, len(self.index), self.chunk)
        with blocks.interruptible() as interrupt:
            advance = backend.inheriting(partial(self._advance, done, following, interrupt))
            parts = list(pool.map(advance, chunks))
        if interrupt:
            return done
        self.params, self.state, lost = jax.tree_util.tree_map(
            lambda *leaves: np.concatenate(leaves)[: len(self.index)], *parts
        )
        self.basin[self.index[lost >= 0]] = DIVERGED
        self._keep(lost < 0)
        self.look(following)
        return following

    def workers(self) -> int:
        """How many chunks are advanced side by side."""
        first = jax.tree_util.tree_map(lambda leaf: leaf[: self.chunk], self.params)
        feed = Feed(np.int32(0), {}, None, None)
        walk = begin.eval_shape(self.plan, feed, first, first, self._past(None), arrives=False)
        traced = block.trace(self.plan, feed, first, walk, _span(0, 1), **self._static)
        return 1 if is_exclusive(traced.jaxpr) else backend.workers()

    def _advance(self, first: int, last: int, interrupt: blocks.Interrupt, start: int) -> Any:
        """Parameters, state and `diverged_at` of one chunk after the steps from `first` to `last`."""
        if interrupt:
            return None
        rows = np.minimum(start + np.arange(self.chunk), len(self.index) - 1)
        params, state = jax.tree_util.tree_map(lambda leaf: leaf[rows], (self.params, self.state))
        feed = Feed(np.int32(first), {}, None, None)
        walk = begin(self.plan, feed, params, params, self._past(state), arrives=False)
        walk = block(self.plan, feed, params, walk, _span(first, last), **self._static)[0]
        return jax.tree_util.tree_map(np.asarray, (walk.params, walk.state, walk.diverged_at))

    def _past(self, state: Any) -> Past:
        return Past(state, np.full(self.chunk, -1, np.int32), None, None)

    @property
    def _static(self) -> dict[str, Any]:
        known = known_turns(_NEVER, backend.device().platform)
        return {"room": 1, "dense": False, "known": known, "arrives": False}

    def look(self, step: int) -> None:
        """Search for further minima, and drop the starts that have arrived at one or diverged."""
        if not len(self.index):
            return
        points = np.asarray(self.layout.flatten(self.params, lead=1), float)
        lost = np.asarray(~np.isfinite(points).all(axis=1))
        self.basin[self.index[lost]] = DIVERGED
        if lost.any():
            self._keep(~lost)
            points = points[~lost]
        if not len(points):
            return
        share = 1.0 if self.contracts else _SETTLED
        outside = np.flatnonzero(self.minima.holding(points) < 0)
        if len(outside):
            chosen = self.rng.choice(outside, _CANDIDATES)
            self.minima.search(points[chosen])
        minimum = self.minima.holding(points, share)
        arrived = (minimum >= 0) & (self.contracts | (minimum == self.near))
        self.basin[self.index[arrived]] = minimum[arrived]
        self.arrived_at[self.index[arrived]] = step
        self.near = minimum
        self._keep(~arrived)

    def _keep(self, kept: np.ndarray) -> None:
        self.index, self.near = self.index[kept], self.near[kept]
        self.params, self.state = jax.tree_util.tree_map(
            lambda leaf: leaf[kept], (self.params, self.state)
        )


_VARIABLES = (
    "basin",
    "arrived_at",
    "minima",
    "minimum_loss",
    "smallest_eigenvalue",
    "largest_eigenvalue",
    "gradient_norm",
    "radius",
    "reached",
)


def _variables(crowd: _Crowd, plane: Plane) -> dict[str, Any]:
    """The result's variables, with the minima ordered by how many starts reach them."""
    minima, basin = crowd.minima, crowd.basin
    reached = np.bincount(basin[basin >= 0], minlength=len(minima.losses))
    order = np.lexsort((minima.losses, -reached))
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    basin = np.where(basin >= 0, np.append(place, [0, 0])[basin], basin).astype(np.int32)
    columns = (
        minima.losses,
        minima.eigenvalues[:, 0],
        minima.eigenvalues[:, -1],
        minima.gradients,
        minima.radii,
        reached,
    )
    table = {
        name: ("minimum", column[order])
        for name, column in zip(_VARIABLES[3:], columns, strict=True)
    }
    return {
        "basin": (plane.axes, basin.reshape(plane.shape)),
        "arrived_at": (plane.axes, crowd.arrived_at.reshape(plane.shape)),
        "minima": (("minimum", "param"), minima.points[order]),
        **table,
    }
