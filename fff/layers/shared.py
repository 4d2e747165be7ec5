"""A tree with dense neurons beside it that every token passes. Not the two layers, nor when a kind has such neurons."""

from torch import Tensor

from fff.layers.base import Feedforward, Hardenable
from fff.layers.dense import DenseFF


class SharedFF(Feedforward):
    """tree(x) + shared(x): what every token needs need not be learned in every leaf. (..., d_in) -> (..., d_out).

    DeepSeekMoE's shared expert (arXiv 2401.06066) and arXiv 2405.16836's master leaf, here summed without a weight.
    Form, route, usage and regions are the tree's, which `fff.hardening` and `fff.regions` find inside; this layer has
    no parameters of its own.
    """

    def __init__(self, tree: Hardenable, shared: DenseFF) -> None:
        super().__init__()
        self.tree, self.shared = tree, shared

    @property
    def losses(self) -> tuple[str, ...]:  # type: ignore[override]
        """Those of the tree."""
        return self.tree.losses

    def forward(self, x: Tensor) -> Tensor:
        """Apply both: (..., d_in) -> (..., d_out). ValueError as the tree."""
        return self.tree(x) + self.shared(x)

    def forward_with_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, with the tree's auxiliary losses."""
        y, losses = self.tree.forward_with_losses(x)
        return y + self.shared(x), losses
