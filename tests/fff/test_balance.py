"""Balance of trees without a loss: which decisions' biases move, by how much, and what is counted."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from fff import PathFFF
from fff.balance import balanced_layers, forget, rebalance
from fff.decisions import went_right
from fff.feedforward import settings_from
from fff.hardening import set_hardening
from fff.kernels import PROVIDERS
from fff.topology import first_node
from fff.usage import measure

HERE = [name for name in PROVIDERS if name != "triton"]
RATE = 0.125  # a move by it is exact


def a_tree(depth: int = 4, trees: int = 3, **options) -> PathFFF:
    torch.manual_seed(depth)
    return PathFFF(8, 5, depth, trees, **{"rebalance_rate": RATE, **options})


def surplus(layer: PathFFF, x: Tensor) -> Tensor:
    """Tokens that go right less those that go left, by node, counted one by one."""
    nodes, _ = layer.path(x)
    found = torch.zeros(layer.trees, first_node(layer.depth), dtype=torch.int64)
    for token in nodes:
        for tree, path in enumerate(token.tolist()):
            for node, below in pairwise(path):
                found[tree, node] += 1 if below == 2 * node + 2 else -1
    return found


@pytest.mark.parametrize("provider", HERE)
@pytest.mark.parametrize(("depth", "trees"), [(1, 1), (4, 3), (0, 2)])
def test_a_bias_moves_by_the_rate_against_its_surplus(depth: int, trees: int, provider: str) -> None:
    layer, x = a_tree(depth, trees, provider=provider), torch.randn(41, 8)
    before, moved = layer.b_in.detach().clone(), surplus(layer, x).sign().float()
    layer(x)
    rebalance(nn.Sequential(layer))
    inner = first_node(depth)
    assert torch.equal(layer.b_in[:, :inner], before[:, :inner] - RATE * moved)
    assert torch.equal(layer.b_in[:, inner:], before[:, inner:])
    assert depth < 4 or {-1, 1} <= set(moved.flatten().tolist())
    once = layer.b_in.detach().clone()
    rebalance(layer)  # a step without tokens
    assert torch.equal(layer.b_in, once)


def test_equal_and_unvisited_nodes_stay() -> None:
    layer = PathFFF(1, 1, 2, rebalance_rate=RATE)
    with torch.no_grad():
        layer.w_in.fill_(1.0)
        layer.b_in.copy_(torch.tensor([[0.0, 9.0, 0.5, 0, 0, 0, 0]]))
    before = layer.b_in.detach().clone()
    layer(torch.tensor([[-1.0], [-2.0], [1.0], [2.0]]))  # half each way; the left child sends both right, as the right
    rebalance(layer)
    assert (layer.b_in - before).tolist() == [[0, -RATE, -RATE, 0, 0, 0, 0]]
    layer(torch.tensor([[-3.0]]))
    rebalance(layer)
    assert (layer.b_in - before).tolist() == [[RATE, -2 * RATE, -RATE, 0, 0, 0, 0]]


def test_a_step_counts_the_same_however_it_is_parted() -> None:
    layer, x = a_tree(), torch.randn(6, 7, 8)
    counts = surplus(layer, x.flatten(0, 1))
    layers = [copy.deepcopy(layer) for _ in range(3)]
    for each, size in zip(layers, (6, 3, 1), strict=True):
        for part in x.split(size):
            each(part).sum().backward()
        assert torch.equal(each.visits, counts)
        rebalance(each)
    halves = copy.deepcopy(layer)  # of two processes
    halves(x[:2])
    rebalance(halves, lambda own: own + surplus(layer, x[2:].flatten(0, 1)))
    assert all(torch.equal(each.b_in, halves.b_in) for each in layers)
    assert not torch.equal(halves.b_in, layer.b_in)


def test_the_count_changes_neither_outputs_nor_gradients() -> None:
    x = torch.randn(41, 8)
    found = []
    for rate in (0.0, RATE):
        layer = a_tree(rebalance_rate=rate)
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), layer.parameters())])
    for plain, counted in zip(*found, strict=True):
        torch.testing.assert_close(plain, counted, atol=1e-6, rtol=1e-6)


def test_only_training_passes_count_and_they_can_be_forgotten() -> None:
    layer, x = a_tree(), torch.randn(41, 8)
    with torch.no_grad():
        layer(x)
    layer.path(x), layer.route(x), layer.eval()(x)
    torch.func.jvp(layer.train(), (x,), (x,))
    assert not layer.visits.any()
    assert layer.train().visits.shape == (3, 15)
    layer(x)
    assert layer.visits.any()
    forget(layer)
    assert not layer.visits.any()
    plain = a_tree(rebalance_rate=0.0)
    plain(x)
    assert balanced_layers(plain) == []
    assert plain.visits.numel() == 0
    assert list(layer.state_dict()) == ["w_in", "b_in", "w_out"]


@pytest.mark.parametrize("form", ["hard", "soft", "straight_through"])
@pytest.mark.parametrize("losses", [(), ("balance",)])
def test_every_form_counts_the_hard_paths(form: str, losses: tuple[str, ...]) -> None:
    layer, x = a_tree(), torch.randn(41, 8)
    set_hardening(layer, form=form, losses=losses)
    layer.forward_with_losses(x)
    assert torch.equal(layer.visits, surplus(layer, x))


def test_a_turn_by_the_leak_counts_as_it_was_taken() -> None:
    layer, x = a_tree(1, 1), torch.randn(300, 8)
    layer.region_leak = 0.5
    torch.manual_seed(7)
    layer(x)
    torch.manual_seed(7)
    flips = torch.rand(300, 1, 1) < 0.5
    right = went_right(layer.path(x)[0]) ^ flips
    assert layer.visits.tolist() == [[2 * int(right.sum()) - 300]]


def test_it_counts_in_one_compiled_graph() -> None:
    torch._dynamo.reset()
    layer, x = a_tree(), torch.randn(41, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        compiled(x).sum().backward()
    assert torch.equal(layer.visits, 2 * surplus(layer, x))


def test_skewed_tokens_spread_over_the_leaves() -> None:
    torch.manual_seed(0)
    layer = PathFFF(8, 5, 4, rebalance_rate=0.02)
    x = torch.randn(8) + 0.3 * torch.randn(400, 8)
    before = measure(layer.route(x))
    for _ in range(200):
        layer(x)
        rebalance(layer)
    after = measure(layer.route(x))
    assert before.dead.item() >= 8
    assert after.dead.item() == 0
    assert after.fullest.item() < 2 / 16


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rebalance_rate": -0.1}, "ffn.rebalance_rate is -0.1; set it to a number of 0 or more"),
        ({"rebalance_rate": float("nan")}, "ffn.rebalance_rate is nan"),
        ({"rebalance_rate": True}, "ffn.rebalance_rate is True"),
        ({"rebalance_rate": 0.1, "bias": False}, "ffn.rebalance_rate is 0.1, and ffn.bias is False"),
    ],
)
def test_a_rate_that_cannot_be_is_refused_by_the_key(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from({"kind": "path", "trees": 1, "depth": 3, **keys}, "ffn")


def test_the_layer_refuses_it_too() -> None:
    with pytest.raises(ValueError, match="with bias=False there are none"):
        PathFFF(4, 4, 2, bias=False, rebalance_rate=0.1)
    with pytest.raises(ValueError, match="rebalance_rate"):
        PathFFF(4, 4, 2, rebalance_rate=-1.0)
    assert (
        settings_from({"kind": "path", "trees": 1, "depth": 3, "rebalance_rate": 0.5}).build(4, 4).balance_rate == 0.5
    )
