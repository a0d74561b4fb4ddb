"""Run a long job in blocks: progress, interrupt, memory estimate. Knows nothing of optimization.

A job of `total` units is cut into blocks. Between two of them there is room for a progress bar and
for Ctrl-C; their length follows the clock, so that a job answers within a fraction of a second
whether a unit takes a microsecond or a minute.
"""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from thalweg.errors import MemoryEstimateError

Handle = TypeVar("Handle")

_FIRST = 16  # units in the first block
_ALWAYS_THERE = 2**24  # bytes assumed available: checking takes as long as a small job
_AIM = 0.1  # seconds a block should take: short enough to feel immediate
_OWN_GROUP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Seconds within which a second Ctrl-C ends the program, even if another job has begun since the first.
_AGAIN = 2.0

_pressed = -math.inf  # when Ctrl-C was last pressed


class Interrupt:
    """Whether Ctrl-C was pressed; true once it was."""

    def __init__(self) -> None:
        self.pressed = False

    def __bool__(self) -> bool:
        return self.pressed


_listening: ContextVar[Interrupt | None] = ContextVar("listening", default=None)


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """Turn the first Ctrl-C into a flag; a second one raises KeyboardInterrupt as usual, even if the user's
    loop has begun the next job in the meantime.

    Nested inside another `interruptible` it shares the outer one's flag: after Ctrl-C, every job inside ends
    at once with what it has. Python delivers signals to the main thread only, so in other threads there is
    nothing to do.
    """
    outer = _listening.get()
    if outer is not None:
        yield outer
        return
    interrupt = Interrupt()
    previous = signal.getsignal(signal.SIGINT)
    here = threading.current_thread() is threading.main_thread()
    listens = here and previous not in (None, signal.SIG_IGN)

    def on_signal(number: int, frame: Any) -> None:
        global _pressed
        again, _pressed = time.monotonic() - _pressed < _AGAIN, time.monotonic()
        interrupt.pressed = True
        signal.signal(signal.SIGINT, previous)
        if again:
            signal.raise_signal(signal.SIGINT)

    token = _listening.set(interrupt)
    try:
        if listens:
            signal.signal(signal.SIGINT, on_signal)
        yield interrupt
    finally:
        _listening.reset(token)
        if listens:
            signal.signal(signal.SIGINT, previous)


class _StandardError:
    """Standard error for progress bars. Failures to write, to a pipe without a reader or a closed file, are
    ignored: otherwise tqdm would raise, and keep its lock."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def isatty(self) -> bool:
        with contextlib.suppress(AttributeError, ValueError):
            return sys.stderr.isatty()
        return False

    def write(self, text: str) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            sys.stderr.flush()


def bar(total: int, label: str, unit: str, progress: bool | None = None) -> Any:
    """A progress bar, as a context: shown, not shown, or (None) on a terminal after a second."""
    from tqdm import tqdm

    hidden = None if progress is None else not progress
    look = {"desc": label, "unit": unit, "delay": 1.0, "leave": False}
    return tqdm(total=total, disable=hidden, file=_StandardError(), **look)


def run(
    total: int,
    launch: Callable[[int, int], Handle],
    collect: Callable[[int, int, Handle], None],
    *,
    most: int,
    label: str,
    unit: str = "step",
    progress: bool | None = None,
    finished: Callable[[], bool] | None = None,
) -> tuple[int, bool]:
    """Run units 0 … total − 1 in blocks of at most `most`.

    `launch(start, count)` starts a block and returns a handle at once; `collect(start, count,
    handle)` waits for it and takes its results. The next block is launched before the last one is
    collected, so that the host's copying hides behind the device's work.

    Args:
        progress: True or False to show a bar or not; None shows one on a terminal, after a second.
        finished: asked after every block; true ends the job early, as complete, with the block that has
            been launched by then.

    Returns:
        The number of units done, and whether Ctrl-C cut the job short.
    """
    done = launched = 0
    size = min(_FIRST, most)
    pending: tuple[int, int, Any] | None = None
    with (
        interruptible() as interrupt,
        bar(total, label, unit, progress) as shown,
    ):
        last = time.perf_counter()
        while pending or (launched < total and not interrupt):
            following = None
            if launched < total and not interrupt:
                count = min(size, total - launched)
                following = (launched, count, launch(launched, count))
                launched += count
            if pending:
                collect(*pending)
                done = pending[0] + pending[1]
                shown.update(pending[1])
                now = time.perf_counter()
                size = _next_size(size, pending[1], now - last, most)
                last = now
                if finished is not None and finished():
                    total = launched  # the block in flight is still collected
            pending = following
        return done, bool(interrupt) and done < total


def until(
    total: int,
    advance: Callable[[int, int], int],
    *,
    most: int,
    label: str,
    unit: str,
    progress: bool | None = None,
) -> tuple[int, bool]:
    """Reach units 0 … total − 1, where it is not known how much work each of them takes.

    `advance(done, size)` does at most `size` pieces of work from unit `done` on, where `size` is at most
    `most`, and returns how many units are done then. Progress, Ctrl-C and return values are as for `run`.
    """
    done, size = 0, min(_FIRST, most)
    with interruptible() as interrupt, bar(total, label, unit, progress) as shown:
        while done < total and not interrupt:
            start = time.perf_counter()
            reached = advance(done, size)
            shown.update(reached - done)
            done = reached
            size = _next_size(size, size, time.perf_counter() - start, most)
        return done, done < total


def _next_size(size: int, count: int, seconds: float, most: int) -> int:
    """The block length that would take `_AIM` seconds; at most eightfold, since a first call compiles."""
    if seconds <= 0:
        return min(8 * size, most)
    fitting = int(count * _AIM / seconds)
    return max(1, min(fitting, 8 * size, most))


def check_memory(needed: float, what: str, remedy: str) -> None:
    """An error, before anything is allocated, if `needed` bytes are not available."""
    if needed < _ALWAYS_THERE:
        return
    available = _available()
    if needed > available:
        raise MemoryEstimateError(
            f"{what} would need {size_text(needed)}, and {size_text(available)} are available; "
            f"{remedy}."
        )


def _available() -> float:
    """Bytes of memory that this process can still allocate, on the machine and within the limits of its Linux
    control groups (version 2), which Docker, Kubernetes and Slurm set."""
    import psutil

    available: float = psutil.virtual_memory().available
    with contextlib.suppress(OSError):
        for line in _OWN_GROUP.read_text().splitlines():
            if line.startswith("0::/"):
                group = _GROUPS / line.removeprefix("0::/")
                groups = (f for f in (group, *group.parents) if f.is_relative_to(_GROUPS))
                available = min(available, *map(_left_in, groups))
    return max(available, 0)


def _left_in(group: Path) -> float:
    """Bytes left within a control group's limit, including its file cache, which the kernel can reclaim."""
    try:
        limit, used = (float((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return limit - used + float(stat["inactive_file"])
    except (OSError, ValueError, KeyError):  # the limit may be "max"
        return math.inf


def size_text(count: float) -> str:
    """A number of bytes for people: 1.5 GiB."""
    if count < 1024:
        return f"{count:.0f} B"
    power = min(int(math.log(count, 1024)), 6)
    return f"{count / 1024**power:.1f} {'KMGTPE'[power - 1]}iB"


def rows_before(first: int, last: int, every: int) -> int:
    """How many rows a block records from step `first` on and before `last`: at `first`, and at the multiples
    of `every` after it."""
    return 0 if first == last else 1 + (last - 1) // every - first // every
