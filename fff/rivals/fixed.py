"""FixedPath, a tree whose paths are not learned, with its settings: the control of what learned decisions are worth."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fff.activations import ACTIVATIONS, activation_named
from fff.kernels.masked import all_scores, along_paths
from fff.layers.base import Flops, Route, Settings, Trees
from fff.layers.checks import one_of, true_or_false, whole_number
from fff.layers.nodes import Neurons
from fff.layers.operands import computing_dtype
from fff.topology import ancestors, first_node, path_length, trained_neurons, used_neurons, walk

WAYS = ("random", "token")


@dataclass(frozen=True)
class FixedSettings(Settings):
    """Trees of neurons with given paths. ValueError as `Settings`."""

    kind = "fixed"

    depth: int  # decisions of a tree; a token visits depth + 1 nodes
    trees: int | None = None  # parallel trees
    path: str = "random"  # random: hyperplanes that stay as drawn; token: a hash of the token's id
    bias: bool = True  # input bias of a node
    activation: str = "gelu"  # gelu, gelu_tanh, relu, silu, tanh, identity

    def __post_init__(self) -> None:
        whole_number("depth", self.depth, 0, 20, example=8)
        whole_number("trees", self.trees, 1, example=1)
        one_of("path", self.path, WAYS, self.kind)
        true_or_false("bias", self.bias)
        one_of("activation", self.activation, ACTIVATIONS, self.kind)

    @property
    def tag(self) -> str:
        """The way and trees x depth, e.g. "random1x8" or "token1x8"."""
        return f"{self.path}{self.trees}x{self.depth}"

    @property
    def neurons_trained(self) -> int:
        """Nodes of all trees."""
        return trained_neurons(self.trees or 0, self.depth)

    @property
    def neurons_used(self) -> int:
        """Nodes on the paths."""
        return used_neurons(self.trees or 0, self.depth)

    def flops(self, d_in: int, d_out: int) -> Flops:
        """A row in and a row out per node; what choosing the path takes is not counted."""
        node = 2 * (d_in + d_out)
        return Flops(float(node * self.neurons_used), float(node * self.neurons_trained))

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "FixedPath":
        """The layer."""
        return FixedPath(d_in, d_out, self, device=device, dtype=dtype)


class FixedPath(Neurons, Trees):
    """PathFFF's neurons along paths that nothing trains: (..., d_in) -> (..., d_out).

    y = sum over trees and path nodes i of act(w_in[i] . x + b_in[i]) * w_out[i], as PathFFF. The path follows from
    `w_decide`, random hyperplanes through the origin (right where w_decide[i] . x > 0), or from the token's id: the
    leaf is `hashed(id, salt)`, with a salt drawn for each layer and tree. Every node is computed and those off the path
    are zero, as in PathFFF's masked form: a control is to be right, not fast.

    Parameters: w_in (trees, nodes, d_in), b_in (trees, nodes) or None, w_out (trees, nodes, d_out), and with "random"
    w_decide (trees, 2^depth - 1, d_in), which no gradient trains. With "token" a buffer salt (trees,) int64.
    """

    untrained = ("w_decide",)
    salt: Tensor

    def __init__(
        self,
        d_in: int,
        d_out: int,
        settings: FixedSettings,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.d_out, self.settings = d_in, d_out, settings
        self.depth, self.trees, self.activation = settings.depth, settings.trees or 1, settings.activation
        self.reads_tokens = settings.path == "token"
        self.make_nodes(d_in, d_out, bias=settings.bias, device=device, dtype=dtype)
        if self.reads_tokens:
            self.register_buffer("salt", torch.zeros(self.trees, dtype=torch.int64, device=device))
        else:
            self.w_decide = nn.Parameter(torch.empty_like(self.w_in[:, : first_node(self.depth)]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As PathFFF's; the decisions' hyperplanes and salts anew."""
        self.reset_nodes()
        if self.reads_tokens:
            self._draw_salt()
        else:
            nn.init.normal_(self.w_decide)

    @torch.no_grad()
    def init_weights(self, std: float, init: Any = nn.init) -> None:
        """As every layer's, and new salts unless they were loaded."""
        super().init_weights(std, init)
        if self.reads_tokens and not getattr(self.salt, "_is_hf_initialized", False):
            self._draw_salt()

    @torch.no_grad()
    def _draw_salt(self) -> None:
        if self.salt.device.type != "meta":
            self.salt.random_(0, 2**31)

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        """Apply the layer to x (..., d_in); tokens (...) int64 are the ids at its places, where `reads_tokens`.

        Raises:
            ValueError: x has another last dimension, dtype or device than the weights, or the ids are missing.
        """
        flat = x.to(computing_dtype(x, self.w_in, self.d_in)).reshape(-1, self.d_in)
        bias = self.b_in.to(flat.dtype) if self.b_in is not None else None
        scores = all_scores(flat, self.w_in.to(flat.dtype), bias)
        act = activation_named(self.activation).forward
        y, _ = along_paths(scores, self._paths(flat, tokens)[0], self.w_out.to(flat.dtype), act)
        return y.view(*x.shape[:-1], self.d_out)

    @torch.no_grad()
    def route(self, x: Tensor, tokens: Tensor | None = None) -> Route:
        """The leaf of each token in each tree, and the path to it; of a hash, which decides nothing, the leaf alone."""
        flat = x.to(computing_dtype(x, self.w_in, self.d_in)).reshape(-1, self.d_in)
        nodes, scores = self._paths(flat, tokens)
        shape = *x.shape[:-1], self.trees
        route = Route.of_path(nodes.view(*shape, nodes.shape[-1]), scores.view(*shape, scores.shape[-1]))
        return route._replace(nodes=None) if self.reads_tokens else route

    def _paths(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """Nodes (N, trees, depth + 1) and the scores of the decisions on them (N, trees, depth), none of a hash."""
        if not self.reads_tokens:
            decided = functional.linear(x, self.w_decide.flatten(0, 1).to(x.dtype)).detach()
            decided = decided.view(-1, self.trees, first_node(self.depth))
            nodes = walk(decided, path_length(self.depth))
            return nodes, decided.gather(-1, nodes[..., :-1])
        if tokens is None or tokens.numel() != x.shape[0]:  # not len(x), which an export takes as it is
            found = "none" if tokens is None else f"{tokens.numel()}"
            raise ValueError(f"the path follows from the tokens' ids: {len(x)} are needed, and {found} were given")
        leaves = hashed(tokens.reshape(-1, 1), self.salt, self.depth)
        nodes = ancestors(leaves + first_node(self.depth), self.depth)
        return nodes, x.new_empty(*nodes.shape[:-1], 0)

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        return f"{self.d_in}, {self.d_out}, {self.settings}"


def hashed(ids: Tensor, salt: Tensor, depth: int) -> Tensor:
    """A leaf in [0, 2^depth) for each id and salt (int64, broadcast): two rounds of multiplication modulo 2^64.

    Murmur's finaliser (fmix64) of id + salt * 2^20, by shifts that keep the sign: each leaf has its share of any ids.
    """
    mixed = ids + salt * 2**20
    for factor in (-49064778989728563, -4265267296055464877):  # 0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53
        mixed = (mixed ^ (mixed >> 33)) * factor
    return (mixed >> 40) & (2**depth - 1)
