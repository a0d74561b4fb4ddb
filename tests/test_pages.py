"""The pages and notebooks: their code runs and their links lead somewhere."""

import importlib.util
import re

import jupytext
import matplotlib.pyplot as plt
import nbclient
import pages
import pytest

import thalweg
from thalweg import studies

ROOT = pages.ROOT
DOCS = sorted((ROOT / "docs").rglob("*.md"))


def with_code(paths):
    return [p for p in paths if re.search(r"^```(python|console)\n", p.read_text("utf-8"), re.M)]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.docs
def test_the_readme_runs_from_top_to_bottom(scratch):
    assert pages.run(ROOT / "README.md", small=False) >= 6
    assert (scratch / "paths.png").exists()
    assert (scratch / "fit" / "report.html").exists()
    assert (scratch / "out" / "minimal-mlp" / "report.html").exists()


@pytest.mark.docs
@pytest.mark.parametrize("page", with_code(DOCS), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_code_on_a_page_runs(page, scratch):
    assert pages.run(page)


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_page_of_names_has_all_of_them_as_they_are():
    """`python -m docs.reference` writes it."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    page = reference.text()
    assert reference.PAGE.read_text(encoding="utf-8") == page
    for name in set(thalweg.__all__) - {"__version__", "optimizers"}:
        assert f"`tw.{name}`" in page, name


@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_every_study_has_a_page_a_notebook_and_solutions(name):
    text = (ROOT / "docs" / "studies" / f"{name}.md").read_text(encoding="utf-8")
    for needed in ("```python", "```console", f"](../images/{name}/"):
        assert needed in text, needed
    for script in (f"notebooks/{name}.py", f"notebooks/solutions/{name}.py"):
        assert (ROOT / script).exists(), script


@pytest.mark.docs
@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_a_notebook_runs(name, scratch):
    notebook = jupytext.read(ROOT / "notebooks" / f"{name}.py")
    check_cells(notebook)
    resources = {"metadata": {"path": str(scratch)}}
    nbclient.NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources=resources
    ).execute()
    jupytext.write(notebook, scratch / "run.ipynb")


@pytest.mark.docs
@pytest.mark.parametrize("name", sorted(studies.STUDIES))
def test_the_solutions_run(name, scratch):
    """Cell by cell, without a kernel, which would load everything anew."""
    notebook = jupytext.read(ROOT / "notebooks" / "solutions" / f"{name}.py")
    check_cells(notebook)
    names = {"__name__": "__main__", "display": print}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"solutions/{name}", "exec"), names)
        plt.close("all")


def check_cells(notebook):
    assert notebook.metadata["kernelspec"]["name"] == "python3"  # which `make notebooks` needs
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert kinds.count("code") >= 2
    assert kinds.count("markdown") >= 3
