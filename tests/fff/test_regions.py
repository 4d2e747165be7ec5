"""Regions: the leaf of a token, and edits that no other token feels."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fff import PathFFF
from fff.regions import ablate_leaf, assign, edit_leaf, edited_leaf, recorded_inputs, tokens_in

PROVIDERS = ["masked", "gather"]


def layer(depth: int, trees: int = 1, *, seed: int = 0, **options) -> PathFFF:
    torch.manual_seed(seed)
    return PathFFF(12, 8, depth, trees, **options).eval()


def a_leaf_that_is_reached(module: PathFFF, x: torch.Tensor, tree: int) -> int:
    return int(assign(module, x)[..., tree].flatten().mode().values)


def test_leaves_are_numbered_from_left_to_right() -> None:
    # Two decisions: on x0, then on x1 to the left and to the right alike.
    module = PathFFF(2, 1, 2)
    with torch.no_grad():
        module.w_in.zero_()
        module.b_in.zero_()
        module.w_in[0, 0, 0] = 1
        module.w_in[0, 1:3, 1] = 1
    x = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [0.0, 0.0]])
    assert assign(module, x)[:, 0].tolist() == [0, 1, 2, 3, 0]
    assert tokens_in(module, x, 0).tolist() == [0, 4]
    assert tokens_in(module, x.view(5, 1, 2), 3).tolist() == [3]


@pytest.mark.parametrize("depth", [0, 1, 5, 11])
def test_every_token_is_in_one_region_of_each_tree(depth: int) -> None:
    module = layer(depth, 3)
    leaves = assign(module, torch.randn(7, 9, 12))
    assert leaves.shape == (7, 9, 3)
    assert leaves.min() >= 0
    assert leaves.max() < 2**depth
    x = torch.randn(50, 12)
    if depth < 6:
        for tree in range(3):
            listed = torch.cat([tokens_in(module, x, leaf, tree) for leaf in range(2**depth)])
            assert sorted(listed.tolist()) == list(range(50))


@settings(max_examples=60, deadline=None)
@given(
    provider=st.sampled_from(PROVIDERS),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    depth=st.integers(1, 8),
    trees=st.integers(1, 3),
    tokens=st.integers(1, 200),
    size=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 2**31),
)
def test_an_edit_changes_its_region_and_not_one_bit_elsewhere(
    provider: str, dtype: torch.dtype, depth: int, trees: int, tokens: int, size: float, seed: int
) -> None:
    module = layer(depth, trees, seed=seed, provider=provider).to(dtype)
    x, tree = torch.randn(tokens, 12, dtype=dtype), seed % trees
    leaf = a_leaf_that_is_reached(module, x, tree)
    before, weights = module(x), [p.clone() for p in module.parameters()]
    old = edit_leaf(module, leaf, size * torch.randn(8), tree)
    after = module(x)
    inside = torch.zeros(tokens, dtype=torch.bool)
    inside[tokens_in(module, x, leaf, tree)] = True
    assert torch.equal(before[~inside].view(torch.uint8), after[~inside].view(torch.uint8))
    _, scores = module.path(x)
    felt = inside & (scores[:, tree, -1].abs() > 0.05)  # nearer to 0, gelu(score) may vanish in rounding
    if size == 1.0 and dtype != torch.bfloat16:
        assert (before[felt] != after[felt]).any(-1).all()
    edit_leaf(module, leaf, old, tree)
    assert all(map(torch.equal, module.parameters(), weights))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_ablation_leaves_the_nodes_above(provider: str) -> None:
    module = layer(3, provider=provider)
    x = torch.randn(100, 12)
    leaf = a_leaf_that_is_reached(module, x, 0)
    inside = tokens_in(module, x, leaf)
    nodes, scores = (each[inside, 0, :-1] for each in module.path(x))
    expected = (nn.functional.gelu(scores)[..., None] * module.w_out[0][nodes]).sum(1)
    before = module(x)
    with edited_leaf(module, leaf):
        torch.testing.assert_close(module(x)[inside], expected)
    assert torch.equal(module(x), before)
    ablate_leaf(module, leaf)
    torch.testing.assert_close(module(x)[inside], expected)


def test_an_edit_is_taken_back_after_an_error() -> None:
    module = layer(2)
    before = module.w_out.clone()
    with pytest.raises(RuntimeError, match="on purpose"), edited_leaf(module, 1, torch.ones(8)):
        raise RuntimeError("on purpose")
    assert torch.equal(module.w_out, before)


def test_a_models_layers_are_recorded_while_asked() -> None:
    first, second = layer(2), PathFFF(8, 8, 3)
    model = nn.Sequential(first, nn.LayerNorm(8), second).eval()
    x = torch.randn(5, 12)
    with recorded_inputs(model) as inputs:
        model(x)
        model(x[:2])
    model(x)
    assert list(inputs) == ["0", "2"]
    assert [each.shape for each in inputs["2"]] == [(5, 8), (2, 8)]
    assert torch.equal(inputs["0"][0], x)
    assert torch.equal(inputs["2"][0], model[1](first(x)))
    assert not inputs["2"][0].requires_grad


def test_wrong_arguments_are_named() -> None:
    module, row = layer(2, 2), torch.zeros(8)
    for wrong in (4, -1):
        with pytest.raises(ValueError, match=rf"leaf={wrong} .* has 4"):
            edit_leaf(module, wrong, row)
    with pytest.raises(ValueError, match="tree=2"):
        tokens_in(module, torch.randn(3, 12), 0, 2)
    with pytest.raises(ValueError, match="shape"):
        edit_leaf(module, 0, torch.zeros(7))
    with pytest.raises(ValueError, match="not finite"):
        edit_leaf(module, 0, torch.full((8,), float("inf")))
    with pytest.raises(ValueError, match=r"not finite in torch\.float16"):
        edit_leaf(layer(2).half(), 0, torch.full((8,), 1e6))
    with pytest.raises(TypeError, match="PathFFF"):
        ablate_leaf(nn.Linear(2, 2), 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no FFF layer"), recorded_inputs(nn.Linear(2, 2)):
        pass
