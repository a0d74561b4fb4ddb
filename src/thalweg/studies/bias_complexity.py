"""Study 7: training and true risk against the number of features.

Sines and cosines of ever higher frequency, with a linear head, are fitted to few noisy samples by
gradient descent. The true risk is against the noiseless target, over x ~ U(−1, 1). For comparison,
minimum-norm least squares on isotropic Gaussian features, for which theory predicts a peak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.plots import legends, style
from thalweg.studies import Drawing, Findings, regression
from thalweg.studies.settings import setting

TITLE = "Training and true risk against the number of features"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    seed: int = setting(0, "seed of the data, the starts and the random features")
    target: str = setting("middle", "what is learnt: simple, middle or complex")
    n_samples: int = setting(50, "number of samples n")
    noise: float = setting(0.05, "standard deviation σ of the labels' noise")
    frequency: float = setting(0.2, "ω/π of the features sin(ωjx), cos(ωjx)")
    first: int = setting(0, "the first j; 0 gives a dead sine and a second bias")
    dimension: int = setting(30, "features of the one model that is looked at closely")
    steps: int = setting(2000, "full-batch steps of that one model")
    lr: float = setting(0.01, "learning rate of that one model")
    largest: int = setting(198, "features of the largest model of the sweep over 2, 4, …")
    runs: int = setting(10, "starts of each model of the sweep")
    sweep_steps: int = setting(1000, "steps of each descent of the sweep")
    sweep_lr: float = setting(0.1, "learning rate of the sweep")
    peak_n: int = setting(50, "samples of the least-squares fits on Gaussian features")
    peak_largest: int = setting(150, "largest number of Gaussian features")
    peak_draws: int = setting(400, "draws of Gaussian features and noise for each number of them")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """The data, one model, the sweep over dimensions, and the fits on Gaussian features."""
    if settings.runs < 1 or settings.largest < 2:
        raise InputError(
            f"settings 'runs' and 'largest' must be at least 1 and 2; {settings.runs} and "
            f"{settings.largest} given."
        )
    if settings.peak_n < 1 or settings.peak_largest < 1 or settings.peak_draws < 1:
        raise InputError("settings 'peak_n', 'peak_largest' and 'peak_draws' must be at least 1.")
    if not 0 <= settings.frequency < np.inf:
        raise InputError(f"setting 'frequency' must be at least 0; {settings.frequency:g} given.")
    table = regression.data(
        regression.DataSettings(
            target=settings.target,
            n_samples=settings.n_samples,
            noise=settings.noise,
            seed=settings.seed,
        )
    )
    return {"data": table, **_one(settings, table), "sweep": _sweep(settings, table)} | {
        "peak": _peak(settings)
    }


# Models on features --------------------------------------------------------------------------------


def _features(settings: Settings, x: np.ndarray, width: int) -> np.ndarray:
    """(len(x), width): sin(ωjx), cos(ωjx) side by side, j = first, first + 1, …"""
    from thalweg.catalogue import models

    frequency = settings.frequency * np.pi
    return np.asarray(models.fourier_features(x, width, frequency=frequency, first=settings.first))


@dataclasses.dataclass(frozen=True)
class _Samples:
    """The samples that models are fitted to, and the nodes their true risk is summed over."""

    x: np.ndarray  # (n, width), features
    y: np.ndarray  # (n,)
    nodes: np.ndarray  # (q, width), features
    target: np.ndarray  # (q,)
    weights: np.ndarray  # (q,)

    @classmethod
    def of(cls, settings: Settings, table: xr.Dataset, width: int) -> _Samples:
        from thalweg.catalogue.data import TARGETS

        target = TARGETS[settings.target]
        highest = settings.frequency * np.pi * (settings.first + width // 2)
        nodes, weights = quadrature(target.kinks, highest)
        x, at = (_features(settings, values, width) for values in (table["x"].values, nodes))
        return cls(x, table["y"].values, at, target(nodes), weights)

    def problem(self, dimension: int) -> Any:
        """A linear model with bias on the first features; the columns of the others are zero.

        Their weights start at zero, have gradient zero and stay there. As the shapes are equal,
        models of all dimensions are one compiled program.
        """
        from jax.tree_util import Partial

        import thalweg as tw
        from thalweg.catalogue import models

        width = self.x.shape[1]
        kept = np.arange(width) < dimension
        nodes = np.where(kept, self.nodes, 0)
        return tw.Problem(
            models.line,
            "mse",
            np.where(kept, self.x, 0),
            self.y,
            params={"weight": np.zeros(width), "bias": np.zeros(())},
            expected=Partial(_true_risk, nodes, self.target, self.weights),
        )


def quadrature(kinks: tuple[float, ...], highest: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights (q,) whose weighted sum is the mean over U(−1, 1), by Gauss–Legendre.

    Piece by piece between the kinks, where the integrand is smooth. m nodes integrate polynomials up
    to degree 2m − 1; a squared sum of waves up to `highest` (radians per unit) has frequencies up to
    twice that, and on a piece of length l its Legendre series ends soon after degree l·highest.
    """
    ends = [-1.0, *kinks, 1.0]
    nodes, weights = [], []
    for low, high in pairwise(ends):
        at, share = np.polynomial.legendre.leggauss(40 + int((high - low) * highest))
        nodes.append((low + high) / 2 + (high - low) / 2 * at)
        weights.append((high - low) / 2 * share / 2)  # the density of U(−1, 1) is ½
    return np.concatenate(nodes), np.concatenate(weights)


