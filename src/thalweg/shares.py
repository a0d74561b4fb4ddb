"""Which members of a descent each core advances. Members are independent of each other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from thalweg import backend
from thalweg.walks import Plan

# With fewer numbers a vectorised step takes about a microsecond, and not much less for half of the members.
_FEW_NUMBERS = 256  # parameters and samples of all members
# With more numbers a share's arrays do not fit a core's cache. But shares of at most _MANY_MEMBERS members
# are not split: too few members would be left to vectorise over.
_MANY_NUMBERS = 2**17
_MANY_MEMBERS = 1024
# Members with more numbers do not fit it even alone, and gain nothing from others in the same products
_LONE_NUMBERS = 2**19


@dataclass(frozen=True)
class Share:
    """The members that one thread advances, block after block.

    All shares are of one size, so that one program serves them. Where the members do not divide evenly, the
    last share starts with `again` members of the one before.
    """

    plan: Plan
    members: slice
    again: int


def everyone(plan: Plan) -> Share:
    """One share of all members, or of the only one."""
    return Share(plan, slice(None), 0)


def shares_of(plan: Plan, count: int, samples: int) -> Iterator[Share]:
    """Shares of the `count` members: one per core, or several that each fit its cache. `samples` is how many
    samples a member's step takes. A single share where only one program runs at a time, as on a GPU, or where
    threads would cost more than they save."""
    workers, member_numbers = backend.workers(), plan.problem.size + samples
    if not plan.batched or workers == 1 or count * member_numbers < _FEW_NUMBERS:
        yield everyone(plan)
        return
    size = -(-count // workers) if member_numbers <= _LONE_NUMBERS else 1
    while size * member_numbers > _MANY_NUMBERS and size > _MANY_MEMBERS:
        size = -(-size // 2)
    for first in range(0, count, size):
        begin = min(first, count - size)
        members = slice(begin, begin + size)
        yield Share(plan.of(members), members, first - begin)
