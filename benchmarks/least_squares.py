"""Levenberg–Marquardt on the two-layer linear network, to a loss of 1e-20, against SciPy's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.optimize

import thalweg as tw
from benchmarks import tools
from benchmarks.harness import Contender, Race, case
from thalweg.studies import two_layer_linear

_GOAL = 1e-20
_TIGHT = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)


@case
def least_squares() -> Iterator[Race]:
    """The study's problem at its default settings; an answer's deviation is its loss."""
    # in a process of their own, so that ours is compiled in the race's first call
    steps, *evaluations = tools.fresh("least_squares", "counts")
    ours, *scipys = _ways()
    yield Race(
        "two-layer linear network, to a loss of 1e-20",
        [
            Contender(
                f"thalweg.descend, LevenbergMarquardt: {steps} steps",
                ours,
                lambda path: float(path["loss"][-1]),
            ),
            *(
                Contender(
                    f"scipy.optimize.least_squares, Jacobian {how}: {count} evaluations",
                    run,
                    lambda found: float(2 * found.cost),
                    goal=1.0,
                )
                for how, run, count in zip(
                    ("by hand", "by differences"), scipys, evaluations, strict=True
                )
            ),
        ],
        deviation=lambda answers: answers,
        tolerance=_GOAL,
    )


def counts() -> list[int]:
    """How many steps ours takes, and how many evaluations SciPy's do."""
    ours, *scipys = _ways()
    return [int(ours()["stopped_at"]), *(int(run().nfev) for run in scipys)]


def _ways() -> tuple[Callable[[], Any], ...]:
    """Ours, and SciPy's with the Jacobian by hand and by differences."""
    settings = two_layer_linear.Settings()
    rng = np.random.default_rng(settings.seed)
    target = two_layer_linear._target(settings, rng)
    x = rng.standard_normal((settings.n_samples, settings.d_in))
    out, width = settings.d_out, settings.width
    start = {
        "W1": rng.standard_normal((out, width)),
        "W2": rng.standard_normal((width, settings.d_in)),
    }
    problem = tw.Problem(
        two_layer_linear._predict, "mse", x, x @ target.T, params=start, reduction="sum"
    )

    def ours() -> Any:
        rule = tw.LevenbergMarquardt()
        return tw.descend(problem, rule, steps=settings.lm_steps, stop={"loss": _GOAL})

    def split(w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return w[: out * width].reshape(out, width), w[out * width :].reshape(width, -1)

    def residuals(w: np.ndarray) -> np.ndarray:
        w1, w2 = split(w)
        return (x @ (w1 @ w2 - target).T).ravel()

    def jacobian(w: np.ndarray) -> np.ndarray:
        """Two Kronecker blocks."""
        w1, w2 = split(w)
        first = np.einsum("ij,nk->nijk", np.eye(out), x @ w2.T)
        second = np.einsum("ik,nl->nikl", w1, x)
        rows = len(x) * out
        return np.hstack([first.reshape(rows, -1), second.reshape(rows, -1)])

    def there(intermediate_result: Any) -> None:
        """Stop as soon as the cost, half the sum of squares, is there."""
        if 2 * intermediate_result.cost <= _GOAL:
            raise StopIteration

    def scipys(jac: Any) -> Callable[[], Any]:
        vector = np.concatenate([start["W1"].ravel(), start["W2"].ravel()])
        options = {"jac": jac, "max_nfev": 200, "callback": there, **_TIGHT}
        return lambda: scipy.optimize.least_squares(residuals, vector, **options)

    return ours, scipys(jacobian), scipys("2-point")
