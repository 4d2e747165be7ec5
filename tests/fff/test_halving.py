"""Initial biases of decisions: every node parts its tokens in half, in every kind of tree and dtype."""

import copy

import pytest
import torch
from torch import Tensor

from fff import LeafFFF, PathFFF
from fff.decisions import went_right
from fff.halving import middle_biases, split_in_half
from fff.kernels import PROVIDERS
from fff.layers.base import Hardenable
from fff.topology import first_node
from fff.usage import measure

HERE = [name for name in PROVIDERS if name != "triton"]


def turns(layer: Hardenable, x: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens that reach each node, and those of them that go right, (trees, 2^depth - 1), counted one by one."""
    nodes = layer.path(x)[0].reshape(-1, layer.trees, layer.depth + 1)
    reached, right = torch.zeros(2, layer.trees, first_node(layer.depth), dtype=torch.int64)
    for path, goes in zip(nodes, went_right(nodes), strict=True):
        for tree in range(layer.trees):
            reached[tree, path[tree, :-1]] += 1
            right[tree, path[tree, :-1]] += goes[tree].long()
    return reached, right


def a_path(depth: int = 4, trees: int = 3, dtype: torch.dtype = torch.float32, provider: str = "auto") -> PathFFF:
    torch.manual_seed(depth)
    return PathFFF(8, 5, depth, trees, dtype=dtype, provider=provider)


def halved(layer: Hardenable, x: Tensor) -> None:
    split_in_half(layer, x)
    reached, right = turns(layer, x)
    enough = reached > 1
    assert torch.equal(right[enough], reached[enough] // 2)
    assert (reached[:, 0] == x.numel() // x.shape[-1]).all()
    assert not layer.decision_bias[~enough].any()


@pytest.mark.parametrize("provider", HERE)
@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 5, 40, 41, 300])
def test_half_of_the_tokens_of_every_node_go_right(tokens: int, provider: str) -> None:
    layer = a_path(provider=provider)
    leaves = layer.b_in[:, 15:].clone()
    halved(layer, torch.randn(tokens, 8))
    assert torch.equal(layer.b_in[:, 15:], leaves)


def test_it_does_for_skewed_tokens_of_any_shape_and_leaves_no_leaf_dead() -> None:
    layer, x = a_path(), torch.randn(8) + 0.3 * torch.randn(4, 80, 8)
    assert measure(layer.route(x)).dead.min() >= 4
    halved(layer, x)
    usage = measure(layer.route(x))
    assert usage.counts.tolist() == [[20] * 16] * 3
    assert not usage.dead.any()


@pytest.mark.parametrize("layer", [a_path(4, 3, torch.float64, "gather"), a_path(6, 1, torch.float64, "masked")])
def test_float64_is_parted_too(layer: PathFFF) -> None:
    halved(layer, torch.randn(300, 8, dtype=torch.float64))


def test_leaf_trees_are_parted_and_a_tree_without_decisions_has_nothing_to_set() -> None:
    torch.manual_seed(0)
    for depth in (1, 4):
        halved(LeafFFF(8, 5, depth, 2, master_width=2), torch.randn(300, 8))
    for layer in (LeafFFF(8, 5, 0, 2), PathFFF(8, 5, 0, 3)):
        before = copy.deepcopy(layer.state_dict())
        split_in_half(layer, torch.randn(9, 8))
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())


def test_half_types_are_parted_to_their_rounding() -> None:
    layer, x = a_path(3, 2, torch.bfloat16), torch.randn(400, 8).bfloat16()
    split_in_half(layer, x)
    reached, right = turns(layer, x)
    assert (right - reached / 2).abs().max() <= 0.1 * 50
    single = a_path(3, 2)
    with torch.autocast("cpu", torch.bfloat16):
        split_in_half(single, x.float())
        reached, right = turns(single, x.float())
    assert (right - reached / 2).abs().max() <= 0.1 * 50


def test_a_bias_lies_between_the_two_in_the_middle_and_equal_scores_stay_together() -> None:
    group = torch.tensor([7, 2, 7, 2, 7, 5, 9, 9, 9])
    score = torch.tensor([1.0, 4.0, 3.0, -2.0, 9.0, 1.0, 6.0, 6.0, 6.0])
    groups, biases = middle_biases(group, score, torch.float32)
    assert groups.tolist() == [2, 7, 9]
    assert biases.tolist() == [-1.0, -6.0, -6.0]
    low = torch.tensor([1.0, 1.0]).nextafter(torch.tensor([1.0, 2.0]))  # neighbours: there is no middle
    groups, biases = middle_biases(torch.zeros(2, dtype=torch.int64), low, torch.float32)
    assert ((low + biases) > 0).tolist() == [False, True]


def test_it_is_the_same_in_parts_and_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = a_path(provider="gather"), torch.randn(300, 8)
    other, state = copy.deepcopy(layer), torch.get_rng_state()
    split_in_half(layer, x)
    monkeypatch.setattr("fff.halving.TOKENS_AT_ONCE", 64)
    split_in_half(other, x)
    assert torch.equal(layer.b_in, other.b_in)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_parted_is_refused() -> None:
    with pytest.raises(ValueError, match="PathFFF: its decisions have no biases"):
        split_in_half(PathFFF(4, 4, 2, bias=False), torch.randn(3, 4))
    with pytest.raises(ValueError, match="not finite"):
        split_in_half(PathFFF(4, 4, 2), torch.full((3, 4), float("nan")))
