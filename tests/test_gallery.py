"""Every study in one go, and the page that leads to them all."""

import os
import re
import signal

import pytest
from click.testing import CliRunner
from small import SMALL

from thalweg import gallery, studies
from thalweg.cli import main
from thalweg.errors import InputError

TWO = ["eigenbasis", "lazy-1d"]  # quick ones


@pytest.fixture
def run_with(monkeypatch):
    """Put a function in the place of one study's run; it may raise."""
    own = studies.run

    def put(name, function):
        def run(study, *args, **settings):
            if study == name:
                function()
            return own(study, *args, **settings)

        monkeypatch.setattr(gallery.studies, "run", run)

    return put


def test_every_study_has_a_folder_and_the_index_leads_to_it(tmp_path):
    seen = []
    outcomes = gallery.write(tmp_path, TWO, SMALL, seen.append)
    assert outcomes == seen
    assert [(o.name, o.status) for o in outcomes] == [(name, "completed") for name in TWO]
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src)="([^"]+)"', page)
    assert {f"{name}/report.html" for name in TWO} <= set(links)
    assert sum(link.endswith(".png") for link in links) == 2
    for link in links:
        assert (tmp_path / link).is_file(), link
    for outcome in outcomes:
        assert outcome.numbers[0][1] in page
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("error", "message", "logged"),
    [
        (InputError("too little\nof it"), "too little of it", False),
        (ZeroDivisionError("oh"), "ZeroDivisionError: oh", True),
        (MemoryError(), "MemoryError", True),
    ],
)
def test_a_failure_stops_no_other_study(tmp_path, run_with, error, message, logged):
    def fail():
        raise error

    run_with(TWO[0], fail)
    outcomes = gallery.write(tmp_path, TWO, SMALL)
    assert [o.status for o in outcomes] == ["failed", "completed"]
    assert outcomes[0].message.startswith(message)
    assert message in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / f"{TWO[0]}-error.txt").exists() == logged
    assert (tmp_path / TWO[1] / "report.html").exists()


def test_ctrl_c_writes_what_there_is_and_ends(tmp_path, run_with):
    run_with(TWO[0], lambda: os.kill(os.getpid(), signal.SIGINT))
    outcomes = gallery.write(tmp_path, TWO, SMALL)
    assert [o.status for o in outcomes] == ["interrupted"]
    assert "Interrupted" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert (tmp_path / TWO[0] / "report.html").exists()


def test_settings_are_checked_before_anything_is_run(tmp_path):
    with pytest.raises(InputError, match="no_such"):
        gallery.write(tmp_path / "new", TWO, {TWO[1]: {"no_such": 1}})
    assert not (tmp_path / "new").exists()


@pytest.fixture
def only_two(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(studies, "STUDIES", {name: studies.STUDIES[name] for name in TWO})


def test_the_command_runs_all(tmp_path, only_two, run_with):
    out = tmp_path / "all"
    arguments = ["run", "all", "--out", str(out), "--set", "points=50", "--set", "p=10"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert f"Wrote {out / 'index.html'}" in result.output

    def fail():
        raise ValueError("no luck")

    run_with(TWO[1], fail)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert f"Failed: {TWO[1]}" in result.output


def test_the_command_refuses_what_no_study_has(tmp_path, only_two):
    out = tmp_path / "all"
    result = CliRunner().invoke(main, ["run", "all", "--out", str(out), "--set", "pionts=5"])
    assert result.exit_code == 2
    assert "points" in result.output
    assert not out.exists()
