"""How a landscape's points and samples are cut into chunks, measured on two cores.

A CPU should keep a chunk in its caches. A GPU takes microseconds to begin the next one, whatever its size:
its chunks are as large as the activations that are held at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax

from thalweg import backend, passes
from thalweg.problem import Problem
from thalweg.programs import model_of, splits

# On a CPU an entry-by-entry model is one fused loop over the points, in which some
# samples at a time are written out: their sum then needs no loop of its own, and vectorises.
_ENTRYWISE_POINTS = 32768
_ENTRYWISE_SAMPLES = 20
# A chunk of an odd number of points takes four times as long: cores then have unequal parts of it, in
# loops that do not vectorise. So many points are whole vectors on each of sixteen cores.
_WHOLE_VECTORS = 256
# Other models hand arrays from layer to layer, which should stay in a core's second cache.
_POINTS = 2048
# Of models that take hardly any memory: progress is shown, and Ctrl-C seen, between chunks.
_GPU_POINTS = 2**18
_SAMPLES = 4096
_CACHE = 2**20  # bytes a chunk of points may keep between a model's layers, on a CPU
_FEWEST = 32  # samples, below which matrix products take longer
_LARGE = 16 * 2**20  # bytes of a single point's, from which on points go one by one
_ROWS = 64 * 2**20  # bytes of a chunk's pointwise risks


class Tiling(NamedTuple):
    """How points and samples are cut into chunks."""

    points: int
    samples: int
    entrywise: bool
    one_by_one: bool = False


def tiling_of(problem: Problem, total: int, with_samples: bool) -> Tiling:
    """Chunks of points that are all of one size, and chunks of samples that divide the data evenly
    where they can, which spares a mask."""
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
    each = model.sample_bytes or (0 if on_cpu else passes.sample_bytes(problem))
    each = max(each, model.dtype.itemsize if with_samples else 0)
    one_by_one = Tiling(1, n, False, True)
    if model.convolves and n * each > room:
        return one_by_one
    # The pointwise risks of a chunk of points are kept for all samples at once.
    samples = n if with_samples else _divisor(n, _samples_together(problem, each))
    samples = samples if splits(problem, samples) else n
    if samples * each > passes.room(_LARGE):
        return one_by_one
    most = _POINTS if on_cpu else _GPU_POINTS
    # where the points are, in double precision
    most = min(most, passes.ACTIVATIONS // (8 * problem.size), room // max(samples * each, 1))
    # XLA's own threads would share the products of a single point, and wait for the workers' cores.
    return Tiling(_even(total, min(max(2, most), total)), samples, False)


def _samples_together(problem: Problem, each: int) -> int:
    """How many samples, of so many bytes each, a chunk of points takes at a time."""
    if not each:
        return _SAMPLES
    n = max(problem.n_samples, 1)
    inputs = sum(leaf.nbytes for leaf in jax.tree_util.tree_leaves(problem.x)) // n
    own = each - inputs
    # Where the inputs are wider than all that follows, copying a part of them for every chunk takes long.
    if own <= inputs:
        return max(1, passes.room(_LARGE) // each)
    # Two points have room then; and a layer's weights, which each part reads again, are no more than what
    # goes through it.
    weights = problem.size * problem.layout.dtype.itemsize
    return max(_FEWEST, passes.room(_CACHE) // 2 // own, weights // own)


def _even(total: int, most: int) -> int:
    """The size of as few equal chunks of at most `most` as cover the total."""
    return -(-total // -(-total // most))


def _divisor(n: int, most: int) -> int:
    """The largest number up to `most` that divides n, or where all that do are less than half of it, the size
    of as few equal parts as cover n."""
    most = min(most, n)
    parts = -(-n // most)
    least = most // 2 + 1
    divisors = (size for size in range(most, least - 1, -1) if n % size == 0)
    if parts < most:  # and there are fewer numbers of parts to try than sizes
        divisors = (n // k for k in range(parts, n // least + 1) if n % k == 0)
    return next(divisors, -(-n // parts))
