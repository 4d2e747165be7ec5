"""First levels held while an optimiser trains the rest: which rows, bit for bit, and what is refused."""

import pytest
import torch
from torch import nn

from fff.frozen import FrozenLevels
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.topology import first_node


def step(model: nn.Module, optimiser: torch.optim.Optimizer, frozen: FrozenLevels | None, seed: int) -> None:
    optimiser.zero_grad()
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
    (model(x) ** 2).sum().backward()
    if frozen:
        frozen.drop_gradients()
    optimiser.step()
    if frozen:
        frozen.restore()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_rows_of_the_first_levels_keep_their_bits_and_all_others_learn(levels: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = PathFFF(8, 8, depth=3, trees=2, bias=bias)
    model, nodes = nn.Sequential(layer), first_node(levels)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    step(model, optimiser, None, 0)  # moments, which would go on moving the rows
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    frozen = FrozenLevels(model, levels)
    for seed in range(1, 4):
        step(model, optimiser, frozen, seed)
    assert set(before) == ({"w_in", "b_in", "w_out"} if bias else {"w_in", "w_out"})
    for name, old in before.items():
        new = dict(layer.named_parameters())[name].detach()
        assert torch.equal(new[:, :nodes], old[:, :nodes]), name
        moved = (new != old)[:, nodes:]
        assert (moved if moved.dim() == 2 else moved.any(-1)).all(), name


def test_what_is_held_has_no_part_in_a_norm_of_gradients() -> None:
    torch.manual_seed(0)
    layer = PathFFF(8, 8, depth=2)
    layer(torch.randn(16, 8)).sum().backward()
    FrozenLevels(layer, 2).drop_gradients()
    for p in layer.parameters():
        assert p.grad is not None
        assert not p.grad[:, :3].any()
        assert p.grad[:, 3:].any()


def test_layers_without_such_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no PathFFF"):
        FrozenLevels(nn.Linear(2, 2), 1)
    with pytest.raises(ValueError, match="LeafFFF has no PathFFF"):
        FrozenLevels(LeafFFF(8, 8, depth=2, leaf_width=2), 1)
    for levels in (0, 4):
        with pytest.raises(ValueError, match=rf"levels={levels} of depth=3 cannot be frozen; take 1 to 3"):
            FrozenLevels(PathFFF(8, 8, depth=3), levels)
