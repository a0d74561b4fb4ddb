"""Optimizers from optax against a plain optax loop."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import bowl_problem

import thalweg as tw
import thalweg.optimizers as ours
from thalweg.errors import InputError
from thalweg.optimizers.base import check
from thalweg.optimizers.stepping import begun, updated

STEPS = 60


def risk(w: Any) -> Any:
    """A smooth function whose gradient has the dtype of the parameters."""
    return jnp.mean(jnp.tanh(w["weight"] @ w["bias"]) ** 2) + 0.1 * jnp.sum((w["bias"] - 1) ** 2)


def start(dtype: Any = np.float64) -> Any:
    rng = np.random.default_rng(0)
    params = {"bias": rng.normal(size=2), "weight": rng.normal(size=(3, 2))}
    return jax.tree_util.tree_map(lambda leaf: leaf.astype(dtype), params)


class At:
    """A stand-in for what the loop of `thalweg.descend` hands an optimizer."""

    def __init__(self, params: Any) -> None:
        self.loss, self.grad = jax.value_and_grad(risk)(params)

    @staticmethod
    def value_and_gradient(params: Any) -> Any:
        return jax.value_and_grad(risk)(params)


@jax.jit
def ours_on(optimizer: Any, params: Any) -> Any:
    def advance(carry: Any, step: Any) -> Any:
        params, state = carry
        params, state, _ = updated(optimizer, At(params), params, state, step)
        return (params, state), params

    carry = (params, begun(optimizer, params))
    (_, state), iterates = jax.lax.scan(advance, carry, jnp.arange(STEPS))
    return iterates, state


def plain(rule: Any, params: Any) -> Any:
    """The loop of optax's own documentation."""
    rule = optax.with_extra_args_support(rule)

    @jax.jit
    def advance(params: Any, state: Any) -> Any:
        value, grad = jax.value_and_grad(risk)(params)
        updates, state = rule.update(grad, state, params, value=value, grad=grad, value_fn=risk)
        return optax.apply_updates(params, updates), state

    iterates, state = [], rule.init(params)
    for _ in range(STEPS):
        params, state = advance(params, state)
        iterates.append(params)
    return jax.tree_util.tree_map(lambda *leaves: np.stack(leaves), *iterates)


def traced(optimizer: Any, **numbers: Any) -> Any:
    """The optimizer with its numbers as the loop has them: strong float64 scalars or arrays."""
    values = {n: np.asarray(v, float) for n, v in optimizer.hyperparameters().items()}
    return optimizer.with_hyperparameters({**values, **numbers})


def assert_equal(got: Any, expected: Any, tolerance: float) -> None:
    for one, other in zip(*map(jax.tree_util.tree_leaves, (got, expected)), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)


FACTORIES = [
    (optax.sgd, {"learning_rate": 0.1}),
    (optax.sgd, {"learning_rate": 1, "momentum": 0.5, "nesterov": True}),
    (optax.adam, {"learning_rate": 0.05, "b2": 0.99}),
    (optax.adamw, {"learning_rate": 0.05, "mask": lambda w: {"bias": False, "weight": True}}),
    (optax.adamw, {"learning_rate": 0.05, "mask": {"bias": False, "weight": True}}),
    (optax.adafactor, {"learning_rate": 0.01, "min_dim_size_to_factor": 2}),
    (optax.adagrad, {"learning_rate": 0.1, "initial_accumulator_value": 0.3}),
    (optax.amsgrad, {"learning_rate": 0.05}),
    (optax.lamb, {"learning_rate": 0.05, "weight_decay": 0.1}),
    (optax.lbfgs, {}),
    (optax.lbfgs, {"memory_size": 3, "linesearch": optax.scale_by_backtracking_linesearch(20)}),
    (optax.lion, {"learning_rate": 0.01, "weight_decay": 0.1}),
    (optax.nadam, {"learning_rate": 0.05}),
    (optax.noisy_sgd, {"learning_rate": 0.1, "eta": 0.02, "key": 3}),
    (optax.polyak_sgd, {"max_learning_rate": 0.5}),
    (optax.radam, {"learning_rate": 0.05, "threshold": 4.0}),
    (optax.rmsprop, {"learning_rate": 0.01, "decay": 0.8, "momentum": 0.5}),
    (optax.rprop, {"learning_rate": 0.01, "eta_plus": 1.1}),
]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("factory", "options"), FACTORIES)
def test_iterates_are_those_of_a_plain_optax_loop(
    factory: Any, options: dict[str, Any], dtype: Any
) -> None:
    got, state = ours_on(traced(ours.optax(factory, **options)), start(dtype))
    expected = plain(factory(**options), start(dtype))
    # The same operations in the same precision; only how they are fused may differ. Adafactor takes
    # the power of its decay rate, 1 − t^−0.8, in float32 whatever the parameters are.
    # At a rate of 1 with momentum a rounding grows, and where a step is a ratio of two small numbers
    # (nadam, near the minimum).
    exact = dtype == np.float64 and factory is not optax.adafactor
    grows = factory is optax.nadam or options.get("nesterov")
    assert_equal(got, expected, 1e-10 if exact else 1e-4 if grows else 1e-5)
    assert not any(leaf.weak_type for leaf in jax.tree_util.tree_leaves(state))


def test_a_bare_transformation() -> None:
    rule = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(0.05))
    optimizer = ours.optax(rule)
    assert (optimizer.name, optimizer.hyperparameters(), optimizer.switches()) == ("optax", {}, {})
    check(optimizer)
    assert_equal(ours_on(optimizer, start())[0], plain(rule, start()), 1e-10)


