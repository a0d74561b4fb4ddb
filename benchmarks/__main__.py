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
)
from benchmarks.harness import CASES, TURN, DisagreementError, Row, measure

_HEAD = Row(
    "case", "who", "measured part", "first call", "time", "ratio to ours", "goal", "agrees to"
)
# In this order.
_MODULES = (descents, landscapes, networks, large, spectra, flow, least_squares, startup, growth)


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks")
    parser.add_argument("names", nargs="*", metavar="case", help=f"one of {', '.join(_in_order())}")
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    chosen = parser.parse_args(words)
    names = chosen.names
    for name in names:
        if name not in CASES:
            parser.error(f"no case {name!r}; there are {', '.join(_in_order())}")
    tools.choose(chosen.device)
    if tools.on_gpu() and (why := tools.no_gpu()):
        parser.error(f"no GPU to measure: {why}")
    tools.settle()
    began, busy, own = time.perf_counter(), tools.busy_seconds(), tools.own_seconds()
    rows, failures = [], []
    for name in names or _in_order():
        print(f"{name} …", file=sys.stderr)
        try:
            for entry in CASES[name]():
                rows += measure(entry)
        except Exception as error:  # one broken case must not cost the others' measurements
            traceback.print_exc()
            # other errors' texts may hold paths of this machine, which the page must not
            text = error if isinstance(error, DisagreementError) else type(error).__name__
            failures.append(f"{name}: {text}")
    took = time.perf_counter() - began
    lines = [*tools.machine(), f"The whole run took {took:.0f} s."]
    if busy is not None:
        others = (tools.busy_seconds() - busy) - (tools.own_seconds() - own)
        lines.append(f"Others used {max(others, 0) / took:.2f} of the processors meanwhile.")
    report = "\n".join(
        [
            "# Benchmarks",
            "",
            f"`make bench` writes this page. Contenders take turns of {TURN} s; times are medians of "
            "their turns, with the least and the greatest in brackets, and a ratio is a contender's "
            "time over ours in the same round. Who does a part of the job has its time scaled up. "
            "The last column says how far an answer is from ours or from the truth, relatively.",
            "",
            *_table(rows),
            "",
            f"![How time and memory grow]({growth.picture().name})",
            "",
            *_short(rows),
            *(f"- {line}" for line in lines),
            *(f"- FAILED: {failure}" for failure in failures),
            "",
        ]
    )
    print(report)
    if not names:
        page = "results-gpu.md" if tools.on_gpu() else "results.md"
        Path(__file__).with_name(page).write_text(report)
    return 1 if failures else 0


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
    return ["## What falls short", "", *lines, "", "## Where it was measured", ""] if lines else []


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
