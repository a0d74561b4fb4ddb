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


@pytest.mark.parametrize(
    "optimizer",
    [tw.SGD(lr=0.1), tw.SGD(lr=0.1, momentum=0.9, nesterov=True), tw.Adam(), tw.RMSprop()],
    ids=["SGD", "Nesterov", "Adam", "RMSprop"],
)
def test_a_step_copies_no_large_weight(optimizer, network, monkeypatch):
    """Neither to test it for NaN before it is overwritten, nor to have it in another order for products."""
    block, programs = loop.block, []

    def compiled(*args, **static):
        programs.append(block.lower(*args, **static).compile().as_text())
        return block(*args, **static)

    compiled.trace = block.trace
    monkeypatch.setattr(job, "block", compiled)
    tw.descend(network, optimizer, steps=3, record={"params": False})
    (program,) = programs
    assert re.search(r"= f32\[48,40\]\S* fusion\(", program)
    assert not re.findall(r"= f32\[48,40\]\S* copy\(", program)


def test_a_member_that_has_diverged_has_no_numbers_any_more(network):
    """Also where its large weights were finite when its loss was not, and not its neighbours."""
    path = tw.descend(network, tw.SGD(lr=[0.1, 1e18]), steps=12, record={"grad": True})
    assert path.status.values.tolist() == ["completed", "diverged"]
    assert np.isfinite(path.isel(lr=0).params).all()
    assert np.isnan(path.isel(lr=1, step=-1).params).all()
    assert np.isnan(path.isel(lr=1).final).all()
    alone = tw.descend(network, tw.SGD(lr=0.1), steps=12)
    np.testing.assert_allclose(path.isel(lr=0).params, alone.params, rtol=1e-5, atol=1e-7)
