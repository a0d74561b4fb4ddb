"""Who the members of a batch of descents are: starts, seeds and sweeps.

Members are all combinations of a start and a value of each swept hyperparameter. On the device they
are one axis; in the result they are `run`, then a dimension for each swept hyperparameter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

from thalweg import blocks, names, results
from thalweg.errors import InputError, whole_number
from thalweg.inputs import is_real
from thalweg.optimizers.base import Optimizer
from thalweg.params import Params
from thalweg.problem import Problem

# Names that a swept hyperparameter, which becomes a dimension, cannot have
_TAKEN = (*results.RESERVED_DIMS, *results.OF_A_DESCENT, *results.BUILT_IN)


@dataclass(frozen=True)
class Members:
    """The members, and where each starts.

    `sizes` are their dimensions in the result, in C order along the device's one axis; with no dimensions
    there is one member and no axis. `hyper` holds a number, or an array with one per member, for
    every hyperparameter but the scheduled ones; `starts` is a pytree with that same leading axis; `lane` is
    each member's index among the seeds.
    """

    sizes: dict[str, int]
    coords: dict[str, np.ndarray] = field(default_factory=dict)
    hyper: dict[str, np.ndarray] = field(default_factory=dict)
    schedules: dict[str, Any] = field(default_factory=dict)
    starts: Params = None
    seeds: tuple[int, ...] = ()
    lane: np.ndarray = field(repr=False, default_factory=lambda: np.zeros(0, int))

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.sizes.values())

    @property
    def batched(self) -> bool:
        return bool(self.dims)

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def swept(self) -> tuple[str, ...]:
        return tuple(name for name, value in self.hyper.items() if value.ndim)


def members(
    problem: Problem,
    optimizer: Optimizer | None,
    *,
    starts: Any = None,
    runs: int | None = None,
    seed: Any = 0,
    resume: xr.Dataset | None = None,
) -> Members:
    """The members that `starts` or `runs`, the seeds and the optimizer's sweeps, if any, span.

    Raises:
        InputError: where they contradict each other or the problem.
    """
    if sum(option is not None for option in (starts, runs, resume)) > 1:
        raise InputError("give one of starts=, runs= and resume=.")
    seeds, seed_swept = _seeds(seed)
    dims: dict[str, np.ndarray] = {}
    first, n_runs = _starts(problem, starts, runs, seeds, resume)
    if n_runs is not None:
        dims["run"] = np.arange(n_runs)
    numbers: dict[str, np.ndarray] = {}
    schedules: dict[str, Any] = {}
    title = "" if optimizer is None else optimizer.name
    hyperparameters = {} if optimizer is None else optimizer.hyperparameters()
    for name, value in hyperparameters.items():
        if callable(value):
            schedules[name] = value
            continue
        number = np.asarray(value, np.float64)
        if number.ndim > 1 or number.size == 0:
            raise InputError(
                f"{title}: {name} must be a number or a list of numbers; an array of shape "
                f"{number.shape} given."
            )
        if len(np.unique(number)) < number.size:
            raise InputError(f"{title}: {name} is swept over the same value twice: {value!r}.")
        numbers[name] = number
        if number.ndim and name in _TAKEN:
            raise InputError(
                f"{title}: {name} cannot be swept, since a trajectory has something else of that name; call "
                f"the field {name}_, say."
            )
        if number.ndim:
            dims[name] = number
    if seed_swept:
        dims["seed"] = np.asarray(seeds)
    sizes = {name: len(values) for name, values in dims.items()}
    shape = tuple(sizes.values())
    if resume is not None:
        _check_resumed(resume, sizes, dims)
    place = dict(zip(dims, np.indices(shape).reshape(len(shape), math.prod(shape)), strict=True))
    count = math.prod(shape)
    lane = place["seed"] if seed_swept else np.zeros(count, np.int64)
    if resume is not None:
        member_starts = problem.unflatten(of_members(resume["final"], sizes, "param"))
    else:
        run = place.get("run", np.zeros(count, np.int64))
        member_starts = jax.tree_util.tree_map(
            lambda leaf: leaf[run, lane if leaf.shape[1] > 1 else 0], first
        )
    if not dims:
        member_starts = jax.tree_util.tree_map(lambda leaf: leaf[0], member_starts)
    return Members(
        sizes=sizes,
        coords=dims,
        hyper={name: v[place[name]] if v.ndim else v for name, v in numbers.items()},
        schedules=schedules,
        starts=member_starts,
        seeds=seeds,
        lane=lane.astype(np.int32),
    )


def check_same_parameters(what: str, path: xr.Dataset, problem: Problem) -> None:
    """An error unless a trajectory is over the problem's parameters."""
    path_names = names.found(path)
    if path_names != problem.names:
        raise InputError(
            f"{what} is a trajectory over the parameters {(path_names or ())[:8]}; the problem's are "
            f"{problem.names[:8]}."
        )


