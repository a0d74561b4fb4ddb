"""Steps scaled by each parameter's own history: RMSprop, Adagrad, Adadelta and Rprop."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import jax.numpy as jnp

from thalweg.errors import InputError
from thalweg.optimizers.base import (
    At,
    Optimizer,
    Params,
    State,
    count,
    each,
    each_of,
    full,
    hyper,
    known,
    like,
    running_mean,
    running_mean_square,
    signed,
    switch,
    with_decay,
    zeros,
)


class RMSprop(Optimizer):
    """RMSprop (`torch.optim.RMSprop`; Hinton's lecture notes, 2012).

    v ← αv + (1 − α)g², b ← μb + g / (√v + ε) and w ← w − lr·b. With `centered`, v − ḡ² stands under
    the root, where ḡ is the running average of g (Graves, 2013).

    Args:
        lr: the learning rate.
        alpha: α.
        eps: ε.
        weight_decay: λ: λw is added to the gradient.
        momentum: μ.
        centered: divide by the standard deviation of g instead of its root mean square.
        maximize: climb instead of descending.
    """

    lr: Any = hyper(1e-2)
    alpha: Any = hyper(0.99)
    eps: Any = hyper(1e-8)
    weight_decay: Any = hyper(0.0)
    momentum: Any = hyper(0.0)
    centered: bool = switch(False)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        state = {"square_avg": zeros(params), "momentum_buffer": zeros(params)}
        return {**state, **({"grad_avg": zeros(params)} if self.centered else {})}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        g, new, divisor = self._averages(at, params, state)
        new["momentum_buffer"] = each(
            lambda b, g, d: like(self.momentum, b) * b + g / d, state["momentum_buffer"], g, divisor
        )
        params = each(lambda w, b: w - like(self.lr, w) * b, params, new["momentum_buffer"])
        return params, new, {}

    def preconditioner(self, at: At, params: Params, state: State, step: Any) -> Params:
        return self._averages(at, params, state)[2]

    def _averages(self, at: At, params: Params, state: State) -> tuple[Params, State, Params]:
        """The gradient with its decay, the new averages, and √v + ε."""
        g = with_decay(signed(at.grad, self.maximize), params, self.weight_decay)
        new = {"square_avg": running_mean_square(state["square_avg"], g, self.alpha)}
        variance = new["square_avg"]
        if self.centered:
            new["grad_avg"] = running_mean(state["grad_avg"], g, 1 - self.alpha)
            variance = each(lambda v, a: v - a * a, variance, new["grad_avg"])
        return g, new, each(lambda v: jnp.sqrt(v) + like(self.eps, v), variance)


class Adagrad(Optimizer):
    """Adagrad (`torch.optim.Adagrad`; Duchi, Hazan & Singer, 2011).

    s ← s + g², from `initial_accumulator_value`, and
    w ← w − lr / (1 + (t − 1)·lr_decay) · g / (√s + ε).

    Args:
        lr: the learning rate at first.
        lr_decay: how fast it falls.
        weight_decay: λ: λw is added to the gradient.
        initial_accumulator_value: s at first.
        eps: ε.
        maximize: climb instead of descending.
    """

    lr: Any = hyper(1e-2)
    lr_decay: Any = hyper(0.0)
    weight_decay: Any = hyper(0.0)
    initial_accumulator_value: Any = hyper(0.0)
    eps: Any = hyper(1e-10)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        return {"sum": full(params, self.initial_accumulator_value)}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        g, total, divisor = self._sums(at, params, state)
        rate = self.lr / (1 + (count(step) - 1) * self.lr_decay)
        params = each(lambda w, g, d: w - like(rate, w) * g / d, params, g, divisor)
        return params, {"sum": total}, {}

    def preconditioner(self, at: At, params: Params, state: State, step: Any) -> Params:
        divisor = self._sums(at, params, state)[2]
        return each(lambda d: like(1 + (count(step) - 1) * self.lr_decay, d) * d, divisor)

    def _sums(self, at: At, params: Params, state: State) -> tuple[Params, Params, Params]:
        """The gradient with its decay, the new sum of squares, and its root + ε."""
        g = with_decay(signed(at.grad, self.maximize), params, self.weight_decay)
        total = each(lambda s, g: s + g * g, state["sum"], g)
        return g, total, each(lambda s: jnp.sqrt(s) + like(self.eps, s), total)


class Adadelta(Optimizer):
    """Adadelta (`torch.optim.Adadelta`; Zeiler, 2012).

    v ← ρv + (1 − ρ)g², Δ = g·√(u + ε) / √(v + ε), u ← ρu + (1 − ρ)Δ² and w ← w − lr·Δ.

    Args:
        lr: what Δ is multiplied by.
        rho: ρ, at most 1.
        eps: ε.
        weight_decay: λ: λw is added to the gradient.
        maximize: climb instead of descending.
    """

    lr: Any = hyper(1.0)
    rho: Any = hyper(0.9, high=1.0)
    eps: Any = hyper(1e-6)
    weight_decay: Any = hyper(0.0)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        return {"square_avg": zeros(params), "acc_delta": zeros(params)}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        g = with_decay(signed(at.grad, self.maximize), params, self.weight_decay)
        square = running_mean_square(state["square_avg"], g, self.rho)
        delta = each(
            lambda g, v, u: g * (jnp.sqrt(u + like(self.eps, u)) / jnp.sqrt(v + like(self.eps, v))),
            g,
            square,
            state["acc_delta"],
        )
        moved = running_mean_square(state["acc_delta"], delta, self.rho)
        params = each(lambda w, d: w - like(self.lr, w) * d, params, delta)
        return params, {"square_avg": square, "acc_delta": moved}, {}


class Rprop(Optimizer):
    """Resilient backpropagation (`torch.optim.Rprop`; Riedmiller & Braun, 1993).

    Each parameter has a step size η, at first `lr`. It grows by η₊ where the gradient kept its sign
    and shrinks by η₋ where the sign turned, within `step_sizes`; w ← w − sign(g)·η. Where the sign
    turned the parameter rests for a step, and its gradient is remembered as 0.

    Args:
        lr: every parameter's first step size.
        etas: (η₋, η₊), with 0 < η₋ < 1 < η₊.
        step_sizes: the least and the greatest η.
        maximize: climb instead of descending.
    """

    PAIRS: ClassVar[dict[str, tuple[str, str]]] = {
        "etas": ("etaminus", "etaplus"),
        "step_sizes": ("step_size_min", "step_size_max"),
    }

    lr: Any = hyper(1e-2)
    etas: Any = hyper((0.5, 1.2))
    step_sizes: Any = hyper((1e-6, 50), low=-math.inf)
    maximize: bool = switch(False)

    def check_together(self) -> None:
        minus, plus = map(known, self.etas)
        if ((minus <= 0) | (minus >= 1)).any() or (plus <= 1).any():
            raise InputError(f"Rprop: etas must satisfy 0 < η₋ < 1 < η₊; {self.etas} given.")

    def init(self, params: Params) -> State:
        return {"prev": zeros(params), "step_size": full(params, self.lr)}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        (shrink, grow), (least, most) = self.etas, self.step_sizes

        def move(w: Any, g: Any, before: Any, size: Any) -> tuple[Any, Any, Any]:
            agreement = g * before
            factor = jnp.where(
                agreement > 0, like(grow, w), jnp.where(agreement < 0, like(shrink, w), 1)
            )
            size = jnp.clip(size * factor, like(least, w), like(most, w))
            g = jnp.where(agreement < 0, 0, g)
            return w - jnp.sign(g) * size, g, size

        g = signed(at.grad, self.maximize)
        params, g, size = each_of(move, 3, params, g, state["prev"], state["step_size"])
        return params, {"prev": g, "step_size": size}, {}
