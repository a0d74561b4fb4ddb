"""Planes through large models: random, principal and curved directions, and between minima.

A plane stores its directions as they are used, and what its picture cannot show: their lengths and cosines,
which parameters were left out, how much of a path's variance lies in the plane.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from thalweg import blocks, curvature, names
from thalweg.components import centered_product, principal, walk_variances, with_sign
from thalweg.errors import InputError, one_of, unknown, whole_number
from thalweg.params import Params
from thalweg.planes import Plane, Points, counts_of, grid_of, line, point_of
from thalweg.problem import Problem, check_is_problem

if TYPE_CHECKING:
    from jaxtyping import Float

Span = tuple[float, float]
FilterAxis = int | Callable[[str, tuple[int, ...]], int] | None

_NORMALIZATIONS = ("filter", "layer", "none")
_STREAM = 0x7A19  # seeds the directions' own random stream, together with the user's seed


def random_plane(
    problem: Problem,
    params: Params,
    *,
    seed: int = 0,
    normalize: str = "filter",
    filter_axis: FilterAxis = None,
    vectors: bool = False,
    directions: int = 2,
    points: Points = 51,
    span: Span = (-1.0, 1.0),
) -> Plane:
    """A plane through `params` along Gaussian directions (Li et al., 2018, "Visualizing the loss landscape
    of neural nets").

    Args:
        seed: of the directions.
        normalize: "filter" gives each filter of a direction the norm of the model's own filter, so that
            landscapes of networks which differ only by rescaling layers against each other agree;
            "layer" does so for each parameter tensor; "none" leaves the Gaussian as it is.
        filter_axis: the axis of a weight that counts its filters, or a function of its name and shape that
            says so. By default 0, as in PyTorch and Equinox (out, in), and −1 for what is called `kernel`, as
            in Flax (in, out). Haiku's `w` has them last too.
        vectors: whether one-dimensional parameters (biases, the scales of norm layers) and scalars vary
            too, each as one filter. By default they stay where they are, as in the paper.
        directions: how many.
        points, span: the grid, the same along each axis or by axis, "direction_1", …

    Raises:
        InputError: an unknown normalisation, a model all of whose parameters would be left out.
    """
    check_is_problem(problem)
    one_of("normalisation", normalize, _NORMALIZATIONS)
    count = whole_number("directions", directions, 1)
    _check_memory(problem, count)
    origin = point_of(problem, params)
    # Not the stream of default_rng(seed): data drawn with the same small seed would recur in the directions,
    # and along its own samples a first layer's curvature is many times the usual.
    rng = np.random.default_rng([whole_number("seed", seed, 0), _STREAM])
    rows = rng.standard_normal((count, problem.size))
    left_out, at = [], 0
    axes: dict[str, int] = {}
    layout = problem.layout
    for name, shape, size in zip(layout.leaf_names, layout.shapes, layout.sizes, strict=True):
        part = slice(at, at + size)
        at += size
        if len(shape) < 2 and not vectors:
            rows[:, part] = 0
            left_out.append(name)
            continue
        if normalize == "filter" and len(shape) > 1:
            axes[name] = _filter_axis(filter_axis, name, shape)
        for row in rows:
            row[part] = _normalized(row[part], origin[part], shape, normalize, axes.get(name))
    if len(left_out) == len(layout.leaf_names):
        raise InputError(
            "every parameter of this problem is one-dimensional, and random_plane leaves those out; ask "
            "for them with vectors=True."
        )
    if not rows.any(axis=1).all():
        raise InputError(
            "a direction would have length 0, since all filters of the model do; ask for normalize='none'."
        )
    return _plane(
        problem,
        {f"direction_{i + 1}": f"random direction {i + 1}" for i in range(count)},
        origin,
        rows,
        points,
        span,
        way="random",
        seed=int(seed),
        normalize=normalize,
        left_out=", ".join(left_out),
        filter_axis=json.dumps({name: axis for name, axis in axes.items() if axis != 0}),
    )


def _filter_axis(given: FilterAxis, name: str, shape: tuple[int, ...]) -> int:
    """The axis of a weight along which its filters are counted."""
    if given is None:
        # in Flax's NNX the leaf is the variable's `.value`
        last = name.removesuffix(".value").rsplit(".", 1)[-1]
        return -1 if last == "kernel" else 0
    axis = given(name, shape) if callable(given) else given
    if not isinstance(axis, (int, np.integer)) or not -len(shape) <= axis < len(shape):
        raise InputError(
            f"filter_axis must be an axis of every weight; {name!r} has {len(shape)}, {axis!r} given."
        )
    return int(axis)


def _normalized(
    direction: np.ndarray, own: np.ndarray, shape: tuple[int, ...], normalize: str, axis: int | None
) -> np.ndarray:
    """A tensor's part of a direction, flat, rescaled to the norm of each of the model's own filters, counted
    along `axis`; without an axis, to the norm of the whole tensor."""
    if normalize == "none" or not direction.size:
        return direction
    d, w = direction.reshape(shape), own.reshape(shape)
    over = None
    if axis is not None:
        over = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    size = np.sqrt((d * d).sum(axis=over, keepdims=True))
    return (d * (np.sqrt((w * w).sum(axis=over, keepdims=True)) / size)).reshape(-1)


def pca_plane(
    problem: Problem,
    path: Any,
    *,
    components: int = 2,
    origin: str = "final",
    points: Points = 51,
    span: Any = None,
) -> Plane:
    """The plane of a path's principal components: the directions in which it varies most.

    Computed from the Gram matrix of the iterates, so that it holds for hundreds of iterates of millions
    of parameters. Directions have length 1.

    A random walk in many dimensions also has most of its variance in two components, and draws
    Lissajous curves there (Antognini & Sohl-Dickstein, 2018): the plane holds the share of variance
    that each component explains beside that of a random walk of the same length.

    Args:
        path: a trajectory with params recorded, or points (n, p). The iterates of several members are
            taken together, except those of members that diverged: on their way out these would outweigh
            all else.
        components: how many.
        origin: "final", the last iterate, or "mean", the mean of all, which is nearest to the path. The
            last iterate of several members is that of the last one.
        points: as for every plane.
        span: as for every plane; by default from end to end of the path, and a fifth of that beyond.

    Raises:
        InputError: fewer iterates than it takes, or too many to decompose.
    """
    check_is_problem(problem)
    count = whole_number("components", components, 1)
    one_of("origin", origin, ("final", "mean"))
    _check_memory(problem, count)
    rows = _iterates(problem, path)
    if len(rows) <= count or problem.size < count:
        raise InputError(
            f"{count} principal components need {count + 1} different iterates and {count} parameters; "
            f"{len(rows)} finite iterates of {problem.size} given."
        )
    mean = rows.mean(axis=0, dtype=float)
    variances, axes = principal(rows, mean, count)
    point = mean if origin == "mean" else rows[-1].astype(float)
    if span is None:
        along = np.stack([centered_product(rows, point, axis) for axis in axes])
        ends = np.stack([along.min(axis=1), along.max(axis=1)], axis=1)
        margin = 0.2 * np.maximum(np.ptp(ends, axis=1), 1e-12 * np.abs(ends).max())
        ends += margin[:, None] * [-1, 1]
        span = {f"pc{i + 1}": tuple(end) for i, end in enumerate(ends)}
    walk = walk_variances(len(rows), problem.size, len(variances))
    return _plane(
        problem,
        {
            f"pc{i + 1}": f"principal component {i + 1} ({100 * variances[i]:.3g} %)"
            for i in range(count)
        },
        point,
        axes,
        points,
        span,
        way="principal components",
        iterates=len(rows),
        explained_variance=("component", variances),
        random_walk_variance=("component", walk),
    )


def _iterates(problem: Problem, path: Any) -> np.ndarray:
    """The finite iterates (n, p) of a path, step by step within each member."""
    if isinstance(path, (xr.Dataset, xr.DataArray)) and not names.same(path, problem.names):
        raise InputError("the path has other parameters than the problem.")
    if isinstance(path, xr.Dataset):
        if "params" not in path:
            raise InputError(
                "this trajectory has no recorded params, so it has no principal components; descend with "
                "record={'params': True}."
            )
        lost = path["status"] == "diverged" if "status" in path else xr.DataArray(False)
        path = path["params"] if lost.all() else path["params"].where(~lost)
    if isinstance(path, xr.DataArray):
        last = [d for d in ("step", "param") if d in path.dims]
        others = [d for d in path.dims if d not in last]
        path = path.transpose(*others, *last).values
    rows = np.asarray(names.in_order("path", path, problem.names))
    if rows.ndim < 2 or rows.shape[-1] != problem.size:
        raise InputError(
            f"a path of points (n, {problem.size}) was expected; shape {rows.shape} given."
        )
    rows = rows.reshape(-1, problem.size)
    return rows[np.isfinite(rows).all(axis=1)]


def hessian_plane(
    problem: Problem,
    params: Params,
    eigenvectors: Sequence[int] = (0, -1),
    *,
    points: Points = 51,
    span: Span = (-1.0, 1.0),
    tolerance: float | None = None,
    seed: int = 0,
) -> Plane:
    """A plane through `params` along eigenvectors of the Hessian, which have length 1 and are never
    rescaled.

    Args:
        eigenvectors: which, by the order of their eigenvalues: 0 is the largest, 1 the second largest,
            −1 the smallest, −2 the second smallest.
        tolerance, seed: of the search, as for `Curvature.top`.

    Raises:
        InputError: eigenvectors that are not different whole numbers.
    """
    check_is_problem(problem)
    given = np.atleast_1d(np.asarray(eigenvectors))
    whole = given.dtype.kind in "iu" and given.ndim == 1
    chosen = [int(i) for i in given] if whole else []
    p = problem.size
    if (
        not whole
        or len({i % p for i in chosen}) < len(chosen)
        or not all(-p <= i < p for i in chosen)
        or not chosen
    ):
        raise InputError(
            f"eigenvectors must be different whole numbers between −{p} and {p - 1}; {eigenvectors!r} given."
        )
    operator = curvature.hessian(problem, params)
    pairs: dict[int, tuple[float, np.ndarray]] = {}
    from_top, from_bottom = [i for i in chosen if i >= 0], [i for i in chosen if i < 0]
    if from_top:
        values, vectors = operator.top(max(from_top) + 1, tolerance=tolerance, seed=seed)
        pairs |= {i: (values[i], vectors[i]) for i in from_top}
    if from_bottom:
        values, vectors = operator.bottom(-min(from_bottom), tolerance=tolerance, seed=seed)
        pairs |= {i: (values[-i - 1], vectors[-i - 1]) for i in from_bottom}
    return _plane(
        problem,
        {
            f"top{i + 1}" if i >= 0 else f"bottom{-i}": f"{_which(i)} (λ = {pairs[i][0]:.3g})"
            for i in chosen
        },
        np.asarray(operator.point, float),
        with_sign(np.stack([pairs[i][1] for i in chosen]).astype(float)),
        points,
        span,
        way="eigenvectors of the Hessian",
        eigenvalue=("direction", np.array([pairs[i][0] for i in chosen], float)),
    )


def _which(i: int) -> str:
    """An eigenvector's name in pictures."""
    end, number = ("largest", i + 1) if i >= 0 else ("smallest", -i)
    return f"eigenvector {number} from the {end}" if number > 1 else f"{end} eigenvalue's vector"


def interpolation(
    problem: Problem,
    a: Params,
    b: Params,
    c: Params = None,
    *,
    points: Points = 51,
    span: Span = (-0.25, 1.25),
) -> Plane:
    """Between two or three points, such as minima: the line with a at 0 and b at 1, or the plane in which
    a is the origin, b lies at (1, 0) and c at (0, 1).

    Raises:
        InputError: two points that are the same, three on one line.
    """
    if c is None:
        return line(problem, a, b, points, span=span)
    origin, right, up = (point_of(problem, point) for point in (a, b, c))
    directions = np.stack([right - origin, up - origin])
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    if not lengths.all() or np.linalg.matrix_rank(directions / lengths) < 2:
        raise InputError("interpolation needs three points that are not on one line.")
    axes = {"to_b": "from a (0) to b (1)", "to_c": "from a (0) to c (1)"}
    return _plane(problem, axes, origin, directions, points, span, way="interpolation")


def _check_memory(problem: Problem, count: int) -> None:
    blocks.check_memory(
        8 * 4 * count * problem.size, f"{count} directions of {problem.size} numbers", "take fewer"
    )


def _plane(
    problem: Problem,
    labels: dict[str, str],
    origin: np.ndarray,
    directions: Float[np.ndarray, "k p"],
    points: Points,
    span: Any,
    **about: Any,
) -> Plane:
    axes = tuple(labels)
    counts = counts_of(points, axes)
    spans = span if isinstance(span, dict) else dict.fromkeys(axes, span)
    for name in spans:
        if name not in axes:
            raise unknown("axis in span=", name, axes)
    grids = tuple(grid_of(name, spans.get(name, (-1.0, 1.0)), counts[name]) for name in axes)
    return Plane(axes, grids, origin, directions, problem.names, about, labels)
