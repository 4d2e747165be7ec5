"""The definition of the layers, to which every provider is held. Written to be read and to run in float64, not fast."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.topology import child, depth_of, parent, path_length


class PathResult(NamedTuple):
    """Outputs y (N, K); visited nodes (N, T, L) int64 in heap order; their scores (N, T, L)."""

    y: Tensor
    nodes: Tensor
    scores: Tensor


def path_fff(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    flips: Tensor | None = None,
    temperature: Tensor | None = None,
) -> PathResult:
    """PathFFF, arXiv 2311.10770, section 2.1 (Algorithm 1: conditional matrix multiplication, then its transpose).

    A token starts at the root of each tree. At node i its score is s = w_in[i] . x + b_in[i]; it adds
    activation(s) * w_out[i] to the output and goes on to the right child if s > 0, else to the left one. Every
    node on the path contributes, the last level included. Plain autograd gives the gradients; the decision has none.

    x (N, H), w_in (T, M, H), b_in (T, M) or None, w_out (T, M, K), all of one floating dtype.

    Args:
        flips: (N, T, D) bool, decisions that the region leak turns round (arXiv 2308.14711, section 3).
        temperature: if given, decisions have straight-through gradients: a node's contribution is multiplied by 1,
            whose gradient is that of the probabilities sigmoid(+-s / temperature) of the path's decisions above it.
    """
    trees, node_count, _ = w_in.shape
    length = path_length(depth_of(node_count))
    act = activation_named(activation).forward
    biases = b_in.unbind(0) if b_in is not None else None
    y = x.new_zeros(x.shape[0], w_out.shape[-1])
    visited, scored = [], []
    for tree, (rows_in, rows_out) in enumerate(zip(w_in.unbind(0), w_out.unbind(0), strict=True)):
        node = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        gate = x.new_ones(x.shape[0])
        for level in range(length):
            score = (rows_in[node] * x).sum(-1)
            if biases is not None:
                score = score + biases[tree][node]
            y = y + (gate * act(score)).unsqueeze(-1) * rows_out[node]
            visited.append(node)
            scored.append(score)
            flip = None if flips is None or level == length - 1 else flips[:, tree, level]
            node = child(node, score.detach(), flip)
            if temperature is not None:
                p = torch.sigmoid(torch.where(node % 2 == 0, score, -score) / temperature)
                gate = gate * (1 + (p - p.detach()))
    shape = (x.shape[0], trees, length)
    return PathResult(y, torch.stack(visited, -1).view(shape), torch.stack(scored, -1).view(shape))


def soft_path_fff(
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor | None,
    w_out: Tensor,
    activation: str,
    temperature: Tensor,
    flips: Tensor | None = None,
) -> Tensor:
    """PathFFF's soft form: every node i contributes reach(i) * activation(s_i) * w_out[i]; returns y (N, K).

    reach(root) = 1 and reach(child) = reach(parent) * sigmoid(+-s_parent / temperature), plus for the right child: the
    mixture of arXiv 2308.14711, section 3, over the nodes of arXiv 2311.10770. It tends to `path_fff` as the
    temperature goes to 0. flips (N, T, 2^D - 1) bool: decisions that the region leak turns round.
    """
    trees, node_count, _ = w_in.shape
    act = activation_named(activation).forward
    y = x.new_zeros(x.shape[0], w_out.shape[-1])
    for tree in range(trees):
        reached: list[Tensor] = []
        scores = x @ w_in[tree].T
        if b_in is not None:
            scores = scores + b_in[tree]
        for node in range(node_count):
            if node == 0:
                reached.append(x.new_ones(x.shape[0]))
            else:
                above = parent(node)
                p = torch.sigmoid(scores[:, above] / temperature)
                if flips is not None:
                    p = torch.where(flips[:, tree, above], 1 - p, p)
                reached.append(reached[above] * (p if node % 2 == 0 else 1 - p))
            y = y + (reached[node] * act(scores[:, node])).unsqueeze(-1) * w_out[tree, node]
    return y


def leaf_fff(
    x: Tensor,
    w_node: Tensor,
    b_node: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    activation: str,
    flips: Tensor | None = None,
    temperature: Tensor | None = None,
    w_value: Tensor | None = None,
    b_value: Tensor | None = None,
) -> PathResult:
    """LeafFFF's hard form, the inference pass of arXiv 2308.14711 ("Method" and its algorithm), tie to the left.

    A token descends from the root by the scores s = w_node[i] . x + b_node[i], and its leaf's two-layer network
    activation(w_in x + b_in) w_out + b_out is the output. nodes (N, 1, D + 1) end in the leaf's node; scores (N, 1, D).

    x (N, H); J = 2^D - 1 decisions: w_node (J, H), b_node (J,); 2^D leaves of W neurons: w_in (2^D, W, H),
    b_in (2^D, W), w_out (2^D, W, K), b_out (2^D, K).

    Args:
        flips: (N, D) bool, decisions that the region leak turns round ("randomized child transpositions").
        temperature: if given, straight-through gradients: the output is multiplied by 1, whose gradient is that of the
            product of the probabilities sigmoid(+-s / temperature) of the decisions on the path.
        w_value, b_value: of w_in's and b_in's shapes, if leaves are gated (arXiv 2002.05202): their hidden neurons are
            activation(w_in x + b_in) (w_value x + b_value).
    """
    depth = depth_of(w_node.shape[0]) + 1 if len(w_node) else 0
    weights, values = (w_in, b_in, w_out, b_out), given(w_value, b_value)
    rows, visited, scored = [], [], []
    for n, token in enumerate(x):
        node = torch.zeros((), dtype=torch.int64, device=x.device)
        gate, path, scores = x.new_ones(()), [node], []
        for level in range(depth):
            score = (w_node[node] * token).sum() + b_node[node]
            node = child(node, score.detach(), None if flips is None else flips[n, level])
            if temperature is not None:
                p = torch.sigmoid((score if node % 2 == 0 else -score) / temperature)
                gate = gate * (1 + (p - p.detach()))
            path.append(node)
            scores.append(score)
        leaf = node - (2**depth - 1)
        rows.append(gate * network(token, activation, [w[leaf] for w in weights], [w[leaf] for w in values]))
        visited.append(torch.stack(path))
        scored.append(torch.stack(scores) if scores else x.new_zeros(0))
    if not rows:
        nodes = torch.zeros(0, 1, depth + 1, dtype=torch.int64, device=x.device)
        return PathResult(x.new_zeros(0, w_out.shape[-1]), nodes, x.new_zeros(0, 1, depth))
    return PathResult(torch.stack(rows), torch.stack(visited)[:, None], torch.stack(scored)[:, None])


def soft_leaf_fff(
    x: Tensor,
    w_node: Tensor,
    b_node: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    activation: str,
    temperature: Tensor,
    flips: Tensor | None = None,
    w_value: Tensor | None = None,
    b_value: Tensor | None = None,
) -> Tensor:
    """LeafFFF's soft form, the training pass of arXiv 2308.14711 ("Method" and its algorithm); returns y (N, K).

    A node returns p * its right child + (1 - p) * its left one, with p = sigmoid(s / temperature), and a leaf its
    network's output: leaves are weighted by the product of the probabilities above them. Shapes as in `leaf_fff`.

    Args:
        flips: (N, J) bool, decisions with |1 - p| for p, as the region leak makes them ("randomized child
            transpositions").
        w_value, b_value: as in `leaf_fff`.
    """
    inner, weights, values = len(w_node), (w_in, b_in, w_out, b_out), given(w_value, b_value)

    def below(node: int) -> Tensor:
        if node >= inner:
            leaf = node - inner
            return network(x, activation, [w[leaf] for w in weights], [w[leaf] for w in values])
        p = torch.sigmoid((x @ w_node[node] + b_node[node]) / temperature)
        if flips is not None:
            p = torch.where(flips[:, node], 1 - p, p)
        return p[:, None] * below(2 * node + 2) + (1 - p[:, None]) * below(2 * node + 1)

    return below(0)


def with_master_leaf(
    y: Tensor,
    x: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    mix: Tensor,
    activation: str,
    w_value: Tensor | None = None,
    b_value: Tensor | None = None,
) -> Tensor:
    """k * master(x) + (1 - k) * y, with y (N, K) of either form and k = mix (arXiv 2405.16836, "Master Leaf").

    The master is a two-layer network that every token passes: w_in (V, H), b_in (V,), w_out (V, K), b_out (K,); gated
    with w_value (V, H) and b_value (V,), as in `leaf_fff`.
    """
    return mix * network(x, activation, (w_in, b_in, w_out, b_out), given(w_value, b_value)) + (1 - mix) * y


def network(x: Tensor, activation: str, weights: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """One leaf's or the master's network: x (..., H) -> (..., K), of w_in, b_in, w_out, b_out.

    Gated where there are values, w_value and b_value; shapes as in `leaf_fff`, of one leaf.
    """
    w_in, b_in, w_out, b_out = weights
    hidden = activation_named(activation).forward(x @ w_in.T + b_in)
    if values:
        w_value, b_value = values
        hidden = hidden * (x @ w_value.T + b_value)
    return hidden @ w_out + b_out


def given(w_value: Tensor | None, b_value: Tensor | None) -> list[Tensor]:
    """Both, or nothing of a network without a gate."""
    return [] if w_value is None or b_value is None else [w_value, b_value]


def moe(
    x: Tensor, w_router: Tensor, b_balance: Tensor, w_in: Tensor, w_out: Tensor, top: int, activation: str
) -> tuple[Tensor, Tensor]:
    """Mixture of experts with sigmoid routing (arXiv 2310.10837), chosen with a bias (arXiv 2408.15664, equation 3).

    A token's scores are s = sigmoid(w_router x); it uses the `top` experts of largest s + b_balance, and its output is
    the sum over them of s_i activation(w_in[i] x) w_out[i]. Returns y (N, K) and the experts (N, top) int64, best
    first. x (N, H); E experts of W neurons: w_router (E, H), b_balance (E,), w_in (E, W, H), w_out (E, W, K).
    """
    act = activation_named(activation).forward
    rows, experts = [], []
    for token in x:
        s = torch.sigmoid(w_router @ token)
        chosen = (s + b_balance).topk(top).indices
        rows.append(sum((s[i] * (act(w_in[i] @ token) @ w_out[i]) for i in chosen), x.new_zeros(w_out.shape[-1])))
        experts.append(chosen)
    if not rows:
        return x.new_zeros(0, w_out.shape[-1]), torch.zeros(0, top, dtype=torch.int64, device=x.device)
    return torch.stack(rows), torch.stack(experts)


def peer(
    x: Tensor, w_query: Tensor, w_key: Tensor, w_in: Tensor, w_out: Tensor, top: int, activation: str
) -> tuple[Tensor, Tensor]:
    """PEER, parameter-efficient expert retrieval (arXiv 2407.04153, section 2), with the query normed by itself.

    For each head, q = w_query[h] x less its mean, divided by its standard deviation (1e-5 added to its square). Neuron
    i * C + j has the key (w_key[0, i], w_key[1, j]) and the score of q with it. A head adds the `top` neurons of
    largest score, each softmax(top scores) activation(w_in[e] . x) w_out[e]. Returns y (N, K) and the neurons
    (N, heads, top) int64, best first. x (N, H), w_query (heads, Q, H), w_key (2, C, Q / 2), w_in (C^2, H),
    w_out (C^2, K).
    """
    act = activation_named(activation).forward
    first, second = w_key
    keys = torch.cat((first.repeat_interleave(len(second), 0), second.repeat(len(first), 1)), -1)
    rows, neurons = [], []
    for token in x:
        y = x.new_zeros(w_out.shape[-1])
        for projection in w_query:
            q = projection @ token
            q = (q - q.mean()) / (q.var(correction=0) + 1e-5).sqrt()
            best = (keys @ q).topk(top)
            for gate, e in zip(best.values.softmax(-1), best.indices, strict=True):
                y = y + gate * act(w_in[e] @ token) * w_out[e]
            neurons.append(best.indices)
        rows.append(y)
    if not rows:
        return x.new_zeros(0, w_out.shape[-1]), torch.zeros(0, len(w_query), top, dtype=torch.int64, device=x.device)
    return torch.stack(rows), torch.stack(neurons).view(len(x), len(w_query), top)
