"""`record`: a PyTorch loop, recorded as it runs."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import xarray as xr

from thalweg import inputs
from thalweg.errors import InputError, one_of, optional, whole_number
from thalweg.recording.tape import Tape, parameter_groups

_MEASURES = ("grad_norm", "movement", "relative_movement", "lr")
_RECORDED = ("params", "loss", "grad", *_MEASURES)

_tapes: list[tuple[int, Tape]] = []  # the active recordings, each with its loop's thread
_changing = threading.Lock()
_own_backward: Any = None
_own_scale: Any = None
_unscaled: Any = None  # maps a loss scaled by a GradScaler to the loss before


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
    moved = {id(p) for group in parameter_groups(optimizer) for p in group.get("params", ())}
    if moved and moved.isdisjoint(map(id, tensors.values())):
        raise InputError(
            "the optimizer moves none of this model's parameters: make it of model.parameters(), after the "
            "model."
        )
    tape = Tape(tensors, optimizer, wanted, whole_number("every", every, 1))
    path = xr.Dataset()
    status = "interrupted"
    try:
        with _watched(torch, optimizer, tape):
            yield path
        status = "completed"
    finally:
        tape.end()
        _become(path, tape.trajectory(status))


@contextmanager
def _hearing(torch: Any, tape: Tape) -> Iterator[None]:
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
        tape.after_backward(tensors, _unscaled)


def _watched_scale(scaler: Any, outputs: Any) -> Any:
    """`GradScaler.scale`, which also remembers the unscaled loss of each result."""
    scaled = _own_scale(scaler, outputs)
    if inputs.is_tensor(outputs) and scaled is not outputs:
        _unscaled[scaled] = outputs.detach()
    return scaled


@contextmanager
def _watched(torch: Any, optimizer: Any, tape: Tape) -> Iterator[None]:
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
def _wrapped(optimizer: Any, tape: Tape) -> Iterator[None]:
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


def _become(dataset: xr.Dataset, other: xr.Dataset) -> None:
    """Fill a dataset in place: the caller holds it already."""
    dataset.update(other)
    dataset.attrs.update(other.attrs)
