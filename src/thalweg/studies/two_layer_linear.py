"""Study 4: first order against Levenberg–Marquardt on a linear network of two layers.

ŷ = W1 W2 x is linear in x and bilinear in its parameters: a least-squares problem that no step solves
at once, with a valley of minima, W1 G and G⁻¹ W2, along which nothing changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError, one_of
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import at_least, setting

TITLE = "A linear network of two layers: first order against Levenberg–Marquardt"

TARGETS = ("rows", "svd")
CONDITION = 1e5  # A's condition number ("svd"), or the ratio of its rows' largest to smallest scale
STEPS_SHOWN = 190  # of the first-order methods, in the comparison with the second-order ones
# path -> legend entry
FIRST_ORDER = {"gradient-descent": "gradient descent", "adam": "Adam"}
SECOND_ORDER = {"gauss-newton": "Gauss–Newton", "levenberg-marquardt": "Levenberg–Marquardt"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    A: str = setting("rows", "the target: rows (scaled from 1 to 1e-5) or svd (condition 1e5)")
    seed: int = setting(0, "seed of A, the data and the start")
    n_samples: int = setting(1000, "number of samples")
    d_in: int = setting(6, "inputs")
    d_out: int = setting(10, "outputs")
    width: int = setting(6, "width of the layer between")
    steps: int = setting(3000, "steps of the first-order methods")
    lrs: tuple[float, ...] = setting((1e-6, 1e-5, 1e-4, 1e-3), "learning rates of gradient descent")
    adam_lrs: tuple[float, ...] = setting((1e-5, 1e-4, 1e-3, 1e-2), "learning rates of Adam")
    momentum: float = setting(0.99, "momentum of heavy-ball descent")
    momentum_lr: float = setting(1e-5, "learning rate of heavy-ball descent")
    adam_large_lr: float = setting(0.3, "a learning rate that suits Adam here")
    newton_lrs: tuple[float, ...] = setting((0.05, 0.2), "step sizes of Gauss–Newton")
    newton_steps: int = setting(200, "steps of Gauss–Newton")
    lm_steps: int = setting(100, "steps of Levenberg–Marquardt at most")
    lm_loss: float = setting(1e-20, "loss at which Levenberg–Marquardt stops")
    population: bool = setting(False, "descend n times the expected risk ‖W1W2 − A‖² too")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The data, the linearisation at the start, and the trajectories of all optimizers."""
    import thalweg as tw

    _check(settings)
    rng = np.random.default_rng(settings.seed)
    target = _target(settings, rng)
    x = rng.standard_normal((settings.n_samples, settings.d_in))
    start = {
        "W1": rng.standard_normal((settings.d_out, settings.width)),
        "W2": rng.standard_normal((settings.width, settings.d_in)),
    }
    problem = tw.Problem(_predict, "mse", x, x @ target.T, params=start, reduction="sum")
    nodes = {
        "data": xr.Dataset(
            {
                "x": (("sample", "input"), x),
                "A": (("output", "input"), target),
                "condition": ((), np.linalg.cond(target)),
            }
        ),
        "linearisation": _linearisation(problem, start, x),
    }
    nodes |= {f"path/{name}": path for name, path in _descents(problem, settings).items()}
    if settings.population:
        from jax.tree_util import Partial

        expected = Partial(_population_residuals, target, np.sqrt(float(settings.n_samples)))
        expected = tw.Problem.from_residuals(expected, params=start)
        nodes |= {
            f"population/{name}": path for name, path in _descents(expected, settings).items()
        }
    return nodes


def _check(settings: Settings) -> None:
    one_of("setting A:", settings.A, TARGETS)
    at_least(settings, n_samples=1, d_in=1, d_out=1, width=1)
    for name in ("lrs", "adam_lrs", "newton_lrs"):
        if not getattr(settings, name):
            raise InputError(f"setting {name!r} needs at least one step size.")


def _target(settings: Settings, rng: np.random.Generator) -> np.ndarray:
    """The target matrix A (d_out, d_in)."""
    shape = (settings.d_out, settings.d_in)
    if settings.A == "rows":
        return rng.uniform(size=shape) * np.linspace(1, 1 / CONDITION, settings.d_out)[:, None]
    k = min(shape)
    left = np.linalg.qr(rng.standard_normal((settings.d_out, k)))[0]
    right = np.linalg.qr(rng.standard_normal((settings.d_in, k)))[0]
    return left * np.geomspace(1, 1 / CONDITION, k) @ right.T


