"""A line search for the strong Wolfe conditions, as one compiled loop, one evaluation per iteration.

Along φ(t) = f(x + td) it looks for φ(t) ≤ φ(0) + c₁tφ′(0) and |φ′(t)| ≤ c₂|φ′(0)| (Nocedal and
Wright, 2006, algorithms 3.5 and 3.6), by cubic interpolation: it goes out until an interval
encloses such a point, then narrows the interval. Trial points and ends are those of
`torch.optim.LBFGS`, which has them from minFunc (Schmidt, 2005).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_DECREASE = 1e-4  # c₁
_CURVATURE = 0.9  # c₂
_NARROWEST = 1e-9  # an interval that moves no parameter further than this is a point


class Point(NamedTuple):
    """A point of the line: t, φ(t), the gradient there and φ′(t)."""

    t: Any
    value: Any
    gradient: Any
    slope: Any


class _Search(NamedTuple):
    t: Any  # the next trial
    ends: Point  # two points, stacked; while still expanding, the second is the last trial
    low: Any  # index of the end with the lower value
    enclosed: Any  # whether an interval encloses an acceptable point
    cramped: Any  # whether the last interpolation was close to an end, and left there
    evaluations: Any
    done: Any


def strong_wolfe(
    evaluate: Callable[[Any], Point], start: Point, t: Any, reach: Any, most: Any
) -> tuple[Point, Any]:
    """The point found and the evaluations it took.

    `start` is the point at 0, `t` the first trial, `reach` the greatest entry of |d|. At most
    `most` + 1 evaluations are made; the lower of the interval's ends is then the answer.
    """
    search = _Search(
        t=t,
        ends=_pair(start, start),
        low=jnp.zeros((), int),
        enclosed=jnp.zeros((), bool),
        cramped=jnp.zeros((), bool),
        evaluations=jnp.zeros((), int),
        done=jnp.zeros((), bool),
    )

    def turn(search: _Search) -> _Search:
        new = evaluate(search.t)
        search = search._replace(evaluations=search.evaluations + 1)
        search = jax.lax.cond(
            search.enclosed, partial(_narrow, start), partial(_go_out, start, most), search, new
        )
        width = jnp.abs(search.ends.t[1] - search.ends.t[0])
        over = (search.evaluations > most) | (search.enclosed & (width * reach < _NARROWEST))
        return _next_trial(search._replace(done=search.done | over))

    search = jax.lax.while_loop(lambda search: ~search.done, turn, search)
    return _end(search.ends, search.low), search.evaluations


def _go_out(start: Point, most: Any, search: _Search, new: Point) -> _Search:
    """Expand while there is no interval: the trial closes one, is accepted, or is the point to go on from."""
    last = _end(search.ends, 1)
    spent = search.evaluations > most
    # As in torch, a rise since the last trial counts only from the third evaluation on.
    rises = _too_high(start, new) | ((search.evaluations > 2) & (new.value >= last.value))
    accepted = ~spent & ~rises & _flat(start, new)
    enclosed = ~spent & (rises | accepted | (new.slope >= 0))
    first = _choose(spent, start, _choose(accepted, new, last))
    further = _cubic(last, new, new.t + 0.01 * (new.t - last.t), 10 * new.t)
    ends = _pair(first, new)
    return search._replace(t=further, ends=ends, low=_lower(ends), enclosed=enclosed, done=accepted)


def _narrow(start: Point, search: _Search, new: Point) -> _Search:
    """Replace an end of the interval by the trial, so that it still encloses an acceptable point."""
    low, high = search.low, 1 - search.low
    ends = search.ends
    worse = _too_high(start, new) | (new.value >= ends.value[low])
    accepted = ~worse & _flat(start, new)
    turned = ~worse & ~accepted & (new.slope * (ends.t[high] - ends.t[low]) >= 0)
    at_low = _choose(worse, _end(ends, low), new)
    at_high = _choose(worse, new, _choose(turned, _end(ends, low), _end(ends, high)))
    first = low == 0
    ends = _pair(_choose(first, at_low, at_high), _choose(first, at_high, at_low))
    return search._replace(ends=ends, low=jnp.where(worse, _lower(ends), low), done=accepted)


def _next_trial(search: _Search) -> _Search:
    """Inside an interval, try the interpolated minimum, pushed away from an end that it is too close to."""
    a, b = _end(search.ends, 0), _end(search.ends, 1)
    least, greatest = jnp.minimum(a.t, b.t), jnp.maximum(a.t, b.t)
    t = _cubic(a, b, least, greatest)
    margin = 0.1 * (greatest - least)
    close = jnp.minimum(greatest - t, t - least) < margin
    push = close & (search.cramped | (t >= greatest) | (t <= least))
    nearer = jnp.abs(t - greatest) < jnp.abs(t - least)
    t = jnp.where(push, jnp.where(nearer, greatest - margin, least + margin), t)
    return search._replace(
        t=jnp.where(search.enclosed, t, search.t),
        cramped=search.enclosed & close & ~push,
    )


def _cubic(a: Point, b: Point, least: Any, greatest: Any) -> Any:
    """The minimum of the cubic through values and slopes at a and b, clipped to the bounds; their midpoint
    where the cubic has no minimum (Nocedal & Wright, equation 3.59).
    """
    chord = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t)
    square = chord**2 - a.slope * b.slope
    root = jnp.sqrt(jnp.where(square >= 0, square, 0))
    a, b = _choose(a.t <= b.t, a, b), _choose(a.t <= b.t, b, a)
    t = b.t - (b.t - a.t) * ((b.slope + root - chord) / (b.slope - a.slope + 2 * root))
    inside = jnp.minimum(jnp.maximum(t, least), greatest)
    return jnp.where(square >= 0, inside, (least + greatest) / 2)


def _too_high(start: Point, new: Point) -> Any:
    return new.value > start.value + _DECREASE * new.t * start.slope


def _flat(start: Point, new: Point) -> Any:
    return jnp.abs(new.slope) <= -_CURVATURE * start.slope


def _lower(ends: Point) -> Any:
    return jnp.where(ends.value[0] <= ends.value[1], 0, 1)


def _pair(first: Point, second: Point) -> Point:
    return Point(*(jnp.stack(fields) for fields in zip(first, second, strict=True)))


def _end(ends: Point, index: Any) -> Point:
    return Point(*(field[index] for field in ends))


def _choose(condition: Any, one: Point, other: Point) -> Point:
    return Point(*(jnp.where(condition, a, b) for a, b in zip(one, other, strict=True)))
