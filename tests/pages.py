"""The code on a page: its Python runs, and so do its commands."""

import re
import shlex
from pathlib import Path

import pytest
import xarray as xr
from click.testing import CliRunner
from small import SMALL

from thalweg import files, report, studies
from thalweg.cli import main

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(page, small=True):
    """Run a page from top to bottom in the working directory; how many blocks and commands ran.

    Setting up (make, venv, pip) is what CI does before it comes here. A study runs with its small
    settings, but for what the page itself sets, and is not drawn: tests/test_study_figures.py and
    tests/browser do that. Of a page's commands that run a study the first one does; the others'
    options and settings are checked.
    """
    names, ran, studied = {}, 0, False
    for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            ran += 1
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if not words or Path(words[0]).name != "thalweg":
                continue
            with pytest.MonkeyPatch.context() as patch:
                if small:
                    patch.setattr(report, "write", _save)
                    patch.setattr(studies, "findings", _nothing)
                if small and studied and words[1] == "run" and "--settings" not in words:
                    patch.setattr(studies, "run", _checked)
                arguments = words[1:] + (_small(words) if small else [])
                result = CliRunner().invoke(main, arguments)
            assert result.exit_code == 0, (line, result.output)
            studied |= words[1] == "run"
            ran += 1
    return ran


def _checked(name, data=None, **settings):
    """In place of `studies.run`: the command has checked its settings by now."""
    studies.make_settings(name, settings)
    tree = xr.DataTree()
    tree.attrs = {"kind": "study", "study": name}
    return tree


def _nothing(name, tree):
    return studies.Findings({}, ())


def _save(tree, folder):
    """In place of `report.write`: the results alone."""
    folder.mkdir(parents=True, exist_ok=True)
    return files.save(tree, folder / "results.nc") if tree.children else folder / "results.nc"


def _small(words):
    if words[1] != "run" or words[2] not in SMALL or "--settings" in words:
        return []
    own = {word.partition("=")[0] for word in words}
    changes = {key: value for key, value in SMALL[words[2]].items() if key not in own}
    return [part for change in changes.items() for part in ("--set", _text(*change))]


def _text(key, value):
    listed = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value
    return f"{key}={listed}"
