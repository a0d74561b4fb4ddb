"""Every study in one go: a folder each, and an index page."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thalweg import blocks, files, report, results, studies
from thalweg.errors import InputError
from thalweg.pages import rendered


@dataclass(frozen=True)
class Outcome:
    """How a study ended: `status` is completed, interrupted or failed, and `message` says why."""

    name: str
    status: str
    seconds: float
    message: str = ""
    numbers: tuple[tuple[str, str], ...] = ()


def write(
    folder: str | os.PathLike[str],
    names: Iterable[str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    done: Callable[[Outcome], None] | None = None,
) -> list[Outcome]:
    """Run studies one after the other, each into folder/NAME, and write folder/index.html.

    A study that fails does not stop the others: its error stands in the index, and its traceback in
    folder/NAME-error.txt where it is not a plain InputError. After Ctrl-C the study at work is written
    with what it has, and those that follow are left out. The index is written anew after every study.

    Args:
        names: of `thalweg.studies.STUDIES`; all of them without it.
        settings: by study, what to change in it.
        done: called with each outcome.

    Returns:
        The outcomes, in order.

    Raises:
        InputError: an unknown study or setting, before anything is run.
    """
    names = list(studies.STUDIES if names is None else names)
    settings = settings or {}
    for name in names:
        studies.make_settings(name, settings.get(name, {}))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    with blocks.interruptible() as interrupt, blocks.bar(len(names), "studies", "study") as bar:
        for name in names:
            bar.set_postfix_str(name)
            outcomes.append(_one(name, settings.get(name, {}), folder, interrupt))
            _write_index(folder, outcomes)
            bar.update()
            if done is not None:
                done(outcomes[-1])
            if interrupt:
                break
    return outcomes


def _one(name: str, given: Mapping[str, Any], folder: Path, interrupt: blocks.Interrupt) -> Outcome:
    began = time.perf_counter()
    log = folder / f"{name}-error.txt"
    try:
        tree = studies.run(name, **given)
        report.write(tree, folder / name)
        numbers = tuple(studies.findings(name, tree).numbers.items())
    except (InputError, OSError) as error:
        message = " ".join(str(error).split())
        return Outcome(name, "failed", time.perf_counter() - began, message)
    except Exception as error:  # a defect in one study must not cost the others
        log.write_text(traceback.format_exc(), encoding="utf-8")
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (see {log.name})"
        return Outcome(name, "failed", time.perf_counter() - began, message)
    log.unlink(missing_ok=True)
    seconds = time.perf_counter() - began
    return Outcome(name, "interrupted" if interrupt else "completed", seconds, numbers=numbers)


def _write_index(folder: Path, outcomes: list[Outcome]) -> None:
    rows = [
        {
            "outcome": outcome,
            "title": studies.title(outcome.name),
            "summary": studies.summary(outcome.name),
            "picture": _picture(folder / outcome.name, outcome),
        }
        for outcome in outcomes
    ]
    page = rendered(
        "gallery.html",
        rows=rows,
        seconds=sum(outcome.seconds for outcome in outcomes),
        made_by=", ".join(f"{k} {v}" for k, v in results.versions().items()),
    )
    with files.replacing(folder / "index.html") as scratch:
        scratch.write_text(page, encoding="utf-8")


def _picture(folder: Path, outcome: Outcome) -> str | None:
    """The path, relative to the index, of the study's first figure, which represents it there."""
    if outcome.status == "failed":
        return None
    pictures = sorted(folder.glob("figures/*.png"), key=lambda p: p.stat().st_mtime)
    return f"{outcome.name}/figures/{pictures[0].name}" if pictures else None
