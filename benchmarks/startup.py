"""What a person waits for before anything is computed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from benchmarks import studies, tools
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
    """What a person waits for from the start of a process on, each time in a new one."""
    if tools.on_gpu():  # which has no part in it
        return
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
    for part in ("import of all that a descent needs", "first call", "second call"):
        yield Gauge(
            "a descent of 100 steps on a line's 50 samples",
            part,
            "s",
            lambda part=part: tools.fresh("startup", "calls")[part],
        )
    for again, name in enumerate(("the first time", "with what that kept")):
        yield Gauge(
            "thalweg run minimal-mlp, the whole process, its pictures and its report",
            name,
            "s",
            lambda again=again: _running()[again],
            rounds=1,
        )


def calls() -> dict[str, float]:
    """Seconds of a process's first descent, part by part; called in a fresh one."""
    began = time.perf_counter()
    import numpy as np

    import thalweg as tw
    from thalweg.catalogue import models

    x = np.linspace(-1, 1, 50)
    problem = tw.Problem(models.line, "mse", x, 2 * x + 1, params={"weight": 0.0, "bias": 0.0})
    taken = {"import of all that a descent needs": time.perf_counter() - began}
    for part in ("first call", "second call"):
        began = time.perf_counter()
        tw.descend(problem, tw.SGD(lr=0.1), steps=100)
        taken[part] = time.perf_counter() - began
    return taken


@cache
def _running() -> list[float]:
    """Seconds of the command twice, with nothing compiled before the first."""
    folder = tools.scratch() / "minimal-mlp"
    folder.mkdir()
    return [studies.commanding("minimal-mlp", folder) for _ in range(2)]


def _importing() -> float:
    return float(_run(sys.executable, "-c", IMPORT).stdout)


def _helping() -> float:
    begin = time.perf_counter()
    _run(COMMAND, "--help")
    return time.perf_counter() - begin


def _run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True)
