"""Every kind of layer as exports meet it, and whether what was written computes the same. Not a test."""

import torch
from torch import Tensor, nn

from fff import LeafFFF, PathFFF
from fff.feedforward import settings_from
from fff.layers.base import Trees
from fff.layers.quantised import QuantisedPath
from fff.surgery.replace import Nothing

D_IN, D_OUT, MARGIN = 16, 12, 1e-4
SPECIFICATIONS = {
    "path": {"kind": "path", "depth": 6, "trees": 2},
    "shallow path": {"kind": "path", "depth": 2, "trees": 3, "bias": False, "activation": "silu"},
    "shared": {"kind": "path", "depth": 5, "trees": 1, "shared": 4},
    "leaf": {"kind": "leaf", "depth": 6, "leaf_width": 3, "master_width": 2},
    "shallow leaf": {"kind": "leaf", "depth": 0, "leaf_width": 3},
    "gated leaf": {"kind": "leaf", "depth": 3, "leaf_width": 3, "master_width": 2, "activation": "silu", "gated": True},
    "dense": {"kind": "dense", "width": 8, "activation": "gated_gelu"},
    "fixed": {"kind": "fixed", "depth": 3, "trees": 2},
    "moe": {"kind": "moe", "experts": 4, "expert_width": 4, "top": 2},
    "peer": {"kind": "peer", "keys": 4, "heads": 2, "top": 2, "query_width": 8},
    "none": {"kind": "none"},
    "quantised": {"kind": "path", "depth": 6, "trees": 2},
}


def layer_of(name: str) -> nn.Module:
    """A layer with random weights, in evaluation."""
    torch.manual_seed(0)
    layer = settings_from(SPECIFICATIONS[name]).build(D_IN, D_OUT) or Nothing()
    if name == "quantised":
        assert isinstance(layer, PathFFF)
        layer = QuantisedPath.from_float(layer)
    return layer.eval()


class WithPath(nn.Module):
    """A layer that also tells its path, so that what is exported does: y, and of trees nodes and scores."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if isinstance(self.layer, PathFFF | LeafFFF | QuantisedPath):
            return self.layer(x), *self.layer.path(x)
        return (self.layer(x),)


class Together(nn.Module):
    """Layers side by side: one export, or compilation, for all of them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(WithPath(layer_of(name)) for name in names)
        self.eval()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [result for layer in self.layers for result in layer(x)]


def held(found: list[Tensor], layer: nn.Module, x: Tensor) -> None:
    """In two parts: nodes agree where every score on the path is clear of 0, and there outputs agree."""
    with torch.no_grad():
        y, *path = WithPath(layer)(x)
    clear = torch.ones(x.shape[:-1], dtype=torch.bool)
    if path:
        nodes, scores = path
        clear = (scores.abs() > MARGIN).flatten(x.dim() - 1).all(-1)
        assert clear.float().mean() > 0.9 or x.shape[:-1].numel() < 20
        assert torch.equal(found[1][clear], nodes[clear])
        torch.testing.assert_close(found[2][clear], scores[clear], rtol=1e-4, atol=1e-5)
    assert found[0].shape == y.shape
    torch.testing.assert_close(found[0][clear], y[clear], rtol=1e-4, atol=1e-5)


def clear_of_decisions(model: nn.Module, *given: Tensor, **named: Tensor) -> tuple[Tensor, Tensor]:
    """A model's first output (B, S, ...), and which sequences (B,) meet no score near 0 in any of its trees."""
    near: list[Tensor] = []

    def look(layer: Trees, inputs: tuple[Tensor, ...]) -> None:
        _, scores = layer.path(inputs[0])
        near.append((scores.abs() <= MARGIN).flatten(1).any(-1))

    trees = [part for part in model.modules() if isinstance(part, PathFFF | LeafFFF | QuantisedPath)]
    hooks = [layer.register_forward_pre_hook(look) for layer in trees]
    try:
        with torch.no_grad():
            y = model(*given, **named)
    finally:
        for hook in hooks:
            hook.remove()
    return y, ~torch.stack(near).any(0)
