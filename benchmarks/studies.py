"""How long each study takes: `python -m benchmarks.studies [STUDY ...]` measures those, or all of them,
and puts their lines in docs/timings.md.

Each study is run by the command with nothing compiled and once more with what the first kept, and in
one process twice without drawing. Beside it stands the same work as the PyTorch loop that a notebook
has: its units (a step of one descent, a point of a grid) are timed on a part, and scaled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import tools
from benchmarks.harness import ratio, seconds
from benchmarks.loops import LOOPS, Work

PAGE = tools.ROOT / "docs" / "timings.md"
_HEAD = (
    "study",
    "the command, first time",
    "again",
    "computing alone, first time",
    "again",
    "PyTorch loop, scaled",
    "loop / ours, first time",
    "again",
    "what the loop does (measured part)",
)


def computing(name: str) -> list[float]:
    """Seconds of the study's computation, twice in this process; called in a fresh one."""
    import thalweg as tw

    taken = []
    for _ in range(2):
        began = time.perf_counter()
        tw.studies.run(name)
        taken.append(time.perf_counter() - began)
    return taken


def commanding(name: str, cache: Path) -> float:
    """Seconds of the whole command, drawing and report included."""
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "thalweg", "run", name, "--out", str(cache / name)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    return time.perf_counter() - began


def looping(name: str) -> tuple[float, str]:
    """Seconds of the loop, scaled, and which part was measured; called in a fresh process."""
    import torch

    torch.manual_seed(0)
    total, parts = 0.0, []
    for work in LOOPS[name]():
        total += work.count * _unit(work)
        parts.append(f"{work.count:,} {work.what} ({min(work.measured, work.count):,})")
    return total, "; ".join(parts)


def _unit(work: Work) -> float:
    """Seconds of one unit: the least of three measured parts, after one that warms up."""
    many = min(work.measured, work.count)
    work.run(max(1, many // 10))
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        work.run(many)
        taken.append((time.perf_counter() - began) / many)
    return min(taken)


def row(name: str) -> list[str]:
    """A line of the table."""
    cache = tools.scratch() / f"cache-{name}"
    cache.mkdir()
    first, again = commanding(name, cache), commanding(name, cache)
    cold, warm = tools.fresh("studies", "computing", name)
    loop, parts = tools.fresh("studies", "looping", name)
    numbers = [first, again, cold, warm, loop]
    return [f"`{name}`", *map(seconds, numbers), ratio(loop / cold), ratio(loop / warm), parts]


def _measured() -> dict[str, list[str]]:
    """The lines that the page has, by study."""
    if not PAGE.exists():
        return {}
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {line[0].strip("`"): line for line in cells}


def _total(rows: list[list[str]], column: int) -> str:
    """The sum of a column of seconds, as far as their digits go."""
    units = {"s": 1.0, "ms": 1e-3}
    parts = (row[column].replace(",", "").split() for row in rows)
    return seconds(sum(float(number) * units[unit] for number, unit in parts))


def main(names: list[str]) -> int:
    from thalweg.studies import STUDIES

    found = _measured()
    for name in names or STUDIES:
        print(f"{name} …", file=sys.stderr)
        found[name] = row(name)
        print(" | ".join(found[name]), file=sys.stderr)
    rows = [found[name] for name in STUDIES if name in found]
    page = "\n".join(
        [
            "# How long the studies take",
            "",
            "`python -m benchmarks.studies [STUDY ...]` writes this page: every study at its default "
            "settings. *The "
            "command* is `thalweg run STUDY --out DIR` as a whole process, with its figures and its "
            "report; *first time* with nothing compiled before, *again* with the compiled programs that "
            "it keeps in the user's cache folder. *Computing alone* is `thalweg.studies.run` in a new "
            "process, and once more in the same one. *PyTorch loop* is the same work as notebooks do it, "
            "a Python loop over steps, runs and grid points that appends what it records; only a part "
            "of it was run, and its time scaled up to the whole, as the last column says.",
            "",
            "| " + " | ".join(_HEAD) + " |",
            "|" + "---|" * len(_HEAD),
            *("| " + " | ".join(cells) + " |" for cells in rows),
            "",
            f"All commands one after the other: {_total(rows, 1)} the first time, "
            f"{_total(rows, 2)} again.",
            "",
            *(f"- {line}" for line in tools.machine()),
            "",
        ]
    )
    print(page)
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
