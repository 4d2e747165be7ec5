"""PEER, experts of one neuron each that product keys retrieve (arXiv 2407.04153), with its settings. Not a tree."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from fff.activations import ACTIVATIONS, activation_named
from fff.kernels.rows import dots, weighted
from fff.layers.base import Flops, Route, Routed, Settings
from fff.layers.checks import one_of, whole_number
from fff.layers.operands import computing_dtype


@dataclass(frozen=True)
class PEERSettings(Settings):
    """Product keys over neurons. ValueError as `Settings`."""

    kind = "peer"

    keys: int  # sub-keys of each half of a query; there are keys^2 neurons
    heads: int  # queries of a token
    top: int  # neurons that each query retrieves
    query_width: int = 128  # numbers of a query, half of them for each half
    activation: str = "gelu"  # gelu, gelu_tanh, relu, silu, tanh, identity

    def __post_init__(self) -> None:
        whole_number("keys", self.keys, 2, 2**12, example=64)
        whole_number("heads", self.heads, 1, example=4)
        whole_number("top", self.top, 1, self.keys, example=1)
        whole_number("query_width", self.query_width, 2, example=128)
        if self.query_width % 2:
            raise ValueError(f"`query_width` is {self.query_width}; it is halved, so it must be even.")
        one_of("activation", self.activation, ACTIVATIONS, self.kind)

    @property
    def tag(self) -> str:
        """Sub-keys, heads and neurons of a head, e.g. "peer64x64h4top3"."""
        return f"peer{self.keys}x{self.keys}h{self.heads}top{self.top}"

    @property
    def neurons_trained(self) -> int:
        """All; queries and keys are not counted."""
        return self.keys**2

    @property
    def neurons_used(self) -> int:
        """Retrieved ones, twice if two heads retrieve the same; queries and keys are not counted."""
        return self.heads * self.top

    def flops(self, d_in: int, d_out: int) -> Flops:
        """Products with queries and sub-keys, and a row in and a row out per neuron."""
        routing = 2 * self.heads * self.query_width * (d_in + self.keys)
        neuron = 2 * (d_in + d_out)
        return Flops(float(routing + neuron * self.neurons_used), float(routing + neuron * self.neurons_trained))

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "PEER":
        """The layer."""
        return PEER(d_in, d_out, self, device=device, dtype=dtype)


class PEER(Routed):
    """Neurons of which each head retrieves `top` by product keys: (..., d_in) -> (..., d_out).

    A head's query is q = norm(w_query[h] x). Neuron i * keys + j has the key (w_key[0, i], w_key[1, j]), so its score
    is the sum of two products of a half of q with a sub-key; the largest `top` of all keys^2 sums are among the sums of
    each half's largest `top` (arXiv 1907.05242). y = sum over heads and retrieved neurons of
    g act(w_in[e] . x) w_out[e], with g the softmax of the head's `top` scores. Heads share neurons and keys.

    The norm is over a query's numbers, without weights. The paper's is over the batch: its state would follow from the
    microbatch's size, apart in each process, and outputs in training from the other tokens.

    Parameters: w_query (heads, query_width, d_in), w_key (2, keys, query_width / 2), w_in (keys^2, d_in) and
    w_out (keys^2, d_out). There are no biases. Memory is that of inputs and outputs and of heads * (2 keys + top^2)
    scores per token, see fff.kernels.rows.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        settings: PEERSettings,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.d_in, self.d_out, self.settings = d_in, d_out, settings
        self.keys, self.heads, self.top = settings.keys, settings.heads, settings.top
        self.activation = settings.activation
        empty = partial(torch.empty, device=device, dtype=dtype)
        self.w_query = nn.Parameter(empty(self.heads, settings.query_width, d_in))
        self.w_key = nn.Parameter(empty(2, self.keys, settings.query_width // 2))
        self.w_in = nn.Parameter(empty(self.keys**2, d_in))
        self.w_out = nn.Parameter(empty(self.keys**2, d_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(+-1/sqrt(terms)) of each sum; a head's weights add up to 1, so that an output has one term per head."""
        widths = (self.d_in, self.settings.query_width // 2, self.d_in, self.heads)
        for weight, terms in zip((self.w_query, self.w_key, self.w_in, self.w_out), widths, strict=True):
            nn.init.uniform_(weight, -1 / math.sqrt(terms), 1 / math.sqrt(terms))

    @property
    def groups(self) -> int:
        """Heads."""
        return self.heads

    @property
    def units(self) -> int:
        """Neurons, which all heads share."""
        return self.keys**2

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., d_in) -> (..., d_out), in x's dtype or autocast's.

        Raises:
            ValueError: x has another last dimension, dtype or device than the weights.
        """
        dtype = computing_dtype(x, self.w_in, self.d_in)
        flat = x.to(dtype).reshape(-1, self.d_in)
        scores, neurons = retrieve(*self._half_scores(flat), self.top)
        gates, rows = scores.softmax(-1).flatten(1), neurons.flatten(1)
        active = activation_named(self.activation).forward(dots(flat, self.w_in.to(dtype), rows))
        y = weighted((gates * active).to(dtype), self.w_out.to(dtype), rows)
        return y.view(*x.shape[:-1], self.d_out)

    @torch.no_grad()
    def route(self, x: Tensor) -> Route:
        """Each token's neurons (..., heads, top), and by how much each beats the best that its head left."""
        halves = self._half_scores(x.to(computing_dtype(x, self.w_in, self.d_in)))
        scores, neurons = retrieve(*halves, self.top)
        left = retrieve(*halves, self.top + 1)[0][..., -1:]
        return Route(neurons, scores - left, self.units)

    def _half_scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of both halves' sub-keys, each (..., heads, keys), in float32 for half types."""
        query = functional.linear(x, self.w_query.flatten(0, 1).to(x.dtype))
        query = functional.layer_norm(query.unflatten(-1, (self.heads, -1)), self.w_query.shape[1:2]).to(x.dtype)
        halves = zip(query.chunk(2, -1), self.w_key.to(x.dtype), strict=True)
        first, second = (functional.linear(half, keys) for half, keys in halves)
        wide = torch.promote_types(first.dtype, torch.float32)
        return first.to(wide), second.to(wide)

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        return f"{self.d_in}, {self.d_out}, {self.settings}"


def retrieve(first: Tensor, second: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The `top` largest sums first[..., i] + second[..., j], (..., top), and their numbers i * keys + j, int64.

    first, second (..., keys), with at least `top` sums. Only each half's `top` largest can be among them.
    """
    keys = first.shape[-1]
    few = min(top, keys)
    (value, i), (other, j) = first.topk(few, -1), second.topk(few, -1)
    scores, place = (value[..., :, None] + other[..., None, :]).flatten(-2).topk(top, -1)
    return scores, i.gather(-1, place // few) * keys + j.gather(-1, place % few)
