"""Where a token stands: sinusoids added to the embedding, or rotations of queries and keys."""

import math

import torch
from torch import Tensor

from .needed import Unsaved

Rotation = tuple[Tensor, Tensor]  # cosines and sines, both (S, head / 2) or (B, 1, S, head / 2)


def sinusoid_table(length: int, width: int) -> Tensor:
    """Sinusoidal positions (length, width) on the CPU: sine at even columns, cosine at odd (1706.03762, 3.5)."""
    frequencies = torch.exp(_counted(0, width, 2) * (-math.log(10000.0) / width))
    angles = _counted(length)[:, None] * frequencies
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


def rotary_angles(length: int, head_dim: int, base: float) -> Tensor:
    """Angles (length, head_dim / 2) in radians by which a head's pairs turn (2104.09864, section 3.2), on the CPU."""
    frequencies = base ** (-_counted(0, head_dim, 2) / head_dim)
    return _counted(length)[:, None] * frequencies


def _counted(*bounds: int) -> Tensor:
    # In float32, whatever torch's default is: `from_pretrained(dtype=torch.bfloat16)` builds the model under another.
    return torch.arange(*bounds, device="cpu", dtype=torch.float32)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn queries or keys x (..., S, head): column i pairs with column i + head / 2."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def later_places(given: Tensor, attention_mask: Tensor | None, earlier: int) -> Tensor | None:
    """Places (B or 1, S) of a causal model's inputs (B, S, ...) after `earlier` ones, padding on the left not counted.

    None where they are 0 to S - 1.
    """
    length = given.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return torch.arange(earlier, earlier + length, device=given.device)[None] if earlier else None


class RotaryPositions(Unsaved):
    """Cosines and sines of the first positions, shared by all blocks.

    Tables, not angles: a model converted to bfloat16 would turn late positions by rounded angles.
    """

    def __init__(self, length: int, head_dim: int, base: float) -> None:
        super().__init__()
        angles = rotary_angles(length, head_dim, base)
        self.keep("cos", angles.cos())
        self.keep("sin", angles.sin())

    def forward(self, length: int, x: Tensor, position_ids: Tensor | None = None) -> Rotation:
        """The rotation of positions 0 to length - 1, or of `position_ids` (B, S), on x's device and in its dtype."""
        tables = (self.unsaved(name, x.device) for name in ("cos", "sin"))
        # Given positions are the same for all heads, whose dimension stands before theirs.
        chosen = (table[:length] if position_ids is None else table[position_ids].unsqueeze(1) for table in tables)
        cos, sin = (table.to(x.dtype) for table in chosen)
        return cos, sin