def _predict(w: dict[str, Any], x: Any) -> Any:
    return x @ w["W2"].T @ w["W1"].T


def _population_residuals(target: Any, scale: Any, w: dict[str, Any]) -> Any:
    """√n (W1 W2 − A), whose sum of squares is n times the expected risk: E xxᵀ = 1."""
    return (scale * (w["W1"] @ w["W2"] - target)).ravel()


def _descents(problem: Any, settings: Settings) -> dict[str, xr.Dataset]:
    """Every optimizer from the problem's start, by name."""
    import thalweg as tw

    s = settings
    chosen = {
        "gradient-descent": (tw.SGD(lr=list(s.lrs)), s.steps, None),
        "adam": (tw.Adam(lr=list(s.adam_lrs)), s.steps, None),
        "momentum": (tw.SGD(lr=s.momentum_lr, momentum=s.momentum), s.steps, None),
        "adam-large": (tw.Adam(lr=s.adam_large_lr), s.steps, None),
        "gauss-newton": (tw.GaussNewton(lr=list(s.newton_lrs)), s.newton_steps, None),
        "levenberg-marquardt": (tw.LevenbergMarquardt(), s.lm_steps, {"loss": s.lm_loss}),
    }
    return {
        name: tw.descend(
            problem, optimizer, steps=steps, stop=stop, record={"params": False, "grad_norm": True}
        )
        for name, (optimizer, steps, stop) in chosen.items()
    }


def _linearisation(problem: Any, start: dict[str, np.ndarray], x: np.ndarray) -> xr.Dataset:
    """The linearisation at the start: the Jacobian's singular values, and the largest curvature."""
    import jax

    import thalweg as tw

    jacobian = np.asarray(tw.jacobian(problem, start))
    values = np.linalg.svd(jacobian, compute_uv=False)
    hessian = jax.hessian(lambda v: problem.risk(problem.unflatten(v)))(problem.flatten(start))
    return xr.Dataset(
        {
            "singular_value": ("index", values),
            "rank": ((), np.linalg.matrix_rank(jacobian)),
            "largest_curvature": ((), np.linalg.eigvalsh(np.asarray(hessian))[-1]),
            "off_kronecker": ((), np.abs(jacobian - kronecker_blocks(start, x)).max()),
        }
    )


