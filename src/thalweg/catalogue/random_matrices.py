"""Exact results on matrices with independent normal entries, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from thalweg.errors import InputError


def marchenko_pastur_edges(ratio: float) -> tuple[float, float]:
    """(1 − √ratio)² and (1 + √ratio)²: where the spectrum that `marchenko_pastur` gives ends.

    Raises:
        InputError: a ratio that is not positive.
    """
    if not (np.isfinite(ratio) and ratio > 0):
        raise InputError(f"the ratio p/n must be a positive number; {ratio!r} given.")
    root = np.sqrt(ratio)
    return float((1 - root) ** 2), float((1 + root) ** 2)


def marchenko_pastur(eigenvalues: Any, ratio: float) -> np.ndarray:
    """The limiting density of the eigenvalues of XXᵀ/n, X (p, n) with entries of variance 1.

    √((λ₊ − λ)(λ − λ₋)) / (2π·ratio·λ) between the edges and zero outside, for p, n → ∞ with
    ratio = p/n (Marchenko & Pastur, 1967). It integrates to min(1, 1/ratio): where p > n the other
    eigenvalues, a share of 1 − 1/ratio, are zero.

    Args:
        eigenvalues: where, an array of any shape.
        ratio: p/n.

    Returns:
        The density there, per unit of the eigenvalue.

    Raises:
        InputError: a ratio that is not positive.
    """
    low, high = marchenko_pastur_edges(ratio)
    at = np.asarray(eigenvalues, float)
    inside = (at > low) & (at < high)
    safe = np.where(inside, at, 1.0)
    root = np.sqrt(np.where(inside, (high - at) * (at - low), 0.0))
    return np.where(inside, root / (2 * np.pi * ratio * safe), 0.0)


def noise_risk(features: Any, n: int, noise: float = 1.0) -> np.ndarray:
    """What label noise alone costs minimum-norm least squares on p standard normal features.

    With Φ (n, p) of standard normal entries and labels Φβ + ε, ε ~ N(0, noise²), the fit is
    β̂ = Φ⁺y, and the mean of ‖Φ⁺ε‖² over both is noise²·E tr (ΦᵀΦ)⁺: the mean of an inverse Wishart
    matrix, noise²·p/(n − p − 1) for p < n − 1 and noise²·n/(p − n − 1) for p > n + 1 (Breiman &
    Freedman, 1983; Belkin, Hsu & Xu, 2020, Theorem 1). For p ≤ n it is the whole excess risk.

    Args:
        features: p, one number or an array of them.
        n: the number of samples.
        noise: the labels' standard deviation.

    Returns:
        The excess risk, infinite for p from n − 1 to n + 1.
    """
    p = np.asarray(features, float)
    few, many = p < n - 1, p > n + 1
    risk = np.where(few, p / np.where(few, n - p - 1, 1), np.inf)
    return noise**2 * np.where(many, n / np.where(many, p - n - 1, 1), risk)
