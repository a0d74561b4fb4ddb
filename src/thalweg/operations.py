"""JAX's primitives in the field's words: a name, an expression, and the local derivatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call"})


class Words(NamedTuple):
    """An operation in the field's words.

    `text` is its expression and `back` what the backward pass does for each operand, with {0}, {1}, … for
    the operands and {u} for the result.
    """

    name: str
    text: str
    back: tuple[str, ...] = ()


# fmt: off
KNOWN = {
    "add": Words("+", "{0} + {1}", ("× 1", "× 1")),
    "add_any": Words("+", "{0} + {1}", ("× 1", "× 1")),
    "sub": Words("−", "{0} − {1}", ("× 1", "× (−1)")),
    "mul": Words("×", "{0} × {1}", ("× {1}", "× {0}")),
    "div": Words("÷", "{0} ÷ {1}", ("÷ {1}", "× (−{u} ÷ {1})")),
    "neg": Words("−", "−{0}", ("× (−1)",)),
    "exp": Words("exp", "exp {0}", ("× {u}",)),
    "expm1": Words("expm1", "exp({0}) − 1", ("× ({u} + 1)",)),
    "log": Words("log", "log {0}", ("÷ {0}",)),
    "log1p": Words("log1p", "log(1 + {0})", ("÷ (1 + {0})",)),
    "square": Words("square", "{0}²", ("× 2 {0}",)),
    "sqrt": Words("sqrt", "√{0}", ("÷ 2 {u}",)),
    "sin": Words("sin", "sin {0}", ("× cos {0}",)),
    "cos": Words("cos", "cos {0}", ("× (−sin {0})",)),
    "tanh": Words("tanh", "tanh {0}", ("× (1 − {u}²)",)),
    "logistic": Words("sigmoid", "sigmoid {0}", ("× {u} (1 − {u})",)),
    "relu": Words("relu", "relu {0}", ("× [{0} > 0]",)),
    "abs": Words("abs", "|{0}|", ("× sign {0}",)),
    "max": Words("max", "max({0}, {1})", ("× [{0} > {1}]", "× [{1} > {0}]")),
    "min": Words("min", "min({0}, {1})", ("× [{0} < {1}]", "× [{1} < {0}]")),
    "pow": Words("power", "{0} ^ {1}", ("× {1} {0} ^ ({1} − 1)", "× {u} log {0}")),
    "gt": Words(">", "{0} > {1}"), "ge": Words("≥", "{0} ≥ {1}"), "lt": Words("<", "{0} < {1}"),
    "le": Words("≤", "{0} ≤ {1}"), "eq": Words("=", "{0} = {1}"), "ne": Words("≠", "{0} ≠ {1}"),
    "select_n": Words("where", "{2} if {0} else {1}", ("", "× (not {0})", "× {0}")),
    "reduce_sum": Words("sum", "Σ {0}", ("× 1, to every entry",)),
    "reduce_max": Words("max", "max {0}"),
    "dot_general": Words("dot", "{0} · {1}", ("· {1}", "· {0}")),
    "broadcast_in_dim": Words("broadcast", "{0}, broadcast", ("sum over copies",)),
    "reshape": Words("reshape", "{0}, reshaped", ("reshape back",)),
    "squeeze": Words("reshape", "{0}, reshaped", ("reshape back",)),
    "transpose": Words("transpose", "{0}ᵀ", ("transpose",)),
    "copy": Words("copy", "{0}", ("× 1",)), "copy_p": Words("copy", "{0}", ("× 1",)),
}
# fmt: on


def words_of(equation: Any) -> Words:
    """An operation's name, expression and derivatives."""
    name, params = equation.primitive.name, equation.params
    if name in _CUSTOM:
        name = getattr(params["call_jaxpr"].jaxpr.debug_info, "func_name", "function").strip("<>")
    if name == "integer_pow":
        y = params["y"]
        power = {2: "{0}²", 3: "{0}³"}.get(y, f"{{0}} ^ {y}").replace("-", "−")
        lower = "{0}" if y == 2 else "{0}²" if y == 3 else f"{{0}} ^ {y - 1}".replace("-", "−")
        factor = f"({y})".replace("-", "−") if y < 0 else f"{y}"
        operation = {2: "square", 3: "cube"}.get(y, "power")
        return Words(operation, power, (f"× {factor} {lower}",))
    if name == "convert_element_type":
        kind = f"as {params['new_dtype']}"
        return Words(kind, f"{{0}} {kind}", ("× 1, in its own precision",))
    if name in KNOWN:
        return KNOWN[name]
    name = name.replace("_", " ")
    count = len(equation.invars)
    return Words(name, f"{name}({', '.join(f'{{{i}}}' for i in range(count))})")


def number(value: Any) -> str:
    """A number to four significant digits, with a true minus sign."""
    value = np.asarray(value)
    text = str(bool(value)) if value.dtype == bool else f"{float(value):.4g}"
    return text.replace("-", "−")
