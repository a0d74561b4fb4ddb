"""Frames → files: GIF through Pillow, MP4 through ffmpeg, and a page that plays by itself."""

from __future__ import annotations

import base64
import io
import itertools
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from thalweg.errors import InputError, optional

_COLORS = 255  # of the 256 that a palette holds; the last one is for what is transparent
_SEEN = 5  # frames that the palette is chosen from
_REST = 1.5  # seconds on the last frame before a film begins anew
# What browsers and players expect of a video of this kind; without it they guess its colours.
_BT709 = ("-vf", "scale=out_color_matrix=bt709:out_range=tv", *itertools.chain.from_iterable(
    (f"-{what}", "bt709") for what in ("colorspace", "color_primaries", "color_trc")
))  # fmt: skip


def write_gif(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """An endless GIF that rests on its last frame.

    Args:
        frames: (height, width, 3) uint8 each.
        path: where to; it is overwritten.
        fps: frames a second. The format counts in hundredths of a second.
    """
    frames = list(frames)
    pages = _in_palette(frames)
    pages[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=pages[1:],
        duration=[1000 / fps] * (len(pages) - 1) + [1000 * max(_REST, 1 / fps)],
        loop=0,
    )


def write_mp4(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """An H.264 video that browsers play while it loads; sides of odd length get a white line.

    Raises:
        MissingExtra: without the extra `video`.
        InputError: there is no ffmpeg, or it failed.
    """
    program = _ffmpeg()
    # Through a file: a pipe's reader that gives up would have to be waited for, killed and cleared up.
    with tempfile.TemporaryFile() as raw:
        height = width = 0
        for frame in map(_even, frames):
            height, width = frame.shape[:2]
            raw.write(frame.tobytes())
        raw.seek(0)
        command = [
            *(program, "-y", "-loglevel", "error"),
            *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{fps:g}"),
            *("-i", "-", "-an", *_BT709, "-c:v", "libx264", "-crf", "18", "-pix_fmt", "yuv420p"),
            *("-movflags", "+faststart", "-f", "mp4", str(path)),
        ]
        done = subprocess.run(command, stdin=raw, capture_output=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise InputError(f"ffmpeg could not write the video: {lines[-1]}.")


def _ffmpeg() -> str:
    """The program that imageio-ffmpeg brings along, or the system's."""
    imageio_ffmpeg = optional("imageio_ffmpeg", "an mp4 (unlike a gif or html) needs", "video")
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:
        raise InputError(f"no ffmpeg was found: {error}") from None


def _even(frame: np.ndarray) -> np.ndarray:
    """With even sides, which the format's halved colours need."""
    odd = [(0, side % 2) for side in frame.shape[:2]]
    return np.pad(frame, [*odd, (0, 0)], constant_values=255)


def page(frames: Iterable[np.ndarray], labels: Sequence[str], fps: float, title: str) -> str:
    """An HTML page with a player: play, pause, and a slider over the frames. It needs no network.

    The last frame is stored whole, and the others as what differs from it: they lie over it, and any
    of them can be shown without those before it.

    Args:
        frames: (height, width, 3) uint8 each.
        labels: what the player says of each frame.
        fps: frames a second.
        title: of the page; also the picture's description.
    """
    import jinja2

    frames = list(frames)
    pages = _in_palette(frames)
    shown = [_differing(page, frame, frames[-1]) for page, frame in zip(pages, frames, strict=True)]
    template = resources.files("thalweg").joinpath("player.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    height, width = frames[-1].shape[:2]
    return environment.from_string(template).render(
        title=title,
        width=width,
        height=height,
        last=_png(pages[-1]),
        frames=[_png(image) for image in shown],
        labels=list(labels),
        delay=1000 / fps,
        rest=1000 * max(_REST, 1 / fps),
    )


def _in_palette(frames: Sequence[np.ndarray]) -> list[Image.Image]:
    """The frames in one palette, so that what stands still keeps its colours."""
    some = np.unique(np.linspace(0, len(frames) - 1, _SEEN).round().astype(int))
    seen = Image.fromarray(np.concatenate([frames[i] for i in some]))
    palette = seen.quantize(_COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]


def _differing(page: Image.Image, frame: np.ndarray, last: np.ndarray) -> Image.Image:
    """A frame where it differs from the last one, and transparent elsewhere."""
    indices = np.where((frame == last).all(axis=2), _COLORS, np.asarray(page)).astype(np.uint8)
    shown = Image.fromarray(indices).convert("P")
    shown.putpalette(page.getpalette() or [])
    shown.info["transparency"] = _COLORS
    return shown


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
