"""Where a token stands: sinusoids added to the embedding, or rotations of queries and keys."""

import math

import torch
from torch import Tensor, nn

Rotation = tuple[Tensor, Tensor]  # cosines and sines, both (S, head / 2)


def sinusoid_table(length: int, width: int) -> Tensor:
    """Sinusoidal positions (length, width): sine at even columns, cosine at odd (arXiv 1706.03762, section 3.5)."""
    frequencies = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_angles(length: int, head_dim: int, base: float) -> Tensor:
    """Angles (length, head_dim / 2) in radians by which the pairs of a head turn (arXiv 2104.09864, section 3.2)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2) / head_dim)
    return torch.arange(length)[:, None] * frequencies


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys x (..., S, head): column i pairs with column i + head / 2."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class RotaryPositions(nn.Module):
    """Cosines and sines of the first positions, shared by all blocks.

    Tables, not angles: a model converted to bfloat16 would turn late positions by rounded angles.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, length: int, head_dim: int, base: float) -> None:
        super().__init__()
        self.settings = (length, head_dim, base)
        for name, table in zip(("cos", "sin"), self.tables(), strict=True):
            self.register_buffer(name, table, persistent=False)

    def tables(self) -> Rotation:
        """Freshly computed float32 tables."""
        angles = rotary_angles(*self.settings)
        return angles.cos(), angles.sin()

    def forward(self, length: int, dtype: torch.dtype) -> Rotation:
        """The rotation of positions 0 to length - 1."""
        return self.cos[:length].to(dtype), self.sin[:length].to(dtype)
