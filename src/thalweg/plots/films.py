"""Write frames to files: GIF by Pillow, MP4 by ffmpeg, and an HTML page with a player."""

from __future__ import annotations

import base64
import io
import itertools
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from thalweg.errors import InputError, MissingExtra, optional
from thalweg.pages import rendered

_COLORS = 255  # of a palette's 256; the last one stands for transparent
_SEEN = 5  # frames that the palette is chosen from
_REST = 1.5  # seconds on the last frame before a film starts over
# The colour space that browsers and players expect of such a video; without the tags they guess.
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
    pages, palette = _in_palette(list(frames))
    images = [_image(page, palette) for page in pages]
    images[0].save(
        path,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=[1000 / fps] * (len(images) - 1) + [1000 * max(_REST, 1 / fps)],
        loop=0,
    )


def write_mp4(frames: Iterable[np.ndarray], path: Path, fps: float) -> None:
    """An H.264 video that browsers play while it loads; sides of odd length get a white line.

    Raises:
        MissingExtra: without the extra `video`, or where that has no ffmpeg for this system.
        InputError: there is no ffmpeg, or it failed.
    """
    program = _ffmpeg()
    # Through a file, not a pipe: if ffmpeg gave up early, the pipe would need handling and clean-up.
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
    """The path of the ffmpeg program that imageio-ffmpeg contains, or of the system's."""
    imageio_ffmpeg = optional("imageio_ffmpeg", "an mp4 (unlike a gif or html) needs", "video")
    try:
        return imageio_ffmpeg.get_ffmpeg_exe()
    except RuntimeError as error:  # installed from source, it contains none
        raise MissingExtra(f"no ffmpeg was found: {error}") from None


def _even(frame: np.ndarray) -> np.ndarray:
    """Pad a frame to even sides, as chroma subsampling (yuv420p) requires."""
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
    frames = list(frames)
    pages, palette = _in_palette(frames)
    differing = [
        np.where((frame == frames[-1]).all(axis=2), np.uint8(_COLORS), page)
        for frame, page in zip(frames, pages, strict=True)
    ]
    height, width = frames[-1].shape[:2]
    return rendered(
        "player.html",
        title=title,
        width=width,
        height=height,
        last=_png(_image(pages[-1], palette)),
        frames=[_png(_image(page, palette), transparency=_COLORS) for page in differing],
        labels=list(labels),
        delay=1000 / fps,
        rest=1000 * max(_REST, 1 / fps),
    )


def _in_palette(frames: Sequence[np.ndarray]) -> tuple[list[np.ndarray], bytes]:
    """The frames as indices (height, width) into one palette of their most frequent colours.

    Areas of one colour keep it exactly, in all frames; the antialiased edges of lines and letters take the
    nearest colour. (Pillow's own quantisation is coarser, and turns white to grey.)
    """
    some = np.unique(np.linspace(0, len(frames) - 1, _SEEN).round().astype(int))
    codes, counts = np.unique([_codes(frames[i]) for i in some], return_counts=True)
    colors = _rgb(codes[np.argsort(-counts, kind="stable")[:_COLORS]])
    index_of = np.full(1 << 24, -1, np.int16)
    pages = []
    for codes in map(_codes, frames):
        new = np.unique(codes[index_of[codes] < 0])
        for part in np.array_split(new, len(new) // 4096 + 1):
            away = ((_rgb(part)[:, None] - colors) ** 2).sum(axis=2)
            index_of[part] = away.argmin(axis=1)
        pages.append(index_of[codes].astype(np.uint8))
    return pages, colors.astype(np.uint8).tobytes()


def _codes(frame: np.ndarray) -> np.ndarray:
    """Each pixel's colour as one number, (height, width)."""
    return frame.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _rgb(codes: np.ndarray) -> np.ndarray:
    return codes[:, None] >> np.array([16, 8, 0], np.int32) & 255


def _image(page: np.ndarray, palette: bytes) -> Image.Image:
    image = Image.frombytes("P", page.shape[::-1], page.tobytes())
    # Pad to 256 entries: PNG drops the transparency of an index beyond the palette's end.
    image.putpalette(palette.ljust(3 * 256, b"\0"))
    return image


def _png(image: Image.Image, **options: int) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **options)
    return base64.b64encode(buffer.getvalue()).decode()
