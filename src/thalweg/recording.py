"""Trajectories of training that happened elsewhere: a PyTorch loop as it runs, or its checkpoints."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from thalweg import blocks, inputs, results
from thalweg.errors import InputError, first_line, one_of, optional, unknown, whole_number
from thalweg.names import coords
from thalweg.params import Layout
from thalweg.problem import Problem, check_is_problem, holding

_MEASURES = ("grad_norm", "movement", "relative_movement", "lr")
_RECORDED = ("params", "loss", "grad", *_MEASURES)
# the usual keys of the state_dict in a checkpoint that holds other things too
_KEYS = ("state_dict", "model_state_dict", "model", "net")


@contextmanager
def record(
    optimizer: Any,
    model: Any,
    *,
    record: Iterable[str] = ("params", "loss"),
    every: int = 1,
) -> Iterator[xr.Dataset]:
    """Record a PyTorch training loop of your own, as it runs.

        with thalweg.record(optimizer, model) as path:
            train()                     # the loop as it is
        thalweg.plot.loss(path)

    Any object with a `step` method is an optimizer here. The loss of a step is the one on which
    `backward` was called since the previous step, added up if it was called several times (accumulated
    gradients); with a closure, that of its first call. A loss that a `GradScaler` has scaled counts as it
    was before. A call that reaches none of the model's parameters, such as one on another model's loss,
    does not count, nor does one whose step was left out, as a scaler does where gradients overflow. Nothing
    in the loop is changed; while it runs, `torch.autograd.backward`, `torch.amp.GradScaler.scale`, the
    parameters' gradients and the optimizer's steps are watched.

    Args:
        model: the `nn.Module` whose parameters that require a gradient are recorded, by their names in
            the `state_dict`.
        record: of "params", "loss", "grad" (what the optimizer was given), "grad_norm", "movement",
            "relative_movement" and "lr" (of the first parameter group).
        every: record steps 0, every, 2·every, … and the last.

    Yields:
        A dataset, empty at first. When the block ends, by itself or by an exception, it becomes a
        trajectory as `thalweg.descend` gives it, without the batches, the optimizer's state, and the
        loss at the last iterate, which no step has computed. After an exception its status is
        "interrupted".

    Raises:
        InputError: objects without `step` or parameters, an optimizer of another model, an unknown record.
    """
    torch = optional("torch", "recording a PyTorch loop needs", "torch")
    wanted = (record,) if isinstance(record, str) else tuple(dict.fromkeys(record))
    for name in wanted:
        one_of("record", name, _RECORDED)
    if not callable(getattr(optimizer, "step", None)) or not hasattr(optimizer, "__dict__"):
        raise InputError(f"an optimizer with a step method was expected, {optimizer!r:.80} given.")
    if not isinstance(model, torch.nn.Module):
        raise InputError(f"an nn.Module was expected, {type(model).__name__} given.")
    named = sorted(inputs.unwrapped(model).named_parameters())
    tensors = {n: p for n, p in named if p.requires_grad}
    if not tensors:
        raise InputError("the model has no parameters that require a gradient.")
    moved = {id(p) for group in _groups(optimizer) for p in group.get("params", ())}
    if moved and moved.isdisjoint(map(id, tensors.values())):
        raise InputError(
            "the optimizer moves none of this model's parameters: make it of model.parameters(), after the "
            "model."
        )
    tape = _Tape(tensors, optimizer, wanted, whole_number("every", every, 1))
    path = xr.Dataset()
    status = "interrupted"
    try:
        with _watched(torch, optimizer, tape):
            yield path
        status = "completed"
    finally:
        tape.end()
        _become(path, tape.trajectory(status))


def trajectory(
    checkpoints: Iterable[Any],
    problem: Problem | None = None,
    *,
    steps: Iterable[int] | None = None,
    key: str | None = None,
) -> xr.Dataset:
    """A trajectory from a series of checkpoints of training that happened elsewhere.

    Args:
        checkpoints: `state_dict`s, or files of them in order: PyTorch's (read with `weights_only=True`:
            a file is never unpickled) or safetensors. With a problem also points as `Problem.at` takes
            them: pytrees, vectors (p,), iterates.
        problem: whose parameters to take (`thalweg.from_torch`), and whose risk then is the
            trajectory's loss; without it all floating-point entries are taken, and the loss is NaN.
            What a module holds beside its parameters (running statistics) is each checkpoint's own.
        steps: the step of each checkpoint; 0, 1, … without it.
        key: where in a checkpoint the state_dict is, as in "ema"; by default it is looked for under
            the usual names.

    Raises:
        InputError: files that hold no state_dict, entries that are missing or of another shape.
    """
    if isinstance(checkpoints, (str, os.PathLike, Mapping)):
        raise InputError("a series of checkpoints was expected, as in [first, second]; one given.")
    if not isinstance(checkpoints, Iterable):
        raise InputError(
            f"a series of checkpoints was expected, as in [first, second]; {checkpoints!r:.80} given."
        )
    if problem is not None:
        check_is_problem(problem)
    if not isinstance(key, (str, type(None))):
        raise InputError(f"key must be a checkpoint's key, as in 'ema'; {key!r:.80} given.")
    rows: list[np.ndarray] = []
    losses: list[float | None] = []
    like = None if problem is None else problem.layout
    for number, checkpoint in enumerate(checkpoints):
        if problem is not None:
            row, loss = _at(problem, checkpoint, key, number)
            rows.append(row)
            losses.append(loss)
            continue
        state = _state_dict(checkpoint, key, number)
        if like is None:  # the order that a problem with these tensors would have
            like = Layout.of({name: _array(state[name]) for name in _floating(state)})
        rows.append(_row(state, like, number))
        losses.append(None)
    if not rows or like is None:
        raise InputError("no checkpoints were given.")
    try:
        at = np.arange(len(rows)) if steps is None else np.asarray(list(steps))
    except (TypeError, ValueError):  # no series, or one of several lengths
        at = np.empty(0)
    whole = at.shape == (len(rows),) and at.dtype.kind in "iu"
    if not whole or at[0] < 0 or (np.diff(at.astype(np.int64)) <= 0).any():
        raise InputError(
            f"steps= must hold an increasing whole number, from 0 on, for each of the {len(rows)} "
            f"checkpoints."
        )
    data = {"params": np.stack(rows), "loss": np.array(losses)}
    return _trajectory(
        at, like.names, data, "completed", {"name": "checkpoints"}, (rows[0], rows[-1])
    )


def _at(
    problem: Problem, checkpoint: Any, key: str | None, number: int
) -> tuple[np.ndarray, float]:
    """A checkpoint as a vector (p,), and the risk there, with the checkpoint's own buffers."""

    def vector_and_loss(problem: Problem, point: Any) -> tuple[np.ndarray, float]:
        loss = float(problem.risk(point))  # raises for what is no point of the problem
        return np.asarray(problem.flatten(point)), loss

    if key is None and not isinstance(checkpoint, (str, os.PathLike)):
        try:
            return vector_and_loss(problem, checkpoint)
        except InputError as error:  # a mapping may be a state_dict, or hold one
            if not isinstance(checkpoint, Mapping):
                raise InputError(f"checkpoint {number}: {error}") from None
    state = _state_dict(checkpoint, key, number)
    problem_there = holding(problem, state)
    with contextlib.suppress(InputError):
        return vector_and_loss(problem_there, state)
    # the state_dict has further entries, or lacks some, which _row reports
    return vector_and_loss(problem_there, problem.unflatten(_row(state, problem.layout, number)))


