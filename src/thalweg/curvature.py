"""Curvature as linear operators: Hessian, Gauss–Newton, Fisher, and the gradient's covariance.

None of these p × p matrices is formed unless it is small or asked for. Only products with vectors are
computed, and from those the ends of the spectrum, its density and the trace.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.core import Tracer

from thalweg import backend, blocks, lanczos, losses, passes, products, results, spectra
from thalweg.errors import InputError, NotConverged, one_of, real, whole_number
from thalweg.params import Params
from thalweg.problem import Problem, check_is_problem, described, in_precision, vector_of
from thalweg.spectra import Estimate

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_SMALL = 256  # parameters up to which the matrix itself is formed and decomposed
_ROWS = 64  # rows of the identity multiplied at a time, to form the matrix


@dataclass(frozen=True, eq=False)
class Curvature:
    """A symmetric p × p matrix A of a problem at a point, in the order of `problem.names`.

    `operator @ v` is its product with a vector (p,) or with the columns of a matrix (p, k). It has the
    `shape`, `dtype` and `matvec` that scipy.sparse.linalg.aslinearoperator asks for.
    """

    problem: Problem
    kind: str
    point: Any  # (p,)
    center: Any = None  # (p,), the mean gradient, for a covariance
    scale: Any = None  # (p,), s in diag(s) A diag(s)

    @property
    def shape(self) -> tuple[int, int]:
        """(p, p)."""
        return self.problem.size, self.problem.size

    @property
    def dtype(self) -> np.dtype:
        """Of the products: that of the parameters."""
        return np.dtype(self.point.dtype)

    @cached_property
    def _samples(self) -> int:
        return passes.samples_at_a_time(self.problem)

    def matvec(self, vector: Any) -> Float[Array, " p"]:
        """A v, for a vector (p,) or (p, 1), or a pytree like the parameters, such as a gradient.

        Raises:
            InputError: something else.
        """
        p = self.problem.size
        return self._apply(products.product, self._vector(vector, ((p,), (p, 1))).reshape(-1))

    def _vector(self, given: Any, shapes: tuple[tuple[int, ...], ...]) -> Any:
        """An array of one of these shapes; a pytree like the parameters as a vector."""
        if self.problem.layout.matches(given):
            given = self.problem.flatten(given)
        expected = f"a vector of {self.problem.size} numbers was expected, or a pytree like the parameters; "
        try:
            vector = jnp.asarray(given)
        except (TypeError, ValueError):
            raise InputError(f"{expected}{given!r:.80} given.") from None
        if vector.shape not in shapes:
            raise InputError(f"{expected}shape {vector.shape} given.")
        return vector

    def __matmul__(self, other: Any) -> Any:
        if np.ndim(other) != 2:
            return self.matvec(other)
        columns = np.asarray(other)
        if len(columns) != self.problem.size:
            raise InputError(
                f"a matrix of {self.problem.size} rows was expected; shape {columns.shape} given."
            )
        if not columns.shape[1]:
            return jnp.zeros(columns.shape, self.dtype)
        return jnp.asarray(self._apply(products.images, columns.T)).T

    def _apply(self, function: Callable[..., Any], vectors: Any) -> Any:
        """A times `vectors` (…, p); `function` multiplies by the matrix without `scale`."""
        vectors = vectors.astype(self.dtype)
        vectors = vectors if self.scale is None else self.scale * vectors
        out = function(self.kind, self.problem, self._samples, self.point, vectors, self.center)
        return out if self.scale is None else self.scale * out

    def preconditioned(self, diagonal: Any) -> Curvature:
        """P^(−1/2) A P^(−1/2) for P = diag(`diagonal`), a vector (p,) or a pytree like the parameters.

        Its eigenvalues are those of P⁻¹A, which decide when a step P⁻¹∇L is stable.

        Raises:
            InputError: entries that are not above 0, or something else.
        """
        vector = self._vector(diagonal, ((self.problem.size,),)).astype(self.dtype)
        if not bool((vector > 0).all()):
            raise InputError("a preconditioner's diagonal must be above 0 everywhere.")
        scale = vector**-0.5
        return replace(self, scale=scale if self.scale is None else self.scale * scale)

    # The matrix itself ------------------------------------------------------------------------

    def dense(self) -> Float[np.ndarray, "p p"]:
        """The matrix (p, p).

        Raises:
            InputError: where memory does not hold it.
        """
        p = self.problem.size
        blocks.check_memory(
            3 * p * p * self.dtype.itemsize,
            f"the {p} × {p} matrix",
            "use products (operator @ v), .top(k), .trace() and .density(), which do not form it",
        )
        rows = np.empty((p, p), self.dtype)
        count = min(_ROWS, p)
        for start in range(0, p, count):
            first = min(start, p - count)  # the last block overlaps: one shape, one program
            rows[first : first + count] = np.asarray(
                self._apply(products.images, np.eye(count, p, first))
            )
        return (rows + rows.T) / 2

    @cached_property
    def _decomposed(self) -> tuple[np.ndarray, np.ndarray]:
        """All eigenvalues, ascending, and eigenvectors, one per row; for small matrices."""
        matrix = self.dense()
        if not np.isfinite(matrix).all():
            p = self.problem.size
            return np.full(p, np.nan), np.full((p, p), np.nan)
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors.T

    # The ends of the spectrum -----------------------------------------------------------------

    def top(
        self,
        k: int = 1,
        *,
        tolerance: float | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k p"]]:
        """The k largest eigenvalues, the largest first, and their eigenvectors, one per row, of length 1.

        By Lanczos' method (`thalweg.lanczos`) with full reorthogonalisation, or from the matrix itself
        where p is at most 256.

        Args:
            tolerance: of ‖A v − λ v‖ relative to max|λ|; by default the root of the dtype's precision.
            seed: of the starting vector.
            progress: a progress bar: True, False, or None for one on a terminal after a second.

        Warns:
            NotConverged: some residuals are above the tolerance; the values are bounds then, of the
                largest eigenvalues from below and of the smallest from above.

        Raises:
            InputError: a k that is not between 1 and p, a tolerance that is not above 0, a point where the
                matrix is not finite.
        """
        return self._extreme(k, 1, tolerance, seed, progress)

    def bottom(
        self,
        k: int = 1,
        *,
        tolerance: float | None = None,
        seed: int = 0,
        progress: bool | None = None,
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, "k p"]]:
        """The k smallest eigenvalues, the smallest first, and their eigenvectors; otherwise as `top`."""
        return self._extreme(k, -1, tolerance, seed, progress)

    def _extreme(
        self, k: int, sign: int, tolerance: float | None, seed: int, progress: bool | None
    ) -> tuple[np.ndarray, np.ndarray]:
        p = self.problem.size
        k, seed = whole_number("k", k, 1), whole_number("seed", seed, 0)
        if k > p:
            raise InputError(f"k must be at most the number of parameters, {p}; {k} given.")
        if tolerance is not None and not real(tolerance) > 0:
            raise InputError(f"tolerance must be above 0; {tolerance!r} given.")
        if p <= _SMALL:
            values, vectors = self._decomposed
            order = slice(None, -k - 1, -1) if sign > 0 else slice(k)
            self._check_finite(values)
            return values[order], vectors[order]
        blocks.check_memory(
            3 * lanczos.room_for(k, p) * p * self.dtype.itemsize,
            f"the vectors from which {k} eigenvectors of {p} numbers are found",
            "lower k",
        )
        if tolerance is None:
            tolerance = float(np.sqrt(jnp.finfo(self.dtype).eps))
        with blocks.bar(0, "eigenvalues", "product", progress) as bar:
            product = _counted(lambda v: sign * self.matvec(v), bar)
            pairs = lanczos.extreme(product, p, k, self.dtype, tolerance, seed)
        self._check_finite(pairs.values)
        if not pairs.converged:
            NotConverged.warn(
                f"after {pairs.products} products an eigenvalue's residual is still "
                f"{pairs.residuals.max():.2g}, above the tolerance {tolerance:.2g} of the largest."
            )
        return sign * pairs.values, pairs.vectors

    def _check_finite(self, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise InputError(
                f"the {self.kind} is not finite at this point: its products hold NaN or infinity."
            )

    # Trace and density ------------------------------------------------------------------------

    def trace(self, samples: int = 99, *, method: str = "hutch++", seed: int = 0) -> Estimate:
        """The trace, with its standard error; exact, from the matrix, where p is at most `samples`.

        Args:
            samples: products to spend.
            method: "hutch++" (Meyer, Musco, Musco & Woodruff, 2021): a third of them finds the
                directions that hold most of the matrix, in which the trace is exact; the rest
                estimates what lies outside. "hutchinson" (1990) estimates all of it.
            seed: of the random signs.

        Raises:
            InputError: an unknown method, fewer than 6 samples.
        """
        one_of("trace method", method, spectra.METHODS)
        samples = whole_number("samples", samples, 6)
        seed = whole_number("seed", seed, 0)
        p = self.problem.size
        if p <= samples:
            exact = float(np.trace(self.dense(), dtype=float))
            self._check_finite(np.array(exact))
            return Estimate(exact, 0.0)
        exact, values = spectra.trace_terms(
            lambda vectors: np.asarray(self._apply(products.images, vectors)),
            p,
            self.dtype,
            samples=samples,
            method=method,
            seed=seed,
            together=products.at_once(self.problem),
        )
        self._check_finite(values)
        return Estimate.of(values, exact)

    def density(
        self,
        probes: int = 10,
        steps: int = 80,
        *,
        width: float | None = None,
        points: int = 501,
        seed: int = 0,
        progress: bool | None = None,
    ) -> xr.Dataset:
        """The spectral density: the share of the p eigenvalues at each place, each drawn as a Gaussian.

        By stochastic Lanczos quadrature (Ubaru, Chen & Saad, 2017; Ghorbani, Krishnan & Xiao, 2019):
        `probes` random vectors, `steps` Lanczos steps each. From the eigenvalues themselves where p is
        at most 256.

        Args:
            width: standard deviation of the Gaussians; by default a hundredth of the spectrum's span.
            points: of the grid; at least two for each width of a Gaussian.

        Returns:
            A dataset with `density` (eigenvalue,), which integrates to 1; and what it is made of, for
            each probe the nodes `ritz_value` and their `weight` (probe, node), which add up to 1.

        Raises:
            InputError: impossible numbers, a point where the matrix is not finite.
        """
        probes, steps = whole_number("probes", probes, 1), whole_number("steps", steps, 2)
        points, seed = whole_number("points", points, 2), whole_number("seed", seed, 0)
        if width is not None and not 0 < real(width) < np.inf:
            raise InputError(f"width must be above 0; {width!r:.80} given.")
        if self.problem.size <= _SMALL:
            values = self._decomposed[0]
            nodes = values[None]
            weights = np.full(nodes.shape, 1 / len(values))
        else:
            p = self.problem.size
            steps = min(steps, p)
            with blocks.bar(probes * steps, "spectral density", "product", progress) as bar:
                product = _counted(self.matvec, bar)
                nodes, weights = spectra.quadrature(product, p, self.dtype, probes, steps, seed)
        self._check_finite(nodes)
        grid, density, width = spectra.smoothed(nodes, weights, width, points, self.dtype)
        attrs = results.provenance(
            "spectrum",
            {
                "matrix": self.kind,
                "problem": described(self.problem),
                "probes": len(nodes),
                "steps": nodes.shape[1],
                "seed": seed,
            },
            width=width,
            dtype=str(self.dtype),
            device=backend.device_name(),
        )
        data = {
            "density": ("eigenvalue", density),
            "ritz_value": (("probe", "node"), nodes),
            "weight": (("probe", "node"), weights),
        }
        return xr.Dataset(data, coords={"eigenvalue": grid}, attrs=attrs)


# At a point ----------------------------------------------------------------------------------


def hessian(problem: Problem, params: Params) -> Curvature:
    """The Hessian of the empirical risk, the penalty included, as a linear operator.

    Args:
        problem: any; its data are streamed.
        params: where: a pytree of the problem's structure, or a vector (p,).

    Raises:
        InputError: params that do not fit.
    """
    return _at(problem, params, "hessian")


def gauss_newton(problem: Problem, params: Params) -> Curvature:
    """The Gauss–Newton matrix Jᵀ H_ℓ J (Schraudolph, 2002): the Hessian of the risk with the model
    replaced by its tangent, H_ℓ being the loss's own Hessian in the predictions. The penalty's Hessian
    is added, so that it approximates `hessian`.

    Positive semidefinite where the loss is convex in the predictions.

    Args:
        params: the point, as `Problem.at` takes it.

    Raises:
        InputError: a plain function, or a point that is not one of the problem's.
    """
    if isinstance(problem, Problem) and problem.is_function:
        raise InputError(
            "the Gauss–Newton matrix needs a model and a loss; this is a plain function."
        )
    return _at(problem, params, "gauss_newton")


def fisher(problem: Problem, params: Params, *, empirical: bool = False) -> Curvature:
    """The Fisher information matrix, without the penalty.

    It is that of the distribution whose −log p is the loss: for "mse" a Gaussian of variance ½, for
    "cross_entropy" and "bce_with_logits" that of the classes. For these it equals the Gauss–Newton
    matrix (Martens, 2020, section 9), which is what is computed. It has the scale of the risk: under
    reduction "mean" the mean over samples and outputs (with d outputs, 1/d of the mean over samples),
    under "sum" the sum.

    Args:
        empirical: the mean of g_k g_kᵀ over the pointwise risks' own gradients instead, for any loss. It
            is no estimate of the Fisher information away from a good fit (Kunstner, Balles & Hennig,
            2019).

    Raises:
        InputError: a loss that is not the −log p of one of these distributions.
    """
    if empirical:
        return _at(problem, params, "second_moment")
    check_is_problem(problem)
    if not losses.is_likelihood(problem.loss):
        raise InputError(
            "the Fisher information is known for the losses 'mse', 'cross_entropy' and "
            "'bce_with_logits'; for another one ask for the second moment of the gradients, "
            "empirical=True."
        )
    return _at(problem.replace(penalty=None), params, "gauss_newton")


def gradient_covariance(problem: Problem, params: Params) -> Curvature:
    """The covariance of a single sample's gradient, 1/n Σ (g_k − ḡ)(g_k − ḡ)ᵀ.

    The mean gradient of b samples drawn with replacement has this covariance divided by b. The trace is
    the mean squared norm of a single sample's noise, and the top eigenvectors are the noise's leading
    directions. The penalty has no part in it.

    Args:
        params: the point, as `Problem.at` takes it.

    Raises:
        InputError: a problem without data, or a point that is not one of the problem's.
    """
    operator = _at(problem, params, "covariance")
    problem = operator.problem
    if not problem.n_samples:
        raise InputError("this problem has no data, so its gradient has no noise.")
    center = products.mean_gradient(problem, operator._samples, operator.point)
    return replace(operator, center=center)


def gradient_norms(problem: Problem, params: Params) -> Float[np.ndarray, " n"]:
    """The norm of every sample's own gradient, ‖∇ℓ_k‖ (n,), without the penalty and without samples that
    are left out of the risk.

    Raises:
        InputError: a problem without data, or a model whose predictions mix samples.
    """
    operator = _at(problem, params, "second_moment")
    problem = operator.problem.without_left_out()
    products.check_samples_independent(problem)
    return products.gradient_norms(problem, operator.point)


def _counted(product: Callable[[Any], Any], bar: Any) -> Callable[[Any], Any]:
    """A product that advances the progress bar by one when called."""

    def counted(vector: Any) -> Any:
        bar.update()
        return product(vector)

    return counted


def _at(problem: Problem, params: Params, kind: str) -> Curvature:
    if any(isinstance(leaf, Tracer) for leaf in jax.tree_util.tree_leaves(params)):
        raise InputError(
            "a curvature operator is made at numbers, and not inside a compiled function: along a "
            "descent record thalweg.sharpness, or take the operator at its iterates."
        )
    vector = jnp.asarray(vector_of(problem, params))
    # sums over samples overflow half precision, and LAPACK does not have it
    problem = in_precision(problem, jnp.float32)
    vector = vector.astype(problem.layout.dtype)
    if not bool(jnp.isfinite(vector).all()):
        raise InputError("the point is not finite, so there is no curvature at it.")
    return Curvature(problem, kind, vector)
