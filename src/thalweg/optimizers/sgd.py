"""Stochastic gradient descent, plain, with momentum, and averaged."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp

from thalweg.errors import InputError
from thalweg.optimizers.base import (
    SCALAR,
    At,
    Optimizer,
    Params,
    State,
    count,
    each,
    hyper,
    known,
    like,
    signed,
    switch,
    with_decay,
    zeros,
)


class SGD(Optimizer):
    """Gradient descent with momentum, Nesterov momentum and weight decay (`torch.optim.SGD`).

    b_t = μ b_{t−1} + (1 − dampening) g_t with b_0 = g_0, and w ← w − lr·b_t, or
    w ← w − lr·(g_t + μ b_t) with Nesterov momentum.

    All of it is always computed: with μ = 0 the buffer is the gradient, and a momentum swept from zero
    is then one program. It costs a pass over the buffer, which is felt in networks of millions of
    parameters on few samples alone. (torch leaves its buffer alone while a scheduled momentum is 0, and
    takes the first gradient after that whole.)

    Args:
        lr: the learning rate.
        momentum: μ.
        dampening: 1 minus the weight of a new gradient in the buffer; the first one counts whole.
        weight_decay: λ: λw is added to the gradient.
        nesterov: step along the gradient and the buffer; needs a momentum above 0 and dampening 0.
        maximize: climb instead of descending.
    """

    lr: Any = hyper(1e-3)
    momentum: Any = hyper(0.0)
    dampening: Any = hyper(0.0, low=-math.inf)
    weight_decay: Any = hyper(0.0)
    nesterov: bool = switch(False)
    maximize: bool = switch(False)

    def check_together(self) -> None:
        if not self.nesterov:
            return
        if (known(self.momentum) <= 0).any() or (known(self.dampening) != 0).any():
            raise InputError(
                "SGD: nesterov=True needs a momentum above 0 and dampening 0; "
                f"momentum={self.momentum} and dampening={self.dampening} given."
            )

    def init(self, params: Params) -> State:
        return {"momentum_buffer": zeros(params)}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        g = with_decay(signed(at.grad, self.maximize), params, self.weight_decay)
        # torch takes the first gradient whole, and ignores dampening where there is no momentum
        weight = jnp.where((step == 0) | (self.momentum == 0), 1.0, 1.0 - self.dampening)
        b = each(
            lambda b, g: like(self.momentum, b) * b + like(weight, b) * g,
            state["momentum_buffer"],
            g,
        )
        d = each(lambda g, b: g + like(self.momentum, b) * b, g, b) if self.nesterov else b
        params = each(lambda w, d: w - like(self.lr, w) * d, params, d)
        return params, {"momentum_buffer": b}, {}


class ASGD(Optimizer):
    """Averaged stochastic gradient descent (`torch.optim.ASGD`; Polyak & Juditsky, 1992).

    At steps t = 0, 1, …: w ← (1 − λη_t) w − η_t g with η_t = lr / (1 + λ·lr·t)^α, and beside it the
    average ā ← ā + μ_t (w − ā) with μ_t = 1 / max(1, t − t0), which is w itself while t ≤ t0 + 1.

    The loop's iterates are w, as in torch; the average is the state's `ax`.

    Args:
        lr: the learning rate at first.
        lambd: λ.
        alpha: α.
        t0: the step from which on iterates are averaged.
        weight_decay: times w it is added to the gradient.
        maximize: climb instead of descending.
    """

    lr: Any = hyper(1e-2)
    lambd: Any = hyper(1e-4, low=-math.inf)
    alpha: Any = hyper(0.75, low=-math.inf)
    t0: Any = hyper(1e6, low=-math.inf)
    weight_decay: Any = hyper(0.0)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        return {
            "ax": zeros(params),
            "eta": jnp.asarray(self.lr).astype(SCALAR),
            "mu": jnp.ones((), SCALAR),
        }

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        g = with_decay(signed(at.grad, self.maximize), params, self.weight_decay)
        eta, mu = state["eta"].astype(float), state["mu"].astype(float)
        params = each(lambda w, g: like(1 - self.lambd * eta, w) * w - like(eta, w) * g, params, g)
        # With μ = 1 the average is the iterate to the last bit, whatever it was before.
        average = each(
            lambda a, w: jnp.where(mu == 1, w, a + like(mu, w) * (w - a)), state["ax"], params
        )
        t = count(step)
        state = {
            "ax": average,
            "eta": (self.lr / (1 + self.lambd * self.lr * t) ** self.alpha).astype(SCALAR),
            "mu": (1 / jnp.maximum(1, t - self.t0)).astype(SCALAR),
        }
        return params, state, {}
