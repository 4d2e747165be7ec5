"""No feedforward layer: a block of attention alone, the control that the paper lacks."""

from dataclasses import dataclass

import torch

from fff.layers.base import Flops, Settings


@dataclass(frozen=True)
class NoneSettings(Settings):
    """Nothing to set."""

    kind = "none"

    @property
    def tag(self) -> str:
        """Always "none"."""
        return "none"

    @property
    def neurons_trained(self) -> int:
        """None."""
        return 0

    @property
    def neurons_used(self) -> int:
        """None."""
        return 0

    def flops(self, d_in: int, d_out: int) -> Flops:
        """None."""
        return Flops(0.0, 0.0)

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """No layer."""
        return None
