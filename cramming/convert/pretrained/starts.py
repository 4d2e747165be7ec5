"""Where training of a block begins: weights in closed form from the dense block and recorded tokens. No gradients.

Trees part the tokens; each leaf takes the dense neurons that serve its own tokens best, beside those that all tokens
share, and all rows out are refitted together by ridge. Narrow layers are one such leaf.
"""

import functools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cramming.convert.pretrained.dense import Dense
from cramming.convert.pretrained.equations import Equations, choose, equations, penalise, solve
from cramming.convert.pretrained.splits import scale_of, split_level
from cramming.convert.pretrained.student import Piece
from fff.activations import ACTIVATIONS
from fff.layers.leaf import MASTER, LeafFFF
from fff.layers.path import PathFFF
from fff.layers.shared import SharedFF
from fff.topology import first_node

TRUNK_TOKENS = 65_536  # enough to choose the neurons that all tokens share
PRIOR_TOKENS = 16.0  # by how many tokens a node's row out is drawn to zero


@dataclass(frozen=True)
class Sample:
    """Tokens of one block: x (N, H), y (N, K) without the output's bias, weight (N,), float32."""

    dense: Dense
    x: Tensor
    y: Tensor
    weight: Tensor

    @functools.cached_property
    def equations(self) -> Equations:
        """Of all tokens and neurons: several narrow layers are made of them."""
        return equations(self.dense, self.x, self.y, self.weight)


def sample_of(dense: Dense, x: Tensor, y: Tensor, residual: Tensor) -> Sample:
    """Of recorded rows. With a norm behind the block, a token counts by the inverse square of its spread there."""
    x, y = x.float(), y.float()
    weight = x.new_ones(len(x))
    if dense.norm:
        weight = 1 / (residual.float() + y).var(1).clamp_min(1e-12)
        weight = weight / weight.mean()
    return Sample(dense, x, y - dense.b_out, weight)


@torch.no_grad()
def begin(piece: Piece, dense: Dense, sample: Sample, ridge: float, seed: int) -> None:
    """Set the weights of a piece in closed form, on the device of the sample."""
    with sample.x.device:
        _begin(piece, dense, sample, ridge, torch.Generator("cpu").manual_seed(seed))


def _begin(piece: Piece, dense: Dense, sample: Sample, ridge: float, generator: torch.Generator) -> None:
    layer = piece.layer
    if piece.target.in_place:
        _narrow(piece, dense, sample, ridge)
    elif isinstance(layer, LeafFFF):
        _leaves(layer, dense, sample, ridge, generator)
    else:  # the mean is left where there is nothing, and neurons of a path need not find it
        left = _less_mean(piece, sample)
        if isinstance(layer, SharedFF):
            left = _shared(layer, dense, left, ridge)
            _path(layer.tree, left, ridge, generator)  # type: ignore[arg-type]
        elif isinstance(layer, PathFFF):
            _path(layer, left, ridge, generator)


def _less_mean(piece: Piece, sample: Sample) -> Sample:
    """Put the mean of what is wanted into the output's bias, where there is one."""
    if piece.bias is None:
        return sample
    mean = (sample.y * sample.weight[:, None]).sum(0) / sample.weight.sum()
    piece.bias.add_(mean)
    return replace(sample, y=sample.y - mean)


def _narrow(piece: Piece, dense: Dense, sample: Sample, ridge: float) -> None:
    neurons = piece.target.neurons
    if neurons == dense.block.neurons:  # all of them: nothing is to be refitted
        chosen, rows, constant = list(range(neurons)), dense.w_out.t(), torch.zeros_like(dense.b_out)
    else:
        chosen = choose(sample.equations, neurons, ridge)
        rows, constant = solve(sample.equations, chosen, ridge)
    parts = [(dense.w_in, dense.b_in), *([] if dense.w_value is None else [(dense.w_value, dense.b_value)])]
    if dense.swapped:
        parts = parts[::-1]
    weights = [weight[chosen] for weight, _ in parts]
    biases = [bias[chosen] for _, bias in parts]  # type: ignore[index]
    if len(piece.ins) == 1:
        weights, biases = [torch.cat(weights)], [torch.cat(biases)]
    for linear, weight, bias in zip(piece.ins, weights, biases, strict=True):
        _set(linear, weight, bias)
    _set(piece.out, rows.t(), dense.b_out + constant)


