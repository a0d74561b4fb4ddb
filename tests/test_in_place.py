"""What a step of a large model does not copy: its weights, the optimizer's state, the gradient."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import thalweg as tw
from thalweg import job, loop
from thalweg.catalogue import models


@pytest.fixture
def network(rng):
    x = rng.uniform(-1, 1, 20).astype("float32")
    start = models.init_mlp((1, 40, 48, 1), jax.random.key(0), jnp.float32)
    return tw.Problem(models.mlp, "mse", x, np.sin(3 * x), params=start)


@pytest.fixture
def programs(monkeypatch):
    """The programs of a descent's blocks, once it has run."""
    block, lowered = loop.block, []

    def kept(*args, **static):
        lowered.append(block.lower(*args, **static))
        return block(*args, **static)

    kept.trace = block.trace
    monkeypatch.setattr(job, "block", kept)
    return lowered


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (tw.SGD(lr=0.1), {}),
        (tw.SGD(lr=0.1, momentum=0.9, nesterov=True), {}),
        (tw.Adam(), {}),
        (tw.RMSprop(), {}),
        (tw.SGD(lr=0.1), {"batch_size": 5}),
        (tw.Adam(), {"stop": {"loss": 1e-9}}),
        (tw.Adam(lr=[1e-3]), {}),
    ],
    ids=["SGD", "Nesterov", "Adam", "RMSprop", "batches", "stop", "one swept"],
)
def test_a_step_copies_no_large_weight(optimizer, options, network, programs):
    """Neither to test it for NaN before it is overwritten, nor to have it in another order for products."""
    tw.descend(network, optimizer, steps=3, record={"params": False}, **options)
    program = programs[0].compile().as_text()
    assert len(programs) == 1
    assert re.search(r"= f32\[48,40\]\S* fusion\(", program)
    assert not re.findall(r"= f32\[(1,)?48,40\]\S* copy\(", program)


@pytest.mark.parametrize(
    ("lr", "options"), [([0.1], {}), (0.1, {"seed": [3], "batch_size": 5})], ids=["lr", "seed"]
)
def test_one_member_s_matrices_are_no_batch_of_one(lr, options, network, programs):
    tw.descend(network, tw.SGD(lr=lr), steps=3, **options)
    assert "dot_general" in programs[0].as_text()
    assert "batching_dims" not in programs[0].as_text()


def test_one_member_of_a_sweep_is_computed_as_if_it_were_alone(network):
    alone = tw.descend(network, tw.Adam(lr=1e-2), steps=9, record=["grad_norm"])
    swept = tw.descend(network, tw.Adam(lr=[1e-2]), steps=9, record=["grad_norm"])
    assert swept.sizes["lr"] == 1
    for name in ("params", "loss", "grad_norm", "final", "optimizer_state"):
        np.testing.assert_allclose(swept[name].isel(lr=0), alone[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [0, 1000, 5000, 100_003])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_weight_that_is_nan_is_found_where_the_loss_is_finite(size, dtype):
    """XLA's maximum of thousands of numbers passes over NaN."""

    def loss(params):
        weights = params["weights"]  # the gradient of an unused root of 0 is 0 · ∞
        return (params["t"] - 1) ** 2 + jnp.where(weights > 0, jnp.sqrt(weights), 0).sum() / 1e4

    start = {"t": np.ones(()), "weights": np.ones(size)}
    start["weights"][size // 2 : size // 2 + 1] = 0
    path = tw.descend(tw.Problem.from_function(loss, start, dtype=dtype), tw.SGD(lr=0.1), steps=3)
    assert path["diverged_at"] == (1 if size else -1)


@pytest.mark.parametrize("size", [5, 5000])
@pytest.mark.parametrize("lr", [0.1, [0.1, 0.2]])
def test_weights_of_which_the_sum_overflows_are_finite(size, lr):
    start = {"t": np.float32(0), "weights": np.full(size, 3e38, "float32")}
    problem = tw.Problem.from_function(
        lambda p: (p["t"] - 1) ** 2 + 0 * jnp.tanh(p["weights"]).sum(), start
    )
    path = tw.descend(problem, tw.SGD(lr=lr), steps=2)
    assert (path["status"] == "completed").all()
