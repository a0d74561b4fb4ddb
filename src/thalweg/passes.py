"""Sums over samples, in passes over as many samples at a time as memory holds the activations of.

On a CPU the host calls the passes one by one in a thread per core; on a GPU they are a loop in one program.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import backend, programs
from thalweg.independence import splits
from thalweg.problem import Problem
from thalweg.programs import model_of
from thalweg.tuning import tuned

Step = Callable[..., tuple[Any, Any]]

ACTIVATIONS = 256 * 2**20  # bytes of activations held at once, unless the caches ask for fewer
# Sizes from 16 to 64 MiB are equally fast; above that a pass does not fit the caches.
_PASS = 32 * 2**20  # bytes of activations of a pass on a CPU


def sample_bytes(problem: Problem) -> int:
    """Bytes that a sample takes in a pass: of its activations or, if these are few, of its data."""
    leaves = jax.tree_util.tree_leaves((problem.x, problem.y))
    own_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // max(problem.n_samples, 1)
    return max(model_of(problem).sample_bytes, 4 * own_bytes, 64)


def room(on_cpu: int) -> int:
    """Bytes of activations that are best held at once: `on_cpu` on a CPU, to fit its caches."""
    return on_cpu if backend.on_cpu() else ACTIVATIONS


def in_one_program() -> bool:
    """Whether all passes over the data are one program, not a call each: a GPU would wait for the host
    between calls, while on a CPU each core makes its own calls."""
    return not backend.on_cpu()


def samples_at_a_time(problem: Problem) -> int:
    """How many samples a pass takes: all of them if there is room, or if the model mixes them. Otherwise
    equal parts, the same number for each worker, such that as few samples as possible are computed twice."""
    n = problem.n_samples
    workers, fewest = programs.workers(problem), -(-n * sample_bytes(problem) // room(_PASS))
    if fewest <= 1:
        return n
    parts_per_worker = -(-fewest // workers)
    parts = min(
        (workers * k for k in range(parts_per_worker, 2 * parts_per_worker + 1)),
        key=lambda parts: -(-n // parts) * parts,
    )
    size = -(-n // parts)
    return size if splits(problem, size) else n


def over_samples(
    problem: Problem, size: int, step: Step, shape: tuple[int, ...], *operands: Any, **static: Any
) -> tuple[Any, Iterable[Any]]:
    """Pass over the data, `size` samples at a time.

    Args:
        step: takes a part of the problem, the operands, and the hashable `static`; returns what the part adds
            to the total, and a row per sample.
        shape: of the total, which is summed in double precision.

    Returns:
        The total, and the rows of each part, for `of_each_sample`.
    """
    n = problem.n_samples
    static_arguments = {"step": step, "size": size, "static": tuple(static.items())}
    if in_one_program():
        at_once = _at_once_in_full if backend.in_full_precision() else _at_once
        return at_once(problem, operands, shape=shape, **static_arguments)
    ended = threading.Event()

    def work(begins: range) -> tuple[Any, list[Any]]:
        total, parts = jnp.zeros(shape), []
        for begin in begins:
            if ended.is_set():
                break
            # The last part starts early, to be of the same shape, and masks samples that were counted before.
            where = np.int64(min(begin, n - size)), np.int64(begin)
            total, rows = _one_pass(problem, where, total, operands, **static_arguments)
            parts.append(rows)
        return total, parts

    def alone(begins: range) -> Any:
        return jax.block_until_ready(work(begins))

    begins = range(0, max(n, 1), max(size, 1))
    passes_per_worker = -(-len(begins) // programs.workers(problem))
    shares = [begins[k : k + passes_per_worker] for k in range(0, len(begins), passes_per_worker)]
    if len(shares) == 1:
        return work(begins)
    with ThreadPoolExecutor(len(shares)) as pool:
        try:
            totals, parts = zip(*pool.map(backend.inheriting(alone), shares), strict=True)
        except BaseException:  # Ctrl-C too: the other threads' results would not be used
            ended.set()
            raise
    return sum(totals[1:], totals[0]), itertools.chain.from_iterable(parts)


def _pass(
    problem: Problem, where: Any, total: Any, operands: Any,
    *, step: Step, size: int, static: tuple[tuple[str, Any], ...],
) -> tuple[Any, Any]:  # fmt: skip
    more, rows = step(part(problem, where, size), *operands, **dict(static))
    return total + more.astype(total.dtype), rows


_one_pass = jax.jit(
    tuned(_pass), static_argnames=("step", "size", "static"), donate_argnames="total"
)


def _all_passes(
    problem: Problem, operands: Any, *, shape: tuple[int, ...], size: int, **how: Any
) -> tuple[Any, Any]:
    n = problem.n_samples

    def one(total: Any, begin: Any) -> tuple[Any, Any]:
        where = jnp.minimum(begin, n - size), begin
        return _pass(problem, where, total, operands, size=size, **how)

    return jax.lax.scan(one, jnp.zeros(shape), jnp.arange(0, max(n, 1), max(size, 1)))


_compiled = partial(jax.jit, _all_passes, static_argnames=("shape", "step", "size", "static"))
_at_once = _compiled()
# XLA lays convolutions out for tensor cores, which full precision does not use: cuDNN would then transpose
# every array and transpose it back, which takes a quarter of the time and half of the memory.
_at_once_in_full = _compiled(compiler_options={"xla_gpu_force_conv_nchw": True})


def part(problem: Problem, where: Any, size: int) -> Problem:
    """The problem on the `size` samples of one pass. For use inside a trace.

    `where` holds the first sample of the slice, and the first that was not counted by passes before."""
    n = problem.n_samples
    if size >= n:
        return problem
    first, begin = where
    x, y, mask = jax.tree_util.tree_map(
        lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, size),
        (problem.x, problem.y, problem.mask),
    )
    if n % size:
        fresh = first + jnp.arange(size) >= begin
        mask = fresh if mask is None else fresh & mask
    return problem.replace(x=x, y=y, mask=mask)


def of_each_sample(parts: Iterable[Any], count: int) -> np.ndarray:
    """Per-sample results of successive parts as one array (count, …), without the rows that the last part
    computed again because it started early to be of full size."""
    rows = [np.asarray(part) for part in parts]
    return np.concatenate([*rows[:-1], rows[-1][sum(map(len, rows)) - count :]])


def gradients_at_a_time(problem: Problem, room: int) -> int:
    """How many samples' gradients of p numbers, with the activations, fit into `room` bytes."""
    each = problem.size * problem.layout.dtype.itemsize + sample_bytes(problem)
    return max(1, min(problem.n_samples, room // each))
