"""A page from a study: one HTML file that opens without a network, and the figures beside it."""

from __future__ import annotations

import base64
import io
import os
import shutil
import tempfile
from importlib import resources
from pathlib import Path

import xarray as xr

from thalweg import results, studies


def write(tree: xr.DataTree, folder: str | os.PathLike[str]) -> Path:
    """Write results.nc, figures/*.png and report.html for a study's result.

    All is made in a folder beside `folder` first, and then put in place: a run that fails half-way
    leaves what was there before as it was.

    Returns:
        The report's path.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.part-"))
    try:
        results.save(tree, scratch / "results.nc")
        (scratch / "figures").mkdir()
        (scratch / "report.html").write_text(_page(tree, scratch / "figures"), encoding="utf-8")
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for made in sorted(p for p in scratch.rglob("*") if p.is_file()):
            os.replace(made, folder / made.relative_to(scratch))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder / "report.html"


def _page(tree: xr.DataTree, figures: Path) -> str:
    """The page's text; its figures are written to the folder `figures` on the way."""
    import jinja2

    name = studies.name_of(tree)
    found = studies.findings(name, tree)
    drawn = []
    for key, drawing in studies.drawings(name, tree):
        buffer = io.BytesIO()
        drawing.figure.savefig(buffer, format="png", dpi=110)
        (figures / f"{key}.png").write_bytes(buffer.getvalue())
        drawn.append(
            {
                "name": key,
                "caption": drawing.caption,
                "png": base64.b64encode(buffer.getvalue()).decode(),
            }
        )
    help_of = {key: text for key, _, text in studies.settings_help(name)}
    settings = [
        (key, value, help_of.get(key, "")) for key, value in results.settings_of(tree).items()
    ]
    versions = ", ".join(f"{k} {v}" for k, v in results.versions().items())
    template = resources.files("thalweg").joinpath("report.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        title=studies.title(name),
        summary=studies.summary(name),
        warnings=found.warnings,
        sentences=found.sentences,
        numbers=found.numbers.items(),
        figures=drawn,
        settings=settings,
        made_by=versions,
    )
