"""A page from a study: one HTML file that opens without a network, and the figures beside it."""

from __future__ import annotations

import base64
import html
import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import xarray as xr

from thalweg import files, results, studies
from thalweg.errors import MissingExtra, optional
from thalweg.pages import rendered

__all__ = ["write"]

_PLOTLY = {"responsive": True, "displaylogo": False}
_HEAD = 2**16  # bytes of a report that are read for the list of its figures, which is near the top
# A slider of plotly's that is released while its step is being drawn stays in the dragging state, which the
# redrawn slider inherits, and no longer follows the play button; this script resets it.
_LETS_GO = """
const plot = document.getElementById("{plot_id}");
let held = false;
plot.on("plotly_sliderstart", () => { held = true; });
plot.on("plotly_sliderend", () => { held = false; });
plot.on("plotly_afterplot", () => {
    for (const slider of held ? [] : plot._fullLayout.sliders || []) slider._dragging = false;
});
"""
_HEIGHT = "520px"  # of an interactive figure that sets none itself


def write(tree: xr.DataTree, folder: str | os.PathLike[str]) -> Path:
    """Write results.nc, report.html and the figures, a file each, for a study's result.

    An interactive figure is a page of its own in figures/ (plotly's program lies beside it, once), an
    animation a video, or a GIF where there is no encoder. All are in report.html too, which needs no
    other file and no network.

    All is made in a folder beside `folder` first, and then put in place: a run that fails half-way
    leaves what was there before as it was. Figures of an earlier run that this one does not have go.

    Returns:
        The report's path.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.part-"))
    try:
        files.save(tree, scratch / "results.nc")
        (scratch / "figures").mkdir()
        (scratch / "report.html").write_text(_page(tree, scratch / "figures"), encoding="utf-8")
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        earlier = _figures_of(folder / "report.html")
        stale = earlier - {path.name for path in (scratch / "figures").iterdir()}
        for made in sorted(p for p in scratch.rglob("*") if p.is_file()):
            os.replace(made, folder / made.relative_to(scratch))
        for name in stale:
            (folder / "figures" / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder / "report.html"


def _figures_of(page: Path) -> set[str]:
    """The names of the figures' files that a report says it was written with."""
    if not page.is_file():
        return set()
    with page.open(encoding="utf-8", errors="replace") as file:
        head = file.read(_HEAD)
    said = re.search(r'<meta name="thalweg-figures" content="([^"]*)">', head)
    # no slash in a name: none can point elsewhere
    names = html.unescape(said[1]).split("/") if said else []
    return set(names) - {"", ".", ".."}


def _page(tree: xr.DataTree, figures: Path) -> str:
    """The page's text; its figures are written to the folder `figures` on the way."""
    name = studies.name_of(tree)
    findings = studies.findings(name, tree)
    drawn = []
    for key, drawing in studies.drawings(name, tree):
        kind, content = _shown(drawing, key, figures)
        drawn.append({"name": key, "caption": drawing.caption, "kind": kind, "content": content})
    plotly = ""
    if any(figure["kind"] == "interactive" for figure in drawn):
        plotly = optional("plotly.offline", "interactive figures need", "plotly").get_plotlyjs()
    help_of = {key: text for key, _, text in studies.settings_help(name)}
    settings = [
        (key, value, help_of.get(key, "")) for key, value in results.settings_of(tree).items()
    ]
    versions = ", ".join(f"{k} {v}" for k, v in json.loads(tree.attrs["versions"]).items())
    return rendered(
        "report.html",
        title=studies.title(name),
        summary=studies.summary(name),
        warnings=findings.warnings,
        sentences=findings.sentences,
        numbers=findings.numbers.items(),
        tables=findings.tables.items(),
        figures=drawn,
        plotly=plotly,
        files=sorted(path.name for path in figures.iterdir()),
        settings=settings,
        made_by=versions,
    )


def _shown(drawing: studies.Drawing, name: str, folder: Path) -> tuple[str, Any]:
    """(kind, content) of a drawing in the page; the figure's own file is written to `folder`."""
    figure = drawing.figure
    if figure is None:
        return "missing", drawing.missing
    if hasattr(figure, "savefig"):
        png = folder / f"{name}.png"
        figure.savefig(png, dpi=110)
        return "image", _url(png.read_bytes(), "image/png")
    if hasattr(figure, "to_plotly_json"):
        options: Any = {
            "auto_play": False,
            "include_mathjax": False,
            "config": _PLOTLY,
            "post_script": _LETS_GO,
        }
        # "directory" writes plotly's JavaScript beside the page, once
        figure.write_html(folder / f"{name}.html", include_plotlyjs="directory", **options)
        options |= {"include_plotlyjs": False, "default_height": _HEIGHT}
        return "interactive", figure.to_html(full_html=False, **options)
    try:
        film = folder / f"{name}.mp4"
        figure.save(film)
        return "video", _url(film.read_bytes(), "video/mp4")
    except MissingExtra:  # no video encoder; a GIF needs none
        gif = folder / f"{name}.gif"
        figure.save(gif)
        return "gif", {
            "moving": _url(gif.read_bytes(), "image/gif"),
            "still": _url(_first_frame(gif), "image/png"),
        }


def _first_frame(gif: Path) -> bytes:
    """The first picture of a GIF as PNG, for readers who asked for less motion."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    with Image.open(gif) as image:
        image.convert("RGB").save(buffer, "png")
    return buffer.getvalue()


def _url(content: bytes, media: str) -> str:
    return f"data:{media};base64,{base64.b64encode(content).decode()}"
