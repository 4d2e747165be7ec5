"""What LeafFFF computes with: the path of decisions, the chosen leaves' networks, the soft mixture. Not the module.

Shape letters as in fff.topology; besides J decision nodes, 2^D - 1, and W neurons of a leaf. A leaf's network is
act(x w_in^T + b_in) w_out + b_out with w_in (2^D, W, H), b_in (2^D, W), w_out (2^D, W, K), b_out (2^D, K).
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from fff.activations import activation_named
from fff.decisions import reach, right_probability
from fff.kernels import PAYS_FROM, PAYS_FROM_OTHER
from fff.kernels.gather import gather
from fff.topology import child, depth_of, first_node, nodes_in_tree, path_length, walk

# Tokens in one product with one leaf's weights; more do not make the product faster.
MOST_PER_BLOCK = 128


class Leaves(NamedTuple):
    """Weights of leaf networks side by side, or of one network without the first dimension of each."""

    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor


def dense(x: Tensor, network: Leaves, activation: str, dropout: float) -> Tensor:
    """One two-layer network: x (N, H) -> (N, K), with `dropout` of its hidden neurons."""
    hidden = activation_named(activation).forward(functional.linear(x, network.w_in, network.b_in))
    return functional.linear(functional.dropout(hidden, dropout), network.w_out.t(), network.b_out)


def decide(x: Tensor, w: Tensor, b: Tensor, flips: Tensor | None) -> tuple[Tensor, Tensor]:
    """Path (N, D + 1) int64 in heap order, its last node the leaf's, and the D decisions' scores (N, D).

    w (J, H), b (J,), D at least 1; flips (N, D) bool or None. Deep trees compute the path's scores alone, shallow ones
    all, where one product is faster. Scores have gradients.
    """
    depth = depth_of(w.shape[0]) + 1
    pays_from = PAYS_FROM.get(("gather", x.device.type), PAYS_FROM_OTHER)
    if nodes_in_tree(depth - 1) < pays_from * path_length(depth - 1):
        scores = functional.linear(x, w, b)
        path = walk(scores.detach(), depth + 1, flips)
        return path, scores.gather(-1, path[:, :-1])
    # The decisions are a PathFFF of depth D - 1 of which the scores alone are wanted.
    above = None if flips is None else flips[:, None, :-1]
    _, nodes, scores = gather(x, w[None], b[None], w.new_zeros(1, w.shape[0], 1), "identity", above)
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
    tokens, count = x.shape[0], leaves.w_in.shape[0]
    size = min(MOST_PER_BLOCK, max(1, tokens // count))
    slot, block_leaf = _blocks(leaf, count, size)
    padded = x.new_zeros(block_leaf.shape[0] * size, x.shape[1]).index_copy(0, slot, x)
    w_in, b_in, w_out, b_out = (weight.index_select(0, block_leaf) for weight in leaves)
    hidden = torch.baddbmm(b_in[:, None], padded.view(-1, size, x.shape[1]), w_in.transpose(1, 2))
    hidden = functional.dropout(activation_named(activation).forward(hidden), dropout)
    return torch.baddbmm(b_out[:, None], hidden, w_out).flatten(0, 1).index_select(0, slot)


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
    blocks = tokens if size == 1 else tokens // size + min(count, tokens)
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
    inner = first_node(depth_of(reached.shape[-1]))
    weight = reached[:, inner:].to(x.dtype)
    hidden = functional.linear(x, leaves.w_in.flatten(0, 1), leaves.b_in.flatten())
    hidden = functional.dropout(activation_named(activation).forward(hidden), dropout)
    hidden = hidden.view(-1, *leaves.b_in.shape) * weight.unsqueeze(-1)
    return hidden.flatten(1) @ leaves.w_out.flatten(0, 1) + weight @ leaves.b_out, scores, reached[:, :inner]
