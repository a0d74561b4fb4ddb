"""The one compiled training loop. Everything that trains in Thalweg trains here.

`begin` makes the members before their first step and `block` advances them by a traced number of steps; each
is compiled once per combination of functions and shapes. Loss and gradient at the current iterate are carried
from step to step: so they are computed once for the record, the finiteness test and the update, and are
available at the last iterate.

The gradient takes longest to compile. So a gradient of many operations is compiled into `block` only, not
into `begin` too: a step is an update followed by loss and gradient at the new iterate, and the first block
begins with a step without an update, which "arrives" at the first iterate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import jax
import jax.numpy as jnp

from thalweg import backend
from thalweg.errors import InputError
from thalweg.feeds import Feed
from thalweg.jaxprs import equations
from thalweg.observables import At, first_state, has_state, measured
from thalweg.optimizers import stepping
from thalweg.optimizers.base import Optimizer
from thalweg.params import Params
from thalweg.risks import value_and_gradient
from thalweg.rows import empty, put
from thalweg.tuning import tuned
from thalweg.walks import Past, Plan, Span, Walk

# Steps of a loop on a GPU between two checks on the host whether it should go on. Measured on an H200 with
# two parameters and with a small network: 16 take a tenth longer, 256 and 1,024 as long or longer.
_TURNS = 64
# From so many operations on, a function and its gradient take longer to compile than the rest of a program
_MANY_OPERATIONS = 150
# From so many numbers on, copying a parameter takes longer than asking whether its member has diverged
_LARGE = 1024


@backend.outermost(static_argnames="arrives")
@tuned
def begin(
    plan: Plan, feed: Feed, params: Params, start: Params, past: Past, *, arrives: bool
) -> Walk:
    """The members before their first step; loss and gradient are zeros if the first block `arrives`."""

    def one(optimizer: Optimizer, lane: Any, params: Params, start: Params, past: Past) -> Walk:
        optimizer = feed.scheduled(optimizer, feed.start)
        batch = feed.batch(plan.problem, lane, feed.start)
        placeholder = jax.tree_util.tree_map(
            lambda shape: jnp.zeros(shape.shape, shape.dtype),
            jax.eval_shape(value_and_gradient, batch, params),
        )
        read = not arrives or any(map(has_state, plan.observed.values()))
        loss, grad = value_and_gradient(batch, params) if read else placeholder
        state = stepping.begun(optimizer, params)
        walk = Walk(params, state, loss, grad, {}, {}, *past[1:])
        at = walk.at(plan, feed, optimizer, lane, start, feed.start)
        if past.state is not None:  # a member that has made no update yet needs a fresh state
            after_an_update = partial(jnp.where, at.updates > 0)
            state = jax.tree_util.tree_map(after_an_update, past.state, state)
            walk, at = replace(walk, state=state), replace(at, state=state)
        update = partial(stepping.updated, optimizer)
        info = jax.eval_shape(update, at, params, state, at.updates)[2]
        if plan.stop is not None:
            plan.stop.check(at, info)
        memory = {name: first_state(name, seen, at) for name, seen in plan.observed.items()}
        if arrives:
            loss, grad = placeholder
        info = jax.tree_util.tree_map(_unknown, info)
        return replace(walk, info=info, memory=memory, loss=loss, grad=grad)

    walk = plan.over_members(one, 0, 0, 0)(params, start, past)
    # A block is donated the walk's buffers: none of them may be shared with the arguments.
    return jax.tree_util.tree_map(jnp.copy, walk)


@backend.outermost(donate_argnames="walk")
@tuned
def at_rest(plan: Plan, feed: Feed, walk: Walk, who: Any) -> Walk:
    """The members of a resumed descent, where those selected by `who`, which have stopped, get their loss and
    gradient on the batch of the first step of `feed`."""

    def one(optimizer: Optimizer, lane: Any, walk: Walk, who: Any) -> Walk:
        batch = feed.batch(plan.problem, lane, feed.start)
        loss, grad = value_and_gradient(batch, walk.params)
        if_stopped = partial(jnp.where, who)
        loss, grad = jax.tree_util.tree_map(if_stopped, (loss, grad), (walk.loss, walk.grad))
        return replace(walk, loss=loss, grad=grad)

    return plan.over_members(one, 0, 0)(walk, who)


def _unknown(shape: Any) -> Any:
    """The value recorded of an update before the first one."""
    if jnp.issubdtype(shape.dtype, jnp.inexact):
        return jnp.full(shape.shape, jnp.nan, shape.dtype)
    has_sign = jnp.issubdtype(shape.dtype, jnp.signedinteger)
    return jnp.full(shape.shape, -1 if has_sign else 0, shape.dtype)


def known_turns(every: int, platform: str) -> int:
    """How many steps at a time a block runs as a loop of static length; 0 on a CPU.

    In a loop of traced length a GPU synchronises with the host after each iteration, which takes longer than
    a step of a small model. So it runs several steps at a time, and the last few one by one.
    """
    if platform != "gpu":
        return 0
    return _TURNS if every == 1 else every // -(-every // _TURNS)


def should_arrive(evaluates: Any, known: int) -> bool:
    """Whether the first block should begin with a step without an update, so that `begin` need not evaluate
    loss and gradient. `evaluates` is the jaxpr of `begin` with them.

    Each step then tests whether there is an update. That takes a CPU half a microsecond, longer than a step
    of a small function, and a GPU, which asks the host, as long as a step of a large network.
    """
    if known or evaluates.effects:  # what a user's model prints at the start must be printed once
        return False
    # stop counting there: this runs for every descent
    return any(islice(equations(evaluates), _MANY_OPERATIONS - 1, None))


@backend.outermost(static_argnames=("room", "dense", "known", "arrives"), donate_argnames="walk")
@tuned
def block(
    plan: Plan, feed: Feed, start: Params, walk: Walk, span: Span,
    *, room: int, dense: bool, known: int, arrives: bool,
) -> tuple[Walk, Any, Any, Any]:  # fmt: skip
    """Advance over a span of steps, with a record that has room for `room` rows.

    Where the descent ends, members that diverged or stopped at the last iterate are noted, which otherwise
    the next update does. `dense` says that every step is recorded, which spares a nested loop. `known` is
    from `known_turns`. `arrives` says that `begin` did not evaluate loss and gradient; the first span then
    starts one step earlier.

    Returns:
        The walk, updated in place; when its members diverged and stopped; the record.
    """
    # XLA multiplies a pair of matrices faster than a batch of one pair
    is_for_one = plan.is_for_one
    if is_for_one:
        plan = plan.without_axis()
        start, walk = jax.tree_util.tree_map(partial(jnp.squeeze, axis=0), (start, walk))

    first, last, every, begun = span.first, span.last, span.every, span.begun
    rows, ends = span.rows, span.ends

    def has_begun(step: Any) -> Any:
        return jnp.int32(step >= begun) if arrives else 1

    def advance(walk: Walk, step: Any) -> Walk:
        advance_one = partial(_advance, plan, feed, has_begun(step))
        return plan.over_members(advance_one, 0, 0, None)(start, walk, step)

    # On a GPU this condition would need the host as well
    if plan.stop is not None and not known:
        advance = partial(_unless_over, advance)

    def recorded(row: Any, walk: Walk, step: Any, record: Any) -> tuple[Any, Any]:
        counts = (step % every == 0) | (step == begun)
        values, memory = row_of(plan, feed, start, walk, step, counts)
        return put(record, row, values), memory

    def record_then_advance(row: Any, carry: Any) -> Any:
        step, walk, record = carry
        if dense:
            # arriving members write a row too: number −1, the last one, which is overwritten or dropped
            record, memory = recorded(row, walk, step, record)
            return step + 1, advance(replace(walk, memory=memory), step), record
        record, memory = _times(
            has_begun(step),
            lambda carry: recorded(row, replace(walk, memory=carry[1]), step, carry[0]),
            (record, walk.memory),
        )
        walk = replace(walk, memory=memory)
        next_row = jnp.minimum((step // every + 1) * every, last)
        next_row = jnp.where(step < begun, begun, next_row)
        walk = _repeated(step, next_row, lambda t, w: advance(w, t), walk, known)
        return next_row, walk, record

    shapes = row_of.eval_shape(plan, feed, start, walk, first, True)[0]
    record = empty(shapes, room)
    final = rows + jnp.int32(ends)
    # without `dense`, the row at `last` is one more iteration, of no steps
    turns, outer = (rows, known) if dense else (final, 0)
    arriving = jnp.int32(first < begun) if arrives else 0
    _, walk, record = _repeated(-arriving, turns, record_then_advance, (first, walk, record), outer)
    if dense:
        record = jax.lax.fori_loop(
            rows, final, lambda row, record: recorded(row, walk, last, record)[0], record
        )
    over = jax.lax.cond(
        ends,
        lambda: plan.over_members(partial(_over_at, plan, feed), 0, 0, None)(start, walk, last),
        lambda: (walk.diverged_at, walk.stopped_at),
    )
    walk = replace(walk, diverged_at=over[0], stopped_at=over[1])
    if is_for_one:
        walk, over = jax.tree_util.tree_map(partial(jnp.expand_dims, axis=0), (walk, over))
        record = jax.tree_util.tree_map(partial(jnp.expand_dims, axis=1), record)
    return walk, *over, record


def _repeated(
    first: Any, last: Any, turn: Callable[[Any, Any], Any], carry: Any, known: int
) -> Any:
    """`fori_loop`, where each `known` iterations are an inner loop of static length."""
    if known:

        def several(k: Any, carry: Any) -> Any:
            begin = first + k * known
            return jax.lax.fori_loop(0, known, lambda i, c: turn(begin + i, c), carry)

        times = (last - first) // known
        carry = jax.lax.fori_loop(0, times, several, carry)
        first += times * known
    return jax.lax.fori_loop(first, last, turn, carry)


def _times(count: Any, turn: Callable[[Any], Any], carry: Any) -> Any:
    """`turn` once or not at all, as a loop: it works in place, while a conditional copies its operands."""
    if isinstance(count, int):
        return turn(carry)
    return jax.lax.fori_loop(0, count, lambda _, carry: turn(carry), carry)


@jax.jit
def row_of(
    plan: Plan, feed: Feed, start: Params, walk: Walk, step: Any, counts: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One row of the record, for all members, and the observables' states after it."""
    observe = plan.over_members(partial(_observe, plan, feed), 0, 0, None, None)
    return observe(start, walk, step, counts)


