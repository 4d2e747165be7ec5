"""What the layer benchmarks time, and the check that comes before. Not how it is timed (timing.py)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fff.kernels import PROVIDERS
from fff.layers.path import PathFFF
from fff.reference import path_fff

WIDTH = 768
MARGIN = 1e-4  # a score nearer to 0 may be rounded to either side


def dense(width: int, dtype: torch.dtype, size: int = WIDTH) -> nn.Module:
    """The opponent: Linear, GELU, Linear without biases, (..., size) -> (..., size)."""
    layers = (nn.Linear(size, width, bias=False), nn.GELU(), nn.Linear(width, size, bias=False))
    return nn.Sequential(*layers).to(dtype)


def check(layer: PathFFF, x: Tensor) -> float:
    """Largest error of the layer's output against the float64 definition, relative to the largest output.

    Raises:
        AssertionError: another node was visited where every margin is clear, or the error is above what the dtype
            allows; no time is reported then.
    """
    wide = [p.detach().double() if p is not None else None for p in (layer.w_in, layer.b_in, layer.w_out)]
    w_in, b_in, w_out = wide
    assert w_in is not None
    assert w_out is not None
    largest, worst = 0.0, 0.0
    for part in x.split(2048):  # the definition's memory is not what is tested
        result = path_fff(part.double(), w_in, b_in, w_out, layer.activation)
        clear = (result.scores.abs() > MARGIN).flatten(1).all(1)
        with torch.no_grad():
            # The provider's own walk: PathFFF.path has one for all providers.
            found = PROVIDERS[layer.provider].function(
                part, layer.w_in, layer.b_in, layer.w_out, layer.activation, None, None
            )
            errors = (layer(part).double() - result.y)[clear].abs()
        assert torch.equal(found.nodes[clear], result.nodes[clear]), f"{layer.provider}: other nodes than defined"
        worst = max(worst, errors.max().item() if errors.numel() else 0.0)
        largest = max(largest, result.y.abs().max().item())
    with torch.no_grad():  # the shape that is timed, which may be computed in other blocks
        whole, last = layer(x)[-len(part) :][clear], layer(part)[clear]
    assert torch.allclose(whole, last, rtol=0, atol=1e-2 * largest), f"{layer.provider}: differs by shape"
    allowed = 1e-5 if x.dtype == torch.float32 else 3e-2
    assert worst <= allowed * largest, f"{layer.provider}: error {worst / largest:.1e} exceeds {allowed:.0e}"
    return worst / largest


def training_step(module: nn.Module, x: Tensor) -> None:
    """Forward and backward, gradients written anew. The gradient of the output is given: any loss takes longer."""
    for parameter in module.parameters():
        parameter.grad = None
    x.grad = None
    module(x.requires_grad_()).backward(x.detach())


@dataclass(frozen=True)
class Case:
    """One thing that is timed."""

    run: Callable[[nn.Module, Tensor], object]
    module: nn.Module
    inputs: list[Tensor]

    def __call__(self, turn: int) -> None:
        """Run it once, on the turn's input."""
        self.run(self.module, self.inputs[turn % len(self.inputs)])