def of_members(
    variable: xr.DataArray, sizes: Mapping[str, int], along: str | None = None
) -> np.ndarray:
    """A trajectory's variable by member: (members,), or (members, n) with a dimension `along`.

    Of the members' dimensions, which `sizes` holds in their order, it may lack some: along these, a member's
    values are those of each.
    """
    rest = {} if along is None else {along: variable.sizes[along]}
    spread = variable.variable.set_dims({**sizes, **rest}).values
    return spread.reshape(math.prod(sizes.values()), *rest.values())


def _seeds(seed: Any) -> tuple[tuple[int, ...], bool]:
    is_key = isinstance(seed, jax.Array) and (
        jnp.issubdtype(seed.dtype, jax.dtypes.prng_key) or (seed.dtype == np.uint32 and seed.ndim)
    )
    if is_key:
        raise InputError("seed= is a whole number, or a list of them, not a JAX key.")
    try:
        numbers = np.atleast_1d(np.asarray(seed))
    except (TypeError, ValueError):
        numbers = np.empty((0, 0))
    swept = numbers.ndim == 1 and np.ndim(seed) == 1
    if (
        numbers.ndim > 1
        or numbers.dtype.kind not in "iu"
        or numbers.size == 0
        or numbers.min() < 0
        or numbers.max() >= 2**32
    ):
        raise InputError(
            f"seed must be a whole number of at least 0 and below 2³², or a list of them; {seed!r} "
            f"given."
        )
    if len(set(numbers.tolist())) < numbers.size:
        raise InputError(f"seed= holds the same seed twice: {seed!r}.")
    return tuple(int(s) for s in numbers), swept


def _starts(
    problem: Problem, starts: Any, runs: int | None, seeds: tuple[int, ...], resume: Any
) -> tuple[Params, int | None]:
    """Starts as host arrays with leading axes (runs, seeds or 1), and the number of runs if named."""
    if resume is not None:
        return None, resume.sizes.get("run")
    if starts is not None:
        stacked = _given_starts(problem, starts)
        n_runs = len(jax.tree_util.tree_leaves(stacked)[0])
        return jax.tree_util.tree_map(lambda leaf: leaf[:, None], stacked), n_runs
    if runs is not None:
        runs = whole_number("runs", runs, 1)
        if problem.init is None:
            raise InputError(
                "runs= draws random starts, and this problem has no init= (key -> params); give one, "
                "or give starts=."
            )
    elif problem.params is not None:
        params = jax.device_get(problem.params)  # one transfer for all leaves
        return jax.tree_util.tree_map(lambda leaf: leaf[None, None], params), None
    count = len(seeds) * (runs or 1)
    blocks.check_memory(
        2 * count * problem.layout.size * problem.layout.dtype.itemsize,  # on the device and here
        f"{count} random starts of {problem.layout.size} parameters",
        "draw fewer at once, or take a smaller model",
    )
    drawn = _draw(problem.init, np.asarray(seeds, np.uint32), np.arange(runs or 1, dtype=np.uint32))
    return jax.device_get(drawn), runs


# A network's init contains many copies of the random generator's long unrolled code. It runs once; full
# optimisation would take four times as long to compile, for the same bits.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": 1})
def _draw(init: Any, seeds: np.ndarray, runs: np.ndarray) -> Params:
    """init(fold_in(key(seed), run)) for all runs and seeds, in one compiled call."""

    def one(run: Any, seed: Any) -> Params:
        return init(jax.random.fold_in(jax.random.key(seed), run))

    return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(runs, seeds)


