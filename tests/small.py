"""Settings that run each study in a few seconds, for the tests that go over all of them."""

SMALL = {
    "minimal-mlp": {"n_samples": 20, "points": 21},
    "losses-and-momentum": {"points": 21, "steps": 20},
}
