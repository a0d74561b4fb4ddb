"""Study 6: gradient descent on least squares, seen in the right basis.

For data X (p × n) and Y (n), w ← w − ηXXᵀw + ηXY descends ½‖Xᵀw − Y‖². In the basis of the
eigenvectors of XXᵀ = PΛPᵀ its p equations come apart: w_t = w* + P(I − ηΛ)^t Pᵀ(w_0 − w*).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr

from thalweg import plots, results
from thalweg.errors import InputError
from thalweg.plots import legends, style
from thalweg.studies import Drawing, Findings
from thalweg.studies.settings import setting

TITLE = "Gradient descent on least squares, seen in the right basis"

PARTS = {"tall": "", "wide": "wide_"}  # p < n and p > n; their settings' prefixes


@dataclasses.dataclass(frozen=True)
class Settings:
    """What can be changed."""

    seed: int = setting(0, "seed of the data and the start")
    p: int = setting(100, "number of parameters")
    n: int = setting(5000, "number of samples")
    lr: float = setting(0.001, "step size η")
    steps: int = setting(1000, "steps of gradient descent T")
    wide_p: int = setting(100, "number of parameters of the second problem, which has p > n")
    wide_n: int = setting(50, "number of samples of the second problem")
    wide_lr: float = setting(0.001, "step size of the second problem")
    wide_steps: int = setting(1000, "steps on the second problem")


def run(settings: Settings) -> dict[str, xr.Dataset]:
    """For each problem its descent, and what linear algebra says of it."""
    nodes = {}
    for part, prefix in PARTS.items():
        p, n = getattr(settings, f"{prefix}p"), getattr(settings, f"{prefix}n")
        if p < 1 or n < 1:
            raise InputError(
                f"settings '{prefix}p' and '{prefix}n' must be at least 1; {p} and {n} given."
            )
        x, y, start = _draw(p, n, settings.seed)
        nodes[f"{part}/exact"] = _exact(x, y, start)
        nodes[f"{part}/path"] = _descend(
            x, y, start, getattr(settings, f"{prefix}lr"), getattr(settings, f"{prefix}steps")
        )
    return nodes


def _draw(p: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """X (p, n) standard normal / √n, Y (n,) standard normal, w_0 (p,) standard normal / √p."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((p, n)) / np.sqrt(n)
    return x, rng.standard_normal(n), rng.standard_normal(p) / np.sqrt(p)


def _half_square(yhat: Any, y: Any) -> Any:
    """½(ŷ − y)². PyTorch's "mse" has no ½, and with it η would have to be halved."""
    return 0.5 * (yhat - y) ** 2


def _predict(w: Any, x: Any) -> Any:
    return x @ w


def _descend(x: np.ndarray, y: np.ndarray, start: np.ndarray, lr: float, steps: int) -> xr.Dataset:
    import thalweg as tw

    problem = tw.Problem(_predict, _half_square, x.T, y, params=start, reduction="sum")
    path = tw.descend(problem, tw.SGD(lr=lr), steps=steps, record=["relative_movement"])
    plotted = 2 * path["loss"] / len(y)
    plotted.attrs["long_name"] = "loss ‖Xᵀw − Y‖² / n"
    return path.assign(plotted=plotted)


def _exact(x: np.ndarray, y: np.ndarray, start: np.ndarray) -> xr.Dataset:
    """The spectrum of XXᵀ, largest eigenvalue first, and the minimiser that is nearest to the start.

    From the singular values of X: computing those of XXᵀ would square the condition number.
    """
    p, n = x.shape
    vectors, singular, rows = np.linalg.svd(x, full_matrices=p > n)
    rank = int((singular > max(p, n) * np.finfo(float).eps * singular.max(initial=0)).sum())
    eigenvalues = np.zeros(p)
    eigenvalues[:rank] = singular[:rank] ** 2
    # In the image of X the minimiser is unique; outside it the gradient is zero, and it equals the start.
    target = vectors.T @ start
    target[:rank] = (rows[:rank] @ y) / singular[:rank]
    best = vectors @ target
    return xr.Dataset(
        {
            "gram": (("row", "column"), x @ x.T),
            "vectors": (("param", "direction"), vectors),
            "minimiser": ("param", best),
            "least": ((), np.mean((x.T @ best - y) ** 2)),
            "rank": ((), rank),
        },
        {"eigenvalue": ("direction", eigenvalues)},
        {"n": n},
    )