def test_a_sweep_is_its_separate_runs() -> None:
    rates = np.array([0.01, 0.1, 0.3])
    optimizer = traced(ours.optax(optax.adam, learning_rate=0.0, b1=0.8))
    swept = optimizer.with_hyperparameters({"learning_rate": rates, "b1": np.float64(0.8)})
    axes = optimizer.with_hyperparameters({"learning_rate": 0, "b1": None})
    together = jax.vmap(lambda o: ours_on(o, start())[0], in_axes=(axes,))(swept)
    for i, rate in enumerate(rates):
        member = jax.tree_util.tree_map(lambda leaf, i=i: leaf[i], together)
        assert_equal(member, plain(optax.adam(rate, b1=0.8), start()), 1e-10)


def test_other_numbers_do_not_compile_again() -> None:
    traces = []

    @jax.jit
    def init(optimizer: Any) -> Any:
        traces.append(1)
        return begun(optimizer, start())

    for rate in (0.1, 1, [0.1, 0.2]):
        mask = {"bias": False, "weight": True}
        init(traced(ours.optax(optax.adamw, learning_rate=rate, mask=mask, b1=0.8)))
    assert len(traces) == 2  # the list has another shape

    def factory(learning_rate: Any, table: Any = None) -> Any:
        return optax.sgd(learning_rate)

    table = np.arange(2)
    for _ in range(2):
        init(traced(ours.optax(factory, learning_rate=0.1, table=table)))
    assert len(traces) == 3
    for _ in range(2):  # two arrays do not say whether they are the same
        init(traced(ours.optax(factory, learning_rate=0.1, table=np.arange(2))))
    assert len(traces) == 5


def schedule(step: int) -> float:
    return 0.1 / (step + 1)


@pytest.mark.parametrize(
    ("factory", "hyperparameters", "static"),
    [
        (optax.adamw, {"learning_rate": schedule, "b1": [0.8, 0.9]}, {"mask": schedule}),
        (optax.adamw, {"learning_rate": np.array([0.1, 1.0])}, {"nesterov": True, "mask": None}),
        (optax.sgd, {"learning_rate": 1, "momentum": [0, 0.9]}, {"accumulator_dtype": "float32"}),
        (optax.noisy_sgd, {"learning_rate": 0.1}, {"key": 1}),
        (optax.noisy_sgd, {"learning_rate": 0.1}, {"key": jax.random.key(0)}),
        (optax.lbfgs, {"learning_rate": 0.5}, {"memory_size": 4}),
        (optax.lbfgs, {}, {"linesearch": None}),
        (lambda **kwargs: optax.sgd(**kwargs), {"learning_rate": 0.1}, {"nesterov": True}),
        (optax.lookahead, {"slow_step_size": 0.5}, {"fast_optimizer": optax.sgd(0.1)}),
    ],
)
def test_the_signature_decides_what_is_a_hyperparameter(
    factory: Any, hyperparameters: dict[str, Any], static: dict[str, Any]
) -> None:
    given = {"sync_period": 5} if factory is optax.lookahead else {}
    optimizer = ours.optax(factory, **given, **hyperparameters, **static)
    assert optimizer.hyperparameters() == {**given, **hyperparameters}
    assert optimizer.switches() == static
    check(optimizer)


def test_names() -> None:
    assert ours.optax(optax.adam, learning_rate=0.1).name == "optax.adam"
    assert ours.optax(optax.lbfgs).name == "optax.lbfgs"

    def clipped(learning_rate: float) -> Any:
        return optax.chain(optax.clip(1.0), optax.sgd(learning_rate))

    assert ours.optax(clipped, learning_rate=0.1).name == "clipped"
    assert ours.optax(partial(optax.adam, b1=0.8), learning_rate=0.1).name == "optax.adam"

    def chained(*parts: Any, learning_rate: float) -> Any:
        return optax.chain(*parts, optax.sgd(learning_rate))

    assert ours.optax(chained, learning_rate=0.1).hyperparameters() == {"learning_rate": 0.1}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: ours.optax(optax.adam, lr=0.1), "unknown argument of optax.adam 'lr'"),
        (lambda: ours.optax(optax.adam), "optax.adam needs learning_rate"),
        (lambda: ours.optax(optax.sgd(0.1), momentum=0.9), "already has its momentum"),
        (lambda: ours.optax("adam"), "a factory such as optax.adam"),
        (
            lambda: ours.optax(optax.adam, learning_rate=0.1, nesterov=[True, False]),
            "nesterov is static",
        ),
        (lambda: ours.optax(optax.lbfgs, memory_size=[5, 10]), "memory_size is static"),
        (
            lambda: check(ours.optax(optax.adam, learning_rate=[0.1, -0.1])),
            "learning_rate must be at least 0; -0.1 given",
        ),
    ],
)
def test_bad_input_gets_one_clear_error(make: Any, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_rule_that_takes_no_more_than_optax_asks_for():
    rule = optax.contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)
    problem = bowl_problem()
    path = tw.descend(problem, ours.optax(rule), steps=6)
    w, state = problem.params, rule.init(problem.params)
    for _ in range(6):
        change, state = rule.update(problem.gradient(w), state, w)
        w = optax.apply_updates(w, change)
    np.testing.assert_allclose(path.final, problem.flatten(w), rtol=1e-12)