def _true_risk(features: Any, target: Any, weights: Any, params: dict[str, Any]) -> Any:
    """E (f(x) − target(x))² over x ~ U(−1, 1)."""
    return weights @ (features @ params["weight"] + params["bias"] - target) ** 2


def _starts(settings: Settings, dimension: int, width: int) -> dict[str, np.ndarray]:
    """Starts as PyTorch's Linear draws them, U(−1/√d, 1/√d) for weights and bias; zeros beyond d."""
    rng = np.random.default_rng([settings.seed, dimension])
    drawn = rng.uniform(-1, 1, (settings.runs, dimension + 1)) / np.sqrt(dimension)
    return {"weight": np.pad(drawn[:, 1:], [(0, 0), (0, width - dimension)]), "bias": drawn[:, 0]}


def _one(settings: Settings, table: xr.Dataset) -> dict[str, xr.Dataset]:
    """One model: its descent, and the function it is before and after."""
    import thalweg as tw

    d = settings.dimension
    problem = _Samples.of(settings, table, d).problem(d)
    start = {name: values[0] for name, values in _starts(settings, d, d).items()}
    path = tw.descend(
        problem.at(start), tw.SGD(lr=settings.lr), steps=settings.steps, record=["expected"]
    )
    grid = table["x_grid"].values
    moments = {"start": path["start"], "end": path["final"]}
    inputs = _features(settings, grid, d)
    return {"path/one": path, "functions/one": regression.functions(problem, moments, grid, inputs)}


def _sweep(settings: Settings, table: xr.Dataset) -> xr.Dataset:
    """Training and true risk after the descents (dimension, run), and what the features are like."""
    import thalweg as tw

    width = settings.largest - settings.largest % 2
    dimensions = list(range(2, width + 1, 2))
    samples = _Samples.of(settings, table, width)
    kept = {"train": "loss", "true": "expected"}
    rows: dict[str, list[Any]] = {name: [] for name in (*kept, "status", "rank", "threshold")}
    for d in dimensions:
        problem = samples.problem(d)
        path = tw.descend(
            problem,
            tw.SGD(lr=settings.sweep_lr),
            steps=settings.sweep_steps,
            starts=_starts(settings, d, width),
            record={"params": False, "expected": True},
            every=max(settings.sweep_steps, 1),
        )
        for name, record in kept.items():
            rows[name].append(path[record].values[-1])
        rows["status"].append(path["status"].values)
        features = np.asarray(problem.x)
        rows["rank"].append(np.linalg.matrix_rank(features))
        # the Hessian of the MSE, which has no ½, is 2/n times the design's Gram matrix
        design = np.column_stack([features, np.ones(len(features))])
        rows["threshold"].append(2 / (2 / len(design) * np.linalg.norm(design, 2) ** 2))
    threshold = np.array(rows["threshold"])
    unstable = np.repeat(settings.sweep_lr > threshold[:, None], settings.runs, axis=1)
    return xr.Dataset(
        {
            "train": (("dimension", "run"), np.stack(rows["train"]), {"long_name": "risk"}),
            "true": (("dimension", "run"), np.stack(rows["true"]), {"long_name": "risk"}),
            "status": (("dimension", "run"), np.stack(rows["status"])),
            "unstable": (("dimension", "run"), unstable.astype(np.int8)),
            "threshold": ("dimension", threshold),
            "rank": ("dimension", np.array(rows["rank"])),
        },
        {
            "dimension": ("dimension", dimensions, {"long_name": "number of features p"}),
            "run": np.arange(settings.runs),
        },
    )


