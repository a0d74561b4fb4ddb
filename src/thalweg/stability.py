"""Up to which curvature a descent's optimizer is stable, read from the descent's result."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from thalweg import results
from thalweg.errors import InputError

KNOWN = ("SGD", "Adam", "AdamW", "RMSprop", "Adagrad")


def stability_threshold(path: xr.Dataset) -> xr.DataArray:
    """The largest eigenvalue on which a descent's optimizer is stable, on its members' dimensions.

    On a quadratic of curvature λ, full batch, with learning rate η:

    - gradient descent: λ < 2/η; with (heavy-ball) momentum μ and dampening τ, λ < 2 (1 + μ) / (η (1 − τ));
      with Nesterov's, λ < 2 (1 + μ) / (η (1 + 2μ)) (Cohen et al., 2021, equations 1 and 2). Weight decay
      adds to λ and is taken off.
    - Adam, AdamW: λ is that of the preconditioned Hessian, λ < 2 (1 + β₁) / ((1 − β₁) η), 38/η for
      β₁ = 0.9 (Cohen et al., 2022, section 3). Decoupled weight decay ω makes it 2 − ηω instead of 2;
      any other is a part of the matrix that is preconditioned: of H + ωI, not of H. RMSprop with
      momentum μ: λ < 2 (1 + μ) / η. Adagrad: 2/η.

    Where a hyperparameter followed a schedule the threshold has a dimension `step` too.

    Raises:
        InputError: a trajectory of another optimizer.
    """
    settings = results.settings_of(path).get("optimizer", {})
    name = settings.get("name")

    if name in KNOWN and "lr" not in settings:
        raise InputError(f"this trajectory does not say with which hyperparameters {name} made it.")

    def value(key: str) -> Any:
        if key in path.coords:  # swept, or one of a sweep
            return path[key]
        if f"schedule_{key}" in path:
            # a table has an entry an update; the last iterate has that of the last update
            table = path[f"schedule_{key}"].values
            first = int(results.settings_of(path)["first_step"])
            at = np.clip(path["step"].values - first, 0, len(table) - 1)
            return xr.DataArray(table[at], dims="step", coords={"step": path["step"]})
        return settings[key]

    if name == "SGD":
        momentum = value("momentum")
        if settings["nesterov"]:
            limit = 2 * (1 + momentum) / (value("lr") * (1 + 2 * momentum))
        else:
            # torch leaves dampening aside where there is no momentum
            kept = 1 - value("dampening") * (momentum != 0)
            limit = 2 * (1 + momentum) / (value("lr") * kept)
        limit = limit - value("weight_decay")
    elif name in ("Adam", "AdamW"):
        beta1, lr = value("beta1"), value("lr")
        decoupled = name == "AdamW" or settings.get("decoupled_weight_decay", False)
        room = 2 - lr * value("weight_decay") if decoupled else 2
        limit = room * (1 + beta1) / ((1 - beta1) * lr)
    elif name == "RMSprop":
        limit = 2 * (1 + value("momentum")) / value("lr")
    elif name == "Adagrad":
        limit = 2 / value("lr")
    else:
        raise InputError(
            f"the threshold of stability is known for {', '.join(KNOWN)}; this trajectory was made by "
            f"{name or 'none of them'}."
        )
    found = xr.DataArray(limit, name="threshold").reset_coords(drop=True)
    order = [d for d in ("step", *results.member_dims(path)) if d in found.dims]
    return found.transpose(*order)
