"""MoE, a mixture of experts with sigmoid routing and balance without a loss, with its settings. Not a tree.

Looked at first, in torch 2.13 and transformers 5.23: torch's `grouped_mm` is a kernel for CPUs, 2 to 4 times as fast as
our blocks, and does the products wherever it can: not in float64, with rows that do not end on 16 bytes, nor float32
under torch.compile. There the blocks of `fff.kernels.leaves` do, which LeafFFF has too. transformers' blocks
(integrations.moe) call the same kernel, but wait for the device where it cannot, and its routers belong to their
models; packages such as megablocks and scattermoe are for GPUs alone.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from fff.activations import ACTIVATIONS, activation_named
from fff.balance import Balanced
from fff.kernels.autograd import transformed
from fff.kernels.leaves import Leaves, one_leaf_each
from fff.layers.base import Flops, Route, Routed, Settings
from fff.layers.checks import one_of, rate_or_weight, whole_number
from fff.layers.operands import computing_dtype

ALIGNMENT = 16  # bytes of a row, of which `grouped_mm` wants a multiple
LIBRARY_TAKES = (torch.float32, torch.bfloat16, torch.float16)
EVEN = "expert_balance"  # the auxiliary loss's name


@dataclass(frozen=True)
class MoESettings(Settings):
    """A router over experts. ValueError as `Settings`."""

    kind = "moe"

    experts: int  # two-layer networks
    expert_width: int  # hidden neurons of each
    top: int  # experts that a token uses
    balance_rate: float = 0.001  # how far a step moves each expert's bias against its surplus; 0 for not at all
    expert_balance_weight: float = 0.0  # of the auxiliary loss `expert_balance`; 0 for none
    activation: str = "gelu"  # gelu, gelu_tanh, relu, silu, tanh, identity

    def __post_init__(self) -> None:
        whole_number("experts", self.experts, 2, example=32)
        whole_number("expert_width", self.expert_width, 1, example=32)
        whole_number("top", self.top, 1, self.experts - 1, example=1)
        for name in ("balance_rate", "expert_balance_weight"):
            rate_or_weight(name, getattr(self, name))
        one_of("activation", self.activation, ACTIVATIONS, self.kind)

    @property
    def tag(self) -> str:
        """expert_width x experts and how many a token uses, e.g. "moe32x32top1"."""
        return f"moe{self.expert_width}x{self.experts}top{self.top}"

    @property
    def neurons_trained(self) -> int:
        """Hidden neurons of all experts; the router's rows are not counted."""
        return self.experts * self.expert_width

    @property
    def neurons_used(self) -> int:
        """Hidden neurons of a token's experts; the router's rows are not counted."""
        return self.top * self.expert_width

    def flops(self, d_in: int, d_out: int) -> Flops:
        """The router's product, and a row in and a row out per hidden neuron."""
        router, neuron = 2 * d_in * self.experts, 2 * (d_in + d_out)
        return Flops(float(router + neuron * self.neurons_used), float(router + neuron * self.neurons_trained))

    @property
    def in_inference(self) -> Self:
        """Without rate and weight of the balance."""
        return replace(self, balance_rate=0.0, expert_balance_weight=0.0)

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "MoE":
        """The layer."""
        return MoE(d_in, d_out, self, device=device, dtype=dtype)