def _set(linear: torch.nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Weights (out, in) of a linear, or of transformers' Conv1D."""
    linear.weight.copy_(weight if isinstance(linear, torch.nn.Linear) else weight.t())  # type: ignore[operator]
    if linear.bias is not None:
        linear.bias.copy_(bias)  # type: ignore[operator]


def _leaves(layer: LeafFFF, dense: Dense, sample: Sample, ridge: float, generator: torch.Generator) -> None:
    trunk: list[int] = []
    if layer.master_width:
        part = slice(0, TRUNK_TOKENS)
        whole = equations(dense, sample.x[part], sample.y[part], sample.weight[part])
        trunk = choose(whole, min(layer.master_width, dense.block.neurons), ridge)
    leaf = _decide(layer, sample.x, generator)
    fits = []
    for number in range(2**layer.depth):
        mine = leaf == number
        found = equations(dense, sample.x[mine], sample.y[mine], sample.weight[mine])
        chosen = choose(found, layer.leaf_width, ridge, fixed=trunk)
        fits.append(_Fit.of(found, chosen, trunk, ridge))
    shared = _common(fits)
    half = 2.0 if layer.mix is not None else 1.0  # the layer takes the mean of leaf and master, and here they add up
    for number, fit in enumerate(fits):
        rows = fit.rows(shared)
        for name, value in dense.rows_in(fit.chosen).items():
            getattr(layer, name)[number] = value
        layer.w_out[number], layer.b_out[number] = half * rows[:-1], half * rows[-1]
    if layer.master_width and layer.mix is not None:
        layer.mix.fill_(0.5)
        for name, value in {**dense.rows_in(trunk), "w_out": half * shared}.items():
            getattr(layer, f"master_{name}")[: len(trunk)] = value
        getattr(layer, MASTER[-1]).zero_()


def _decide(layer: LeafFFF, x: Tensor, generator: torch.Generator) -> Tensor:
    """Set the decisions; the leaf of every token."""
    at, scale = torch.zeros(len(x), dtype=torch.int64), scale_of(x)
    for depth in range(layer.depth):
        level, score = split_level(x, scale, at, 2**depth, generator)
        nodes = slice(first_node(depth), first_node(depth + 1))
        layer.w_node[nodes], layer.b_node[nodes] = level.weight, level.bias  # type: ignore[index]
        at = 2 * at + (score > 0)
    return at


@dataclass(frozen=True)
class _Fit:
    """A leaf's least squares with the shared neurons' rows still open: rows = own - through @ shared."""

    chosen: list[int]
    own: Tensor
    through: Tensor
    gram: Tensor  # of the shared rows, the leaf's own taken out
    cross: Tensor

    @classmethod
    def of(cls, found: Equations, chosen: list[int], trunk: list[int], ridge: float) -> "_Fit":
        mine = [*chosen, found.constant]
        gram = found.gram[mine][:, mine].clone()
        penalty = found.penalty(ridge)
        penalise(gram, penalty, len(chosen))
        both = torch.linalg.solve(gram, torch.cat([found.cross[mine], found.gram[mine][:, trunk]], 1))
        own, through = both.split([found.cross.shape[1], len(trunk)], 1)
        between = found.gram[trunk][:, mine]
        open_gram = found.gram[trunk][:, trunk] - between @ through
        open_gram.diagonal().add_(penalty)
        return cls(chosen, own, through, open_gram, found.cross[trunk] - between @ own)

    def rows(self, shared: Tensor) -> Tensor:
        """Rows out of the leaf's neurons and its constant."""
        return (self.own - self.through @ shared.double()).float()


def _common(fits: list[_Fit]) -> Tensor:
    """The shared neurons' rows out, best for all leaves together."""
    gram, cross = sum(fit.gram for fit in fits), sum(fit.cross for fit in fits)
    if not fits[0].through.shape[1]:
        return fits[0].own.new_zeros(0, fits[0].own.shape[1]).float()
    return torch.linalg.solve(gram, cross).float()


def _shared(layer: SharedFF, dense: Dense, sample: Sample, ridge: float) -> Sample:
    """Set the dense neurons beside a path's trees; what is left for the trees."""
    width = layer.shared.dense_in.out_features
    part = slice(0, TRUNK_TOKENS)
    found = equations(dense, sample.x[part], sample.y[part], sample.weight[part], bias=False)
    chosen = choose(found, min(width, dense.block.neurons), ridge)
    rows, _ = solve(found, chosen, ridge)
    layer.shared.dense_in.weight[: len(chosen)] = dense.w_in[chosen]
    layer.shared.dense_out.weight[:, : len(chosen)] = rows.t()
    return replace(sample, y=sample.y - layer.shared(sample.x))


def _path(layer: PathFFF, sample: Sample, ridge: float, generator: torch.Generator) -> None:
    """Tree after tree, level after level: nodes look where what is left depends most on x, and fit their rows out."""
    activation = ACTIVATIONS[layer.activation].forward
    left = sample.y.clone()
    weight, scale = sample.weight[:, None], scale_of(sample.x)
    for tree in range(layer.trees):
        at = torch.zeros(len(left), dtype=torch.int64)
        for depth in range(layer.depth + 1):
            level, score = split_level(sample.x, scale, at, 2**depth, generator, left * weight.sqrt())
            nodes = slice(first_node(depth), first_node(depth + 1))
            active = activation(score)[:, None]
            sums = torch.zeros(2**depth, left.shape[1]).index_add_(0, at, weight * active * left)
            squares = torch.zeros(2**depth, 1).index_add_(0, at, weight * active.square())
            rows = sums / (squares + PRIOR_TOKENS * float(active.square().mean()) + ridge)
            layer.w_in[tree, nodes], layer.w_out[tree, nodes] = level.weight, rows
            if layer.b_in is not None:
                layer.b_in[tree, nodes] = level.bias
            left -= active * rows[at]
            at = 2 * at + (score > 0)