def _advance(
    plan: Plan,
    feed: Feed,
    updates: Any,
    optimizer: Optimizer,
    lane: Any,
    start: Params,
    walk: Walk,
    step: Any,
) -> Walk:
    """`updates` (0 or 1) updates, then loss and gradient at the new iterate on the next step's batch."""

    def updated(moving: Walk) -> Walk:
        complete = replace(moving, loss=walk.loss, grad=walk.grad)
        at = complete.at(plan, feed, optimizer, lane, start, step)
        memory = {
            name: seen.measure(at, complete.memory[name])[1]
            if seen.every_step
            else complete.memory[name]
            for name, seen in plan.observed.items()
        }
        diverged_at, stopped_at = _over(plan, at, complete)
        params = jax.tree_util.tree_map(partial(_tested, diverged_at), complete.params)
        params, state, info = stepping.updated(at.optimizer, at, params, complete.state, at.updates)
        params = jax.tree_util.tree_map(_rounded, params)
        rest = (info, memory, diverged_at, stopped_at, complete.missed)
        moved = Walk(params, state, None, None, *rest)
        return moved if plan.stop is None else _unless_stopped(moving, moved)

    moved = _times(updates, updated, replace(walk, loss=None, grad=None))
    loss, grad = value_and_gradient(feed.batch(plan.problem, lane, step + 1), moved.params)
    # On the whole data a member that stays finds what it had
    if plan.stop is not None and feed.index is not None:
        stays = partial(jnp.where, moved.stopped_at >= 0)
        loss, grad = jax.tree_util.tree_map(stays, (walk.loss, walk.grad), (loss, grad))
    return replace(moved, loss=loss, grad=grad)


