"""The gradient flow dw/dt = −∇L, integrated under error control by diffrax's solvers.

A solver and its step-size controller do a single step; here is the loop around them, for all members at once,
in one compiled program. A member that has reached the next saved time, diverged or given up waits while the
others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import backend
from thalweg.observables import at_point, measured
from thalweg.params import Params
from thalweg.problem import Problem
from thalweg.risks import value_and_gradient
from thalweg.rows import empty, put
from thalweg.tuning import tuned

GOING, DIVERGED, GAVE_UP = 0, 1, 2

EXPLICIT, STIFF = "explicit", "stiff"

_TURNS = 16  # attempts at a time on a GPU, about a tenth of those that a flow needs per saved time


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Flow:
    """What does not change along a flow. Arrays are traced; the rest decides the program."""

    problem: Problem
    observed: dict[str, Any]
    rtol: Any
    atol: Any
    max_steps: Any
    solver: str = field(metadata={"static": True})
    batched: bool = field(metadata={"static": True})
    kept: tuple[str, ...] = field(metadata={"static": True})

    def over_members(self, function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
        """`function(flow, member, *rest)`, under vmap over the members if there is an axis of them; the
        rest are `shared` arguments that all members have in common."""
        function = partial(function, self)
        return jax.vmap(function, (0, *[None] * shared)) if self.batched else function


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Walk:
    """One member between two steps of the solver."""

    start: Params
    params: Params
    time: Any
    dt: Any  # the step that the controller proposes next
    solver_state: Any
    controller_state: Any
    accepted: Any
    rejected: Any
    fate: Any  # GOING, DIVERGED or GAVE_UP
    lost_at: Any  # the first row that it did not reach, −1 while it goes on


def attempts_at_a_time(platform: str) -> int:
    """How many steps are attempted between two checks whether all members have arrived: several on a GPU,
    which synchronises with the host for each check."""
    return _TURNS if platform == "gpu" else 1


def _downhill(problem: Problem, params: Params) -> Params:
    return jax.tree_util.tree_map(jnp.negative, value_and_gradient(problem, params)[1])


def _method(flow: Flow) -> tuple[Any, Any, Any]:
    """diffrax's terms, solver and controller."""
    import diffrax

    # all later stages use a slope, and XLA would compute it anew in each
    downhill = backend.outlined(_downhill) if backend.on_cpu() else _downhill

    def along(t: Any, params: Params, args: Any) -> Params:
        return downhill(flow.problem, params)

    if flow.solver == EXPLICIT:
        solver = _written_out()
    else:
        # Newton's method with a new Jacobian in each iteration: in Rosenbrock's valley this takes an eighth
        # of the steps of diffrax's default, which keeps the Jacobian of the step's start.
        import optimistix

        solver = diffrax.Kvaerno5(root_finder=optimistix.Newton(rtol=flow.rtol, atol=flow.atol))
    return diffrax.ODETerm(along), solver, diffrax.PIDController(rtol=flow.rtol, atol=flow.atol)


@cache
def _written_out() -> Any:
    """diffrax's Tsit5 with its stages unrolled: in diffrax's loop over them, a GPU would synchronise with the
    host after each stage."""
    import diffrax

    class WrittenOut(diffrax.Tsit5):
        """The solver state is the slope at the current point, which the step before computed."""

        def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Any:
            return terms.vf(t0, y0, args)

        def step(
            self,
            terms: Any,
            t0: Any,
            t1: Any,
            y0: Any,
            args: Any,
            solver_state: Any,
            made_jump: Any,
        ) -> Any:
            dt, slopes, y = t1 - t0, [solver_state], y0

            def along(weights: Any) -> Any:
                """dt Σ weights · slopes"""

                def weighted(*each: Any) -> Any:
                    return dt * sum(float(w) * k for w, k in zip(weights, each, strict=True))

                return jax.tree_util.tree_map(weighted, *slopes)

            # the last stage is at the step's end
            for c, weights in zip(self.tableau.c, self.tableau.a_lower, strict=True):
                y = jax.tree_util.tree_map(jnp.add, y0, along(weights))
                slopes.append(terms.vf(t0 + float(c) * dt, y, args))
            error = along(self.tableau.b_error)
            return y, error, None, slopes[-1], diffrax.RESULTS.successful

    return WrittenOut()


@jax.jit
def begin(flow: Flow, starts: Params) -> Walk:
    """The members at time 0, with the controller's choice of a first step size."""

    def one(flow: Flow, start: Params) -> Walk:
        terms, solver, controller = _method(flow)
        time = jnp.zeros(())
        next_time, controller_state = controller.init(
            terms, time, time + 1, start, None, None, solver.func, solver.error_order(terms)
        )
        solver_state = solver.init(terms, time, next_time, start, None)
        zero = jnp.int32(0)
        return Walk(
            start=start,
            params=start,
            time=time,
            dt=next_time - time,
            solver_state=jax.tree_util.tree_map(jnp.asarray, solver_state),
            controller_state=jax.tree_util.tree_map(jnp.asarray, controller_state),
            accepted=zero,
            rejected=zero,
            fate=jnp.int32(GOING),
            lost_at=jnp.int32(-1),
        )

    return flow.over_members(one)(starts)


