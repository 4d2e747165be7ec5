"""Going from soft to hard: forms of training, region leak, auxiliary losses, schedules of progress. Not the layers."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fff.decisions import bernoulli_entropy

FORMS = ("hard", "soft", "straight_through")
LOSSES = ("entropy", "balance")
SCHEDULES = ("constant", "linear", "cosine", "exponential", "step")


class Decisions(NamedTuple):
    """The decisions that a forward pass took or weighed, for the auxiliary losses.

    scores (N, T, J) of inner nodes; nodes (N, T, J) int64 in heap order; reach (N, T, J) in [0, 1]; inner: nodes of a
    tree that decide, 2^D - 1. Hard forms give the D nodes on the path with reach 1, the soft form all.
    """

    scores: Tensor
    nodes: Tensor
    reach: Tensor
    inner: int


class Hardenable(nn.Module):
    """What both layers share: which form they take in training, at which temperature, with which auxiliary losses.

    In evaluation a layer is hard, unless inside `soft_evaluation`. Attributes, to be set by `set_hardening`:
        form: "hard" (no gradient through decisions), "soft" (mixture) or "straight_through" (hard forward, gradient of
            the decisions on the path).
        temperature: of the decisions' sigmoids; a 0-dim tensor, so that a schedule does not make torch.compile start
            again.
        region_leak: probability in [0, 0.5] that a decision is turned round in training (arXiv 2308.14711, section 3).
        losses: names of the auxiliary losses that `forward_with_losses` computes.
    """

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.form, self.evaluation_form = "hard", "hard"
        self.region_leak = 0.0
        self.losses: tuple[str, ...] = ()
        self.register_buffer("temperature", torch.ones((), dtype=torch.float32), persistent=False)

    @property
    def active_form(self) -> str:
        """The form that a forward pass takes now."""
        return self.form if self.training else self.evaluation_form

    def refuse_form(self, form: str) -> str | None:
        """None, or why this layer cannot take the form."""
        return None

    def forward_with_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The layer's output and the auxiliary losses that `losses` names."""
        raise NotImplementedError

    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes on each token's path down to its leaf, and their scores, as the layer's class says."""
        raise NotImplementedError

    def leak(self, *shape: int) -> Tensor | None:
        """Decisions (bool) that the region leak turns round in this forward pass; None for none."""
        if not self.training or self.region_leak == 0:
            return None
        return torch.rand(shape, device=self.temperature.device) < self.region_leak

    def auxiliary_losses(self, decisions: Decisions) -> dict[str, Tensor]:
        """The losses named in `losses`, each a 0-dim float32 tensor."""
        found = {}
        if "entropy" in self.losses:
            found["entropy"] = entropy_loss(decisions, self.temperature)
        if "balance" in self.losses:
            found["balance"] = balance_loss(decisions, self.temperature)
        return found


def entropy_loss(decisions: Decisions, temperature: Tensor) -> Tensor:
    """Sum over nodes of the decisions' Bernoulli entropies (nats), mean over tokens.

    L_harden of arXiv 2308.14711, section 3. In the hard forms the sum runs over the nodes on the path, which are all
    that were computed.
    """
    if not decisions.scores.numel():
        return decisions.scores.sum().float()
    return bernoulli_entropy(decisions.scores, temperature).flatten(1).sum(1).mean()


def balance_loss(decisions: Decisions, temperature: Tensor) -> Tensor:
    """How far the nodes are from sending half of their tokens each way, in [0, 1].

    sum over inner nodes of share(i) * (2 * mean_i(p) - 1)^2, divided by T * D: share(i) is the part of the tokens that
    reaches node i, mean_i(p) the reach-weighted mean of sigmoid(score / temperature) there. 0: every node divides
    evenly, so that all leaves are used alike; 1: all tokens take one path. It is the aim of arXiv 2405.16836's load
    balancing by nodes instead of leaves, because a conditional forward knows the path's nodes alone.
    """
    tokens, trees, count = decisions.scores.shape
    if not tokens * count:
        return decisions.scores.sum().float()
    p = torch.sigmoid(decisions.scores.float() / temperature)
    weight = decisions.reach.float()
    index = decisions.nodes + decisions.inner * torch.arange(trees, device=p.device)[:, None]
    empty = p.new_zeros(trees * decisions.inner)
    reached = empty.index_add(0, index.flatten(), weight.flatten())
    right = empty.index_add(0, index.flatten(), (weight * p).flatten())
    lean = 2 * right / reached.clamp(min=1e-9) - 1
    depth = math.log2(decisions.inner + 1)
    return (reached * lean.square()).sum() / (tokens * trees * depth)


def hardenable(model: nn.Module) -> list[Hardenable]:
    """The FFF layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Hardenable)]


def set_hardening(
    model: nn.Module,
    *,
    form: str = "hard",
    temperature: float = 1.0,
    region_leak: float = 0.0,
    losses: tuple[str, ...] = (),
) -> None:
    """Set form, temperature, leak and losses of every FFF layer of a model.

    Raises:
        ValueError: an unknown name, a temperature not above 0, a leak outside [0, 0.5], or a provider that cannot take
            the form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown; allowed: {', '.join(FORMS)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; the hard form is form='hard'")
    if not 0 <= region_leak <= 0.5:
        raise ValueError(
            f"region_leak={region_leak} must be from 0 to 0.5: above, most decisions would be turned round"
        )
    for name in losses:
        if name not in LOSSES:
            raise ValueError(f"losses names {name!r}; allowed: {', '.join(LOSSES)}")
    for layer in hardenable(model):
        if reason := layer.refuse_form(form):
            raise ValueError(f"form={form!r} cannot be taken: {reason}")
        layer.form, layer.region_leak, layer.losses = form, region_leak, tuple(losses)
        layer.temperature.fill_(temperature)


@contextlib.contextmanager
def soft_evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, the FFF layers of a model in evaluation mode are soft, at their present temperature."""
    layers = hardenable(model)
    before = [layer.evaluation_form for layer in layers]
    try:
        for layer in layers:
            layer.evaluation_form = "soft"
        yield
    finally:
        for layer, form in zip(layers, before, strict=True):
            layer.evaluation_form = form


def scheduled(schedule: str, start: float, end: float, t: float) -> float:
    """A weight or temperature at progress t in [0, 1], from `start` to `end`; a pure function.

    constant: start. linear, cosine: as they say. exponential: start * (end / start) ** t, both above 0. step: start
    until half of the way, then end.

    Raises:
        ValueError: unknown schedule, or an exponential one from or to 0.
    """
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * t
    if schedule == "cosine":
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * t))
    if schedule == "exponential":
        if start <= 0 or end <= 0:
            raise ValueError(f"an exponential schedule needs both ends above 0, not {start} and {end}")
        return start * (end / start) ** t
    if schedule == "step":
        return start if t < 0.5 else end
    raise ValueError(f"schedule={schedule!r} is unknown; allowed: {', '.join(SCHEDULES)}")