def _tested(diverged_at: Any, leaf: jax.Array) -> jax.Array:
    """The parameter to update; NaN in a member that has diverged. The update then needs the outcome of the
    test, so that XLA tests first and overwrites the parameter. In either order, it would copy it before."""
    return leaf if leaf.size < _LARGE else jnp.where(diverged_at < 0, leaf, jnp.nan)


def _rounded(leaf: jax.Array) -> jax.Array:
    """The parameter as it is stored. Without the barrier XLA may pass a half-precision parameter on to the
    loss as it was computed, in higher precision."""
    return jax.lax.optimization_barrier(leaf) if leaf.dtype.itemsize < 4 else leaf


def _over_at(
    plan: Plan, feed: Feed, optimizer: Optimizer, lane: Any, start: Params, walk: Walk, step: Any
) -> tuple[Any, Any]:
    """`_over` at a step that no update follows."""
    return _over(plan, walk.at(plan, feed, optimizer, lane, start, step), walk)


def _over(plan: Plan, at: At, walk: Walk) -> tuple[Any, Any]:
    """When the member diverged, and when it stopped; −1 if it has not. The current iterate is tested, not the
    next one, because its loss and parameters are available."""
    finite = jnp.isfinite(walk.loss)
    for leaf in jax.tree_util.tree_leaves(walk.params):
        # 0 · ∞ is NaN, and a sum keeps NaN. On a CPU the largest of thousands of numbers may lose it, and
        # `isfinite(leaf).all()` takes longer.
        finite &= (leaf * 0).sum() == 0
    diverged_at = jnp.where((walk.diverged_at < 0) & ~finite, at.step, walk.diverged_at)
    if plan.stop is None:
        return diverged_at, None
    arrives = plan.stop.met(at, walk.info) & (walk.stopped_at < 0) & (diverged_at < 0)
    return diverged_at, jnp.where(arrives, at.step, walk.stopped_at)