def _peak(settings: Settings) -> xr.Dataset:
    """‖Φ⁺ε‖² (features, draw): what noise costs minimum-norm least squares on Gaussian features."""
    n, draws = settings.peak_n, settings.peak_draws
    features = np.arange(min(2, settings.peak_largest), settings.peak_largest + 1, 2)
    risk = np.empty((len(features), draws))
    for i, p in enumerate(features):
        rng = np.random.default_rng([settings.seed, n, int(p)])
        design = rng.standard_normal((draws, n, p))
        noise = settings.noise * rng.standard_normal((draws, n, 1))
        # By QR, not by the normal equations, which square the condition number: Φ = QR where p ≤ n,
        # and Φᵀ = QR, β̂ = Q R⁻ᵀ ε where p > n. Q leaves the norm as it is.
        if p <= n:
            q, r = np.linalg.qr(design)
            coefficients = np.linalg.solve(r, q.swapaxes(1, 2) @ noise)
        else:
            r = np.linalg.qr(design.swapaxes(1, 2))[1]
            coefficients = np.linalg.solve(r.swapaxes(1, 2), noise)
        risk[i] = (coefficients**2).sum(axis=(1, 2))
    return xr.Dataset(
        {"risk": (("features", "draw"), risk, {"long_name": "excess risk"})},
        {"features": ("features", features, {"long_name": "number of features p"})},
    )


# From the saved tree -------------------------------------------------------------------------------


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """The one model's fit and descent; risks and rank against the dimension; the peak."""
    table = results.part(tree, "data")
    yield (
        "fit",
        Drawing.of(
            plots.functions(
                table,
                results.part(tree, "functions/one"),
                title=f"{settings.dimension} features, {settings.n_samples} samples",
            ),
            "Can the model follow the target? The function it is before and after the descent, with "
            "the samples and the target without noise.",
        ),
    )
    path = results.part(tree, "path/one")
    ax = plots.record(path, "loss", label="training loss")
    plots.record(path, "expected", ax=ax, label="true risk", title="")
    ax.set(title=f"{settings.dimension} features, learning rate {settings.lr:g}", ylabel="risk")
    yield (
        "descent",
        Drawing.of(
            ax,
            "Does the training loss say how good the model is? It is against noisy labels, the true "
            "risk (dashed) against the noiseless target: the loss cannot fall far below σ² before it "
            "begins to fit noise, and the true risk can.",
        ),
    )
    yield (
        "sweep",
        Drawing.of(
            _draw_sweep(tree, settings),
            "Where is the model too simple, and where too complex? The mean over the starts of training "
            "and true risk after the descents, and the spread of the starts.",
        ),
    )
    yield (
        "rank",
        Drawing.of(
            _draw_rank(tree, settings),
            "Why is there no peak at p = n? As matrices the features have far fewer than p dimensions: "
            "on [−1, 1], a fraction of their longest period, they are nearly dependent.",
        ),
    )
    yield (
        "peak",
        Drawing.of(
            _draw_peak(tree, settings),
            "Where theory has the peak: minimum-norm least squares on independent normal features. The "
            "excess risk from label noise rises to p = n and falls beyond it.",
        ),
    )


def _stable(tree: xr.DataTree, name: str) -> xr.DataArray:
    """A risk of the sweep, without the starts whose learning rate is beyond the threshold."""
    sweep = results.part(tree, "sweep")
    return sweep[name].where(sweep["unstable"] == 0)


