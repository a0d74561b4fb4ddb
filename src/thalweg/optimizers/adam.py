"""Adam and its kin: steps from running averages of the gradient and of its square.

In all of them m_t = β₁ m_{t−1} + (1 − β₁) g_t and v_t = β₂ v_{t−1} + (1 − β₂) g_t², and m̂, v̂ are
these divided by 1 − βᵗ, which undoes their start at zero. The corrections are taken in float64:
1 − β₂ᵗ in float32 is off by 1e-5.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp

from thalweg.optimizers.base import (
    SCALAR,
    At,
    Optimizer,
    Params,
    State,
    count,
    each,
    hyper,
    like,
    running_mean,
    running_mean_square,
    signed,
    switch,
    with_decay,
    zeros,
)

_BETAS = {"betas": ("beta1", "beta2")}


class Adam(Optimizer):
    """Adam (`torch.optim.Adam`; Kingma & Ba, 2015): w ← w − lr·m̂ / (√v̂ + ε).

    With `amsgrad` the greatest v so far takes the place of v (Reddi, Kale & Kumar, 2018). Weight
    decay is added to the gradient; with `decoupled_weight_decay` this is AdamW.

    Args:
        lr: the learning rate.
        betas: (β₁, β₂), each at least 0 and below 1.
        eps: ε.
        weight_decay: λ: λw is added to the gradient.
        amsgrad: use the greatest v so far.
        maximize: climb instead of descending.
        decoupled_weight_decay: shrink the weights instead, as AdamW does.
    """

    PAIRS: ClassVar[dict[str, tuple[str, str]]] = _BETAS

    lr: Any = hyper(1e-3)
    betas: Any = hyper((0.9, 0.999), high=1.0, open_high=True)
    eps: Any = hyper(1e-8)
    weight_decay: Any = hyper(0.0)
    amsgrad: bool = switch(False)
    maximize: bool = switch(False)
    decoupled_weight_decay: bool = switch(False)

    def init(self, params: Params) -> State:
        return _adam_state(self, params)

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        return _adam_step(self, at, params, state, step, self.decoupled_weight_decay)

    def preconditioner(self, at: At, params: Params, state: State, step: Any) -> Params:
        return _adam_preconditioner(self, at, params, state, step, self.decoupled_weight_decay)


class AdamW(Optimizer):
    """Adam with decoupled weight decay (`torch.optim.AdamW`; Loshchilov & Hutter, 2019).

    The weights shrink by 1 − lr·λ before Adam's step, and the averages do not see the decay.

    Args:
        lr: the learning rate.
        betas: (β₁, β₂), each at least 0 and below 1.
        eps: ε.
        weight_decay: λ.
        amsgrad: use the greatest v so far, as Adam does.
        maximize: climb instead of descending.
    """

    PAIRS: ClassVar[dict[str, tuple[str, str]]] = _BETAS

    lr: Any = hyper(1e-3)
    betas: Any = hyper((0.9, 0.999), high=1.0, open_high=True)
    eps: Any = hyper(1e-8)
    weight_decay: Any = hyper(1e-2)
    amsgrad: bool = switch(False)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        return _adam_state(self, params)

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        return _adam_step(self, at, params, state, step, decoupled=True)

    def preconditioner(self, at: At, params: Params, state: State, step: Any) -> Params:
        return _adam_preconditioner(self, at, params, state, step, decoupled=True)


class NAdam(Optimizer):
    """Adam with Nesterov momentum (`torch.optim.NAdam`; Dozat, 2016).

    w ← w − lr·[(1 − μ_t) g / (1 − Πμ_i) + μ_{t+1} m / (1 − μ_{t+1} Πμ_i)] / (√v̂ + ε) with the
    product over i ≤ t and μ_t = β₁ (1 − ½·0.96^{t·momentum_decay}).

    Args:
        lr: the learning rate.
        betas: (β₁, β₂), each at least 0 and below 1.
        eps: ε.
        weight_decay: λ: λw is added to the gradient.
        momentum_decay: how fast μ_t rises to β₁.
        decoupled_weight_decay: shrink the weights instead, as AdamW does.
        maximize: climb instead of descending.
    """

    PAIRS: ClassVar[dict[str, tuple[str, str]]] = _BETAS

    lr: Any = hyper(2e-3)
    betas: Any = hyper((0.9, 0.999), high=1.0, open_high=True)
    eps: Any = hyper(1e-8)
    weight_decay: Any = hyper(0.0)
    momentum_decay: Any = hyper(4e-3)
    decoupled_weight_decay: bool = switch(False)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        return {**_averages(params), "mu_product": jnp.ones((), SCALAR)}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        params, g = _decayed(self, params, at.grad, self.decoupled_weight_decay)
        t = count(step)
        averages = _averaged(self, state, g)
        mu, mu_next = (
            self.betas[0] * (1 - 0.5 * 0.96 ** (i * self.momentum_decay)) for i in (t, t + 1)
        )
        product = state["mu_product"] * mu.astype(SCALAR)
        so_far = product.astype(float)
        by_gradient = self.lr * (1 - mu) / (1 - so_far)
        by_average = self.lr * mu_next / (1 - so_far * mu_next)
        correction2 = 1 - self.betas[1] ** t

        def move(w: Any, g: Any, m: Any, v: Any) -> Any:
            scale = jnp.sqrt(v / like(correction2, v)) + like(self.eps, v)
            return w - like(by_gradient, w) * g / scale - like(by_average, w) * m / scale

        params = each(move, params, g, averages["exp_avg"], averages["exp_avg_sq"])
        return params, {**averages, "mu_product": product}, {}


class RAdam(Optimizer):
    """Rectified Adam (`torch.optim.RAdam`; Liu et al., 2020): w ← w − lr·r_t·m̂ / (√v + ε).

    With ρ∞ = 2/(1 − β₂) − 1 and ρ_t = ρ∞ − 2tβ₂ᵗ/(1 − β₂ᵗ), the factor is
    r_t = √((1 − β₂ᵗ)(ρ_t − 4)(ρ_t − 2)ρ∞ / ((ρ∞ − 4)(ρ∞ − 2)ρ_t)) where ρ_t > 5. Before that the
    variance is not tractable and the step is that of momentum, w ← w − lr·m̂.

    Args:
        lr: the learning rate.
        betas: (β₁, β₂), each at least 0 and below 1.
        eps: ε.
        weight_decay: λ: λw is added to the gradient.
        decoupled_weight_decay: shrink the weights instead, as AdamW does.
        maximize: climb instead of descending.
    """

    PAIRS: ClassVar[dict[str, tuple[str, str]]] = _BETAS

    lr: Any = hyper(1e-3)
    betas: Any = hyper((0.9, 0.999), high=1.0, open_high=True)
    eps: Any = hyper(1e-8)
    weight_decay: Any = hyper(0.0)
    decoupled_weight_decay: bool = switch(False)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        return _averages(params)

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        params, g = _decayed(self, params, at.grad, self.decoupled_weight_decay)
        averages = _averaged(self, state, g)
        t = count(step)
        beta1, beta2 = self.betas
        correction2 = 1 - beta2**t
        longest = 2 / (1 - beta2) - 1
        length = longest - 2 * t * beta2**t / correction2
        tractable = length > 5
        # Where it is not, use a length whose root is real: a NaN would poison derivatives through `where`.
        length = jnp.where(tractable, length, longest)
        shrink = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        rectified = jnp.sqrt(correction2 * shrink)
        rate = self.lr / (1 - beta1**t)

        def move(w: Any, m: Any, v: Any) -> Any:
            adaptive = like(rectified, v) / (jnp.sqrt(v) + like(self.eps, v))
            return w - like(rate, w) * m * jnp.where(tractable, adaptive, 1)

        params = each(move, params, averages["exp_avg"], averages["exp_avg_sq"])
        return params, averages, {}


class Adamax(Optimizer):
    """Adam with the infinity norm (`torch.optim.Adamax`; Kingma & Ba, 2015, section 7.1).

    u_t = max(β₂ u_{t−1}, |g_t| + ε) and w ← w − lr·m̂ / u_t.

    Args:
        lr: the learning rate.
        betas: (β₁, β₂), each at least 0 and below 1.
        eps: ε.
        weight_decay: λ: λw is added to the gradient.
        maximize: climb instead of descending.
    """

    PAIRS: ClassVar[dict[str, tuple[str, str]]] = _BETAS

    lr: Any = hyper(2e-3)
    betas: Any = hyper((0.9, 0.999), high=1.0, open_high=True)
    eps: Any = hyper(1e-8)
    weight_decay: Any = hyper(0.0)
    maximize: bool = switch(False)

    def init(self, params: Params) -> State:
        return {"exp_avg": zeros(params), "exp_inf": zeros(params)}

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        beta1, beta2 = self.betas
        params, g = _decayed(self, params, at.grad, decoupled=False)
        m = running_mean(state["exp_avg"], g, 1 - beta1)
        u = each(
            lambda u, g: jnp.maximum(like(beta2, u) * u, jnp.abs(g) + like(self.eps, g)),
            state["exp_inf"],
            g,
        )
        rate = self.lr / (1 - beta1 ** count(step))
        params = each(lambda w, m, u: w - like(rate, w) * m / u, params, m, u)
        return params, {"exp_avg": m, "exp_inf": u}, {}


def _adam_state(rule: Adam | AdamW, params: Params) -> State:
    return {**_averages(params), **({"max_exp_avg_sq": zeros(params)} if rule.amsgrad else {})}


def _adam_step(
    rule: Adam | AdamW, at: At, params: Params, state: State, step: Any, decoupled: bool
) -> tuple[Params, State, dict[str, Any]]:
    params, new, divisor = _adam_averages(rule, at, params, state, step, decoupled)
    rate = rule.lr / (1 - rule.betas[0] ** count(step))
    params = each(lambda w, m, d: w - like(rate, w) * m / d, params, new["exp_avg"], divisor)
    return params, new, {}


def _adam_preconditioner(
    rule: Adam | AdamW, at: At, params: Params, state: State, step: Any, decoupled: bool
) -> Params:
    """(1 − β₁ᵗ)(√v̂ + ε): the divisor of steps along the average m, which thus includes the bias correction
    of m (Cohen et al., 2022, equation 2)."""
    divisor = _adam_averages(rule, at, params, state, step, decoupled)[2]
    return each(lambda d: like(1 - rule.betas[0] ** count(step), d) * d, divisor)


def _adam_averages(
    rule: Adam | AdamW, at: At, params: Params, state: State, step: Any, decoupled: bool
) -> tuple[Params, State, Params]:
    """The decayed parameters, the new averages, and √v̂ + ε."""
    params, g = _decayed(rule, params, at.grad, decoupled)
    new = _averaged(rule, state, g)
    square = new["exp_avg_sq"]
    if rule.amsgrad:
        square = each(jnp.maximum, state["max_exp_avg_sq"], square)
        new["max_exp_avg_sq"] = square
    root2 = jnp.sqrt(1 - rule.betas[1] ** count(step))
    divisor = each(lambda v: jnp.sqrt(v) / like(root2, v) + like(rule.eps, v), square)
    return params, new, divisor


def _decayed(rule: Any, params: Params, grad: Params, decoupled: bool) -> tuple[Params, Params]:
    """Parameters and gradient, with weight decay applied to the parameters if `decoupled`, else to the
    gradient."""
    g = signed(grad, rule.maximize)
    if not decoupled:
        return params, with_decay(g, params, rule.weight_decay)
    return each(lambda w: like(1 - rule.lr * rule.weight_decay, w) * w, params), g


def _averages(params: Params) -> State:
    return {"exp_avg": zeros(params), "exp_avg_sq": zeros(params)}


def _averaged(rule: Any, state: State, g: Params) -> State:
    """The running averages of the gradient and of its square, after this gradient."""
    beta1, beta2 = rule.betas
    return {
        "exp_avg": running_mean(state["exp_avg"], g, 1 - beta1),
        "exp_avg_sq": running_mean_square(state["exp_avg_sq"], g, beta2),
    }
