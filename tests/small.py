"""Settings that run each study in a few seconds, for the tests that go over all of them."""

SMALL = {
    "minimal-mlp": {"n_samples": 20, "points": 21},
    "losses-and-momentum": {"points": 21, "steps": 20},
    "regression-tour": {
        "n_samples": 40,
        "points": 15,
        "line_steps": 10,
        "quadratic_steps": 20,
        "sgd_epochs": 3,
        "adam_epochs": 5,
        "degree": 4,
        "polynomial_epochs": 5,
    },
    "two-layer-linear": {"n_samples": 50, "steps": 60, "newton_steps": 30, "population": True},
    "eigenbasis": {"p": 20, "n": 200, "steps": 50, "wide_p": 20, "wide_n": 10, "wide_steps": 50},
    "bias-complexity": {
        "dimension": 10,
        "steps": 50,
        "largest": 20,
        "runs": 3,
        "sweep_steps": 50,
        "peak_n": 20,
        "peak_largest": 40,
        "peak_draws": 50,
    },
    "lazy-linear": {"narrow_steps": 50, "wide_steps": 20, "many_steps": 50, "runs": 3},
    "lazy-mlp": {
        "deep_steps": 50,
        "shallow_steps": 50,
        "runs": 3,
        "widths": (3, 20),
        "widths_steps": 50,
        "bad_width": 20,
        "bad_steps": 30,
    },
}
