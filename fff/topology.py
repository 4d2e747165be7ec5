"""Shape letters, heap arithmetic and the decision rule of the trees, each in one place. Nothing here holds parameters.

Shape letters, used by the whole package::

    N  tokens (any leading shape, flattened)      T  trees beside each other, their outputs are summed
    H  width of the input; K width of the output  D  depth: decisions on a path
    L  nodes on a path, D + 1                     M  nodes in a tree, 2 ** (D + 1) - 1

Nodes lie in heap order: the root is 0, the children of i are 2i + 1 (left) and 2i + 2 (right), level l is the
contiguous range that starts at 2 ** l - 1.
"""

import torch
from torch import Tensor


def nodes_in_tree(depth: int) -> int:
    """M, the nodes (= neurons) of one tree with `depth` decisions on a path."""
    return 2 ** (depth + 1) - 1


def path_length(depth: int) -> int:
    """L, the nodes that one token visits in one tree."""
    return depth + 1


def first_node(level: int) -> int:
    """Index of the leftmost node of a level; the level has ``first_node(level) + 1`` nodes."""
    return 2**level - 1


def level_of(node: int) -> int:
    """Level of a node; the root is level 0."""
    return (node + 1).bit_length() - 1


def left_child(node: int) -> int:
    """Where a token goes whose score at `node` is negative, zero or NaN."""
    return 2 * node + 1


def right_child(node: int) -> int:
    """Where a token goes whose score at `node` is above zero."""
    return 2 * node + 2


def parent(node: int) -> int:
    """The node above; ValueError for the root."""
    if node < 1:
        raise ValueError(f"node {node} has no parent: the root is 0 and every other node is positive")
    return (node - 1) // 2


def depth_of(nodes: int) -> int:
    """D of a tree with M = `nodes` nodes; ValueError if no complete tree has that many."""
    nodes = int(nodes)  # torch.jit.trace gives a size as a tensor
    depth = nodes.bit_length() - 1
    if depth < 0 or nodes_in_tree(depth) != nodes:
        raise ValueError(f"a complete tree has 2 ** (depth + 1) - 1 nodes, got {nodes}")
    return depth


def child(node: Tensor, score: Tensor, flip: Tensor | None = None) -> Tensor:
    """The decision rule: right if and only if the score is above 0; a tie and a NaN go left. Same shape as `node`.

    `flip` (bool) takes the other child instead, as the region leak does in training.
    """
    right = score > 0
    return 2 * node + 1 + (right if flip is None else right ^ flip)


def walk(scores: Tensor, levels: int, flips: Tensor | None = None) -> Tensor:
    """Path (..., levels) int64 through the scores (..., m) of the first m >= 2 ** levels - 1 nodes of a tree.

    flips (..., at least levels - 1): decisions that the region leak turns round.
    """
    node = torch.zeros((*scores.shape[:-1], 1), dtype=torch.int64, device=scores.device)
    path = [node]
    for level in range(levels - 1):
        node = child(node, scores.gather(-1, node), None if flips is None else flips[..., level : level + 1])
        path.append(node)
    return torch.cat(path, dim=-1)


def ancestors(nodes: Tensor, level: int) -> Tensor:
    """Paths (..., level + 1) from the root to nodes (...) int64 of one level."""
    heights = torch.arange(level, -1, -1, device=nodes.device)
    return ((nodes[..., None] + 1) >> heights) - 1


def trained_neurons(trees: int, depth: int) -> int:
    """Training width: T * M neurons exist."""
    return trees * nodes_in_tree(depth)


def used_neurons(trees: int, depth: int) -> int:
    """Inference width: T * L neurons are computed for a token."""
    return trees * path_length(depth)


def trees_for_neurons(neurons: int, depth: int) -> int:
    """The number of trees of this depth whose training width comes closest to `neurons`.

    Raises ValueError when `neurons` is less than half a tree, because one tree would be a different setting then.
    """
    nodes = nodes_in_tree(depth)
    if 2 * neurons < nodes:
        raise ValueError(
            f"neurons={neurons} is less than half of one tree of depth {depth} ({nodes} nodes): "
            f"take a smaller depth or at least {nodes} neurons"
        )
    return max(1, round(neurons / nodes))