def _draw_sweep(tree: xr.DataTree, settings: Settings) -> Any:
    sweep = results.part(tree, "sweep")
    ax = style.new_axes(None, (7.4, 4.6))
    for name, label in (("train", "training risk"), ("true", "true risk")):
        plots.curve(_stable(tree, name), y="log", middle="mean", label=label, ax=ax)
    if settings.noise:
        ax.axhline(settings.noise**2, color=style.shade(0.3), lw=1, ls=":", label="σ²")
    _mark_samples(ax, settings.n_samples)
    flagged = int(sweep["unstable"].sum())
    if flagged:
        style.note(ax, f"{style.count_of(flagged, 'start')} with lr > 2/λ_max among those left out")
    ax.set_title(
        f"{settings.sweep_steps:,} steps at learning rate {settings.sweep_lr:g}, "
        f"{style.count_of(settings.runs, 'start')} each"
    )
    legends.add(ax)
    return ax


def _mark_samples(ax: Any, n: int) -> None:
    ax.axvline(n, color=style.shade(0.3), lw=1, ls=style.DASHES[1], label=f"n = {n} samples")


def _draw_rank(tree: xr.DataTree, settings: Settings) -> Any:
    sweep = results.part(tree, "sweep")
    both = xr.concat(
        [sweep["dimension"].astype(float), sweep["rank"].astype(float)],
        xr.Variable("which", ["dimension p", "numerical rank of the features"]),
    )
    values = xr.DataArray(
        both.values, {"which": both["which"], "dimension": sweep["dimension"]}, name="dimensions"
    )
    ax = plots.curve(values, "dimension", title="The features' numerical rank beside their number")
    ax.axhline(
        settings.n_samples,
        color=style.shade(0.3),
        lw=1,
        ls=style.DASHES[1],
        label=f"n = {settings.n_samples}",
    )
    legends.add(ax)
    return ax


