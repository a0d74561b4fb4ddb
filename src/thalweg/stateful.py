"""Models with arrays beside their parameters."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

from jax.tree_util import Partial

from thalweg import identity


class StatefulModel(abc.ABC):
    """A model with arrays beside its parameters: running statistics, frozen weights. The `predict` of its
    problem is a `Partial` of it with these arrays, by name, as its one argument."""

    @abc.abstractmethod
    def parameters_of(self, held: dict[str, Any], entries: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters among a checkpoint's entries; an InputError where the others are not as held."""

    @abc.abstractmethod
    def described(self) -> dict[str, Any]:
        """What a result's settings say of the model."""

    @abc.abstractmethod
    def held_of(self, held: dict[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
        """`held` with the values that a checkpoint has for it."""


def model_with_state(problem: Any) -> StatefulModel | None:
    """The model of a problem, if it holds more than parameters."""
    model = identity.written(problem.predict)
    return model if isinstance(model, StatefulModel) else None


def holding(problem: Any, entries: Mapping[str, Any]) -> Any:
    """A PyTorch module's problem, with the entries of a `state_dict` other than the parameters (running
    statistics, frozen weights) in place of its own; any other problem as it is."""
    model = model_with_state(problem)
    if model is None:
        return problem
    held = model.held_of(problem.predict.args[0], entries)
    return problem.replace(predict=Partial(problem.predict.func, held))
