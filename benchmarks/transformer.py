"""A transformer of six layers: its descent, and products with its Hessian."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

import thalweg as tw
from benchmarks import tools
from benchmarks.harness import Contender, Race, case
from benchmarks.large import descent_of, in_order

TOKENS, CONTEXT, WIDTH, HEADS, LAYERS = 65, 64, 96, 4, 6
SEQUENCES, BATCH = 64, 16


@functools.cache
def language_model() -> Any:
    """A decoder as GPT-2's (Radford et al., 2019), of characters: 689,856 parameters."""
    import torch
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm_one, self.norm_two = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
            self.attended, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.mlp = nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
            )

        def forward(self, x: Any) -> Any:
            heads = self.attended(self.norm_one(x)).unflatten(-1, (3, HEADS, -1))
            q, k, v = heads.permute(2, 0, 3, 1, 4)
            seen = scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(seen.transpose(1, 2).flatten(-2))
            return x + self.mlp(self.norm_two(x))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS, bias=False)

        def forward(self, x: Any) -> Any:
            places = torch.arange(x.shape[1], device=x.device)
            x = self.blocks(self.tokens(x) + self.places(places))
            return self.head(self.norm(x)).transpose(1, 2)

    torch.manual_seed(0)
    return Decoder()


@case
def transformer() -> Iterator[Race]:
    """Sequences of 64 characters: six epochs of SGD, and one product with the Hessian of all of them."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model, loss = language_model(), torch.nn.CrossEntropyLoss()
    generator = tools.generator(0)
    text = torch.randint(0, TOKENS, (SEQUENCES, CONTEXT + 1), generator=generator)
    x, y = text[:, :-1], text[:, 1:]
    problem = tw.from_torch(model, loss, x, y)
    title = f"a transformer of {LAYERS} layers, {problem.size:,} parameters"
    yield descent_of(f"{title}, batches of {BATCH}", problem, model, x, y, BATCH, epochs=6)

    operator = tw.hessian(problem, problem.params)
    vector = np.random.default_rng(0).standard_normal(problem.size).astype(np.float32)
    parameters = list(model.parameters())
    along = [torch.tensor(part) for part in in_order(model, problem, vector)]

    def theirs() -> np.ndarray:
        # PyTorch's other kernels of attention have no second derivative
        with sdpa_kernel(SDPBackend.MATH):
            slope = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
            found = torch.autograd.grad(slope, parameters, along)
        names = (name for name, _ in model.named_parameters())
        return np.asarray(problem.flatten(dict(zip(names, map(tools.host, found), strict=True))))

    other = "PyTorch, backward twice"
    yield Race(
        f"a product with the Hessian of {title}, {SEQUENCES} sequences of {CONTEXT}",
        [
            Contender("Curvature @ vector", lambda: np.asarray(operator @ vector)),
            Contender(other, theirs, goal=1.0),
        ],
        lambda answers: {
            name: float(np.linalg.norm(a - answers[other]) / np.linalg.norm(answers[other]))
            for name, a in answers.items()
        },
        1e-4,
        rounds=3,
    )