def kronecker_blocks(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The Jacobian of ŷ = W1 W2 x, (n·d_out, p), from its two blocks.

    ∂ŷ_{n,i}/∂W1_{k,j} = δ_ik (W2 x_n)_j and ∂ŷ_{n,i}/∂W2_{k,l} = W1_{i,k} x_{n,l}: sample by sample,
    1 ⊗ (W2 x_n)ᵀ beside W1 ⊗ x_nᵀ.
    """
    hidden = x @ w["W2"].T
    first = np.stack([np.kron(np.eye(len(w["W1"])), h) for h in hidden])
    second = np.stack([np.kron(w["W1"], sample) for sample in x])
    return np.concatenate([first, second], axis=2).reshape(len(x) * len(w["W1"]), -1)


# Reading the result ------------------------------------------------------------------------------


def expected_rank(settings: Settings) -> int:
    """The Jacobian's rank at almost every point: w(d_x + d_y) − w² where the layer is the narrowest.

    Its range is {(δW1 W2 + W1 δW2) X}: of the d_y·d those are left out that W1 cannot reach from the
    left nor W2 from the right, (d_y − r1)(d − r2), d being the dimensions that the samples fill.
    """
    d = min(settings.d_in, settings.n_samples)
    r1, r2 = min(settings.d_out, settings.width), min(d, settings.width)
    return settings.d_out * d - (settings.d_out - r1) * (d - r2)


def _labelled(tree: xr.DataTree, names: dict[str, str]) -> dict[str, xr.Dataset]:
    return {label: results.part(tree, f"path/{name}") for name, label in names.items()}


def _fair(tree: xr.DataTree, settings: Settings) -> dict[str, xr.Dataset]:
    names = {
        "momentum": f"momentum {settings.momentum:g}, lr = {settings.momentum_lr:g}",
        "adam-large": f"Adam, lr = {settings.adam_large_lr:g}",
    }
    return _labelled(tree, names)


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """First order; second order beside it; first order at its best; and the Jacobian's rank."""
    yield (
        "first-order",
        Drawing.of(
            plots.convergence(
                _labelled(tree, FIRST_ORDER), title="Gradient descent and Adam, full batch"
            ),
            "How far do first-order methods get in some thousand steps? Gradient descent in solid "
            "lines, Adam dashed. A step size that is a little too large diverges, and one that is safe "
            "crawls along the flat directions.",
        ),
    )
    yield (
        "second-order",
        Drawing.of(
            plots.convergence(
                _labelled(tree, FIRST_ORDER | SECOND_ORDER),
                last=STEPS_SHOWN,
                guides=_guides(tree, settings),
                title=f"The first {STEPS_SHOWN + 1} iterates, with second-order methods",
            ),
            "What does the residuals' Jacobian buy? Gauss–Newton's loss falls by (1 − step size)² a "
            "step, in all directions alike, down to rounding; Levenberg–Marquardt chooses its steps "
            "itself and is there after a dozen or so.",
        ),
    )
    yield (
        "fair",
        Drawing.of(
            plots.convergence(
                _fair(tree, settings) | _labelled(tree, SECOND_ORDER),
                title="First-order methods that were tuned, with second-order methods",
                x="log",
            ),
            "Is the comparison fair? With momentum, or with a learning rate that suits it, first order "
            "converges too, in hundreds or thousands of cheaper steps. The step is on a log axis.",
        ),
    )
    yield "jacobian", Drawing.of(_spectrum(tree), _spectrum_caption(tree))
    if "population" in tree.children:
        names = FIRST_ORDER | SECOND_ORDER
        yield (
            "population",
            Drawing.of(
                plots.convergence(
                    _labelled(tree, names),
                    last=STEPS_SHOWN,
                    behind={
                        "n times the expected risk": [
                            results.part(tree, f"population/{name}") for name in names
                        ]
                    },
                    title="On the data, and on n times the expected risk",
                ),
                "Is it statistics or optimization? The same optimizers on n times the expected risk, "
                "as wide pale lines, under those on the data: they all but agree.",
            ),
        )


def _guides(tree: xr.DataTree, settings: Settings) -> dict[str, xr.DataArray]:
    """(1 − lr)^(2k) times the first loss, for each step size of Gauss–Newton below 1."""
    loss = results.part(tree, "path/gauss-newton")["loss"]
    guides = {}
    for i, lr in enumerate(settings.newton_lrs):
        values = float(loss.values[0, i]) * (1 - lr) ** (2.0 * loss["step"])
        # below float64's precision relative to the first loss there is only rounding
        shown = values.where(values > 1e-30 * values[0], drop=True)
        if 0 < lr < 1 and shown.size > 1:
            guides[f"(1 − {lr:g})^(2k)"] = shown
    return guides


def _spectrum(tree: xr.DataTree) -> Any:
    at_start = results.part(tree, "linearisation")
    values = at_start["singular_value"]
    place = np.arange(1, values.size + 1)
    rank = int(at_start["rank"])
    counted = place <= rank
    names = {"counted in the rank": counted, "zero, to rounding": ~counted}
    ax = None
    for label, which in names.items():
        if which.any():
            shown = xr.DataArray(
                values.values[which], {"number": place[which]}, name="singular value"
            )
            ax = plots.curve(shown, y="log", line=False, points=True, ax=ax, label=label)
    assert ax is not None
    ax.set_title(f"Singular values of the Jacobian at the start: rank {rank} of {values.size}")
    return ax


def _spectrum_caption(tree: xr.DataTree) -> str:
    values = results.part(tree, "linearisation")["singular_value"]
    rank = int(results.part(tree, "linearisation")["rank"])
    return (
        f"In how many directions does the prediction change at all? In {rank} of {values.size}: along "
        f"the other {values.size - rank}, W1 G and G⁻¹ W2, it stays what it is. The Gauss–Newton "
        "equations leave the step along these open; the shortest of their solutions leaves them alone."
    )


def _what_is_reached(settings: Settings) -> str:
    rank = min(settings.d_in, settings.d_out)
    if settings.width >= rank:
        return "It can reach zero: A is a product W1 W2 of this width."
    return (
        f"It cannot reach zero: A has rank {rank}, and W1 W2 no more than the width, {settings.width}. The "
        f"least that is left belongs to A's smallest singular directions."
    )


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    data, at_start = results.part(tree, "data"), results.part(tree, "linearisation")
    lm = results.part(tree, "path/levenberg-marquardt")
    condition, curvature = float(data["condition"]), float(at_start["largest_curvature"])
    values, rank = at_start["singular_value"], int(at_start["rank"])
    numbers = {
        "condition number of A": f"{condition:.4g}",
        "rank of the Jacobian at the start": (
            f"{rank} of {values.size} parameters; {expected_rank(settings)} by counting"
        ),
        "largest difference of the Jacobian from its two Kronecker blocks": (
            f"{float(at_start['off_kronecker']):.1e}"
        ),
        "2/λ_max of the Hessian at the start": f"{2 / curvature:.3g}",
        "Levenberg–Marquardt": _arrival(lm, settings),
    }
    newton = results.part(tree, "path/gauss-newton")
    for i, lr in enumerate(settings.newton_lrs):
        one = newton.isel(lr=i)
        early = min(10, one.sizes["step"] - 1)
        fallen = float(one["loss"].values[early] / one["loss"].values[0])
        numbers[f"Gauss–Newton at {lr:g}, loss at step {early} over the first"] = (
            f"{fallen:.4g}; (1 − {lr:g})^{2 * early} = {(1 - lr) ** (2 * early):.4g}"
        )
    warnings = [
        f"{label} at {lr:g} diverged at step {at}."
        for name, label in FIRST_ORDER.items()
        for lr, at in _diverged(results.part(tree, f"path/{name}"))
    ]
    target = (
        f"A's rows are scaled from 1 to {1 / CONDITION:g}, but that does not make it ill-conditioned: its "
        f"condition number is only {condition:.3g}, since every column is long. With A=svd it is "
        f"{CONDITION:g} exactly."
        if settings.A == "rows"
        else f"A is built from singular values between 1 and {1 / CONDITION:g}, so its condition number "
        f"is {CONDITION:g}: the smallest of them are learnt last."
    )
    return Findings(
        numbers,
        (
            "The loss is the sum of squares over samples and outputs (not the square of a sum). "
            + _what_is_reached(settings),
            target,
            f"Gradient descent is stable while its step is below 2/λ_max, about {2 / curvature:.1g} at "
            "the start. With a step a hundred times as long it diverges within a few steps, and the other "
            "descents of the sweep go on.",
            "Gauss–Newton divides each direction by its own curvature, so what can be reached is reached "
            "at the same rate everywhere, (1 − step size)² a step, whatever the condition number; a step "
            "size of 1 would trust the linearisation too far at the start, which is why the damping of "
            "Levenberg–Marquardt begins large and falls later.",
            f"Of {values.size} parameters {rank} directions matter. The rest is gauge freedom: W1 G and "
            "G⁻¹ W2 predict the same for every invertible G, so JᵀJ is singular everywhere, and normal "
            "equations would have nothing to divide by.",
            "A second-order step costs a Jacobian and its decomposition, in arithmetic about "
            f"{settings.d_out * values.size / 3:.0f} gradients' worth here. With momentum, or a learning "
            "rate that suits it, first order converges too: count the cost before calling the race.",
        ),
        tuple(warnings),
        {"Every optimizer": list(_table(tree, settings))},
    )


def _arrival(path: xr.Dataset, settings: Settings) -> str:
    loss = float(path["loss"].values[-1])
    if str(path["status"].values) == "converged":
        tried = int(path["accepted"].sum())
        return f"loss {loss:.2g} after {int(path['stopped_at'])} steps, {tried} of them accepted"
    return f"loss {loss:.2g} after {int(path['step'].values[-1])} steps: above {settings.lm_loss:g}"


def _diverged(path: xr.Dataset) -> list[tuple[float, int]]:
    return [
        (float(lr), int(at))
        for lr, at in zip(path["lr"].values, path["diverged_at"].values, strict=True)
        if at >= 0
    ]


def _table(tree: xr.DataTree, settings: Settings) -> Iterator[list[str]]:
    yield ["optimizer", "step size", "steps", "loss at the end", "status"]
    rows = {
        **FIRST_ORDER,
        "momentum": f"momentum {settings.momentum:g}",
        "adam-large": "Adam",
        **SECOND_ORDER,
    }
    alone = {"momentum": settings.momentum_lr, "adam-large": settings.adam_large_lr}
    for name, label in rows.items():
        path = results.part(tree, f"path/{name}")
        for i in range(path.sizes.get("lr", 1)):
            one = path.isel(lr=i) if "lr" in path.dims else path
            lr = float(one["lr"]) if "lr" in path.dims else alone.get(name)
            status, loss = str(one["status"].values), float(one["loss"].values[-1])
            if status == "diverged":
                status += f" at step {int(one['diverged_at'])}"
            yield [
                label,
                "adaptive" if lr is None else f"{lr:g}",
                f"{int(one['step'].values[-1])}",
                f"{loss:.2g}" if np.isfinite(loss) else "–",
                status,
            ]