class MoE(Balanced, Routed):
    """Experts of which a router chooses `top` for each token: (..., d_in) -> (..., d_out).

    s = sigmoid(x w_router^T), as sigma-MoE (arXiv 2310.10837) and arXiv 2408.15664 have it; a token uses the `top`
    experts whose s + b_balance is largest, and y = sum over them of s_i act(x w_in[i]^T) w_out[i]. The weights are not
    divided by their sum: of one expert nothing of the router's gradient would be left.

    Experts are kept in balance by `b_balance`, which moves against an expert's surplus over the mean (see Balanced) and
    takes part in the choice alone, never in the output; and, if `losses` names it, by the auxiliary loss
    "expert_balance": experts * sum_i f_i P_i, with f_i the share of the choices that fell on expert i and P_i the mean
    over the pass's tokens of s_i / sum_j s_j (arXiv 2101.03961, equations 4 to 6; arXiv 2412.19437, 17 to 20). It is 1
    for even use.

    Parameters: w_router (experts, d_in), w_in (experts, expert_width, d_in), w_out (experts, expert_width, d_out), and
    b_balance (experts), which no gradient trains. There are no other biases.
    """

    untrained = ("b_balance",)

    def __init__(
        self,
        d_in: int,
        d_out: int,
        settings: MoESettings,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__((settings.experts,), settings.balance_rate)
        self.d_in, self.d_out, self.settings, self.top = d_in, d_out, settings, settings.top
        self.activation = settings.activation
        self.loss_weights = {EVEN: settings.expert_balance_weight}
        self.losses = (EVEN,) if settings.expert_balance_weight else ()
        empty = partial(torch.empty, device=device, dtype=dtype)
        experts, width = settings.experts, settings.expert_width
        self.w_router = nn.Parameter(empty(experts, d_in))
        self.w_in = nn.Parameter(empty(experts, width, d_in))
        self.w_out = nn.Parameter(empty(experts, width, d_out))
        self.b_balance = nn.Parameter(empty(experts))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """U(+-1/sqrt(d_in)), U(+-1/sqrt(expert_width)) of the second layers, and no bias: as LeafFFF's."""
        for weight, terms in ((self.w_router, self.d_in), (self.w_in, self.d_in), (self.w_out, self.w_out.shape[1])):
            nn.init.uniform_(weight, -1 / math.sqrt(terms), 1 / math.sqrt(terms))
        nn.init.zeros_(self.b_balance)
        nn.init.zeros_(self.visits)

    @property
    def groups(self) -> int:
        """One router."""
        return 1

    @property
    def units(self) -> int:
        """Experts."""
        return len(self.w_router)

    @property
    def balanced_bias(self) -> Tensor:
        """Of each expert."""
        return self.b_balance

    def surplus(self, counts: Tensor) -> Tensor:
        """Above the mean."""
        return counts * self.units - counts.sum()

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: (..., d_in) -> (..., d_out), in x's dtype or autocast's.

        Raises:
            ValueError: x has another last dimension, dtype or device than the weights.
        """
        return self._apply_layer(x)[0]

    def forward_with_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, with the auxiliary loss if `losses` names it."""
        y, shares, chosen = self._apply_layer(x)
        return y, {EVEN: expert_balance_loss(shares, chosen)} if EVEN in self.losses else {}

    @torch.no_grad()
    def route(self, x: Tensor) -> Route:
        """Each token's experts (..., 1, top), and by how much they beat the best of the others, biases included."""
        shares, chosen = self._choose(x.to(computing_dtype(x, self.w_in, self.d_in)))
        biased = shares + self.b_balance.to(shares.dtype)
        best = biased.scatter(-1, chosen, -torch.inf).max(-1, keepdim=True).values
        return Route(chosen[..., None, :], (biased.gather(-1, chosen) - best)[..., None, :], self.units)

    def _apply_layer(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output (..., d_out), sigmoid scores (N, experts), chosen experts (N, top)."""
        dtype = computing_dtype(x, self.w_in, self.d_in)
        flat = x.to(dtype).reshape(-1, self.d_in)
        shares, chosen = self._choose(flat)
        if self.counts_now:
            self.count(chosen)
        each = own_experts(
            flat.repeat_interleave(self.top, 0),
            chosen.flatten(),
            self.w_in.to(dtype),
            self.w_out.to(dtype),
            self.activation,
        )
        gates = shares.gather(-1, chosen).to(dtype)
        y = (each.view(-1, self.top, self.d_out) * gates[..., None]).sum(1)
        return y.view(*x.shape[:-1], self.d_out), shares, chosen

    def _choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Sigmoid scores (..., experts), in float32 for half types, and the chosen experts (..., top)."""
        scores = functional.linear(x, self.w_router.to(x.dtype))
        shares = scores.to(torch.promote_types(scores.dtype, torch.float32)).sigmoid()
        return shares, (shares.detach() + self.b_balance.to(shares.dtype)).topk(self.top, -1).indices

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        return f"{self.d_in}, {self.d_out}, {self.settings}"


def own_experts(x: Tensor, expert: Tensor, w_in: Tensor, w_out: Tensor, activation: str) -> Tensor:
    """act(x w_in[e]^T) w_out[e] with each row's own expert e: x (R, H), expert (R,) int64 -> (R, K).

    w_in (E, W, H), w_out (E, W, K), all of x's dtype. Rows are sorted by expert, and each expert's are one product.
    """
    if not library_fits(x, w_in, w_out):
        no_biases = w_in.new_zeros(w_in.shape[:2]), w_out.new_zeros(len(w_out), w_out.shape[-1])
        return one_leaf_each(x, expert, Leaves(w_in, no_biases[0], w_out, no_biases[1]), activation, 0.0)
    ordered, order = torch.sort(expert, stable=True)
    ends = torch.searchsorted(ordered, torch.arange(len(w_in), device=x.device), right=True).int()
    hidden = functional.grouped_mm(x.index_select(0, order), w_in.transpose(1, 2), offs=ends)
    y = functional.grouped_mm(activation_named(activation).forward(hidden), w_out, offs=ends)
    return torch.zeros_like(y).index_copy(0, order, y)


def library_fits(x: Tensor, w_in: Tensor, w_out: Tensor) -> bool:
    """Whether torch's grouped product can take these; on a GPU it was not tried."""
    if x.device.type != "cpu" or x.dtype not in LIBRARY_TAKES or not hasattr(functional, "grouped_mm"):
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed():
        return False
    lengths = (w_in.shape[1], w_in.shape[2], w_out.shape[2])
    return len(x) > 0 and all(length * x.element_size() % ALIGNMENT == 0 for length in lengths)


def expert_balance_loss(shares: Tensor, chosen: Tensor) -> Tensor:
    """experts * sum_i f_i P_i (see MoE), from scores in (0, 1) (N, experts) and choices (N, top); 0 for no tokens."""
    experts = shares.shape[-1]
    if not shares.numel():
        return shares.sum().float()
    visits = chosen.new_zeros(experts).scatter_add(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
    mean = (shares / shares.sum(-1, keepdim=True)).mean(0)
    return (experts * (visits / chosen.numel() * mean).sum()).float()
