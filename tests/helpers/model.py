"""Tiny crammed models by kind of feedforward layer, and a batch for them. Not a test."""

import torch

from cramming.model import CrammedConfig

FFNS = {
    "path": {"kind": "path", "trees": 2, "depth": 3},
    "shared": {"kind": "path", "trees": 2, "depth": 3, "shared": 8},
    "dense": {"kind": "dense", "width": 48, "activation": "gelu"},
    "gated": {"kind": "dense", "width": 48, "activation": "gated_gelu"},
    "none": {"kind": "none"},
}


def config(ffn: str | dict = "path", **changes) -> CrammedConfig:
    settings = {"vocab_size": 80, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return CrammedConfig(
        **settings | {"max_position_embeddings": 16, "ffn": FFNS[ffn] if isinstance(ffn, str) else ffn, **changes}
    )


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(7, 80, (3, 16), generator=generator)
    positions = torch.rand(3, 16, generator=generator).argsort(1)[:, :4].sort(1).values
    return tokens, positions, tokens.gather(1, positions)