def _row(state: Mapping[str, Any], layout: Layout, number: int) -> np.ndarray:
    """The entries of a state_dict as a vector (p,)."""
    parts = []
    for name, shape in zip(layout.leaf_names, layout.shapes, strict=True):
        if name not in state:
            raise InputError(f"checkpoint {number} has no entry {name!r}.")
        array = _array(state[name])
        if array.shape != shape:
            raise InputError(
                f"checkpoint {number}: {name!r} has shape {array.shape}; expected {shape}."
            )
        parts.append(array.ravel())
    return np.concatenate(parts)


# A loop as it runs ---------------------------------------------------------------------------


class _Tape:
    """What is recorded of a running loop."""

    def __init__(
        self, tensors: dict[str, Any], optimizer: Any, wanted: tuple[str, ...], every: int
    ) -> None:
        self.tensors, self.optimizer, self.wanted, self.every = tensors, optimizer, wanted, every
        self.names = Layout.of({n: _array(p) for n, p in tensors.items()}).names
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
        return np.concatenate([_array(p).ravel() for p in self.tensors.values()])

    def before_backward(self) -> None:
        self.reached = False
        # gradients zeroed without a step (a GradScaler skips steps that overflow): drop that loss. Untouched
        # since the last backward pass, zeros are the gradient of that loss.
        zeros = not any(map(_has_gradient, self.tensors.values()))
        if not self.closed and zeros and self._versions() != self.versions:
            self.loss = None

    def after_backward(self, tensors: Any) -> None:
        """Count a loss that was differentiated, before a step or within one. A closure may be evaluated
        several times: only the first evaluation is at the iterate."""
        if not self.reached or self.closed:
            return
        self.versions = self._versions()
        for tensor in tensors if isinstance(tensors, (list, tuple)) else [tensors]:
            scalar = hasattr(tensor, "numel") and tensor.numel() == 1
            if scalar and not tensor.is_complex():
                self.loss = (self.loss or 0.0) + float(_unscaled.get(tensor, tensor).detach())
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
            groups = _groups(self.optimizer)
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
            else _array(p.grad).ravel()
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
        return _trajectory(np.array(self.steps), self.names, data, status, rule, ends)


