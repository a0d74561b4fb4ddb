"""What is measured along a descent, inside the compiled loop.

An observable is a function of `at`, or a pair (init, measure) where it needs a state. `at` has

    problem   the problem, on all its data         batch   the same problem on this step's batch
    params    the iterate                          start   the iterate at step 0
    loss      the risk of this step's batch        grad    its gradient
    step      the index of the step

It returns an array of any shape, or a pytree of them: one with the structure of the parameters is
labelled by their names, any other becomes one variable per leaf.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from thalweg import results
from thalweg.errors import InputError, unknown
from thalweg.inputs import written_in_jax
from thalweg.params import Params, difference, norm, path_name
from thalweg.problem import Problem, check_is_problem
from thalweg.risks import value_and_gradient


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class At:
    """Where a descent stands; what observables and optimizers see.

    `optimizer` has this step's hyperparameters, `state` is its state, and `updates` says how many updates it
    has made: `step`, less the steps during which the member had stopped. A flow has none of these.
    """

    problem: Problem
    batch: Problem
    params: Params
    start: Params
    loss: Any
    grad: Params
    step: Any
    optimizer: Any = None
    state: Any = None
    updates: Any = None

    def value_and_gradient(self, params: Params) -> tuple[Any, Params]:
        """Risk and gradient of this step's batch at another point."""
        return value_and_gradient(self.batch, params)

    def residuals(self, params: Params) -> Any:
        """Residuals of this step's batch at another point (least-squares problems)."""
        return self.batch.residuals(params)


def at_point(problem: Problem, params: Params, start: Params, step: Any) -> At:
    """An `At` without an optimizer: the batch is all the data."""
    loss, grad = value_and_gradient(problem, params)
    problem = problem.replace(params=params)  # one with init= has a layout then
    return At(problem, problem, params, start, loss, grad, step)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Observable:
    """An observable with a state.

    `init(at)` gives the state at the first step and `measure(at, state)` a value and the next state. The
    state advances at recorded steps, or with `every_step` at every one. `relative` says that a value
    is divided by the norm of the first state, unless that is zero: the record then says so.
    """

    init: Any
    measure: Any
    every_step: bool = field(default=False, metadata={"static": True})
    relative: bool = field(default=False, metadata={"static": True})


def documented(observable: Any, text: str) -> Any:
    """The observable, with a docstring of its own instead of its class's."""
    object.__setattr__(observable, "__doc__", text)
    return observable


def relative_movement(at: At) -> Any:
    """‖w_t − w_0‖ / ‖w_0‖; the absolute movement where the start has norm zero."""
    return relative(movement(at), norm(at.start))


def relative(change: Any, size: Any) -> Any:
    """A change divided by the size of what changed; undivided where that is zero."""
    return change / jnp.where(size == 0, 1, size)


FROM_ZERO = "absolute for runs that start from norm zero, where a relative movement is undefined"
OF_ZERO = "absolute for runs whose first value has norm zero, where a relative one is undefined"


def is_named(name: str, observable: Observable) -> bool:
    """Whether this is the named observable `name`."""
    structure = jax.tree_util.tree_structure
    return name in NAMED and structure(observable) == structure(_as_observable("", NAMED[name]))


def movement(at: At) -> Any:
    """‖w_t − w_0‖."""
    return norm(difference(at.params, at.start))


def movement_by_parameter(at: At) -> dict[str, Any]:
    """‖w_t − w_0‖ / ‖w_0‖ of each parameter tensor; absolute where it starts at zero."""
    now = jax.tree_util.tree_flatten_with_path(at.params)[0]
    start = jax.tree_util.tree_leaves(at.start)
    movements = {}
    for (path, w), w0 in zip(now, start, strict=True):
        movements[path_name(path)] = relative(norm(w - w0), norm(w0))
    return movements


def gradient_norm(at: At) -> Any:
    """The Euclidean norm of this step's gradient."""
    return norm(at.grad)


def empirical_risk(at: At) -> Any:
    """The empirical risk over all the data, whatever the batch."""
    return at.problem.risk(at.params)


def expected_risk(at: At) -> Any:
    """The expected risk, where the problem knows it."""
    return at.problem.expected(at.params)


def risk_on(problem: Problem) -> Any:
    """An observable: the risk on another problem, such as the same model on held-out data."""
    check_is_problem(problem)
    return Partial(_risk_on, problem)


def _risk_on(problem: Problem, at: At) -> Any:
    return problem.risk(at.params)


def _previous(at: At) -> Params:
    return at.params


def _change(at: At, previous: Params) -> tuple[Any, Params]:
    return relative(norm(difference(at.params, previous)), norm(at.params)), at.params


successive_change = documented(
    Observable(Partial(_previous), Partial(_change), every_step=True),
    "‖w_t − w_{t−1}‖ / ‖w_t‖, between consecutive steps.",
)

