"""`python -m benchmarks [--device gpu] [case ...]`: measure, print one table, and write
benchmarks/results.md, or benchmarks/results-gpu.md."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

from benchmarks import (
    descents,
    flow,
    growth,
    landscapes,
    large,
    least_squares,
    networks,
    spectra,
    startup,
    tools,
    transformer,
)
from benchmarks.harness import CASES, TURN, DisagreementError, Row, measure

_HEAD = Row(
    "case", "who", "measured part", "first call", "time", "ratio to ours", "goal", "agrees to"
)
# In this order.
_MODULES = (
    descents,
    landscapes,
    networks,
    large,
    transformer,
    spectra,
    flow,
    least_squares,
    startup,
    growth,
)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="case", help=f"one of {', '.join(_in_order())}")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--rounds", type=int, metavar="N", help="measure each N times at most")
    chosen = parser.parse_args(words)
    for name in chosen.names:
        if name not in CASES:
            parser.error(f"no case {name!r}; there are {', '.join(_in_order())}")
    if chosen.rounds is not None and chosen.rounds < 1:
        parser.error(f"--rounds must be 1 or more, not {chosen.rounds}")
    tools.choose(chosen.device)
    if tools.on_gpu() and (why := tools.no_gpu()):
        parser.error(f"no GPU to measure: {why}")
    tools.settle()
    page = None
    if not chosen.names:
        page = Path(__file__).with_name("results-gpu.md" if tools.on_gpu() else "results.md")
    partial = Path(__file__).with_name("partial.md")
    machine = tools.machine()
    began, busy, own = time.perf_counter(), tools.busy_seconds(), tools.own_seconds()
    rows, notes = [], []

    def keep(unfinished: list[str]) -> str:
        """The page so far, beside the one that there is: what is measured is not lost where a later case is
        stopped."""
        took = time.perf_counter() - began
        where = [*machine, f"The run took {took:.0f} s."]
        if busy is not None:
            others = (tools.busy_seconds() - busy) - (tools.own_seconds() - own)
            where.append(f"Others used {max(others, 0) / took:.2f} of the processors meanwhile.")
        if unfinished:
            where.append(f"Not measured to the end: {', '.join(unfinished)}.")
        drawn = "growth" in measured and "growth" not in unfinished
        report = _report(rows, [*where, *notes], chosen.rounds, drawn)
        if page is not None:
            partial.write_text(report)
        return report

    waiting = measured = chosen.names or _in_order()
    while waiting:
        name, *waiting = waiting
        print(f"{name} …", file=sys.stderr)
        try:
            for entry in CASES[name]():
                rows += measure(entry, chosen.rounds)
                keep([name, *waiting])
        except KeyboardInterrupt:
            print(keep([name, *waiting]))
            return 130
        except Exception as error:  # one broken case must not cost the others' measurements
            traceback.print_exc()
            # other errors' texts may hold paths of this machine, which the page must not
            text = error if isinstance(error, DisagreementError) else type(error).__name__
            notes.append(f"FAILED: {name}: {text}")
            keep(waiting)
    print(keep([]))
    if page is not None:
        partial.replace(page)
    return 1 if notes else 0


def _report(rows: list[Row], notes: list[str], rounds: int | None, drawn: bool) -> str:
    """The page: the table, and what is to be said of it."""
    few = "" if rounds is None else f" There were {rounds} rounds at most."
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"`make bench` writes this page. Contenders take turns of {TURN} s; times are medians of "
            "their turns, with the least and the greatest in brackets, and a ratio is a contender's "
            "time over ours in the same round. Who does a part of the job has its time scaled up. "
            "The last column says how far an answer is from ours or from the truth, relatively."
            f"{few}",
            "",
            *_table(rows),
            "",
            *([f"![How time and memory grow]({growth.picture().name})", ""] if drawn else []),
            *_short(rows),
            "## Where it was measured",
            "",
            *(f"- {note}" for note in notes),
            "",
        ]
    )


def _in_order() -> list[str]:
    return [
        name
        for module in _MODULES
        for name, function in CASES.items()
        if function.__module__ == module.__name__
    ]


def _short(rows: list[Row]) -> list[str]:
    """What missed its goal, and why, as far as it is known."""
    lines = [
        f"- {row.case}; {row.who} ({row.goal}): {row.why or 'not explained yet.'}"
        for row in rows
        if row.missed
    ]
    return ["## What falls short", "", *lines, ""] if lines else []


def _table(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table with even columns; a case's title stands once."""
    titled = [
        row._replace(case="" if i and rows[i - 1].case == row.case else row.case)[:-1]
        for i, row in enumerate(rows)
    ]
    head = _HEAD[:-1]
    widths = [max(map(len, column)) for column in zip(head, *titled, strict=True)]
    dashes = ["-" * width for width in widths]
    return [
        "| " + " | ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)) + " |"
        for row in (head, dashes, *titled)
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
