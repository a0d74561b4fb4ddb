"""Passes over the data: a sum over samples, some at a time, as many as memory holds the activations of.

On a CPU they are called from the host, on each core one after the other; a GPU has them in one program.
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
from thalweg.problem import Problem
from thalweg.programs import model_of, splits
from thalweg.tuning import tuned

Step = Callable[..., tuple[Any, Any]]

ACTIVATIONS = 256 * 2**20  # bytes of activations that are held at once where nothing asks for fewer
# From 16 to 64 MiB it is all the same, above that a pass leaves the caches.
_PASS = 32 * 2**20  # bytes of activations of a pass on a CPU


def sample_bytes(problem: Problem) -> int:
    """Bytes that a sample takes in a pass: of its activations, or of the few numbers that it is itself."""
    leaves = jax.tree_util.tree_leaves((problem.x, problem.y))
    own = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves) // max(problem.n_samples, 1)
    return max(model_of(problem).sample_bytes, 4 * own, 64)


def room(on_cpu: int) -> int:
    """Bytes of activations that are best held at once: so many on a CPU, for its caches."""
    return on_cpu if backend.on_cpu() else ACTIVATIONS


def in_one_program() -> bool:
    """Whether all passes over the data are one program, and not each its own: a GPU would wait for the host
    between them, and on a CPU each core has its own."""
    return not backend.on_cpu()


def samples_at_a_time(problem: Problem) -> int:
    """How many samples a pass takes: all of them if there is room, or if the model mixes them; else equal
    parts, as many for each worker, of such a size that hardly any sample is computed twice."""
    n = problem.n_samples
    workers, fewest = programs.workers(problem), -(-n * sample_bytes(problem) // room(_PASS))
    if fewest <= 1:
        return n
    each = -(-fewest // workers)
    parts = min(
        (workers * k for k in range(each, 2 * each + 1)), key=lambda parts: -(-n // parts) * parts
    )
    size = -(-n // parts)
    return size if splits(problem, size) else n


def over_samples(
    problem: Problem, size: int, step: Step, shape: tuple[int, ...], *operands: Any, **static: Any
) -> tuple[Any, Iterable[Any]]:
    """Pass over the data, `size` samples at a time.

    Args:
        step: of a part of the problem, the operands, and the hashable `static`: what the part adds to the
            total, and rows of its samples.
        shape: of the total, which is summed in double precision.

    Returns:
        The total, and the rows of the parts, for `of_each_sample`.
    """
    n = problem.n_samples
    how = {"step": step, "size": size, "static": tuple(static.items())}
    if in_one_program():
        at_once = _at_once_in_full if backend.in_full_precision() else _at_once
        return at_once(problem, operands, shape=shape, **how)
    ended = threading.Event()

    def work(begins: range) -> tuple[Any, list[Any]]:
        total, parts = jnp.zeros(shape), []
        for begin in begins:
            if ended.is_set():
                break
            # The last part starts early and leaves out what was counted before: one program.
            where = np.int64(min(begin, n - size)), np.int64(begin)
            total, rows = _one_pass(problem, where, total, operands, **how)
            parts.append(rows)
        return total, parts

    def alone(begins: range) -> Any:
        return jax.block_until_ready(work(begins))

    begins = range(0, max(n, 1), max(size, 1))
    each = -(-len(begins) // programs.workers(problem))
    shares = [begins[k : k + each] for k in range(0, len(begins), each)]
    if len(shares) == 1:
        return work(begins)
    with ThreadPoolExecutor(len(shares)) as pool:
        try:
            totals, parts = zip(*pool.map(backend.inheriting(alone), shares), strict=True)
        except BaseException:  # Ctrl-C too: what the others are at would be of no use
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
# XLA lays convolutions out as tensor cores take them, which have no part in full precision: there cuDNN turns
# every array about and back, for a quarter of the time and half of the memory.
_at_once_in_full = _compiled(compiler_options={"xla_gpu_force_conv_nchw": True})


def part(problem: Problem, where: Any, size: int) -> Problem:
    """The problem on the `size` samples that a pass takes; inside a trace."""
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
    """Per-sample results of successive parts as one array (count, …), without the rows that the last part,
    which started early to be of full size, computed again."""
    rows = [np.asarray(part) for part in parts]
    return np.concatenate([*rows[:-1], rows[-1][sum(map(len, rows)) - count :]])


def gradients_at_a_time(problem: Problem, room: int) -> int:
    """How many samples' gradients, p numbers each, fit into `room` bytes beside the activations."""
    each = problem.size * problem.layout.dtype.itemsize + sample_bytes(problem)
    return max(1, min(problem.n_samples, room // each))