NAMED: dict[str, Any] = {
    "grad_norm": gradient_norm,
    "risk": empirical_risk,
    "expected": expected_risk,
    "movement": movement,
    "relative_movement": relative_movement,
    "successive_change": successive_change,
}
# Thalweg's functions that are recorded under a name of the user's choice
_GIVEN = (
    "gradient_norm", "empirical_risk", "expected_risk", "movement_by_parameter", "kernel_drift",
    "sharpness", "preconditioned_sharpness", "gradient_noise", "sample_gradient_norms",
)  # fmt: skip


def chosen(record: Any) -> tuple[dict[str, bool], dict[str, Any]]:
    """What `record=` asks for: which of the built-in records, and the observables by name.

    `record` is a mapping from names to True, False, a function, a pair (init, measure), a problem
    (the risk on it) or an `Observable`; or a sequence of names.
    """
    if record is None:
        record = {}
    elif isinstance(record, str):
        record = {record: True}
    elif isinstance(record, (list, tuple, set)) and all(isinstance(n, str) for n in record):
        record = dict.fromkeys(record, True)
    elif not isinstance(record, dict) or not all(isinstance(name, str) for name in record):
        raise InputError(
            f"record= must be a list of names or a mapping from names; {record!r} given."
        )
    built_in = {"params": True, "loss": True, "grad": False, "batch": False}
    observables: dict[str, Any] = {}
    for name, what in record.items():
        if name in results.BUILT_IN:
            if not isinstance(what, bool):
                raise InputError(f"record: {name!r} is recorded by its name; give True or False.")
            built_in[name] = what
        elif what is True:
            if name not in NAMED and name in _GIVEN:
                raise InputError(
                    f"record: give {name!r} as a function, {{{name!r}: thalweg.{name}}}."
                )
            if name not in NAMED:
                raise unknown("observable", name, [*NAMED, *results.BUILT_IN])
            observables[name] = _as_observable(name, NAMED[name])
        elif what is not False and what is not None:
            observables[name] = _as_observable(name, what)
    return built_in, observables


def names(built_in: dict[str, bool], observables: dict[str, Any]) -> list[str]:
    """What `chosen` returned, as stored in a result's settings: the user's own functions in brackets."""
    observable_names = [
        name if is_named(name, observable) else f"<{name}>"
        for name, observable in observables.items()
    ]
    return [*(name for name, on in built_in.items() if on), *observable_names]


def first_state(name: str, seen: Observable, at: At) -> Any:
    """An observable's first state, cast to the dtypes that `measure` returns: `init` may give 0.0.

    For use inside a trace, like `measured`.
    """
    with written_in_jax(f"the observable {name!r}"):
        first = jax.tree_util.tree_map(jnp.asarray, seen.init(at))
        result = jax.eval_shape(seen.measure, at, first)
    if not isinstance(result, tuple) or len(result) != 2:
        raise InputError(
            f"the observable {name!r}: measure must return a value and the next state."
        )
    after = result[1]
    structure = jax.tree_util.tree_structure
    if structure(first) != structure(after) or any(
        a.shape != b.shape
        for a, b in zip(*map(jax.tree_util.tree_leaves, (first, after)), strict=True)
    ):
        raise InputError(
            f"the observable {name!r}: measure must return a state like the one that init gives."
        )
    return jax.tree_util.tree_map(lambda a, b: a.astype(b.dtype), first, after)


def measured(name: str, seen: Observable, at: At, state: Any) -> tuple[Any, Any]:
    """An observable's value at an iterate, and its next state, in the dtypes of the present one."""
    with written_in_jax(f"the observable {name!r}"):
        value, after = seen.measure(at, state)
        value = jax.tree_util.tree_map(jnp.asarray, value)
    return value, jax.tree_util.tree_map(
        lambda new, old: jnp.asarray(new).astype(old.dtype), after, state
    )


def has_state(observable: Observable) -> bool:
    """Whether an observable carries a state from step to step."""
    return getattr(observable.init, "func", None) is not _no_state


def _as_observable(name: str, what: Any) -> Observable:
    if isinstance(what, Observable) and callable(what.init) and callable(what.measure):
        return replace(what, init=_partial(what.init), measure=_partial(what.measure))
    if isinstance(what, Problem):
        what = risk_on(what)
    if isinstance(what, tuple) and len(what) == 2 and all(map(callable, what)):
        return Observable(*map(_partial, what))
    if callable(what):
        return Observable(Partial(_no_state), Partial(_stateless, _partial(what)))
    raise InputError(
        f"record: {name!r} must be True, a function of `at`, a pair (init, measure) or a problem; "
        f"{what!r} given."
    )


def _partial(function: Callable[..., Any]) -> Any:
    return function if isinstance(function, Partial) else Partial(function)


def _no_state(at: At) -> tuple[()]:
    return ()


def _stateless(function: Any, at: At, state: tuple[()]) -> tuple[Any, tuple[()]]:
    return function(at), ()
