"""Landscapes of the two-parameter network of study 1, f(x) = w1 relu(w2 x)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from statistics import median
from typing import Any

import numpy as np

from benchmarks import tools
from benchmarks.harness import Contender, Gauge, Race, Timed, case

ALL = ("empirical", "expected", "pointwise")
REPETITIONS = 4  # in a C program; the first warms up
TOLERANCE = 1e-5  # single precision, relative to the largest risk on the plane
LOOP_ROWS = 4  # of a 512 x 512 grid that a loop does in a round

Surface = dict[str, np.ndarray]  # risks by name, w1 along the first axis of the plane


@case
def landscape_all_risks() -> Iterator[Race]:
    """100 × 100 points × 100 samples, all three risks."""
    points, samples = 100, 100
    yield Race(
        f"landscape {points} × {points} × {samples}, all risks",
        [
            Contender("thalweg.landscape", _ours(points, samples, ALL)),
            Contender(
                "PyTorch double loop",
                partial(_notebook, points, samples, points),
                goal=200,
                skipped=tools.missing("torch"),
            ),
        ],
        _deviations,
        TOLERANCE,
    )


@case
def landscape_empirical() -> Iterator[Race]:
    """512 × 512 points × 1,000 samples, the empirical risk."""
    points, samples = 512, 1000
    share = LOOP_ROWS / points
    part = f"{LOOP_ROWS} of {points} rows"
    yield Race(
        f"landscape {points} × {points} × {samples:,}, empirical",
        [
            Contender("thalweg.landscape", _ours(points, samples, ("empirical",))),
            Contender(
                "C, one thread",
                partial(_in_c, points, samples),
                goal=1 / 1.5,
                skipped=tools.no_compiler(),
            ),
            Contender(
                "PyTorch double loop, this risk alone",
                partial(_notebook_module, points, samples, LOOP_ROWS),
                share=share,
                part=part,
                skipped=tools.missing("torch"),
            ),
            Contender(
                "PyTorch double loop, all three risks",
                partial(_notebook, points, samples, LOOP_ROWS),
                share=share,
                part=part,
                skipped=tools.missing("torch"),
                goal=500,
            ),
        ],
        _deviations,
        TOLERANCE,
    )


@case
def landscape_memory() -> Iterator[Gauge]:
    """512 × 512 points × 100,000 samples in a new process: its peak memory and its time."""
    title = "landscape 512 × 512 × 100,000, empirical"
    call = cache(partial(tools.fresh, "landscapes", "large", 512, 100_000))
    yield Gauge(
        title, "peak memory of a new process", "MiB", lambda: call()["mib"], limit=1024, rounds=1
    )
    yield Gauge(title, "its one call, compiling included", "s", lambda: call()["seconds"], rounds=1)


# Ours ----------------------------------------------------------------------------------------


def data(samples: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    x = generator.uniform(-1, 1, samples)
    y = 2 * x + 3 * generator.standard_normal(samples)
    return x.astype(np.float32), y.astype(np.float32)


def predict(params: dict[str, Any], x: Any) -> Any:
    import jax

    return params["w1"] * jax.nn.relu(params["w2"] * x)


def expected(params: dict[str, Any]) -> Any:
    product = params["w1"] * params["w2"]
    return 0.5 * (8 / 3 - 4 / 3 * product + product**2 / 3) + 9


def _ours(points: int, samples: int, risks: tuple[str, ...]) -> Callable[[], Surface]:
    import thalweg as tw

    problem = tw.Problem(
        predict, "mse", *data(samples), params={"w1": 3.0, "w2": -4.0}, expected=expected
    )
    plane = tw.coordinate_plane(problem, {"w1": (-5, 5), "w2": (-5, 5)}, points=points)

    def run() -> Surface:
        surface = tw.landscape(problem, plane, risks=risks)
        return {risk: surface[risk].values for risk in risks}

    return run


def large(points: int, samples: int) -> dict[str, float]:
    """One call in this process: its seconds, and the most memory the process, or a GPU, has held."""
    call = _ours(points, samples, ("empirical",))
    begin = time.perf_counter()
    call()
    took = time.perf_counter() - begin
    return {
        "seconds": took,
        "mib": tools.device_peak_mib() if tools.on_gpu() else tools.peak_mib(),
    }


# The others ----------------------------------------------------------------------------------


def _in_c(points: int, samples: int) -> Timed:
    program = tools.c_program("landscape.c", POINTS=points, SAMPLES=samples)
    file, surface = tools.scratch() / "data.bin", tools.scratch() / "surface.bin"
    np.concatenate(data(samples)).tofile(file)
    times = tools.run_c(program, file, surface, REPETITIONS)
    return Timed(median(times[1:]), {"empirical": np.fromfile(surface).reshape(points, points)})


def _notebook(points: int, samples: int, rows: int) -> Surface:
    """The double loop: at every point the predictions, and the three risks into their arrays."""
    import torch

    x, y = map(torch.tensor, data(samples))
    grid = torch.linspace(-5, 5, points)
    pointwise = torch.zeros(samples, rows, points)
    empirical, over_all = torch.zeros(rows, points), torch.zeros(rows, points)
    for i, w1 in enumerate(grid[:rows]):
        for j, w2 in enumerate(grid):
            losses = (w1 * torch.relu(w2 * x) - y) ** 2
            pointwise[:, i, j] = losses
            empirical[i, j] = losses.mean()
            over_all[i, j] = 0.5 * (8 / 3 - 4 / 3 * w1 * w2 + 1 / 3 * w1**2 * w2**2) + 3**2
    risks = {"empirical": empirical, "expected": over_all, "pointwise": pointwise}
    return {name: tools.host(risk) for name, risk in risks.items()}


def _notebook_module(points: int, samples: int, rows: int) -> Surface:
    """The double loop over a module's parameters, with the empirical risk alone."""
    import torch

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w1 = torch.nn.Parameter(torch.tensor(3.0))
            self.w2 = torch.nn.Parameter(torch.tensor(-4.0))

        def forward(self, x: Any) -> Any:
            return self.w1 * torch.relu(self.w2 * x)

    x, y = map(torch.tensor, data(samples))
    network, loss = Network(), torch.nn.MSELoss()
    grid = torch.linspace(-5, 5, points)
    empirical = np.zeros((rows, points))
    with torch.no_grad():
        for i, w1 in enumerate(grid[:rows]):
            for j, w2 in enumerate(grid):
                network.w1.copy_(w1)
                network.w2.copy_(w2)
                empirical[i, j] = loss(network(x), y).item()
    return {"empirical": empirical}


# Agreement -----------------------------------------------------------------------------------


def _deviations(answers: dict[str, Surface]) -> dict[str, float]:
    """How far each landscape is from ours, in parts of the largest risk."""
    ours = next(iter(answers.values()))
    return {name: _off(ours, surface) for name, surface in answers.items() if surface is not ours}


def _off(ours: Surface, theirs: Surface) -> float:
    off = 0.0
    for risk in ours.keys() & theirs.keys():
        rows = theirs[risk].shape[-2]  # a loop may have done the first ones alone
        most = np.abs(ours[risk]).max()
        off = max(off, float(np.abs(ours[risk][..., :rows, :] - theirs[risk]).max() / most))
    return off