def _unless_over(advance: Callable[..., Walk], walk: Walk, step: Any) -> Walk:
    """Advance the members by a step, unless all have stopped or diverged, which the host notices later."""
    over = ((walk.stopped_at >= 0) | (walk.diverged_at >= 0)).all()
    return _times(jnp.int32(~over), lambda walk: advance(walk, step), walk)


def _unless_stopped(walk: Walk, moved: Walk) -> Walk:
    """`moved`, but with the iterate of `walk` if the member had stopped there."""
    stays = partial(jnp.where, moved.stopped_at >= 0)
    fields = {
        name: jax.tree_util.tree_map(stays, getattr(walk, name), getattr(moved, name))
        for name in ("params", "state", "info", "memory")
    }
    return replace(moved, **fields)


def _observe(
    plan: Plan,
    feed: Feed,
    optimizer: Optimizer,
    lane: Any,
    start: Params,
    walk: Walk,
    step: Any,
    counts: Any,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is recorded at a step, and the observables' states after it if the row counts."""
    at = walk.at(plan, feed, optimizer, lane, start, step)
    counts = counts if plan.stop is None else counts & (walk.stopped_at < 0)
    built_in = {"params": walk.params, "loss": walk.loss, "grad": walk.grad}
    values: dict[str, Any] = {name: built_in[name] for name in plan.kept} | walk.info
    memory = {}
    for name, seen in plan.observed.items():
        if name in values:
            raise InputError(
                f"record: {name!r} is what the optimizer records; choose another name."
            )
        values[name], after = measured(name, seen, at, walk.memory[name])
        keep = counts & (not seen.every_step)
        memory[name] = jax.tree_util.tree_map(
            lambda new, old, keep=keep: jnp.where(keep, new, old), after, walk.memory[name]
        )
    return values, memory