# Reading the result ------------------------------------------------------------------------------


def _closed_form(exact: xr.Dataset, path: xr.Dataset, lr: float) -> np.ndarray:
    """w_t = w* + P(I − ηΛ)^t Pᵀ(w_0 − w*) at the recorded steps, (step, param)."""
    vectors, best = exact["vectors"].values, exact["minimiser"].values
    # Beyond the stability threshold this overflows, as the descent does.
    with np.errstate(over="ignore", invalid="ignore"):
        shrunk = (1 - lr * exact["eigenvalue"].values) ** path["step"].values[:, None]
        return best + (shrunk * (vectors.T @ (path["start"].values - best))) @ vectors.T


def _moved(exact: xr.Dataset, path: xr.Dataset, basis: str) -> xr.DataArray:
    """|w_t − w_0| by coordinate of a basis, (coordinate, step)."""
    moved = path["params"].values - path["start"].values
    step = path["step"].values
    if basis == "given":
        rows: tuple[str, np.ndarray] = ("coordinate", np.arange(moved.shape[1]))
    else:
        moved = moved @ exact["vectors"].values
        rows = ("eigenvalue", exact["eigenvalue"].values)
    return xr.DataArray(np.abs(moved).T, {rows[0]: rows[1], "step": step}, name="distance")


def _share(exact: xr.Dataset, path: xr.Dataset) -> xr.DataArray:
    """How much of its way to the minimiser each eigendirection has gone at the end, by eigenvalue.

    For a direction outside the image of X, in which the start is already at the minimiser, the share is
    undefined; it is given as the movement itself, which is zero.
    """
    vectors = exact["vectors"].values
    way = vectors.T @ (exact["minimiser"].values - path["start"].values)
    gone = vectors.T @ (path["final"].values - path["start"].values)
    outside = exact["eigenvalue"].values == 0
    share = np.where(outside, gone, gone / np.where(outside, 1, way))
    return xr.DataArray(share, {"eigenvalue": exact["eigenvalue"].values}, name="share of the way")


def figures(tree: xr.DataTree, settings: Settings) -> Iterator[tuple[str, Drawing]]:
    """For each problem the matrix, its spectrum, the descent, and the way of every coordinate."""
    for part, prefix in PARTS.items():
        exact, path = results.part(tree, f"{part}/exact"), results.part(tree, f"{part}/path")
        words = _size(tree, part)
        rank, p = int(exact["rank"]), exact.sizes["param"]
        stays = (
            f" The {p - rank} directions outside the image of X, below, never move."
            if rank < p
            else ""
        )
        yield (
            f"{prefix}matrix",
            Drawing.of(
                _matrices(exact, words),
                "XXᵀ, and what it is in the basis of its eigenvectors. No entry off the diagonal looks "
                "like much, and the diagonal's own entries are alike; yet all together they spread the "
                "eigenvalues far wider.",
            ),
        )
        yield (
            f"{prefix}spectrum",
            Drawing.of(
                _spectrum(exact, _samples(tree, part), words),
                "How are the eigenvalues distributed? The histogram of this one matrix, and the "
                "Marchenko–Pastur law, its limit for large matrices of this shape.",
            ),
        )
        yield (
            f"{prefix}descent",
            Drawing.of(
                _descent(exact, path, words),
                "How far does the loss fall, and how far do the parameters go? The dashed line is the "
                "loss at the minimiser that the descent goes to.",
            ),
        )
        yield (
            f"{prefix}movement",
            Drawing.of(
                _movement(exact, path, words),
                "How far has each coordinate gone? Left the given coordinates, each a mixture of all "
                "directions; right those along the eigenvectors, where each row is a curve of its own: "
                "1 − (1 − ηλ)^t times the way it has to go." + stays,
            ),
        )
    yield (
        "pace",
        Drawing.of(
            _pace(tree, settings),
            "What decides how fast a direction moves? The share of its way to the minimiser that each "
            "eigendirection has gone at the last step, against its eigenvalue: it alone decides. At "
            "eigenvalue zero nothing moves.",
        ),
    )


def _samples(tree: xr.DataTree, part: str) -> int:
    return int(results.part(tree, f"{part}/exact").attrs["n"])


