"""L-BFGS: quasi-Newton steps from a short history of gradients."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.errors import InputError, is_number, one_of
from thalweg.optimizers.base import At, Optimizer, Params, State, hyper, known, like, switch
from thalweg.optimizers.wolfe import Point, strong_wolfe
from thalweg.params import Layout

_CURVED = 1e-10  # a pair with yᵀs below this is not kept: it would spoil positive definiteness
# From so many numbers on, vectors are padded to a multiple of _LANES: XLA takes five times as long for a row
# of the history that does not begin where a vector register may be loaded from.
_MANY, _LANES = 1024, 16


class LBFGS(Optimizer):
    """Limited-memory BFGS (`torch.optim.LBFGS`; Nocedal & Wright, 2006, algorithm 7.4).

    One step of the loop is up to `max_iter` iterations x ← x − t·H∇f(x) on that step's batch, H the
    inverse Hessian that the last `history_size` pairs (s, y) of moves and gradient differences make. t
    is `lr` (in the very first iteration lr·min(1, 1/‖∇f‖₁)), or with `line_search_fn="strong_wolfe"`
    found by a line search from there. The iterations end at `max_eval` evaluations (by default
    5/4·max_iter), where max|∇f| ≤ tolerance_grad, or where the loss or every parameter moves by less
    than tolerance_change. A step records its `evaluations` of the loss.

    Args:
        lr: the length of a step along H∇f, or the line search's first trial.
        max_iter: iterations per step.
        max_eval: evaluations of the loss per step, 5/4·max_iter by default.
        tolerance_grad: a step ends where no entry of the gradient is larger.
        tolerance_change: a step ends where the loss, or every parameter, moves by less.
        history_size: how many pairs are kept; each takes 2p numbers.
        line_search_fn: None, or "strong_wolfe".
    """

    lr: Any = hyper(1.0)
    max_iter: int = switch(20)
    max_eval: int | None = switch(None)
    tolerance_grad: Any = hyper(1e-7, low=-math.inf)
    tolerance_change: Any = hyper(1e-9, low=-math.inf)
    history_size: int = switch(100)
    line_search_fn: str | None = switch(None)

    def check_together(self) -> None:
        if self.line_search_fn is not None:
            one_of("line_search_fn of LBFGS:", self.line_search_fn, ("strong_wolfe",))
        if self.line_search_fn and (known(self.lr) == 0).any():
            raise InputError("LBFGS: a line search needs a first trial; lr must be above 0.")
        for name in ("max_iter", "max_eval", "history_size"):
            value = getattr(self, name)
            if name == "max_eval" and value is None:
                continue
            if not (is_number(value) and hasattr(value, "__index__") and value >= 1):
                raise InputError(
                    f"LBFGS: {name} must be a whole number of at least 1; {value!r:.80} given."
                )

    def init(self, params: Params) -> State:
        zero = jnp.zeros_like(_flat(Layout.of(params), params))
        history = jnp.zeros((self.history_size, zero.size), zero.dtype)
        return {
            "d": zero,
            "t": jnp.zeros((), float),
            "old_dirs": history,  # y, a ring buffer: pair number i is in row i mod history_size
            "old_stps": history,  # s
            "ro": history[:, 0],  # 1 / yᵀs
            "pairs": jnp.zeros((), int),
            "H_diag": jnp.ones((), zero.dtype),
            "prev_flat_grad": zero,
            "n_iter": jnp.zeros((), int),
            "func_evals": jnp.zeros((), int),
        }

    def update(
        self, at: At, params: Params, state: State, step: Any
    ) -> tuple[Params, State, dict[str, Any]]:
        layout = Layout.of(params)

        def evaluate(x: Any) -> tuple[Any, Any]:
            value, gradient = at.value_and_gradient(layout.unflatten(x[: layout.size]))
            return jnp.asarray(value).astype(float), _flat(layout, gradient)

        gradient = _flat(layout, at.grad)
        walk = {
            "x": _flat(layout, params),
            "value": jnp.asarray(at.loss).astype(float),
            "gradient": gradient,
            "iteration": jnp.zeros((), int),
            "evaluations": jnp.ones((), int),
            "done": self._converged(gradient),
        }
        walk, state = jax.lax.while_loop(
            lambda carry: ~carry[0]["done"], partial(self._iterate, evaluate), (walk, state)
        )
        state["func_evals"] += walk["evaluations"]
        return (
            layout.unflatten(walk["x"][: layout.size]),
            state,
            {"evaluations": walk["evaluations"]},
        )

    def _converged(self, gradient: Any) -> Any:
        # not by the largest: XLA's maximum of many numbers passes over NaN
        return (jnp.abs(gradient) <= self.tolerance_grad).all()

    def _iterate(self, evaluate: Any, carry: tuple[dict[str, Any], State]) -> Any:
        walk, state = carry
        value, gradient = walk["value"], walk["gradient"]
        state = self._remember(state, gradient)
        d = _direction(state, gradient)
        start = jnp.where(state["n_iter"] == 0, _first_step(gradient), 1.0) * self.lr
        slope = jnp.sum(gradient * d).astype(float)
        stuck = slope > -self.tolerance_change
        last = walk["iteration"] + 1 == self.max_iter
        new, t, spent = jax.lax.cond(
            stuck,
            lambda: ((walk["x"], value, gradient), start, jnp.zeros((), int)),
            lambda: self._move(evaluate, walk, d, start, slope, last),
        )
        evaluations = walk["evaluations"] + spent
        done = stuck | last | (evaluations >= self._most_evaluations)
        done |= self._converged(new[2])
        done |= (jnp.abs(like(t, d) * d) <= self.tolerance_change).all()
        done |= jnp.abs(new[1] - value) < self.tolerance_change
        walk = {
            **dict(zip(("x", "value", "gradient"), new, strict=True)),
            "iteration": walk["iteration"] + 1,
            "evaluations": evaluations,
            "done": done,
        }
        last_move = {"d": d, "t": t, "prev_flat_grad": gradient, "n_iter": state["n_iter"] + 1}
        return walk, {**state, **last_move}

    @property
    def _most_evaluations(self) -> int:
        return self.max_iter * 5 // 4 if self.max_eval is None else self.max_eval

    def _move(
        self, evaluate: Any, walk: dict[str, Any], d: Any, t: Any, slope: Any, last: Any
    ) -> tuple[tuple[Any, Any, Any], Any, Any]:
        """A move along d: (point, value, gradient), the step length and the evaluations made."""
        x = walk["x"]
        if self.line_search_fn is None:
            x = x + like(t, d) * d
            # Like torch, do not evaluate after the last move: the next step does so, on its own batch.
            value, gradient = jax.lax.cond(
                last, lambda: (walk["value"], walk["gradient"]), lambda: evaluate(x)
            )
            return (x, value, gradient), t, jnp.where(last, 0, 1)

        def on_line(t: Any) -> Point:
            value, gradient = evaluate(x + like(t, d) * d)
            return Point(t, value, gradient, jnp.sum(gradient * d).astype(float))

        end, spent = strong_wolfe(
            on_line,
            Point(jnp.zeros((), float), walk["value"], walk["gradient"], slope),
            t,
            jnp.abs(d).max().astype(float),
            self._most_evaluations - walk["evaluations"],
        )
        return (x + like(end.t, d) * d, end.value, end.gradient), end.t, spent

    def _remember(self, state: State, gradient: Any) -> State:
        """The state with the last move's pair (s, y), if the loss curves upwards along it."""
        y = gradient - state["prev_flat_grad"]
        s = like(state["t"], state["d"]) * state["d"]
        ys = jnp.sum(y * s)
        keep = ys > _CURVED
        row = state["pairs"] % self.history_size

        def put(history: Any, value: Any) -> Any:
            return history.at[row].set(jnp.where(keep, value, history[row]))

        return {
            **state,
            "old_dirs": put(state["old_dirs"], y),
            "old_stps": put(state["old_stps"], s),
            "ro": put(state["ro"], 1 / ys),
            "pairs": state["pairs"] + keep,
            "H_diag": jnp.where(keep, ys / jnp.sum(y * y), state["H_diag"]),
        }


