"""Races and gauges: how anything in this folder is measured.

A case is a function marked `@case` that gives a `Race`, contenders that do the same job in turns, a
`Gauge`, one number with a limit, or a `Growth`, how cost grows with a size. All become rows of one table.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

import numpy as np

MISSED = "MISSED"
TURN = 0.5  # seconds: the threads of the contender before may spin for a tenth of that


class Timed(NamedTuple):
    """What a contender returns that keeps its own clock, such as a program in C."""

    seconds: float
    result: Any


@dataclass(frozen=True)
class Contender:
    """One way to do a race's job. `run` returns only once its result is ready."""

    name: str
    run: Callable[[], Any]
    answer: Callable[[Any], Any] = lambda result: result  # of the result; not timed
    share: float = 1.0  # of the job that `run` does; its time is divided by it
    part: str = "all"  # that share in words
    rounds: int | None = (
        None  # fewer than the race's, where one is long; of 0 the first call counts
    )
    goal: float | None = None  # the least ratio of its time to ours
    within: tuple[float, str] | None = None  # at most so many times as long as another contender
    why: str = ""  # what is known of a goal that is missed
    skipped: str = ""  # why it cannot run here


@dataclass(frozen=True)
class Race:
    """Contenders in turns, ours first.

    `deviation` says how far an answer (and what part of the job it is) lies from the truth or from
    ours; beyond `tolerance` the race fails, since times of different answers mean nothing.
    """

    title: str
    contenders: Sequence[Contender]
    deviation: Callable[[dict[str, Any]], dict[str, float]]
    tolerance: float
    rounds: int = 7


@dataclass(frozen=True)
class Gauge:
    """One number, measured several times, and the limit it should stay below."""

    title: str
    name: str
    unit: str  # "s" or "MiB"
    measure: Callable[[], float]
    limit: float | None = None
    rounds: int = 5
    why: str = ""  # what is known of a limit that is missed
    skipped: str = ""


@dataclass(frozen=True)
class Growth:
    """Time and memory at several sizes, the last decade of which should grow as the size does."""

    what: str
    rest: str  # what does not grow
    sizes: Sequence[int]
    seconds: Sequence[float]
    mib: Sequence[float]  # beyond what there is at the least size
    device_mib: Sequence[float] = ()  # of a GPU, likewise
    why: tuple[str, str] = ("", "")  # what is known of slopes that are not one

    def slope(self, values: Sequence[float]) -> float:
        """d log value / d log size over the last decade, by least squares."""
        last = [i for i, size in enumerate(self.sizes) if size >= 0.099 * self.sizes[-1]]
        logs = np.log([[self.sizes[i], max(values[i], 1e-9)] for i in last])
        return float(np.polyfit(*logs.T, 1)[0])


class Row(NamedTuple):
    """A line of the table."""

    case: str
    who: str
    part: str
    first: str
    time: str
    ratio: str
    goal: str
    agrees: str
    why: str = ""

    @property
    def missed(self) -> bool:
        return self.goal.endswith(MISSED)


class DisagreementError(Exception):
    """Two contenders of a race do not have the same answer."""


Entry = Race | Gauge | Growth
CASES: dict[str, Callable[[], Iterable[Entry]]] = {}


def case(function: Callable[[], Iterable[Entry]]) -> Any:
    """Mark a function that makes entries of the table; its name chooses it on the command line."""
    CASES[function.__name__] = function
    return function


def measure(entry: Entry, rounds: int | None = None) -> list[Row]:
    """The rows of an entry, measured so many times at most."""
    if isinstance(entry, Race):
        return _race(entry, min(entry.rounds, rounds or entry.rounds))
    if isinstance(entry, Gauge):
        return [_gauge(entry, min(entry.rounds, rounds or entry.rounds))]
    return _growth(entry)