_tapes: list[tuple[int, _Tape]] = []  # the active recordings, each with its loop's thread
_changing = threading.Lock()
_own_backward: Any = None
_own_scale: Any = None
_unscaled: Any = None  # maps a loss scaled by a GradScaler to the loss before


@contextmanager
def _hearing(torch: Any, tape: _Tape) -> Iterator[None]:
    """Report every backward pass of this thread to the tape. All tapes share one patch of PyTorch, undone
    when the last one ends, so that recordings may end in any order."""
    global _own_backward, _own_scale, _unscaled
    entry, scaler = (threading.get_ident(), tape), torch.amp.GradScaler
    with _changing:
        if not _tapes:
            _unscaled = importlib.import_module("torch.utils.weak").WeakTensorKeyDictionary()
            _own_backward, torch.autograd.backward = torch.autograd.backward, _watched_backward
            _own_scale, scaler.scale = scaler.scale, _watched_scale
        _tapes.append(entry)
    try:
        yield
    finally:
        with _changing:
            _tapes.remove(entry)
            if not _tapes:
                torch.autograd.backward, scaler.scale = _own_backward, _own_scale


def _watched_backward(tensors: Any, *args: Any, **kwargs: Any) -> Any:
    # a lone recording also hears other threads: its loop may run in one
    running, thread_id = list(_tapes), threading.get_ident()
    here = [tape for thread, tape in running if thread == thread_id or len(running) == 1]
    for tape in here:
        tape.before_backward()
    _own_backward(tensors, *args, **kwargs)
    for tape in here:
        tape.after_backward(tensors)


def _watched_scale(scaler: Any, outputs: Any) -> Any:
    """`GradScaler.scale`, which also remembers the unscaled loss of each result."""
    scaled = _own_scale(scaler, outputs)
    if inputs.is_tensor(outputs) and scaled is not outputs:
        _unscaled[scaled] = outputs.detach()
    return scaled


def _has_gradient(parameter: Any) -> bool:
    """Whether something has been added to a parameter's gradient since it was set to None or zero."""
    gradient = parameter.grad
    return gradient is not None and (gradient.is_sparse or bool(gradient.any()))


