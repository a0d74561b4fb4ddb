"""The README does what it says: its Python runs, and so do its commands."""

import re
import shlex
from pathlib import Path

import matplotlib
import pytest
from click.testing import CliRunner

from thalweg.cli import main

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(path):
    return BLOCK.findall(path.read_text(encoding="utf-8"))


def test_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch):
    matplotlib.use("agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = {}
    ran = 0
    for language, text in blocks(ROOT / "README.md"):
        if language == "python":
            exec(compile(text, "README.md", "exec"), names)
            ran += 1
            continue
        for line in text.splitlines():
            words = shlex.split(line.removeprefix("$ "))
            # setting up (make, venv, pip) is what CI does before it comes here
            if Path(words[0]).name == "thalweg":
                result = CliRunner().invoke(main, words[1:])
                assert result.exit_code == 0, (line, result.output)
                ran += 1
    assert ran >= 6
    assert (tmp_path / "paths.png").exists()
    assert (tmp_path / "fit" / "report.html").exists()
    assert (tmp_path / "out" / "minimal-mlp" / "report.html").exists()


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *Path(ROOT, "docs").glob("*.md")], ids=str
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / page).parent / target).exists(), target


def test_the_table_of_results_names_every_variable():
    from problems import line_problem

    import thalweg as tw

    table = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    path = tw.descend(
        line_problem(), tw.SGD(lr=lambda t: 0.1), epochs=1, batch_size=20, record=["grad", "batch"]
    )
    problem = line_problem(expected=lambda w: w["weight"])
    plane = tw.coordinate_plane(problem, {"bias": (0, 1), "weight": (0, 1)}, points=2)
    surface = tw.landscape(problem, plane, risks=("empirical", "expected", "pointwise"))
    for name in {*path.variables, *surface.variables, *path.attrs, *surface.attrs} - {
        "bias",
        "weight",
    }:
        assert f"`{name.replace('schedule_lr', 'schedule_NAME')}`" in table, name