def _given_starts(problem: Problem, starts: Any) -> Params:
    layout = problem.layout
    if isinstance(starts, xr.Dataset):
        if "final" not in starts:
            raise InputError("starts= was given a dataset that is not a trajectory.")
        check_same_parameters("starts=", starts, problem)
        starts = _last_iterates(starts)
    if isinstance(starts, xr.DataArray):
        if "param" not in starts.dims or starts.sizes["param"] != layout.size:
            raise InputError(
                f"starts= needs a dimension 'param' of {layout.size}; {dict(starts.sizes)} given."
            )
        if not names.same(starts, problem.names):
            raise InputError("starts= has other parameters than the problem.")
        sizes = {str(d): n for d, n in starts.sizes.items() if d != "param"}
        return layout.unflatten(of_members(starts, sizes, "param"))
    starts = names.in_order("starts=", starts, problem.names)
    try:
        # only down to the problem's leaves: a list in place of an array is one array
        leaves = [np.asarray(leaf) for leaf in layout.treedef.flatten_up_to(starts)]
    except (TypeError, ValueError):
        leaves = []
    if leaves and not jax.tree_util.treedef_is_leaf(layout.treedef):
        stacked = layout.treedef.unflatten(leaves)
        sizes = {np.shape(leaf)[:1] for leaf in leaves}
        if len(sizes) != 1 or sizes == {()}:
            raise InputError(
                "starts= as a pytree needs one leading axis over the runs in every leaf; leading "
                f"sizes {sorted(sizes)} given."
            )
        vectors = layout.flatten(stacked, lead=1)
    else:
        vectors = _rows(problem, starts)
        if vectors.ndim != 2 or vectors.shape[1] != layout.size or not len(vectors):
            raise InputError(
                f"starts= must have shape (runs, {layout.size}), one row per start in the order "
                f"{problem.names[:8]}; shape {vectors.shape} given."
            )
    if not is_real(vectors.dtype):
        raise InputError(f"starts= must hold real numbers; dtype {vectors.dtype} given.")
    if not np.isfinite(vectors).all():
        raise InputError("starts= holds values that are not finite.")
    return layout.unflatten(vectors)


def _rows(problem: Problem, starts: Any) -> np.ndarray:
    """Starts (runs, p) from an array, rows of numbers, or a list of points."""
    try:
        vectors = np.asarray(starts)
    except (KeyError, TypeError, ValueError):  # rows of several lengths, or no numbers at all
        vectors = np.empty(0, object)
    if vectors.dtype != object:
        return vectors
    if not isinstance(starts, list | tuple):
        raise InputError(
            f"starts= must be a list of points, as in [first, second]; {type(starts).__name__} given."
        )
    return np.stack([np.asarray(problem.flatten(problem.at(start).params)) for start in starts])


def reaches_the_end(path: xr.Dataset) -> bool:
    """Whether a trajectory, or a part of one, holds its last step, to which `final` and the like belong."""
    steps = path["step"].values.ravel() if "step" in path.coords else np.empty(0)
    return bool(steps.size) and steps[-1] == path.attrs.get("last_step")


def _last_iterates(path: xr.Dataset) -> xr.DataArray:
    """The last iterates that a trajectory, or a part of one, holds."""
    if reaches_the_end(path):
        return path["final"]
    if "params" not in path or not path["params"].size:
        raise InputError(
            "starts= was given a part of a trajectory, whose iterates are not recorded; give all of it."
        )
    return path["params"].isel(step=-1) if "step" in path["params"].dims else path["params"]


def _check_resumed(resume: xr.Dataset, sizes: dict[str, int], dims: dict[str, np.ndarray]) -> None:
    """An error unless a trajectory's members have all their dimensions, and their values, in `dims`."""
    before = {str(d): n for d, n in resume["final"].sizes.items() if d != "param"}
    if any(sizes.get(name) != size for name, size in before.items()):
        raise InputError(
            f"resume= goes on with the members of the trajectory, {before}; the optimizer and seeds given "
            f"here span {sizes or 'one run'}."
        )
    for name in before:
        resumed, values = resume[name].values, dims[name]
        same_but_order = sorted(resumed) == sorted(values) and not np.array_equal(resumed, values)
        if same_but_order or (name == "seed" and not np.array_equal(resumed, values)):
            raise InputError(
                f"resume= goes on with {name} {resumed.tolist()}, in this order; {values.tolist()} given."
            )
