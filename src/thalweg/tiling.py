"""How a landscape's points and samples are cut into chunks, measured on two cores.

A CPU should keep a chunk in its caches. A GPU takes microseconds to launch a chunk, whatever its size: there,
chunks are as large as the room for activations allows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from thalweg import backend, passes
from thalweg.independence import splits
from thalweg.problem import Problem
from thalweg.programs import model_of

# On a CPU an elementwise model is one fused loop over the points, unrolled over some samples at a time: their
# sum then needs no inner loop, and vectorises.
_ENTRYWISE_POINTS = 32768
_ENTRYWISE_SAMPLES = 20
# A chunk of an odd number of points takes four times as long: cores then get unequal parts of it, in loops
# that do not vectorise. A multiple of this many points is whole vectors on each of up to sixteen cores.
_WHOLE_VECTORS = 256
# Other models pass arrays from layer to layer, which should stay in a core's L2 cache.
_POINTS = 2048
# For models that take hardly any memory: progress is shown, and Ctrl-C noticed, only between chunks.
_GPU_POINTS = 2**18
_SAMPLES = 4096
_CACHE = 2**20  # bytes a chunk of points may keep between a model's layers, on a CPU
_FEWEST = 32  # samples, below which matrix products take longer
_LARGE = 16 * 2**20  # bytes of a single point's activations, above which points go one by one
_ROWS = 64 * 2**20  # bytes of a chunk's pointwise risks


class Tiling(NamedTuple):
    """How points and samples are cut into chunks."""

    points: int
    samples: int
    entrywise: bool
    one_by_one: bool = False


def tiling_of(problem: Problem, total: int, with_samples: bool) -> Tiling:
    """Chunks of points, all of one size, and chunks of samples that divide the data evenly where possible,
    which spares a mask."""
    model = model_of(problem)
    n = max(problem.n_samples, 1)
    on_cpu = backend.on_cpu()
    if on_cpu and model.entrywise and (not problem.n_samples or splits(problem, 1)):
        points = min(_ENTRYWISE_POINTS, total)
        if with_samples:
            points = min(points, max(1, _ROWS // (n * model.dtype.itemsize)))
        points = _even(total, points)
        if points > _WHOLE_VECTORS:
            points = -(-points // _WHOLE_VECTORS) * _WHOLE_VECTORS
        return Tiling(points, _divisor(n, _ENTRYWISE_SAMPLES), True)
    room = passes.room(_CACHE)
    sample_bytes = model.sample_bytes or (0 if on_cpu else passes.sample_bytes(problem))
    sample_bytes = max(sample_bytes, model.dtype.itemsize if with_samples else 0)
    one_by_one = Tiling(1, n, False, True)
    if model.convolves and n * sample_bytes > room:
        return one_by_one
    # Where pointwise risks are asked for, a chunk of points evaluates all samples at once.
    samples = n if with_samples else _divisor(n, _samples_together(problem, sample_bytes))
    samples = samples if splits(problem, samples) else n
    if samples * sample_bytes > passes.room(_LARGE):
        return one_by_one
    most = _POINTS if on_cpu else _GPU_POINTS
    # the points' own coordinates take memory too, in double precision
    most = min(
        most, passes.ACTIVATIONS // (8 * problem.size), room // max(samples * sample_bytes, 1)
    )
    # At least two points: XLA would split the matrix products of a single point over its own threads, which
    # compete with the workers for cores.
    return Tiling(_even(total, min(max(2, most), total)), samples, False)


def _samples_together(problem: Problem, each: int) -> int:
    """How many samples, of `each` bytes, a chunk of points takes at a time."""
    if not each:
        return _SAMPLES
    n = max(problem.n_samples, 1)
    inputs = sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(problem.x)) // n
    activations = each - inputs
    # Where the inputs are larger than all activations, copying a part of them for every chunk takes long.
    if activations <= inputs:
        return max(1, passes.room(_LARGE) // each)
    # So that two points fit the cache, and that the weights, which every chunk of samples reads again, are no
    # larger than its activations.
    weights = problem.size * problem.layout.dtype.itemsize
    return max(_FEWEST, passes.room(_CACHE) // 2 // activations, weights // activations)


def _even(total: int, most: int) -> int:
    """The chunk size when `total` is split into as few equal chunks of at most `most` as possible."""
    return -(-total // -(-total // most))


def _divisor(n: int, most: int) -> int:
    """The largest divisor of n up to `most`; where that is at most half of `most`, the size of as few equal
    parts as cover n."""
    most = min(most, n)
    parts = -(-n // most)
    least = most // 2 + 1
    divisors = (size for size in range(most, least - 1, -1) if n % size == 0)
    if parts < most:  # then there are fewer numbers of parts to try than sizes
        divisors = (n // k for k in range(parts, n // least + 1) if n % k == 0)
    return next(divisors, -(-n // parts))