def _size(tree: xr.DataTree, part: str) -> str:
    exact = results.part(tree, f"{part}/exact")
    return f"p = {exact.sizes['param']}, n = {_samples(tree, part)}"


def _matrices(exact: xr.Dataset, words: str) -> Any:
    gram, vectors = exact["gram"], exact["vectors"].values
    eigenvalues = exact["eigenvalue"].values
    diagonal = gram.copy(data=vectors.T @ gram.values @ vectors)
    off = np.abs(gram.values - np.diag(np.diag(gram.values))).max()
    reach = float(off) or 1.0
    figure, axes = plots.grid(1, 3, title=f"XXᵀ and its diagonal form: {words}")
    for ax, values, title in (
        (axes[0, 0], gram, "XXᵀ"),
        (axes[0, 1], diagonal, "PᵀXXᵀP, P its eigenvectors"),
    ):
        plots.matrix(values, limits=(-reach, reach), center=0, ax=ax, title=title, colorbar="entry")
    both = xr.DataArray(
        np.stack([np.sort(np.diag(gram.values))[::-1], eigenvalues]),
        {"which": ["diagonal of XXᵀ, sorted", "eigenvalues λ of XXᵀ"]},
        ("which", "index"),
        name="entry",
    )
    plots.curve(both, "index", ax=axes[0, 2], title="The two diagonals")
    return figure


def _spectrum(exact: xr.Dataset, n: int, words: str) -> Any:
    from thalweg.catalogue import random_matrices

    ratio = exact.sizes["param"] / n
    low, high = random_matrices.marchenko_pastur_edges(ratio)
    # equal steps in the angle are dense at the edges, where the density is steep
    at = (low + high) / 2 - (high - low) / 2 * np.cos(np.linspace(0, np.pi, 401))
    density = xr.DataArray(
        random_matrices.marchenko_pastur(at, ratio),
        {"eigenvalue": at},
        name="Marchenko–Pastur density",
    )
    return plots.spectrum(
        exact["eigenvalue"].values,
        density=density,
        edges=(low, high),
        title=f"Eigenvalues of XXᵀ: {words}",
    )


def _descent(exact: xr.Dataset, path: xr.Dataset, words: str) -> Any:
    figure, axes = plots.grid(1, 2, title=f"Gradient descent: {words}")
    left, right = axes[0]
    plots.record(path, "plotted", ax=left, y="linear", title="Loss", label="descent")
    left.axhline(
        float(exact["least"]),
        color=style.shade(0.3),
        ls="--",
        lw=1.2,
        label=f"at the minimiser: {_least(exact)}",
    )
    legends.add(left)
    plots.movement(path, ax=right, title="Relative distance from the start", label="descent")
    return figure


def _least(exact: xr.Dataset) -> str:
    """The loss at the minimiser as text: exactly 0 where X has full column rank."""
    return "0" if int(exact["rank"]) == exact.attrs["n"] else f"{float(exact['least']):.6g}"


def _movement(exact: xr.Dataset, path: xr.Dataset, words: str) -> Any:
    figure, axes = plots.grid(1, 2, title=f"How far each coordinate has gone: {words}")
    given, eigen = _moved(exact, path, "given"), _moved(exact, path, "eigen")
    every = np.concatenate([np.ravel(given), np.ravel(eigen)])
    limits = (0, float(every[np.isfinite(every)].max(initial=0)) or 1.0)
    left, right = axes[0]
    plots.matrix(given, limits=limits, ax=left, title="In the given basis", colorbar=False)
    plots.matrix(
        eigen,
        limits=limits,
        ax=right,
        title="In the basis of the eigenvectors",
        colorbar="|w − w₀|, in both panels",
    )
    return figure


def _pace(tree: xr.DataTree, settings: Settings) -> Any:
    figure, axes = plots.grid(1, 2, title="Every direction at its own eigenvalue's pace")
    for ax, (part, prefix) in zip(axes[0], PARTS.items(), strict=True):
        exact, path = results.part(tree, f"{part}/exact"), results.part(tree, f"{part}/path")
        share, last = _share(exact, path), int(path["step"].values[-1])
        at = np.linspace(0, float(share["eigenvalue"].max()) or 1.0, 200)
        with np.errstate(over="ignore"):
            theory = 1 - (1 - getattr(settings, f"{prefix}lr") * at) ** last
        plots.curve(
            xr.DataArray(theory, {"eigenvalue": at}, name=share.name),
            points=False,
            label=f"theory, 1 − (1 − ηλ)^{last}",
            ax=ax,
        )
        plots.curve(share, line=False, label=f"measured, {share.size} directions", ax=ax)
        ax.set_title(_size(tree, part))
    return figure