def _race(race: Race, rounds: int) -> list[Row]:
    running = [c for c in race.contenders if not c.skipped]
    first: dict[str, float] = {}
    answers: dict[str, Any] = {}
    for c in running:
        first[c.name], result = _clocked(c)
        answers[c.name] = c.answer(result)
    deviation = race.deviation(answers)
    del answers, result  # before the clock runs: gigabytes kept alive would change what is measured
    for name, off in deviation.items():
        if not off <= race.tolerance:
            raise DisagreementError(
                f"{race.title}: {name} is off by {off:.1e}, more than {race.tolerance:.0e}"
            )
    times = {c.name: [first[c.name] / c.share] if c.rounds == 0 else [] for c in running}
    for turn in range(rounds):
        for c in running:
            if c.rounds is None or turn < c.rounds:
                times[c.name].append(_turn(c) / c.share)
    ours = times[race.contenders[0].name]
    rows = []
    for c in race.contenders:
        if c.skipped:
            rows.append(Row(race.title, c.name, c.skipped, *[""] * 5))
            continue
        # Ratios of times of the same round: what disturbs the machine disturbs both.
        ratios = [t / o for t, o in zip(times[c.name], ours, strict=False)]
        met = "" if c.goal is None else _verdict(f"≥ {ratio(c.goal)}", median(ratios) >= c.goal)
        if c.within is not None and c.within[1] in times:
            most, other = c.within
            times_as_long = median(t / o for t, o in zip(times[c.name], times[other], strict=False))
            met = _verdict(f"≤ {ratio(most)} × {other}", times_as_long <= most)
        rows.append(
            Row(
                race.title,
                c.name,
                c.part,
                seconds(first[c.name]) if c.share == 1 else "",
                spread(times[c.name], seconds),
                "1" if c is race.contenders[0] else spread(ratios, ratio),
                met,
                f"{deviation[c.name]:.0e}" if c.name in deviation else "",
                c.why,
            )
        )
    return rows


def _gauge(gauge: Gauge, rounds: int) -> Row:
    if gauge.skipped:
        return Row(gauge.title, gauge.name, gauge.skipped, *[""] * 5)
    values = [gauge.measure() for _ in range(rounds)]
    text = seconds if gauge.unit == "s" else mebibytes
    goal = (
        ""
        if gauge.limit is None
        else _verdict(f"< {text(gauge.limit)}", median(values) < gauge.limit)
    )
    return Row(gauge.title, gauge.name, "all", "", spread(values, text), "", goal, "", gauge.why)


def _growth(growth: Growth) -> list[Row]:
    title = f"growth with {growth.what}: {growth.rest}"
    rows = []
    for name, values, text, why in (
        ("time of a warm call", growth.seconds, seconds, growth.why[0]),
        ("memory over that of the least size", growth.mib, mebibytes, growth.why[1]),
    ):
        slope = growth.slope(values)
        rows.append(
            Row(
                title,
                name,
                f"{growth.sizes[0]:,} … {growth.sizes[-1]:,}",
                "",
                f"{text(values[0])} … {text(values[-1])}",
                "",
                _verdict(f"slope {slope:.2f}, 0.9 to 1.1", 0.9 <= slope <= 1.1),
                "",
                why,
            )
        )
    if growth.device_mib:  # which holds a part of the work at a time
        rows.append(
            Row(
                title,
                "the GPU's memory over that of the least size",
                f"{growth.sizes[0]:,} … {growth.sizes[-1]:,}",
                "",
                f"{mebibytes(growth.device_mib[0])} … {mebibytes(growth.device_mib[-1])}",
                *[""] * 3,
            )
        )
    return rows


def _turn(contender: Contender) -> float:
    """Seconds of a contender's run in its turn.

    A run of milliseconds would otherwise be measured by what the contender before it left behind.
    """
    return typical(lambda: _clocked(contender)[0], TURN)


def typical(run: Callable[[], float], long: float, least: int = 1) -> float:
    """The median of what runs return, of as many as begin within `long` seconds, but so many at least."""
    found: list[float] = []
    end = time.perf_counter() + long
    while len(found) < least or time.perf_counter() < end:
        found.append(run())
    return median(found)


def clocked(run: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds that a call takes, and its result."""
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def _clocked(contender: Contender) -> tuple[float, Any]:
    elapsed, result = clocked(contender.run)
    return result if isinstance(result, Timed) else (elapsed, result)


def _verdict(goal: str, met: bool) -> str:
    return f"{goal}: {'met' if met else MISSED}"


def spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    """The median, and the least and the greatest."""
    if len(values) == 1:
        return text(values[0])
    return f"{text(median(values))} ({text(min(values))} … {text(max(values))})"


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 0.1:
        return f"{value * 1e3:.3g} ms"
    return f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def mebibytes(value: float) -> str:
    """An amount of memory, in MiB."""
    return f"{value:,.0f} MiB"


def ratio(value: float) -> str:
    """How many times as long."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"
