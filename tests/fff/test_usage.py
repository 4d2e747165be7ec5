"""Leaf usage: figures worked out by hand, counts that sum to the tokens, churn."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fff import LeafFFF, PathFFF
from fff.layers.base import Route
from fff.topology import walk
from fff.usage import measure, unit_counts, usage_entropy


def test_figures_worked_out_by_hand() -> None:
    # Depth 2, four tokens: leaves 3, 4, 6, 6 in heap order, so 0, 1, 3, 3.
    nodes = torch.tensor([[0, 1, 3], [0, 1, 4], [0, 2, 6], [0, 2, 6]])[:, None]
    scores = torch.tensor([[-1.0, -2.0, 9.0], [-3.0, 4.0, 9.0], [5.0, 6.0, 9.0], [7.0, 8.0, 9.0]])[:, None]
    usage = measure(Route.of_path(nodes, scores), temperature=1.0)
    assert usage.leaves.tolist() == [[0], [1], [3], [3]]
    assert usage.counts.tolist() == [[1, 1, 0, 2]]
    assert usage.entropy.tolist() == pytest.approx([1.5])
    assert usage.relative_entropy.tolist() == pytest.approx([0.75])
    assert usage.dead.tolist() == [1]
    assert usage.fullest.tolist() == [0.5]
    # Root: two of four to the right, even. Node 1: one of two. Node 2: both of its two, which are half of all tokens.
    assert usage.imbalance.tolist() == [[0.0, 0.5]]
    p = 1 / (1 + math.exp(-1))
    assert usage.decided.tolist() == [[0.75, 0.75]]  # sigmoid(-1) and sigmoid(-2) lie inside [0.1, 0.9]
    root = [-1.0, -3.0, 5.0, 7.0]
    entropies = [-(q * math.log2(q) + (1 - q) * math.log2(1 - q)) for q in (1 / (1 + math.exp(-s)) for s in root)]
    assert entropies[0] == pytest.approx(-(p * math.log2(p) + (1 - p) * math.log2(1 - p)))
    assert usage.decision_entropy[0, 0].item() == pytest.approx(sum(entropies) / 4)
    assert usage.margins[0].tolist() == [1.0, 3.0, 5.0, 6.0, 8.0]  # the decisions' scores alone, nearest ranks


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(1, 3), st.integers(0, 7), st.integers(0, 2**31))
def test_counts_sum_to_the_tokens(tokens: int, trees: int, depth: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(tokens, trees, 2 ** (depth + 1) - 1, generator=generator)
    nodes = walk(scores, depth + 1)
    counts = unit_counts(Route.of_path(nodes, nodes))
    assert counts.sum(-1).tolist() == [tokens] * trees
    assert (usage_entropy(counts) >= 0).all()
    assert (usage_entropy(counts) <= depth + 1e-9).all()
    usage = measure(Route.of_path(nodes, scores.gather(-1, nodes)))
    assert torch.equal(usage.counts, counts)
    assert ((usage.imbalance >= 0) & (usage.imbalance <= 1 + 1e-9)).all()


def test_churn_counts_moved_tokens() -> None:
    torch.manual_seed(0)
    layer, x = PathFFF(8, 8, 4, 2), torch.randn(100, 8)
    before = measure(layer.route(x))
    assert before.churn(before.leaves).tolist() == [0, 0]
    with torch.no_grad():
        layer.w_in[1, 0].neg_()
        layer.b_in[1, 0].neg_()
    moved = measure(layer.route(x)).churn(before.leaves)
    assert moved.tolist() == [0, 1]  # everybody crosses the second tree's root
    with pytest.raises(ValueError, match="same tokens"):
        before.churn(before.leaves[:50])


def test_leaf_layers_are_measured_too() -> None:
    torch.manual_seed(0)
    usage = measure(LeafFFF(8, 8, 3, 2).route(torch.randn(50, 8)))
    assert usage.counts.shape == (1, 8)
    assert usage.counts.sum() == 50
    with pytest.raises(ValueError, match="at least one token"):
        measure(Route.of_path(torch.zeros(0, 1, 3, dtype=torch.int64), torch.zeros(0, 1, 3)))