def _draw_peak(tree: xr.DataTree, settings: Settings) -> Any:
    from thalweg.catalogue.random_matrices import noise_risk

    risk = results.part(tree, "peak")["risk"]
    ax = style.new_axes(None, (7.4, 4.6))
    plots.curve(
        risk,
        "features",
        over="draw",
        middle="mean",
        band="error",
        y="log",
        line=False,
        label="measured",
        ax=ax,
    )
    n, most = settings.peak_n, int(risk["features"].max())
    for low, high, text in (
        (1, n - 1.5, "theory, σ²p/(n − p − 1)"),
        (n + 1.5, most, "theory, σ²n/(p − n − 1)"),
    ):
        if low >= min(high, most) or not settings.noise:
            continue
        at = np.linspace(low, min(high, most), 400)
        theory = xr.DataArray(noise_risk(at, n, settings.noise), {"features": at})
        plots.curve(theory, y="log", points=False, label=text, ax=ax, title="")
    _mark_samples(ax, n)
    ax.set(
        title="Minimum-norm least squares on Gaussian features",
        xlabel="number of features p",
        ylabel="excess risk from noise",
    )
    legends.add(ax)
    return ax


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    from thalweg.catalogue.random_matrices import noise_risk

    path, sweep = results.part(tree, "path/one"), results.part(tree, "sweep")
    risk = results.part(tree, "peak")["risk"]
    n = settings.n_samples
    train, true = (_mean(_stable(tree, name)) for name in ("train", "true"))
    dimensions, rank = sweep["dimension"].values, sweep["rank"].values
    flagged = sweep["unstable"].values == 1
    numbers = {
        f"{settings.dimension} features: training loss": _ends(path["loss"]),
        f"{settings.dimension} features: true risk": _ends(path["expected"]),
        "noise σ², the least expected loss on noisy labels": f"{settings.noise**2:.6g}",
    }
    if np.isfinite(true).any():
        best = int(np.nanargmin(true))
        numbers["lowest mean true risk"] = f"{true[best]:.4g} at {dimensions[best]} features"
    for d in sorted({2, 10, 30, 50, 100, int(dimensions[-1])} & {int(d) for d in dimensions}):
        i = int(np.flatnonzero(dimensions == d)[0])
        numbers[f"dimension {d}"] = (
            f"training risk {train[i]:.4g}, true risk {true[i]:.4g}, numerical rank {rank[i]}, "
            f"2/λ_max = {sweep['threshold'].values[i]:.4g}"
        )
    x = np.sort(results.part(tree, "data")["x"].values)
    gap = np.diff(x, prepend=-1, append=1).max()
    highest = settings.first + dimensions[-1] // 2 - 1
    wave = 2 / (settings.frequency * highest) if settings.frequency * highest else np.inf
    numbers["widest gap between samples, and the shortest wave of the most features"] = (
        f"{gap:.3g}, {wave:.3g}"
    )
    numbers["starts with lr beyond 2/λ_max"] = f"{flagged.sum():,} of {flagged.size:,}"
    off = _agreement(risk, settings)
    if off.size:
        numbers["measured mean on Gaussian features against theory"] = (
            f"off by {np.sqrt((off**2).mean()):.2f} standard errors (root mean square of {off.size} "
            f"numbers of features), {np.abs(off).max():.2f} at most"
        )
    warnings = ()
    if flagged.any():
        which = dimensions[flagged.any(axis=1)]
        warnings = (
            f"At {len(which)} dimensions, from {which.min()} on, the learning rate {settings.sweep_lr:g} "
            f"is beyond 2/λ_max; the {flagged.sum():,} starts there are flagged and left out of the means.",
        )
    half = noise_risk(n / 2, n, settings.noise) if n > 4 else None
    return Findings(
        numbers,
        (
            "With few features the model is too simple: both risks are high, and no descent mends that. "
            "Each further pair of features lowers the training risk; the true risk falls with it "
            "at first.",
            "With many features their waves become shorter than the gaps between samples. Inside a gap no "
            "sample pins the model: it swings there, and the true risk rises again while the training "
            "risk goes on falling.",
            "Gradient descent from a small start learns along the large eigenvalues of the features' Gram "
            "matrix and hardly moves along the small ones. With a bounded number of steps it is a "
            "regularised fit, whatever the number of features.",
            "These features are nearly dependent on [−1, 1]"
            + _rank_words(dimensions, rank, n)
            + ". So no interpolation peak stands at p = n for gradient descent: nothing special "
            "happens to the directions it can learn when p passes n.",
            "Where theory has the peak, features are independent: there the smallest singular value of "
            "the n × p matrix goes to zero as p goes to n, and minimum-norm least squares pays "
            "σ²·E Σ 1/sᵢ² for the labels' noise. As the mean of an inverse Wishart matrix that is "
            "σ²p/(n − p − 1) below and σ²n/(p − n − 1) above."
            + (f" At p = n/2 = {n / 2:g} it is already {half:.3g}." if half is not None else ""),
            "Beyond p = n this is the part that noise alone causes. The part of the signal that the "
            "samples do not see comes on top, and decides whether the second descent is worth it.",
        ),
        warnings,
    )


def _ends(record: xr.DataArray) -> str:
    return f"{record.values[0]:.6g} → {record.values[-1]:.6g}"


def _mean(values: xr.DataArray) -> np.ndarray:
    """The mean over the finite runs; NaN where there is none."""
    finite = values.where(np.isfinite(values))
    count = finite.notnull().sum("run")
    return (finite.fillna(0).sum("run") / count.where(count > 0)).values


def _rank_words(dimensions: np.ndarray, rank: np.ndarray, n: int) -> str:
    near = int(np.abs(dimensions - n).argmin())
    return f": of {dimensions[near]} of them, numerically {rank[near]} are independent"


def _agreement(risk: xr.DataArray, settings: Settings) -> np.ndarray:
    """(measured mean − theory) / standard error, where the risk has a variance: |p − n| > 3."""
    from thalweg.catalogue.random_matrices import noise_risk

    p, n, draws = risk["features"].values, settings.peak_n, risk.sizes["draw"]
    if draws < 2 or not settings.noise:
        return np.empty(0)
    error = risk.values.std(axis=1, ddof=1) / np.sqrt(draws)
    usable = (np.abs(p - n) > 3) & (error > 0)
    off = risk.values.mean(axis=1)[usable] - noise_risk(p[usable], n, settings.noise)
    return off / error[usable]