def _flat(layout: Layout, params: Params) -> Any:
    """A point or gradient as a vector; one of many numbers ends in up to 15 zeros."""
    vector = layout.flatten(params)
    return jnp.pad(vector, (0, -vector.size % _LANES if vector.size >= _MANY else 0))


def _first_step(gradient: Any) -> Any:
    return jnp.minimum(1, 1 / jnp.sum(jnp.abs(gradient))).astype(float)


def _direction(state: State, gradient: Any) -> Any:
    """−H∇f by the two-loop recursion. Without pairs, as at first, H is the identity."""
    dirs, steps, ro, pairs = (state[k] for k in ("old_dirs", "old_stps", "ro", "pairs"))
    size = len(ro)
    n_pairs = jnp.minimum(pairs, size)

    def back(i: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
        q, coefficients = carry
        row = (pairs - 1 - i) % size
        a = jnp.sum(steps[row] * q) * ro[row]
        return q - a * dirs[row], coefficients.at[row].set(a)

    def forth(i: Any, r: Any) -> Any:
        row = (pairs - n_pairs + i) % size
        b = jnp.sum(dirs[row] * r) * ro[row]
        return r + (coefficients[row] - b) * steps[row]

    q, coefficients = jax.lax.fori_loop(0, n_pairs, back, (-gradient, jnp.zeros_like(ro)))
    return jax.lax.fori_loop(0, n_pairs, forth, state["H_diag"] * q)
