"""The pictures of the pages: `python -m docs.pictures [STUDY ...]`, from the repository's root.

A page names a picture as ../images/STUDY/FIGURE.png, and FIGURE is one of the study's figures. Each
study that is named in a page is run with its default settings, and those figures are drawn, small.
"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
_LINK = re.compile(r"images/([a-z0-9-]+)/([A-Za-z0-9_-]+)\.png")


def wanted() -> dict[str, list[str]]:
    """By study, the figures that a page shows."""
    found: dict[str, set[str]] = {}
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for study, figure in _LINK.findall(page.read_text(encoding="utf-8")):
            found.setdefault(study, set()).add(figure)
    return {study: sorted(figures) for study, figures in sorted(found.items())}


def make(study: str, names: list[str]) -> None:
    """Run a study and draw some of its figures into docs/images/STUDY."""
    from thalweg import studies

    tree = studies.run(study)
    (IMAGES / study).mkdir(parents=True, exist_ok=True)
    missing = set(names)
    for name, drawing in studies.drawings(study, tree):
        if name in names:
            path = IMAGES / study / f"{name}.png"
            path.write_bytes(_small(drawing.figure))
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KiB")
            missing.discard(name)
    if missing:
        raise SystemExit(f"{study} has no figure {', '.join(sorted(missing))}")


def _small(figure: object) -> bytes:
    """A PNG of at most 900 pixels across, in 128 colours."""
    from PIL import Image

    drawn, small = io.BytesIO(), io.BytesIO()
    width = figure.get_figwidth()  # type: ignore[attr-defined]
    figure.savefig(drawn, format="png", dpi=min(100, 900 / width))  # type: ignore[attr-defined]
    image = Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def main() -> None:
    import matplotlib

    matplotlib.use("agg")
    pages = wanted()
    for study in sys.argv[1:] or pages:
        if study not in pages:
            raise SystemExit(f"no page shows a picture of {study!r}")
        make(study, pages[study])


if __name__ == "__main__":
    main()
