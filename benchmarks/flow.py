"""The gradient flow of study 8's function from a hundred starts, against torchdiffeq."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import thalweg as tw
from benchmarks import tools
from benchmarks.descents import risk
from benchmarks.harness import Contender, Race, case

RUNS, TIME = 100, 10.0
RTOL, ATOL = 1e-6, 1e-9


@case
def flow() -> Iterator[Race]:
    """100 starts to time 10, at the same tolerances; both are held to a flow of far smaller ones."""
    starts = np.random.default_rng(0).uniform(-1.5, 1.5, (RUNS, 2))
    problem = tw.Problem.from_function(risk, params={"x": 0.0, "y": 0.0})
    exact = _end(problem, starts, 1e-12)

    def theirs() -> np.ndarray:
        import torch
        from torchdiffeq import odeint

        def velocity(_: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            x, y = w.unbind(-1)
            u, v = x + 2, y - 4
            wave = torch.sin(2 * u * v**2)
            along_x = torch.cos(x + 4) * (torch.cos(3 * y - 5) + 0.3) - wave * v**2
            along_y = -3 * torch.sin(x + 4) * torch.sin(3 * y - 5) - 2 * wave * u * v
            return -torch.stack([along_x, along_y], -1)

        times = torch.linspace(0, TIME, 101, dtype=torch.float64)
        with torch.no_grad():
            path = odeint(velocity, torch.tensor(starts), times, rtol=RTOL, atol=ATOL)
        return tools.host(path[-1])

    yield Race(
        f"gradient flow from {RUNS} starts to time {TIME:g}, rtol {RTOL:g}",
        [
            Contender("thalweg.gradient_flow", lambda: _end(problem, starts, RTOL)),
            Contender(
                "torchdiffeq 0.2.5, dopri5, all starts one system, slopes by hand",
                theirs,
                rounds=0 if tools.on_gpu() else 2,  # more than a minute on a GPU
                goal=1.0,
                skipped=tools.missing("torchdiffeq"),
            ),
        ],
        deviation=lambda answers: {
            name: float(np.abs(end - exact).max()) for name, end in answers.items()
        },
        tolerance=1e-3,
        rounds=5,
    )


def _end(problem: tw.Problem, starts: np.ndarray, rtol: float) -> np.ndarray:
    path = tw.gradient_flow(
        problem, time=TIME, starts=starts, rtol=rtol, atol=min(ATOL, rtol), points=101
    )
    return path["final"].transpose("run", "param").values
