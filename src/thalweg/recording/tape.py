"""What is recorded of a PyTorch loop, from the passes and steps that it is told of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from thalweg import blocks, inputs
from thalweg.params import Layout
from thalweg.recording.made import as_array, as_trajectory


class Tape:
    """What is recorded of a running loop."""

    def __init__(
        self, tensors: dict[str, Any], optimizer: Any, wanted: tuple[str, ...], every: int
    ) -> None:
        self.tensors, self.optimizer, self.wanted, self.every = tensors, optimizer, wanted, every
        self.names = Layout.of({n: as_array(p) for n, p in tensors.items()}).names
        self.hyperparameters = _hyperparameters(optimizer)
        self.changed: set[str] = set()  # hyperparameters that the loop has changed
        self.start = self._now()
        self.step = 0
        self.inside = self.closed = False  # within a step; within one whose gradient is complete
        self.with_closure = False  # within a step that was called with a closure
        self.reached = False  # whether the current backward pass reached the model's parameters
        self.loss: float | None = None
        self.versions: list[Any] = []  # of the gradients, after the last backward pass
        self.steps: list[int] = []
        self.rows: dict[str, list[Any]] = {name: [] for name in wanted}

    def _now(self) -> np.ndarray:
        return np.concatenate([as_array(p).ravel() for p in self.tensors.values()])

    def before_backward(self) -> None:
        self.reached = False
        # gradients zeroed without a step (a GradScaler skips steps that overflow): drop that loss. Untouched
        # since the last backward pass, zeros are the gradient of that loss.
        touched = not self.closed and self._versions() != self.versions
        if touched and not any(map(_has_gradient, self.tensors.values())):
            self.loss = None

    def after_backward(self, tensors: Any, unscaled: Mapping[Any, Any]) -> None:
        """Count a loss that was differentiated, before a step or within one. A closure may be evaluated
        several times: only the first evaluation is at the iterate. `unscaled` has the loss of each that a
        GradScaler has scaled."""
        if not self.reached or self.closed:
            return
        self.versions = self._versions()
        for tensor in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
            scalar = hasattr(tensor, "numel") and tensor.numel() == 1
            if scalar and not tensor.is_complex():
                self.loss = (self.loss or 0.0) + float(unscaled.get(tensor, tensor).detach())
        if self.inside and not self.with_closure:
            self.after_closure()

    def _versions(self) -> list[Any]:
        """How often each gradient was changed in place; None where there is none."""
        gradients = (p.grad for p in self.tensors.values())
        return [None if gradient is None else gradient._version for gradient in gradients]

    def after_closure(self) -> None:
        """The step's gradient is complete: the closure has run all its backward passes, and any clipping."""
        if not self.closed and self.steps and self.steps[-1] == self.step:
            for name in {"grad", "grad_norm"} & self.rows.keys():
                self.rows[name][-1] = self._gradient(name)
        self.closed = True

    def before_step(self, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step's arguments with its closure wrapped, if there is one; it is positional argument `place`."""
        # hooks are called twice where a user's step() calls super().step()
        if not self.inside:
            self.inside = True
            now = _hyperparameters(self.optimizer)
            before = self.hyperparameters
            self.changed |= {name for name in before if now.get(name) != before[name]}
            if self.step % self.every == 0:
                self._check_memory()
                self._write(with_gradient=True)
        closure = args[place] if len(args) > place else kwargs.get("closure")
        if closure is None:
            return args, kwargs
        self.with_closure = True

        def watched() -> Any:
            value = closure()
            self.after_closure()
            return value

        if len(args) > place:
            return (*args[:place], watched, *args[place + 1 :]), kwargs
        return args, {**kwargs, "closure": watched}

    def after_step(self) -> None:
        if not self.inside:
            return
        if "loss" in self.rows and self.steps and self.steps[-1] == self.step:
            self.rows["loss"][-1] = self.loss
        self.inside = self.closed = self.with_closure = False
        self.loss = None
        self.step += 1

    def end(self) -> None:
        """Record the last iterate, at which neither loss nor gradient was computed."""
        self.loss = None
        if not self.steps or self.steps[-1] != self.step:
            self._write(with_gradient=False)

    def _check_memory(self) -> None:
        """An InputError if twice as many rows would not fit in memory, checked at 0, 1, 2, 4, … rows; never
        at the end, when it would lose the whole recording for one row."""
        count = len(self.steps)
        if count & (count - 1) == 0:
            kept = sum(name in ("params", "grad") for name in self.wanted)
            blocks.check_memory(
                max(count, 1) * kept * self.start.nbytes,
                f"{max(count, 1)} more recorded iterates of {self.start.size} parameters",
                "record fewer with every=, or leave params out of record=",
            )

    def _write(self, with_gradient: bool) -> None:
        now = self._now()
        row = {name: self._value(name, now, with_gradient) for name in self.wanted}
        # after the row's values, so that an interrupt leaves no partial row
        self.steps.append(self.step)
        for name, value in row.items():
            self.rows[name].append(value)

    def _value(self, name: str, now: np.ndarray, with_gradient: bool) -> Any:
        if name == "params":
            return now
        if name == "loss":
            return self.loss
        if name == "lr":
            groups = parameter_groups(self.optimizer)
            return float(groups[0]["lr"]) if groups and "lr" in groups[0] else np.nan
        if name in ("grad", "grad_norm"):
            return self._gradient(name, known=with_gradient)
        moved = float(np.linalg.norm((now - self.start).astype(float)))
        size = float(np.linalg.norm(self.start.astype(float)))
        return moved / (size or 1.0) if name == "relative_movement" else moved

    def _gradient(self, name: str, known: bool = True) -> Any:
        """The gradient that the optimizer sees, or its norm; NaN if not `known`."""
        parts = [
            np.full(p.numel(), 0.0 if known else np.nan)
            if p.grad is None or not known
            else as_array(p.grad).ravel()
            for p in self.tensors.values()
        ]
        gradient = np.concatenate(parts).astype(self.start.dtype)
        return gradient if name == "grad" else float(np.linalg.norm(gradient.astype(float)))

    def trajectory(self, status: str) -> xr.Dataset:
        # popped one by one, so that only one record is in memory twice
        data = {name: np.array(self.rows.pop(name)) for name in list(self.rows)}
        rule = {"name": type(self.optimizer).__name__, **self.hyperparameters}
        if self.changed:
            rule["changed"] = sorted(self.changed)
        ends = self.start, self._now()
        return as_trajectory(np.array(self.steps), self.names, data, status, rule, ends)


def _has_gradient(parameter: Any) -> bool:
    """Whether something has been added to a parameter's gradient since it was set to None or zero."""
    gradient = parameter.grad
    return gradient is not None and (gradient.is_sparse or bool(gradient.any()))


def parameter_groups(optimizer: Any) -> list[dict[str, Any]]:
    return getattr(optimizer, "param_groups", None) or []


def _hyperparameters(optimizer: Any) -> dict[str, Any]:
    """The hyperparameters that are equal in all parameter groups, with their current values."""

    def of_group(group: dict[str, Any]) -> dict[str, Any]:
        numbers = {k: v.item() if _is_one(v) else v for k, v in group.items() if k != "params"}
        betas = numbers.pop("betas", None)
        numbers |= {"beta1": float(betas[0]), "beta2": float(betas[1])} if betas else {}
        return {k: v for k, v in numbers.items() if isinstance(v, (bool, int, float))}

    first, *others = (
        map(of_group, parameter_groups(optimizer)) if parameter_groups(optimizer) else [{}]
    )
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def _is_one(value: Any) -> bool:
    """Whether this is a tensor with one entry, as learning rates may be."""
    return inputs.is_tensor(value) and value.numel() == 1