@contextmanager
def _watched(torch: Any, optimizer: Any, tape: _Tape) -> Iterator[None]:
    """Report every backward pass and every step to the tape; all hooks are removed afterwards."""

    def reached(_: Any) -> None:
        tape.reached = True

    with contextlib.ExitStack() as stack:
        for parameter in tape.tensors.values():
            stack.callback(parameter.register_post_accumulate_grad_hook(reached).remove)
        stack.enter_context(_hearing(torch, tape))
        if isinstance(optimizer, torch.optim.Optimizer):

            def begins(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                return tape.before_step(1, args, kwargs)  # the hook's args begin with the optimizer

            before = optimizer.register_step_pre_hook(begins)
            after = optimizer.register_step_post_hook(lambda *_: tape.after_step())
            stack.callback(before.remove)
            stack.callback(after.remove)
        else:
            stack.enter_context(_wrapped(optimizer, tape))
        yield


@contextmanager
def _wrapped(optimizer: Any, tape: _Tape) -> Iterator[None]:
    """Wrap `step` of an optimizer that has no hooks."""
    step, is_instance_attribute = optimizer.step, "step" in vars(optimizer)

    def watched(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tape.before_step(0, args, kwargs)
        returned = step(*args, **kwargs)
        tape.after_step()
        return returned

    optimizer.step = watched
    try:
        yield
    finally:
        if is_instance_attribute:
            optimizer.step = step
        else:
            del optimizer.step


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    return getattr(optimizer, "param_groups", None) or []


def _hyperparameters(optimizer: Any) -> dict[str, Any]:
    """The hyperparameters that are equal in all parameter groups, with their current values."""

    def of_group(group: dict[str, Any]) -> dict[str, Any]:
        numbers = {k: v.item() if _is_one(v) else v for k, v in group.items() if k != "params"}
        betas = numbers.pop("betas", None)
        numbers |= {"beta1": float(betas[0]), "beta2": float(betas[1])} if betas else {}
        return {k: v for k, v in numbers.items() if isinstance(v, (bool, int, float))}

    first, *others = map(of_group, _groups(optimizer)) if _groups(optimizer) else [{}]
    return {k: v for k, v in first.items() if all(other.get(k) == v for other in others)}


def _is_one(value: Any) -> bool:
    """Whether this is a tensor with one entry, as learning rates may be."""
    return inputs.is_tensor(value) and value.numel() == 1


def _become(dataset: xr.Dataset, other: xr.Dataset) -> None:
    """Fill a dataset in place: the caller holds it already."""
    dataset.update(other)
    dataset.attrs.update(other.attrs)


# Checkpoints ---------------------------------------------------------------------------------


def _state_dict(checkpoint: Any, key: str | None, number: int) -> Mapping[str, Any]:
    """The tensors of a checkpoint, by name."""
    if isinstance(checkpoint, (str, os.PathLike)):
        checkpoint = _read(Path(checkpoint))
    if key is not None:
        if not isinstance(checkpoint, Mapping) or key not in checkpoint:
            known = list(checkpoint) if isinstance(checkpoint, Mapping) else []
            raise unknown(f"key of checkpoint {number}", key, map(str, known))
        checkpoint = checkpoint[key]
    elif isinstance(checkpoint, Mapping) and not _floating(checkpoint):
        inner = [checkpoint[name] for name in _KEYS if isinstance(checkpoint.get(name), Mapping)]
        checkpoint = inner[0] if inner else checkpoint
    if not isinstance(checkpoint, Mapping) or not _floating(checkpoint):
        raise InputError(
            f"checkpoint {number} holds no state_dict; say under which key it is with key=."
        )
    return checkpoint


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no file {path}.")
    if path.suffix == ".safetensors":
        return optional("safetensors.torch", "this file needs", "torch").load_file(path)
    torch = optional("torch", "PyTorch's checkpoints need", "torch")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises what its readers do
        raise InputError(
            f"{path} cannot be read as weights alone, and a file is never unpickled: "
            f"{first_line(error)}."
        ) from error


def _floating(state: Mapping[str, Any]) -> list[str]:
    """The names of a state_dict's floating-point entries."""
    return [
        name
        for name, value in state.items()
        if isinstance(name, str) and hasattr(value, "shape") and "float" in str(value.dtype)
    ]


def _array(tensor: Any) -> np.ndarray:
    """A tensor copied to an array; half precision becomes float32, as netCDF has no such type."""
    if inputs.is_tensor(tensor):  # dense: an embedding's gradient may be sparse
        tensor = inputs.of_tensor(tensor.to_dense())
    array = np.array(tensor)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _trajectory(
    steps: np.ndarray,
    names: Sequence[str],
    data: dict[str, np.ndarray],
    status: str,
    optimizer: dict[str, Any],
    ends: tuple[np.ndarray, np.ndarray],
) -> xr.Dataset:
    """A trajectory in the schema of `descend`, without an optimizer's state; `data` is modified in place. Of
    losses, None means unknown."""
    start, final = ends
    bad = np.zeros(len(steps), bool)
    bad[-1] = not np.isfinite(final).all()
    if "params" in data:
        bad |= ~np.isfinite(data["params"]).all(axis=1)
    if "loss" in data:
        # NaN is a loss that was computed, and may be so at parameters that are finite
        bad |= [loss is not None and not np.isfinite(loss) for loss in data["loss"]]
        data["loss"] = data["loss"].astype(float)  # what is unknown becomes NaN
    diverged_at = int(steps[np.argmax(bad)]) if bad.any() else -1
    variables: dict[str, Any] = {}
    for name, values in data.items():
        if diverged_at >= 0:
            values[steps >= diverged_at] = np.nan
        variables[name] = (("step", "param") if values.ndim == 2 else ("step",), values)
    variables["start"] = ("param", start)
    variables["final"] = ("param", np.full_like(final, np.nan) if bad.any() else final)
    variables["status"] = ((), "diverged" if diverged_at >= 0 else status)
    variables["diverged_at"] = ((), np.int64(diverged_at))
    variables["stopped_at"] = ((), np.int64(-1))
    attrs = results.provenance(
        "trajectory",
        {"optimizer": optimizer, "record": list(data), "recorded": True},
        dtype=str(start.dtype),
        device="",
        last_step=int(steps[-1]),
        interrupted=int(status == "interrupted"),
    )
    return xr.Dataset(variables, coords={"step": steps.astype(int), **coords(names)}, attrs=attrs)
