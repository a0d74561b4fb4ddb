"""Vectorised sines and cosines, for which XLA calls the C library number by number.

On a CPU that takes five times as long as the polynomials below, which compile to vector instructions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from thalweg.jaxprs import call_for

_LEAST = 64  # numbers; for fewer, the range test below takes as long as the C library does

# π/2 in parts: three of 26 bits, whose products with a whole number of 27 bits are exact, and the rest.
# (W. J. Cody and W. Waite, Software Manual for the Elementary Functions, 1980, ch. 8.)
_HALF_PI = tuple(
    map(
        float.fromhex,
        ("0x1.921fb58p+0", "-0x1.dde974p-27", "0x1.1a6263p-54", "0x1.8a2e03707344ap-81"),
    )
)
_FAR = 2.0**27  # larger arguments are left to the C library, with its own range reduction
# Minimax polynomials on |r| ≤ π/4: sin r = r + r³ S(r²), cos r = 1 − r²/2 + r⁴ C(r²), to 2⁻⁵⁸. The figures
# are those of fdlibm (k_sin.c, k_cos.c; Sun Microsystems 1993).
_SIN = (
    -1.66666666666666324348e-01,
    8.33333333332248946124e-03,
    -1.98412698298579493134e-04,
    2.75573137070700676789e-06,
    -2.50507602534068634195e-08,
    1.58969099521155010221e-10,
)
_COS = (
    4.16666666666666019037e-02,
    -1.38888888888741095749e-03,
    2.48015872894767294178e-05,
    -2.75573143513906633035e-07,
    2.08757232129817482790e-09,
    -1.13596475577881948265e-11,
)


def vectorised(jaxpr: Any) -> list[Any]:
    """A jaxpr's equations, with sines and cosines of many float32 or float64 numbers rewritten. Values differ
    from the C library's by an ulp or two."""
    by_operand: dict[Any, list[Any]] = {}
    for equation in filter(_is_sine, jaxpr.eqns):
        by_operand.setdefault(equation.invars[0], []).append(equation)
    equations = []
    for equation in jaxpr.eqns:
        if not _is_sine(equation):
            equations.append(equation)
        elif sines := by_operand.pop(equation.invars[0], None):
            equations.append(_one_for(sines))
    return equations


def _one_for(equations: Sequence[Any]) -> Any:
    """One equation for all sines and cosines of one array. The derivative of one is the other, so both are
    often needed, and they share most of the work."""
    names = tuple(equation.primitive.name for equation in equations)
    outvars = [v for equation in equations for v in equation.outvars]
    return call_for(equations[0], _sines, outvars, names=names)


def _sines(x: Any, *, names: tuple[str, ...]) -> list[Any]:
    far = (jnp.abs(x) > _FAR) & jnp.isfinite(x)
    # XLA computes each result of a branch separately and from scratch. So a branch returns sin r, cos r and
    # the quarter, none of which repeats much of another's work; combining them afterwards is cheap.
    parts = jax.lax.cond(far.any(), _library, _near, x)
    return [_turned(name, *parts) for name in names]


def _is_sine(equation: Any) -> bool:
    if equation.primitive.name not in ("sin", "cos"):
        return False
    x = equation.invars[0].aval
    return x.size >= _LEAST and x.dtype in (jnp.float32, jnp.float64)


def _library(x: Any) -> tuple[Any, Any, Any]:
    return jnp.sin(x), jnp.cos(x), jnp.zeros_like(x)


def _near(x: Any) -> tuple[Any, Any, Any]:
    """Sine and cosine of r, and the quarter (0 to 3, modulo whole turns), where x = r + quarter · π/2,
    |r| ≤ π/4 and |x| ≤ _FAR; NaN where x is not finite."""
    wide = x.astype(jnp.float64)
    turns = jnp.round(wide * (2 / math.pi))
    r = wide
    for part in _HALF_PI:
        r = r - turns * part
    z = r * r
    sine = r + r * z * _polynomial(_SIN, z)
    cosine = 1 - (0.5 * z - z * z * _polynomial(_COS, z))
    quarter = turns - 4 * jnp.floor(turns / 4)
    return sine.astype(x.dtype), cosine.astype(x.dtype), quarter.astype(x.dtype)


def _turned(name: str, sine: Any, cosine: Any, quarter: Any) -> Any:
    """Sine or cosine of x, from the sine and cosine of r and the quarter."""
    if name == "cos":  # which is the sine a quarter turn later
        quarter = quarter + 1
    value = jnp.where((quarter == 1) | (quarter == 3), cosine, sine)
    return jnp.where((quarter == 2) | (quarter == 3), -value, value)


def _polynomial(coefficients: Sequence[float], z: Any) -> Any:
    return functools.reduce(lambda sofar, c: sofar * z + c, reversed(coefficients))
