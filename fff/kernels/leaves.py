"""What LeafFFF computes with: the path of decisions, the chosen leaves' networks, the soft mixture. Not the module.

Shape letters as in fff.topology; besides J decision nodes, 2^D - 1, and W neurons of a leaf. A leaf's network is
act(x w_in^T + b_in) w_out + b_out with w_in (2^D, W, H), b_in (2^D, W), w_out (2^D, W, K), b_out (2^D, K). Gated, the
activations are multiplied by x w_value^T + b_value, of w_in's and b_in's shapes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.compiler import is_exporting
from torch.nn import functional

from fff.activations import activation_named
from fff.decisions import reach, right_probability, straight_through_gates
from fff.kernels.autograd import differentiable, for_any_size, gradients_wanted
from fff.kernels.gather import PAYS_FROM, PAYS_FROM_OTHER, gather
from fff.kernels.operands import PathOperands
from fff.reference import PathResult
from fff.topology import child, depth_of, first_node, nodes_in_tree, path_length, walk

# Tokens in one product with one leaf's weights; more do not make the product faster.
MOST_PER_BLOCK = 128
PER_BLOCK_OF_ANY = 16  # where the number of tokens is not known


class Leaves(NamedTuple):
    """Weights of leaf networks side by side, or of one network without the first dimension of each."""

    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    w_value: Tensor | None = None
    b_value: Tensor | None = None

    @property
    def gated(self) -> bool:
        """Whether activations are multiplied by values."""
        return self.w_value is not None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Leaves":
        """The same with every weight changed."""
        return Leaves(*(weight if weight is None else change(weight) for weight in self))  # type: ignore[arg-type]


class LeafOperands(NamedTuple):
    """x (N, H), w_node (J, H), b_node (J,), both None at depth 0; the leaves; as `fff.reference.leaf_fff`.

    flips (N, D) bool or None: decisions that the region leak turns round. temperature: 0-dim. straight_through: whether
    decisions have its gradients; else they are zero. dropout: of the leaves' hidden neurons.
    """

    x: Tensor
    w_node: Tensor | None
    b_node: Tensor | None
    leaves: Leaves
    activation: str
    flips: Tensor | None
    temperature: Tensor
    straight_through: bool = False
    dropout: float = 0.0

    @property
    def depth(self) -> int:
        """D."""
        return 0 if self.w_node is None else depth_of(len(self.w_node)) + 1


def all_leaves(operands: LeafOperands) -> PathResult:
    """LeafFFF's hard forms by all leaves' networks, those of other tokens zeroed: plain torch of any derivative.

    y (N, K), nodes (N, 1, D + 1), scores (N, 1, D).
    """
    x, w, b, *_ = operands
    if w is None:
        return own_leaf(operands)
    nodes = walk(functional.linear(x, w, b).detach(), operands.depth + 1, operands.flips)
    return along(nodes, operands)


def along(nodes: Tensor, operands: LeafOperands) -> PathResult:
    """The same on given paths (N, D + 1) int64; depth at least 1."""
    x, w, b, leaves, activation, *_ = operands
    assert w is not None
    depth = operands.depth
    scores = functional.linear(x, w, b).gather(-1, nodes[:, :-1])
    chosen = torch.arange(2**depth, device=x.device) == nodes[:, -1:] - first_node(depth)
    y = _weighted(x, leaves, chosen.to(x.dtype), activation, operands.dropout)
    return PathResult(gated(y, nodes, scores, operands), nodes[:, None], scores[:, None])


@differentiable(all_leaves)
def own_leaf(operands: LeafOperands) -> PathResult:
    """LeafFFF's hard forms by each token's own leaf, in plain torch; results as `all_leaves`."""
    return by_own_leaf(*_walked(operands), operands)


def by_own_leaf(nodes: Tensor, scores: Tensor, operands: LeafOperands) -> PathResult:
    """The same on walked paths: nodes (N, D + 1), scores (N, D)."""
    x, _, _, leaves, activation, *_ = operands
    if operands.depth == 0:
        y = dense(x, leaves.each(lambda weight: weight[0]), activation, operands.dropout)
    else:
        y = one_leaf_each(x, nodes[:, -1] - first_node(operands.depth), leaves, activation, operands.dropout)
        y = gated(y, nodes, scores, operands)
    return PathResult(y, nodes[:, None], scores[:, None])


def own_walk(operands: LeafOperands) -> tuple[Tensor, Tensor]:
    """Nodes (N, 1, D + 1) and scores (N, 1, D) of `own_leaf`."""
    nodes, scores = _walked(operands)
    return nodes[:, None], scores[:, None]


def _walked(operands: LeafOperands) -> tuple[Tensor, Tensor]:
    x, w, b, _, _, flips, *_ = operands
    if w is None or b is None:
        return x.new_zeros(x.shape[0], 1, dtype=torch.int64), x.new_zeros(x.shape[0], 0)
    return decide(x, w, b, flips)


def gated(y: Tensor, nodes: Tensor, scores: Tensor, operands: LeafOperands) -> Tensor:
    """y times 1, whose gradient is the decisions' own, or zero."""
    lean = for_any_size() and not operands.straight_through
    if lean or not gradients_wanted((*operands, *operands.leaves)):
        return y
    gate = straight_through_gates(nodes, functional.pad(scores, (0, 1)), operands.temperature)[:, -1:]
    slope = 1.0 if operands.straight_through else 0.0
    return y * (1 + slope * (gate - gate.detach())).to(y.dtype)


def dense(x: Tensor, network: Leaves, activation: str, dropout: float) -> Tensor:
    """One two-layer network: x (N, H) -> (N, K), with `dropout` of its hidden neurons."""
    hidden = _hidden(network, activation, dropout, partial(functional.linear, x))
    return functional.linear(hidden, network.w_out.t(), network.b_out)


