"""The largest curvature at which a descent's optimizer is stable, from the descent's result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from thalweg import results
from thalweg.errors import InputError

KNOWN = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")


def rule_of(path: xr.Dataset) -> str | None:
    """The name of the optimizer of ours or of PyTorch's that made a trajectory, None where none did: a class
    of the user's own may have the same name."""
    settings = results.settings_of(path).get("optimizer", {})
    return None if "class" in settings else settings.get("name")


def stability_threshold(path: xr.Dataset) -> xr.DataArray:
    """The largest eigenvalue at which a descent's optimizer is stable, for each of its members.

    On a quadratic of curvature λ, full batch, with learning rate η:

    - gradient descent: λ < 2/η; with (heavy-ball) momentum μ and dampening τ, λ < 2 (1 + μ) / (η (1 − τ));
      with Nesterov's, λ < 2 (1 + μ) / (η (1 + 2μ)) (Cohen et al., 2021, equations 1 and 2). Weight decay
      adds to λ and is taken off.
    - Adam, AdamW: λ is that of the preconditioned Hessian, λ < 2 (1 + β₁) / ((1 − β₁) η), 38/η for
      β₁ = 0.9 (Cohen et al., 2022, section 3). Decoupled weight decay ω makes it 2 − ηω instead of 2;
      any other weight decay is part of the matrix that is preconditioned: H + ωI, not H. RMSprop with
      momentum μ: λ < 2 (1 + μ) / η. Adagrad: 2/η.

    Where a hyperparameter followed a schedule the threshold has a dimension `step` too; for a PyTorch
    loop, if `record=` had "lr".

    Raises:
        InputError: a trajectory of another optimizer; a loop whose hyperparameters changed unrecorded, or
            differ between groups of parameters.
    """
    if not isinstance(path, xr.Dataset):
        raise InputError(f"a trajectory was expected, {type(path).__name__} given.")
    settings = results.settings_of(path).get("optimizer", {})
    name = rule_of(path)

    def value(key: str) -> Any:
        if key in path.coords:  # swept, or one of a sweep
            return path[key]
        if f"schedule_{key}" in path:
            # the table has one entry per update; the last iterate takes the last update's
            table = path[f"schedule_{key}"].values
            table = table if len(table) else np.full(1, np.nan)
            first = int(results.settings_of(path)["first_step"])
            at = np.clip(path["step"].values - first, 0, len(table) - 1)
            return xr.DataArray(table[at], dims="step", coords={"step": path["step"]})
        if key in settings.get("changed", ()):  # by a PyTorch loop, as it ran
            if key in path:
                return path[key]
            remedy = "record it, with record=['lr', …]" if key == "lr" else "and it is not recorded"
            raise InputError(f"the loop changed its {key} as it ran: {remedy}.")
        if key not in settings:
            raise InputError(
                f"this trajectory does not say with which {key} {name} made it; where groups of parameters "
                f"have their own, there is no one threshold."
            )
        return np.float64(settings[key])

    if name not in KNOWN:
        raise InputError(
            f"the stability threshold is known for {', '.join(KNOWN)}; this trajectory was made by "
            f"{settings.get('class') or name or 'none of them'}."
        )
    with np.errstate(divide="ignore"):  # a learning rate of 0 is stable on everything
        limit = _limit(name, value, settings)
    threshold = xr.DataArray(limit, name="threshold").reset_coords(drop=True)
    order = [d for d in ("step", *results.member_dims(path)) if d in threshold.dims]
    return threshold.transpose(*order)


def _limit(name: str, value: Callable[[str], Any], settings: dict[str, Any]) -> Any:
    """The threshold of an optimizer whose hyperparameters `value` gives."""
    lr = value("lr")
    if name == "SGD":
        momentum = value("momentum")
        if value("nesterov"):
            limit = 2 * (1 + momentum) / (lr * (1 + 2 * momentum))
        else:
            # torch ignores dampening without momentum
            kept = 1 - value("dampening") * (momentum != 0)
            limit = 2 * (1 + momentum) / (lr * kept)
        return limit - value("weight_decay")
    if name in ("Adam", "AdamW"):
        beta1 = value("beta1")
        decoupled = name == "AdamW" or settings.get("decoupled_weight_decay", False)
        room = 2 - lr * value("weight_decay") if decoupled else 2
        return room * (1 + beta1) / ((1 - beta1) * lr)
    if name == "RMSprop":
        return 2 * (1 + value("momentum")) / lr
    return 2 / lr
