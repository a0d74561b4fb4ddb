"""Passes over the data: a sum over samples, some at a time, as many as memory holds the activations of.

They are called from the host, on each core one after the other: convolutions inside a compiled loop are many
times slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import backend, programs
from thalweg.problem import Problem
from thalweg.programs import model_of, splits

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
    return on_cpu if backend.device().platform == "cpu" else ACTIVATIONS


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
    problem: Problem, size: int, one_pass: Callable[[Any, Any], Any], start: Callable[[], Any]
) -> list[Any]:
    """Fold one_pass(where, total) over the data, `size` samples at a time, `where` being what `part` takes.

    Each worker folds one run of parts that follow each other, from a total of its own, start(); their totals
    are returned in the order of the data.
    """
    n = problem.n_samples
    ended = threading.Event()

    def work(begins: range) -> Any:
        total = start()
        for begin in begins:
            if ended.is_set():
                break
            # The last part starts early and leaves out what was counted before: one program.
            total = one_pass((np.int64(min(begin, n - size)), np.int64(begin)), total)
        return total

    def alone(begins: range) -> Any:
        return jax.block_until_ready(work(begins))

    begins = range(0, max(n, 1), max(size, 1))
    each = -(-len(begins) // programs.workers(problem))
    shares = [begins[k : k + each] for k in range(0, len(begins), each)]
    if len(shares) == 1:
        return [work(begins)]
    with ThreadPoolExecutor(len(shares)) as pool:
        try:
            return list(pool.map(backend.inheriting(alone), shares))
        except BaseException:  # Ctrl-C too: what the others are at would be of no use
            ended.set()
            raise


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
