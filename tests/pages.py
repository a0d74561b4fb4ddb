"""The code on a page: its Python runs, and so do its commands."""

import re
import shlex
from pathlib import Path

from click.testing import CliRunner
from small import SMALL

from thalweg.cli import main

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def run(page, small=True):
    """Run a page from top to bottom in the working directory; how many blocks and commands ran.

    Setting up (make, venv, pip) is what CI does before it comes here. A study runs with its small
    settings, but for what the page itself sets.
    """
    names, ran = {}, 0
    for language, text in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            ran += 1
            continue
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words and Path(words[0]).name == "thalweg":
                result = CliRunner().invoke(main, words[1:] + (_small(words) if small else []))
                assert result.exit_code == 0, (line, result.output)
                ran += 1
    return ran


def _small(words):
    if words[1] != "run" or words[2] not in SMALL or "--settings" in words:
        return []
    own = {word.partition("=")[0] for word in words}
    changes = {key: value for key, value in SMALL[words[2]].items() if key not in own}
    return [part for change in changes.items() for part in ("--set", _text(*change))]


def _text(key, value):
    listed = ",".join(map(str, value)) if isinstance(value, (tuple, list)) else value
    return f"{key}={listed}"
