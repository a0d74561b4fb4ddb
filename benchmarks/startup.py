"""What a person waits for before anything is computed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Gauge, case

COMMAND = Path(sys.executable).with_name("thalweg")
# Nothing else is imported before, so that thalweg pays for all that it needs.
IMPORT = """
import sys, time
begin = time.perf_counter()
import thalweg
print(time.perf_counter() - begin)
early = {"jax", "numpy"} & sys.modules.keys()
assert not early, f"import thalweg loads {early}"
"""


@case
def startup() -> Iterator[Gauge]:
    """`import thalweg` and `thalweg --help`, each in a new process."""
    yield Gauge("start-up", "import thalweg", "s", _importing, limit=0.1, rounds=9)
    works = COMMAND.exists() and _run(COMMAND, "--help", check=False).returncode == 0
    yield Gauge(
        "start-up",
        "thalweg --help, the whole process",
        "s",
        _helping,
        limit=0.3,
        rounds=9,
        skipped="" if works else "skipped: the command does not work here",
    )


def _importing() -> float:
    return float(_run(sys.executable, "-c", IMPORT).stdout)


def _helping() -> float:
    begin = time.perf_counter()
    _run(COMMAND, "--help")
    return time.perf_counter() - begin


def _run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True)
