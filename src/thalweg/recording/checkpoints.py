"""`trajectory`: a series of checkpoints, from memory or from files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from thalweg.errors import InputError, first_line, optional, unknown
from thalweg.params import Layout
from thalweg.problem import Problem, check_is_problem
from thalweg.recording.made import as_array, as_trajectory
from thalweg.stateful import holding

# the usual keys of the state_dict in a checkpoint that holds other things too
_KEYS = ("state_dict", "model_state_dict", "model", "net")


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
            like = Layout.of({name: as_array(state[name]) for name in _floating(state)})
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
    return as_trajectory(
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
        array = as_array(state[name])
        if array.shape != shape:
            raise InputError(
                f"checkpoint {number}: {name!r} has shape {array.shape}; expected {shape}."
            )
        parts.append(array.ravel())
    return np.concatenate(parts)


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