def _hidden(network: Leaves, activation: str, dropout: float, product: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Hidden neurons; product: weights and biases of a linear in -> its output."""
    hidden = activation_named(activation).forward(product(network.w_in, network.b_in))
    if network.w_value is not None and network.b_value is not None:
        hidden = hidden * product(network.w_value, network.b_value)
    return functional.dropout(hidden, dropout)


def decide(x: Tensor, w: Tensor, b: Tensor, flips: Tensor | None) -> tuple[Tensor, Tensor]:
    """Path (N, D + 1) int64 in heap order, its last node the leaf's, and the D decisions' scores (N, D).

    w (J, H), b (J,), D at least 1; flips (N, D) bool or None. Deep trees compute the path's scores alone, shallow ones
    all, where one product is faster. Scores have gradients.
    """
    depth = depth_of(len(w)) + 1
    pays_from = PAYS_FROM.get(x.device.type, PAYS_FROM_OTHER)
    if nodes_in_tree(depth - 1) < pays_from * path_length(depth - 1):
        scores = functional.linear(x, w, b)
        path = walk(scores.detach(), depth + 1, flips)
        return path, scores.gather(-1, path[:, :-1])
    # The decisions are a PathFFF of depth D - 1 of which the scores alone are wanted.
    above = None if flips is None else flips[:, None, :-1]
    _, nodes, scores = gather(PathOperands(x, w[None], b[None], w.new_zeros(1, len(w), 1), "identity", above))
    nodes, scores = nodes[:, 0], scores[:, 0]
    leaf = child(nodes[:, -1:], scores[:, -1:].detach(), None if flips is None else flips[:, -1:])
    return torch.cat((nodes, leaf), -1), scores


def one_leaf_each(x: Tensor, leaf: Tensor, leaves: Leaves, activation: str, dropout: float) -> Tensor:
    """Each token's own leaf network: x (N, H), leaf (N,) int64 -> (N, K) by O(H W + W K) work per token.

    Tokens are grouped by leaf into blocks of equal size, each multiplied by one leaf's weights. A block takes as many
    tokens as a leaf has on average, so that at most about half of the rows are padding and the copied weights are about
    twice the layer's; with few tokens a block is one token. Sizes follow from shapes alone: nothing waits for the
    device, and torch.compile sees one graph.
    """
    tokens, count = x.shape[0], len(leaves.w_in)
    size = PER_BLOCK_OF_ANY if for_any_size() else min(MOST_PER_BLOCK, max(1, tokens // count))
    slot, block_leaf = _blocks(leaf, count, size)
    blocks = block_leaf.shape[0]
    if for_any_size():  # that a view fits could not be proved
        place = slot // size, slot % size
        padded = x.new_zeros(blocks, size, x.shape[1]).index_put(place, x)
    else:
        padded = x.new_zeros(blocks * size, x.shape[1]).index_copy(0, slot, x).view(blocks, size, x.shape[1])
    mine = leaves.each(lambda weight: weight.index_select(0, block_leaf))
    hidden = _hidden(
        mine, activation, dropout, lambda weight, bias: torch.baddbmm(bias[:, None], padded, weight.transpose(1, 2))
    )
    y = torch.baddbmm(mine.b_out[:, None], hidden, mine.w_out)
    return y[place] if for_any_size() else y.flatten(0, 1).index_select(0, slot)


def _blocks(leaf: Tensor, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Row (N,) of each token in the blocks, and the leaf (blocks,) of each block of `size` rows."""
    tokens = leaf.shape[0]
    ordered, order = torch.sort(leaf, stable=True)
    borders = torch.searchsorted(ordered, torch.arange(count + 1, device=leaf.device))
    last_block = borders.diff().add(size - 1).div(size, rounding_mode="floor").cumsum(0)
    first_block = functional.pad(last_block, (1, 0))[:-1]
    rank = torch.arange(tokens, device=leaf.device) - borders[ordered]
    slot = torch.empty_like(order).scatter(0, order, first_block[ordered] * size + rank)
    # Sum of ceil(tokens of a leaf / size), at most; blocks left over are padding throughout.
    least = torch.sym_min if is_exporting() else min
    leaves = count if torch.jit.is_tracing() else least(count, tokens)
    blocks = tokens if size == 1 else tokens // size + leaves
    block_leaf = torch.searchsorted(last_block, torch.arange(blocks, device=leaf.device), right=True)
    return slot, block_leaf.clamp(max=count - 1)


def mixture(
    x: Tensor,
    w: Tensor,
    b: Tensor,
    leaves: Leaves,
    activation: str,
    dropout: float,
    temperature: Tensor,
    flips: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All leaves weighted by their reach (see `fff.reference.soft_leaf_fff`): y (N, K), scores and reach (N, J).

    w (J, H), b (J,); flips (N, J) bool or None. Probabilities in float32 for half types.
    """
    scores = functional.linear(x, w, b)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    reached = reach(right_probability(scores, temperature, flips))
    inner = len(w)
    y = _weighted(x, leaves, reached[:, inner:].to(x.dtype), activation, dropout)
    return y, scores, reached[:, :inner]


def _weighted(x: Tensor, leaves: Leaves, weight: Tensor, activation: str, dropout: float) -> Tensor:
    """All leaf networks, each times its weight (N, leaves), summed: (N, K)."""
    hidden = _hidden(
        leaves, activation, dropout, lambda each, bias: functional.linear(x, each.flatten(0, 1), bias.flatten())
    )
    hidden = hidden.view(-1, *leaves.b_in.shape) * weight.unsqueeze(-1)
    return hidden.flatten(1) @ leaves.w_out.flatten(0, 1) + weight @ leaves.b_out