@backend.outermost(static_argnames=("room", "at_a_time"))
@tuned
def block(
    flow: Flow,
    walk: Walk,
    times: Any,
    first: Any,
    rows: Any,
    attempts: Any,
    room: int,
    at_a_time: int,
) -> tuple[Walk, Any, Any]:
    """Advance by at most `attempts` steps of the solver, in whole multiples of `at_a_time`, and record the
    members at saved times.

    Args:
        times: (room,) the saved times that come next; `rows` of them count, and `first` is the
            number of the first one.
        at_a_time: `attempts_at_a_time`.

    Returns:
        The members, how many rows were completed, and the record, with room for `room` rows.
    """
    attempt = flow.over_members(_attempt, 2)

    def one_row(carry: Any) -> Any:
        row, left, walk, record = carry
        target = times[row]

        def once(inner: Any) -> Any:
            left, walk = inner
            walk = jax.lax.fori_loop(
                0, at_a_time, lambda _, walk: attempt(walk, target, first + row), walk
            )
            return left - at_a_time, walk

        left, walk = jax.lax.while_loop(
            lambda inner: (inner[0] > 0) & ~_there(inner[1], target).all(), once, (left, walk)
        )
        # If the attempts did not suffice for this row, the next block overwrites it.
        walk, values = observe(flow, walk, first + row)
        record = put(record, row, values)
        return row + _there(walk, target).all(), left, walk, record

    shapes = observe.eval_shape(flow, walk, first)[1]
    record = empty(shapes, room)
    done, _, walk, record = jax.lax.while_loop(
        lambda carry: (carry[0] < rows) & (carry[1] > 0),
        one_row,
        (jnp.int32(0), attempts, walk, record),
    )
    return walk, done, record


@jax.jit
def observe(flow: Flow, walk: Walk, row: Any) -> tuple[Walk, dict[str, Any]]:
    """One row of the record, for all members. A member whose loss is not finite has diverged."""
    return flow.over_members(_observe, 1)(walk, row)


def _there(walk: Walk, target: Any) -> Any:
    """Whether a member has reached the time `target`, or will not."""
    return (walk.time >= target) | (walk.fate != GOING)


def _attempt(flow: Flow, walk: Walk, target: Any, row: Any) -> Walk:
    """One step of the solver towards the time `target`, kept if its error is small enough.

    A step that would pass `target` is shortened to end on it, so that the solver's own values are recorded,
    not interpolated ones; the step after it has the length that this one would have had.
    """
    import diffrax

    terms, solver, controller = _method(flow)
    out_of_steps = walk.accepted + walk.rejected >= flow.max_steps
    going = ~_there(walk, target) & ~out_of_steps
    ahead = jnp.minimum(walk.time + walk.dt, target)
    ahead = jnp.where(going, ahead, walk.time)
    params, error, _, solver_state, outcome = solver.step(
        terms, walk.time, ahead, walk.params, None, walk.solver_state, jnp.bool_(False)
    )
    # An implicit equation that was not solved, or a step to values that are not finite, counts as an infinite
    # error: the controller then tries a much shorter step.
    solved = outcome == diffrax.RESULTS.successful
    error = jax.tree_util.tree_map(
        lambda e: jnp.where(solved & jnp.isfinite(e), jnp.abs(e), jnp.inf), error
    )
    keep, time, next_time, _, controller_state, _ = controller.adapt_step_size(
        walk.time,
        ahead,
        walk.params,
        params,
        None,
        error,
        solver.error_order(terms),
        walk.controller_state,
    )
    dt = next_time - time
    dt = jnp.where(keep & (ahead == target), jnp.maximum(dt, walk.dt), dt)
    # If even steps of a few ulps of the time fail, the solution ends there: it blows up in finite time. Or
    # the implicit equation has no solution nearby, as at a kink.
    shortest = 16 * jnp.finfo(time.dtype).eps * time
    stuck = going & ~keep & ~(dt > shortest)
    fate = jnp.where(out_of_steps & ~_there(walk, target), GAVE_UP, walk.fate)
    fate = jnp.where(stuck, jnp.where(solved, DIVERGED, GAVE_UP), fate).astype(jnp.int32)
    accepted = replace(walk, params=params, time=time, solver_state=solver_state)
    advanced = jax.tree_util.tree_map(partial(jnp.where, going & keep), accepted, walk)
    return replace(
        advanced,
        dt=jnp.where(going, dt, walk.dt),
        controller_state=jax.tree_util.tree_map(
            partial(jnp.where, going), controller_state, walk.controller_state
        ),
        accepted=walk.accepted + (going & keep),
        rejected=walk.rejected + (going & ~keep),
        fate=fate,
        lost_at=jnp.where((fate != GOING) & (walk.lost_at < 0), row, walk.lost_at),
    )


def _observe(flow: Flow, walk: Walk, row: Any) -> tuple[Walk, dict[str, Any]]:
    at = at_point(flow.problem, walk.params, walk.start, row)
    built_in = {"params": walk.params, "loss": at.loss, "grad": at.grad}
    values = {name: built_in[name] for name in flow.kept}
    for name, observable in flow.observed.items():
        values[name] = measured(name, observable, at, ())[0]
    lost = (walk.fate == GOING) & ~jnp.isfinite(at.loss)
    return replace(
        walk,
        fate=jnp.where(lost, DIVERGED, walk.fate).astype(jnp.int32),
        lost_at=jnp.where(lost, row, walk.lost_at),
    ), values
