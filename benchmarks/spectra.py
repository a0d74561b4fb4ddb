"""Curvature of a middling network: ten eigenvalues, the trace and the density of its Hessian."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

import thalweg as tw
from benchmarks import tools
from benchmarks.harness import Contender, Race, case
from benchmarks.large import SAMPLES, middling

COUNT, PRODUCTS = 10, 99
PROBES, STEPS = 10, 80


@case
def curvature() -> Iterator[Race]:
    """The Hessian of a network of 10-64-64-3 (5,059 parameters) on 1,000 samples, against curvlinops."""
    import torch

    model, loss, x, y, problem = middling("Tanh")
    operator = tw.hessian(problem, problem.params)
    matrix = operator.dense().astype(float)
    values = np.linalg.eigvalsh(matrix)[::-1]
    missing = tools.missing("curvlinops-for-pytorch")

    def theirs() -> Any:
        from curvlinops import HessianLinearOperator

        parameters = [p for p in model.parameters() if p.requires_grad]
        return HessianLinearOperator(model, loss, parameters, [(x, y)], check_deterministic=False)

    def their_eigenvalues() -> np.ndarray:
        from scipy.sparse.linalg import eigsh

        return eigsh(theirs().to_scipy(), k=COUNT, which="LA", tol=3e-4)[0][::-1]

    def their_trace() -> float:
        from curvlinops import hutchpp_trace

        torch.manual_seed(0)
        return float(hutchpp_trace(theirs(), PRODUCTS))

    def their_density() -> None:
        from curvlinops import lanczos_approximate_spectrum

        torch.manual_seed(0)
        lanczos_approximate_spectrum(theirs(), STEPS, num_repeats=PROBES)

    def of_landscaper() -> np.ndarray:
        of_theirs = tools.landscaper("hessian").PyHessian(
            model.eval(), loss, [(x, y)], x.device.type
        )
        torch.manual_seed(0)
        with tools.silenced():
            found = of_theirs.eigenvalues(maxIter=1000, tol=1e-6, top_n=COUNT)[0]
        return np.sort(found)[::-1]

    title = f"Hessian of an MLP 10-64-64-3, {SAMPLES:,} samples"
    other = "curvlinops 3.0.1"
    yield Race(
        f"{title}: {COUNT} largest eigenvalues",
        [
            Contender("Curvature.top", lambda: operator.top(COUNT)[0]),
            Contender(f"{other} and SciPy's eigsh", their_eigenvalues, goal=1.0, skipped=missing),
            Contender(
                "landscaper 1.3.1, power iteration",
                of_landscaper,
                rounds=1,
                goal=1.0,
                skipped=tools.missing("landscaper"),
            ),
        ],
        lambda answers: {
            name: float(np.abs(a / values[:COUNT] - 1).max()) for name, a in answers.items()
        },
        1e-3,
        rounds=5,
    )
    yield Race(
        f"{title}: trace by Hutch++, {PRODUCTS} products",
        [
            Contender("Curvature.trace", lambda: operator.trace(PRODUCTS).value),
            Contender(f"{other}, hutchpp_trace", their_trace, goal=1.0, skipped=missing),
        ],
        lambda answers: {name: abs(a / matrix.trace() - 1) for name, a in answers.items()},
        0.3,  # four of the estimate's standard errors, which are 0.07 of the trace
        rounds=5,
    )
    yield Race(
        f"{title}: density, {PROBES} probes × {STEPS} Lanczos steps",
        [
            Contender("Curvature.density", lambda: operator.density(PROBES, STEPS), _mass),
            Contender(
                f"{other}, lanczos_approximate_spectrum",
                their_density,
                rounds=1,  # a minute
                goal=1.0,
                skipped=missing,
            ),
        ],
        # Theirs is smoothed in its own way: only ours can be held to the matrix.
        lambda answers: {"Curvature.density": abs(answers["Curvature.density"] - 1)},
        0.05,
        rounds=3,
    )


def _mass(density: Any) -> float:
    return float(np.trapezoid(density["density"].values, density["eigenvalue"].values))
