"""How time and memory grow with runs, steps, grid points, samples and parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import tools
from benchmarks.harness import Growth, case, clocked, typical

LEAST, SPAN = 3, 1.0  # calls that are timed: so many at least, and as many as take so many seconds
# Shares of the largest size: three decades, of which the last one gives the slope
SHARES = (1e-3, 1e-2, 1e-1, 10 ** (-2 / 3), 10 ** (-1 / 3), 1.0)


def _bowl(w: dict[str, Any]) -> Any:
    return (w["x"] - 1) ** 2 + 3 * (w["y"] + 2) ** 2 + (w["x"] - 1) * (w["y"] + 2)


def _descent(runs: int, steps: int) -> Callable[[], Any]:
    import thalweg as tw

    problem = tw.Problem.from_function(_bowl, params={"x": 0.0, "y": 0.0}, dtype="float32")
    starts = np.random.default_rng(0).standard_normal((runs, 2))
    return lambda: tw.descend(problem, tw.SGD(lr=1e-3), steps=steps, starts=starts)


def _landscape(points: int, samples: int) -> Callable[[], Any]:
    import thalweg as tw
    from thalweg.catalogue import models

    x = np.random.default_rng(0).standard_normal(samples, dtype=np.float32)
    problem = tw.Problem(models.line, "mse", x, 2 * x + 1, params={"weight": 0.0, "bias": 0.0})
    plane = tw.coordinate_plane(problem, {"weight": (-5, 8), "bias": (-5, 8)}, points=points)
    return lambda: tw.landscape(problem, plane)


def _network(parameters: int) -> Callable[[], Any]:
    import jax

    import thalweg as tw
    from thalweg.catalogue import models

    width = round(parameters**0.5)  # nearly all of them lie between two hidden layers
    start = models.init_mlp((1, width, width, 1), jax.random.key(0), np.float32)
    x = np.linspace(-1, 1, 16, dtype=np.float32)
    problem = tw.Problem(models.mlp, "mse", x, x**2, params=start)
    options: dict[str, Any] = {"record": {"params": False}}
    return lambda: tw.descend(problem, tw.SGD(lr=1e-6), steps=10, **options)


# What grows: what else there is, the largest size, and the job of a size
JOBS: dict[str, tuple[str, int, Callable[[int], Callable[[], Any]]]] = {
    "runs": ("100 steps of 2 parameters, recorded", 10**6, lambda n: _descent(n, 100)),
    "steps": ("100 runs of 2 parameters, recorded", 10**6, lambda n: _descent(100, n)),
    "grid points": ("100 samples", 10**8, lambda n: _landscape(round(n**0.5), 100)),
    "samples": ("16 × 16 grid points", 10**8, lambda n: _landscape(16, n)),
    "parameters": ("10 steps on 16 samples", 10**8, _network),
}
PAGES = (
    "the system gives a process that much memory slowly, and more slowly where it has taken it back from "
    "the process before: the first pass over 763 MiB takes many times as long as the second"
)
# What is known of slopes that are not one, of a CPU's time and of the memory
WHY = {
    "runs": (
        "the system gives a process its memory slowly, and takes it back after each call: of the last "
        "decade's least size that is half of the time. Where malloc keeps it (MALLOC_MMAP_THRESHOLD_ and "
        "MALLOC_TRIM_THRESHOLD_ above the result's size) the slope is one.",
        "",
    ),
    "steps": (
        f"{PAGES}. Alone, six times in turn, this slope was 0.96 to 0.99, and in five whole runs 0.86 to "
        "1.14.",
        "",
    ),
    "grid points": (
        f"{PAGES}.",
        "beyond the result, 8 bytes a point, a landscape works in some 40 to 60 MiB that do not grow: beside "
        "them the 76 MiB of the last decade's least result are not much.",
    ),
    "parameters": (
        "the caches hold the least of the last decade's networks in part, and the largest not; and "
        f"{PAGES}.",
        "",
    ),
}

WHY_OF_A_GPUS_TIME = {
    "runs": (
        "a call takes some 20 ms however few runs there are, a tenth of the time of the last decade's least "
        "size."
    ),
}


@case
def growth() -> Iterator[Growth]:
    """Each size in a process of its own, and then the picture. On a GPU, which takes seconds to set up, one
    process does them all."""
    found = []
    for what, (else_, most, _) in JOBS.items():
        of_time, of_memory = WHY.get(what, ("", ""))
        if tools.on_gpu():
            of_time = WHY_OF_A_GPUS_TIME.get(what, "")
            # a step takes as long for a few numbers as for thousands
            most = most // 10 if what == "steps" else most
        sizes = [round(most * share) for share in SHARES]
        groups = [sizes] if tools.on_gpu() else [[size] for size in sizes]
        measured = [
            one for group in groups for one in tools.fresh("growth", "of_sizes", what, group)
        ]
        taken, *peaks = zip(*measured, strict=True)
        # What a process of the least size holds is there anyway: Python, JAX, the compiled program
        held = [[peak - of[0] for peak in of] for of in peaks]
        found.append(Growth(what, else_, sizes, list(taken), *held, why=(of_time, of_memory)))
        yield found[-1]
    _draw(found)


def of_sizes(what: str, sizes: list[int]) -> list[tuple[float, ...]]:
    """What `_of_size` finds for each. They ascend: the peak of a GPU is the largest that there was."""
    return [_of_size(what, size) for size in sizes]


def _of_size(what: str, size: int) -> tuple[float, ...]:
    """Seconds of a warm call, and the most memory that the process, and a GPU, hold during one, in MiB:
    compiling, and making the data, take some that does not grow, or is not ours."""
    job = JOBS[what][2](size)
    job()
    tools.forget_peak()
    job()
    peaks = (tools.peak_mib(), *([tools.device_peak_mib()] if tools.on_gpu() else []))
    return (typical(lambda: clocked(job)[0], SPAN, LEAST), *peaks)


def picture() -> Path:
    """Where the picture of the device that is measured goes."""
    return Path(__file__).with_name("growth-gpu.png" if tools.on_gpu() else "growth.png")


def _draw(found: list[Growth]) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    values: list[Callable[[Growth], list[float]]] = [lambda g: g.seconds, lambda g: g.mib]
    for ax, of, label in zip(
        axes, values, ("time of a warm call (s)", "memory (MiB)"), strict=True
    ):
        for grown, marker, dash in zip(found, "osD^v", ("-", "--", "-.", ":", "-"), strict=True):
            pairs = [(n, v) for n, v in zip(grown.sizes, of(grown), strict=True) if v > 0]
            ax.loglog(
                *zip(*pairs, strict=True),
                marker=marker,
                linestyle=dash,
                label=f"{grown.what} ({grown.rest})",
            )
        ax.set_xlabel("size")
        ax.set_ylabel(label)
        ax.grid(alpha=0.3)
    axes[0].set_title("Time")
    axes[1].set_title("Memory over that of the least size")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=2, fontsize=8
    )
    figure.savefig(picture(), dpi=110)
    plt.close(figure)
