"""Trees with given paths: the definition along them, hashes and hyperplanes that nothing trains, missing ids."""

import itertools
import re

import pytest
import torch
from torch import Tensor, nn

from cramming.model import CrammedForMaskedLM
from fff.activations import activation_named
from fff.feedforward import settings_from
from fff.rivals.fixed import FixedPath, hashed
from fff.topology import ancestors, first_node, level_of, parent
from fff.usage import measure
from tests.helpers.model import config

SHAPES = ((7,), (0, 7), (5, 7), (3, 11, 7))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 6e-2}


def a_layer(path: str, dtype: torch.dtype = torch.float64, **keys) -> FixedPath:
    torch.manual_seed(0)
    settings = settings_from({"kind": "fixed", "trees": 2, "depth": 3, "path": path, **keys})
    layer = settings.build(7, 9, dtype=dtype)
    assert isinstance(layer, FixedPath)
    return layer


def nodes_of(layer: FixedPath, x: Tensor, *given: Tensor) -> Tensor:
    """The paths (..., trees, depth + 1) of the route, or to its leaves where none was decided."""
    route = layer.route(x, *given)
    return ancestors(route.units[..., 0] + first_node(3), 3) if route.nodes is None else route.nodes


def definition(layer: FixedPath, x: Tensor, nodes: Tensor) -> Tensor:
    """The sum over the nodes of each token's paths, node by node."""
    flat, act = x.reshape(-1, 7), activation_named("gelu").forward
    y = flat.new_zeros(len(flat), 9)
    for tree in range(layer.trees):
        for node in nodes.view(-1, *nodes.shape[-2:])[:, tree].unbind(-1):
            score = (layer.w_in[tree][node] * flat).sum(-1)
            score = score if layer.b_in is None else score + layer.b_in[tree][node]
            y = y + act(score)[:, None] * layer.w_out[tree][node]
    return y.view(*x.shape[:-1], 9)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("path", ["random", "token"])
def test_outputs_and_all_gradients_are_those_along_the_path(
    path: str, dtype: torch.dtype, shape: tuple[int, ...], bias: bool
) -> None:
    layer, x = a_layer(path, dtype, bias=bias), torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    given = (torch.randint(100, shape[:-1]),) if path == "token" else ()
    nodes = nodes_of(layer, x, *given)
    assert nodes.shape == (*shape[:-1], 2, 4)
    trained = [p for p in layer.parameters() if p.requires_grad]
    grad = torch.randn(*shape[:-1], 9, dtype=torch.float64).to(dtype)
    ours, theirs = layer(x, *given), definition(layer, x, nodes)
    found = [ours, *torch.autograd.grad(ours, [x, *trained], grad)]
    wanted = [theirs, *torch.autograd.grad(theirs, [x, *trained], grad)]
    for a, b in zip(found, wanted, strict=True):
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, atol=TOLERANCE[dtype] * scale, rtol=0)


def test_hyperplanes_through_the_origin_decide_and_stay_as_drawn() -> None:
    layer, x = a_layer("random"), torch.randn(50, 7, dtype=torch.float64)
    nodes = layer.route(x).nodes
    assert nodes is not None
    for tree in range(2):
        for token, path in zip(x, nodes[:, tree].tolist(), strict=True):
            for node, below in itertools.pairwise(path):
                assert below == 2 * node + 1 + int(layer.w_decide[tree, node] @ token > 0)
    before = layer.w_decide.clone()
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    layer(x).square().sum().backward()
    optimiser.step()
    assert torch.equal(layer.w_decide, before)
    assert layer.w_decide.grad is None
    opposite = layer.route(-x).nodes
    assert opposite is not None
    assert (opposite[..., 1] != nodes[..., 1]).all()  # no bias: the other side of the plane


