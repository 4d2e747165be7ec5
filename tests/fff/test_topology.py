"""Heap arithmetic of the trees."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fff import topology as tp


@given(st.integers(0, 2**20))
def test_parents_children_and_levels_agree(node: int) -> None:
    for child in (tp.left_child(node), tp.right_child(node)):
        assert tp.parent(child) == node
        assert tp.level_of(child) == tp.level_of(node) + 1
    level = tp.level_of(node)
    assert tp.first_node(level) <= node < tp.first_node(level + 1)


@given(st.integers(0, 25))
def test_sizes(depth: int) -> None:
    assert tp.nodes_in_tree(depth) == sum(2**level for level in range(depth + 1))
    assert tp.depth_of(tp.nodes_in_tree(depth)) == depth


@given(st.integers(1, 10**6), st.integers(0, 15))
def test_trees_come_as_close_as_whole_trees_can(neurons: int, depth: int) -> None:
    nodes = tp.nodes_in_tree(depth)
    if 2 * neurons < nodes:
        with pytest.raises(ValueError, match="less than half of one tree"):
            tp.trees_for_neurons(neurons, depth)
    else:
        trees = tp.trees_for_neurons(neurons, depth)
        assert abs(trees * nodes - neurons) <= nodes / 2


def test_the_decision_rule() -> None:
    scores = torch.tensor([1e-30, 0.0, -0.0, -1.0, float("nan"), float("inf")])
    assert tp.child(torch.zeros(6, dtype=torch.long), scores).tolist() == [2, 1, 1, 1, 1, 2]


def test_the_paper_s_numbers() -> None:
    assert (tp.trained_neurons(1, 11), tp.used_neurons(1, 11)) == (4095, 12)
    assert [tp.trees_for_neurons(4095, d) for d in (11, 10, 9, 8, 7, 6)] == [1, 2, 4, 8, 16, 32]
    with pytest.raises(ValueError, match="has no parent"):
        tp.parent(0)
    with pytest.raises(ValueError, match="complete tree"):
        tp.depth_of(5)
