"""DenseFF, the ordinary feedforward layer without biases, with its settings. What the trees are compared with."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fff.layers.base import Feedforward, Flops, Settings
from fff.layers.checks import one_of, whole_number
from fff.meanwhile import meanwhile

ACTIVATIONS = ("gelu", "gated_gelu")


@dataclass(frozen=True)
class DenseSettings(Settings):
    """A dense layer. ValueError as `Settings`."""

    kind = "dense"

    width: int  # neurons; with gated_gelu half of them gate the other half
    activation: str = "gelu"  # gelu, gated_gelu

    def __post_init__(self) -> None:
        whole_number("width", self.width, 1, example=3072)
        one_of("activation", self.activation, ACTIVATIONS, self.kind)
        if self.gated and self.width % 2:
            raise ValueError(f"`width` is {self.width}; gated_gelu halves it, so it must be even.")

    @property
    def gated(self) -> bool:
        """Whether half of the neurons gate the other half."""
        return self.activation == "gated_gelu"

    @property
    def tag(self) -> str:
        """E.g. "dense3072" or "gated3072"."""
        return f"{'gated' if self.gated else 'dense'}{self.width}"

    @property
    def neurons_trained(self) -> int:
        """All."""
        return self.width

    @property
    def neurons_used(self) -> int:
        """All."""
        return self.width

    def flops(self, d_in: int, d_out: int) -> Flops:
        """Of all neurons; gated, half of them have no row out."""
        both = float(self.width * (2 * d_in + (1 if self.gated else 2) * d_out))
        return Flops(both, both)

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "DenseFF":
        """The layer."""
        return DenseFF(d_in, d_out, self.width, activation=self.activation, device=device, dtype=dtype)


class DenseFF(Feedforward):
    """Dense feedforward layer without biases: y = act(x W_in) W_out, or the gated form of crammed BERT.

    With "gated_gelu" the `width` neurons are halved: y = (u * gelu(v)) W_out, where u and v are the two halves
    (arXiv 2212.14034, section 4.2). Shapes: (..., d_in) -> (..., d_out).

    Attributes:
        most_active: in evaluation, how many neurons of each token count, those of largest |activation|; None for all.
            Set it by `oracle`.

    Raises:
        ValueError: as DenseSettings.
    """

    most_active: int | None = None

    def __init__(
        self,
        d_in: int,
        d_out: int,
        width: int,
        *,
        activation: str = "gelu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.gated = DenseSettings(width, activation).gated
        self.dense_in = nn.Linear(d_in, width, bias=False, device=device, dtype=dtype)
        self.dense_out = nn.Linear(width // 2 if self.gated else width, d_out, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x (..., d_in)."""
        active = self.dense_in(x)
        if self.gated:
            value, gate = active.chunk(2, dim=-1)
            active = value * nn.functional.gelu(gate)
        else:
            active = nn.functional.gelu(active)
        if self.most_active is not None and not self.training:
            kept = active.abs().topk(self.most_active, -1).indices
            active = torch.zeros_like(active).scatter(-1, kept, active.gather(-1, kept))
        return self.dense_out(active)

    @property
    def neurons(self) -> int:
        """Activations that there are: the width, or half of it with gates."""
        return self.dense_out.in_features


@contextlib.contextmanager
def oracle(model: nn.Module, neurons: int) -> Iterator[None]:
    """Inside, dense layers in evaluation use each token's `neurons` most active neurons alone.

    No router chooses them: all are computed to see which count. What a layer that visits as few could have of this one.

    Raises:
        ValueError: a layer has fewer.
    """
    layers = [module for module in model.modules() if isinstance(module, DenseFF)]
    for layer in layers:
        if not 1 <= neurons <= layer.neurons:
            raise ValueError(f"{neurons} neurons are asked of a dense layer that has {layer.neurons}")
    with meanwhile(layers, "most_active", neurons):
        yield
