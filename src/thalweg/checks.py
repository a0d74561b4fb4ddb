"""Whether a problem's functions, data and parameters fit together; if not, an error of one clear line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from thalweg import losses, names
from thalweg.errors import InputError
from thalweg.inputs import drawn, entries, written_in_jax
from thalweg.params import Layout, Params
from thalweg.risks import pointwise

_IGNORED = ": leave such samples out, or average a sample's others in a loss of your own"


def check(problem: Any) -> None:
    """An error where functions, data and parameters do not fit together.

    Shapes are traced, once and without computing: predictions and targets that would silently broadcast are
    an error here.
    """
    _check_params(problem)
    _check_data(problem)
    for name, term in (("expected", problem.expected_risk), ("penalty", problem.penalty)):
        if term is not None:
            _check_term(name, term, problem.layout.like)
    with written_in_jax("the function" if problem.is_without_data else "predict"):
        yhat = jax.eval_shape(problem.predict, problem.layout.like, problem.x)
    if problem.x is None:
        _check_values(yhat, problem.is_function)
    else:
        _check_predictions(problem, yhat)
        _check_losses(problem)


def _check_params(problem: Any) -> None:
    layout = problem.layout
    if layout.size == 0:
        raise InputError("params hold no parameters.")
    for name, dtype in zip(layout.leaf_names, layout.dtypes, strict=True):
        if not jnp.issubdtype(dtype, jnp.floating):
            raise InputError(
                f"parameter {name!r} must be a real number; init= gives dtype {dtype}."
            )
    few = any("[" in name for name in layout.leaf_names) and len(layout.names) <= names.FEW
    # entries' names too: a parameter "a[0]" may clash with an entry of an array "a"
    for parameter_names in (layout.leaf_names, layout.names if few else ()):
        duplicates = [name for name, count in Counter(parameter_names).items() if count > 1]
        if duplicates:
            raise InputError(f"two parameters have the name {duplicates[0]!r}; rename one of them.")
    if problem.params is not None and problem.init is not None:
        other = Layout.of(drawn(problem.init))
        if (other.treedef, other.shapes) != (layout.treedef, layout.shapes):
            raise InputError(
                f"init= and params= must give the same parameters; init= gives "
                f"{entries(other)}, params= {entries(layout)}."
            )


def _check_data(problem: Any) -> None:
    if not (jax.tree_util.tree_leaves(problem.x) or problem.is_without_data):
        raise InputError(
            "x holds no data; a model without inputs is Problem.from_function(f) or "
            "Problem.from_residuals(r)."
        )
    if problem.x is not None and problem.y is None and losses.is_entrywise(problem.loss):
        raise InputError("the loss compares predictions with y, and y is None.")
    sizes = {
        tuple(np.shape(leaf))[:1] for leaf in jax.tree_util.tree_leaves((problem.x, problem.y))
    }
    if () in sizes:
        raise InputError(
            "x and y need a first axis over samples; a scalar was given (a tuple is a pytree: "
            "write a list or an array)."
        )
    if len(sizes) > 1:
        raise InputError(
            f"x and y must have the same number of samples; x has {_shapes(problem.x)}, "
            f"y has {_shapes(problem.y)}."
        )
    if sizes == {(0,)}:
        raise InputError("the data hold no samples: x and y have length 0.")


def _check_term(name: str, term: Callable[[Params], Any], params: Params) -> None:
    with written_in_jax(name):
        value = jax.eval_shape(term, params)
    if _shape(value) != ():
        raise InputError(f"{name}(params) must return a scalar; it returns shape {_shape(value)}.")
    _check_real(f"{name}(params)", value)


def _check_values(values: Any, is_function: bool) -> None:
    """An error unless a problem without data returns a scalar or, for residuals, a vector."""
    _check_real("the function", values)
    if len(getattr(values, "shape", (0, 0))) != (0 if is_function else 1):
        raise InputError(
            f"the function must return {'a scalar' if is_function else 'a vector (m,)'}; "
            f"it returns {_shapes(values)}."
        )


def _check_predictions(problem: Any, yhat: Any) -> None:
    n = problem.n_samples
    for path, leaf in jax.tree_util.tree_leaves_with_path(yhat):
        if leaf.shape[:1] != (n,):
            which = jax.tree_util.keystr(path)
            leave = "; return what the loss needs, and leave this out" if path else ""
            raise InputError(
                f"the model must return one prediction per sample, {n} along the first axis; "
                f"{'its output ' + which if path else 'it'} has shape {leaf.shape}{leave}."
            )
    if losses.is_entrywise(problem.loss) and not (_is_array(yhat) and _is_array(problem.y)):
        raise InputError(
            f"a named loss compares one array with one array; {_several(yhat, problem.y)}. Give loss= as a "
            f"function of both, (yhat, y) -> (n,), that takes what it compares out of them."
        )
    if losses.wants_equal_shapes(problem.loss) and _shape(yhat) != _shape(problem.y):
        raise InputError(
            f"predictions have shape {_shape(yhat)} but y has shape {_shape(problem.y)}; the loss "
            f"would broadcast them against each other. Reshape one: "
            f"{_reshape_hint(_shape(yhat), _shape(problem.y))}."
        )
    if losses.is_entrywise(problem.loss) and not losses.wants_equal_shapes(problem.loss):
        _check_classes(yhat, problem.y)
    if losses.wants_probabilities(problem.loss):
        targets = np.asarray(problem.y)
        low, high = float(targets.min()), float(targets.max())
        if low < 0 or high > 1:
            raise InputError(
                f"bce_with_logits: targets lie between 0 and 1; y holds {low:g} to {high:g}."
            )


def _check_losses(problem: Any) -> None:
    n = problem.n_samples
    with written_in_jax("loss"):
        values = jax.eval_shape(pointwise, problem, problem.layout.like)
    if _shape(values) != (n,):
        raise InputError(
            f"loss(yhat, y) must return one value per sample, shape ({n},); "
            f"it returns {_shape(values)}. Do not average inside it: reduction= does."
        )
    _check_real("the loss", values)


def _check_classes(yhat: Any, y: Any) -> None:
    if len(yhat.shape) < 2:
        raise InputError(
            f"cross_entropy needs predictions (n, classes); predict returns {yhat.shape}."
        )
    classes = yhat.shape[1]
    if jnp.issubdtype(y.dtype, jnp.integer):
        if y.shape != (yhat.shape[0], *yhat.shape[2:]):
            last = y.shape == yhat.shape[:-1]
            hint = ": classes lie along axis 1, as in jnp.moveaxis(yhat, -1, 1)" if last else ""
            raise InputError(
                f"cross_entropy: class indices must have shape "
                f"{(yhat.shape[0], *yhat.shape[2:])}; y has {y.shape}{hint}."
            )
        low, high = int(np.min(y)), int(np.max(y))
        if low < 0 or high >= classes:
            raise InputError(
                f"cross_entropy: classes go from 0 to {classes - 1}; y holds {low} to {high}"
                f"{_IGNORED if low == -100 else ''}."
            )
    elif y.shape != yhat.shape:
        raise InputError(
            f"cross_entropy: y must hold integer classes, or probabilities of shape {yhat.shape}; "
            f"it has dtype {y.dtype} and shape {y.shape}."
        )


def _check_real(what: str, value: Any) -> None:
    for leaf in jax.tree_util.tree_leaves(value):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.complexfloating):
            raise InputError(
                f"{what} returns complex numbers, which have no minimum: take their absolute values, as in "
                f"jnp.abs(...) ** 2."
            )


def _several(yhat: Any, y: Any) -> str:
    """Describes whichever of predictions and y is not a single array."""
    what, tree = ("y is", y) if _is_array(yhat) else ("the model returns", yhat)
    if tree is None:
        return f"{what} None"
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    return f"{what} {type(tree).__name__} with {', '.join(paths) or 'nothing in it'}"


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape")


def _shape(value: Any) -> Any:
    if _is_array(value):
        return value.shape
    return jax.tree_util.tree_map(lambda v: v.shape, value)


def _shapes(tree: Any) -> str:
    shapes = [tuple(np.shape(leaf)) for leaf in jax.tree_util.tree_leaves(tree)]
    return f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {shapes}"


def _reshape_hint(yhat: Any, y: Any) -> str:
    if len(yhat) == len(y) + 1 and yhat[-1] == 1:
        return "predict(...)[:, 0], or y[:, None]" if len(y) == 1 else "y[..., None]"
    if len(y) == len(yhat) + 1 and y[-1] == 1:
        return "y[..., 0], or predict(...)[..., None]"
    return "they must agree in every axis"