def test_the_leaf_is_the_documented_hash_of_the_id() -> None:
    layer, ids = a_layer("token"), torch.arange(1000)
    x = torch.randn(1000, 7, dtype=torch.float64)
    leaves = layer.route(x, ids).units[..., 0]

    def plainly(token: int, salt: int) -> int:
        mixed = token + salt * 2**20
        for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
            mixed = (mixed ^ (mixed >> 33)) * factor % 2**64
            mixed -= 2**64 * (mixed >= 2**63)
        return (mixed >> 40) % 8

    assert leaves.tolist() == [[plainly(token, salt) for salt in layer.salt.tolist()] for token in ids.tolist()]
    assert layer.salt.unique().numel() == 2
    counts = torch.bincount(leaves[:, 0], minlength=8)
    assert 90 < counts.min() <= counts.max() < 160  # 125 each, give or take three deviations
    assert not torch.equal(leaves[:, 0], leaves[:, 1])


def test_a_hash_has_leaves_and_no_decisions() -> None:
    layer, x, ids = a_layer("token"), torch.randn(4, 250, 7, dtype=torch.float64), torch.arange(1000).view(4, 250)
    route = layer.route(x, ids)
    assert (route.nodes, route.size) == (None, 8)
    usage = measure(route)
    assert usage.leaves.shape == (1000, 2)
    assert usage.depth == usage.decided.numel() == usage.decision_entropy.numel() == 0
    assert usage.entropy.min() > 2.9
    assert measure(a_layer("random").route(x)).depth == 3


def test_ancestors_are_the_parents_upwards() -> None:
    paths = ancestors(torch.arange(7, 15), 3)
    for path in paths.tolist():
        assert path[0] == 0
        assert [level_of(node) for node in path] == [0, 1, 2, 3]
        assert all(parent(below) == node for node, below in itertools.pairwise(path))


def test_hashing_knows_no_depth_0_exception() -> None:
    assert hashed(torch.arange(5), torch.tensor(3), 0).tolist() == [0] * 5
    assert a_layer("token", depth=0)(torch.randn(3, 7, dtype=torch.float64), torch.arange(3)).shape == (3, 9)


def test_missing_ids_are_named() -> None:
    layer = a_layer("token")
    with pytest.raises(ValueError, match="3 are needed, and none were given"):
        layer(torch.randn(3, 7, dtype=torch.float64))
    model = CrammedForMaskedLM(config({"kind": "fixed", "trees": 1, "depth": 2, "path": "token"})).eval()
    with pytest.raises(ValueError, match="the path follows from the tokens' ids"):
        model(inputs_embeds=torch.randn(1, 4, 32))


@pytest.mark.parametrize("path", ["random", "token"])
def test_layers_of_a_model_have_paths_of_their_own_which_are_saved(path: str, tmp_path) -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config({"kind": "fixed", "trees": 1, "depth": 3, "path": path})).eval()
    kept = [block.ffn.salt if path == "token" else block.ffn.w_decide for block in model.model.blocks]
    assert not torch.equal(kept[0], kept[1])
    assert all(tensor.any() for tensor in kept)
    model.save_pretrained(tmp_path)
    again = CrammedForMaskedLM.from_pretrained(tmp_path).eval()
    ids = torch.randint(7, 80, (2, 16))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    assert again.half().model.blocks[0].ffn.state_dict().keys() == model.model.blocks[0].ffn.state_dict().keys()
    if path == "token":
        assert torch.equal(again.half().model.blocks[0].ffn.salt, kept[0])


@pytest.mark.parametrize("path", ["random", "token"])
def test_the_compiled_layer_is_the_plain_one(path: str) -> None:
    layer, x = a_layer(path, torch.float32), torch.randn(40, 7)
    given = (torch.randint(100, (40,)),) if path == "token" else ()
    compiled = torch.compile(nn.Sequential(layer)[0], fullgraph=True)
    torch.testing.assert_close(compiled(x, *given), layer(x, *given))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"path": "learned"}, "`path` is 'learned'; fixed takes one of random, token."),
        ({"trees": None}, "`trees` is None"),
        ({"depth": 21}, "`depth` is 21"),
    ],
)
def test_what_it_cannot_be_is_named(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        settings_from({"kind": "fixed", "trees": 1, "depth": 3, **keys})