def findings(tree: xr.DataTree, settings: Settings) -> Findings:
    from thalweg.catalogue import random_matrices

    numbers, warnings = {}, []
    for part, prefix in PARTS.items():
        exact, path = results.part(tree, f"{part}/exact"), results.part(tree, f"{part}/path")
        words, n, p = _size(tree, part), _samples(tree, part), exact.sizes["param"]
        eigenvalues, rank = exact["eigenvalue"].values, int(exact["rank"])
        lr = getattr(settings, f"{prefix}lr")
        low, high = random_matrices.marchenko_pastur_edges(p / n)
        numbers[f"{words}: rank of X"] = f"{rank}"
        numbers[f"{words}: eigenvalues of XXᵀ that are not zero"] = (
            f"{eigenvalues[:rank].min(initial=np.inf):.6g} to {eigenvalues.max():.6g}; "
            f"Marchenko–Pastur edges {low:.6g} and {high:.6g}"
        )
        numbers[f"{words}: loss ‖Xᵀw − Y‖²/n"] = (
            f"{path['plotted'].values[0]:.6g} → {path['plotted'].values[-1]:.6g}; "
            f"at the minimiser {_least(exact)}"
        )
        numbers[f"{words}: relative distance from the start"] = (
            f"{path['relative_movement'].values[-1]:.6g}"
        )
        off = np.abs(path["params"].values - _closed_form(exact, path, lr))
        if np.isfinite(off).any():
            numbers[f"{words}: largest distance of a coordinate from the closed form"] = (
                f"{np.nanmax(off):.1e}"
            )
        if rank < p:
            outside = (path["params"].values - path["start"].values) @ exact["vectors"].values
            numbers[f"{words}: largest movement outside the image of X"] = (
                f"{np.nanmax(np.abs(outside[:, rank:]), initial=0):.1e}"
            )
        numbers[f"{words}: step size"] = (
            f"{lr:g}; stable below 2/λ_max = {2 / eigenvalues.max():.6g}"
        )
        if lr >= 2 / eigenvalues.max():
            warnings.append(
                f"With {words} the step size {lr:g} is not below 2/λ_max = {2 / eigenvalues.max():.4g}: "
                "along the first eigenvector the iterates swing ever farther out."
            )
    tall = results.part(tree, "tall/exact")
    every = int(tall["rank"]) == tall.sizes["param"]
    return Findings(
        numbers,
        (
            "The derivation: the gradient of ½‖Xᵀw − Y‖² is XXᵀw − XY. At a minimiser w* it vanishes, so "
            "that w_{t+1} − w* = (I − ηXXᵀ)(w_t − w*). With XXᵀ = PΛPᵀ and z = Pᵀ(w − w*) this is "
            "z_{t+1} = (I − ηΛ)z_t: p equations of one unknown each, and w_t = w* + P(I − ηΛ)^t Pᵀ(w_0 − "
            "w*). They all shrink exactly where |1 − ηλ| < 1 for every λ > 0, that is for η < 2/λ_max.",
            "The plotted loss, as PyTorch's MSE, has no ½: its gradient is 2/n times the one descended, "
            "and on ‖Xᵀw − Y‖² itself the threshold would be 1/λ_max.",
            "An entry of XXᵀ off the diagonal is of the size 1/√n, and one might take XXᵀ for the identity. "
            "Yet p² of them together spread the eigenvalues over (1 ∓ √(p/n))².",
            (
                f"With {_size(tree, 'tall')} X has full rank {int(tall['rank'])}: no direction stands "
                "still, and every one moves at its own eigenvalue's pace."
                if every
                else f"With {_size(tree, 'tall')} X has rank {int(tall['rank'])} only: the directions "
                "outside its image stand still."
            ),
            f"With {_size(tree, 'wide')} the rank is {int(results.part(tree, 'wide/exact')['rank'])}. Every "
            "gradient is X times a vector, and lies in the image of X; so the directions outside it never "
            "move, and of all minimisers the descent goes to the one nearest to its start.",
        ),
        tuple(warnings),
    )
