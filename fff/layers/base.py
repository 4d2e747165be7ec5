"""What a kind of feedforward layer is: settings, weights, losses, route; and the forms that trees take. No kind itself.

A kind is a file beside this one with a `Settings` class and a layer, and a line in `fff.feedforward`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from fff.losses import TREE_LOSSES, Decisions
from fff.topology import first_node
from fff.unsaved import Unsaved


class Flops(NamedTuple):
    """Floating-point operations of a layer's forward per token, a product's sum counted as two.

    used: of the neurons that a token visits; trained: of all, as if each were computed.
    """

    used: float
    trained: float


@dataclass(frozen=True)
class Settings:
    """What a layer is apart from its widths. The fields are the keys of its specification, as in a model's config.json.

    Raises:
        ValueError: a value that the kind cannot take; the message has the field's name in backticks.
    """

    kind: ClassVar[str]

    @property
    def tag(self) -> str:
        """Short name for runs and tables."""
        raise NotImplementedError

    @property
    def neurons_trained(self) -> int:
        """Training width: neurons that exist."""
        raise NotImplementedError

    @property
    def neurons_used(self) -> int:
        """Inference width: neurons that are computed for a token."""
        raise NotImplementedError

    def flops(self, d_in: int, d_out: int) -> Flops:
        """Of a forward pass per token."""
        raise NotImplementedError

    def build(
        self, d_in: int, d_out: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Feedforward | None":
        """The layer (..., d_in) -> (..., d_out); None where the kind is to have none."""
        raise NotImplementedError

    @property
    def in_inference(self) -> Self:
        """The same without what training alone asks about: layers whose settings are then equal infer alike."""
        return self

    def specification(self) -> dict[str, Any]:
        """The settings as plain values, with the kind; `fff.feedforward.settings_from` reads them."""
        return {"kind": self.kind, **asdict(self)}


class Route(NamedTuple):
    """What each token used of a layer: its units, which are leaves, experts or keys.

    Attributes:
        units: (..., G, K) int64, from 0 to size - 1: K units of each group. Groups are trees or heads; of a tree a
            token uses one leaf.
        scores: (..., G, J) floats of the choices made, whose absolute value is the margin by which they were: the
            scores on a tree's path, J = D; a router's score of each chosen unit less the best of those not chosen.
        size: units of a group.
        nodes: (..., G, D + 1) int64 in heap order, from the root to the leaf; None where no tree chose.
    """

    units: Tensor
    scores: Tensor
    size: int
    nodes: Tensor | None = None

    @classmethod
    def of_path(cls, nodes: Tensor, scores: Tensor) -> "Route":
        """The route through trees: nodes (..., T, D + 1) and scores (..., T, at least D) on the path."""
        depth = nodes.shape[-1] - 1
        return cls(nodes[..., -1:] - first_node(depth), scores[..., :depth], 2**depth, nodes)

    def flat(self) -> "Route":
        """The same with one dimension of tokens, (N, G, ...)."""
        nodes = None if self.nodes is None else self.nodes.flatten(0, -3)
        return Route(self.units.flatten(0, -3), self.scores.flatten(0, -3), self.size, nodes)

    @staticmethod
    def joined(parts: "list[Route]") -> "Route":
        """Flat routes of one layer, one after another."""
        nodes = None if parts[0].nodes is None else torch.cat([part.nodes for part in parts if part.nodes is not None])
        units, scores = (torch.cat(tensors) for tensors in list(zip(*parts, strict=True))[:2])
        return Route(units, scores, parts[0].size, nodes)


class Feedforward(Unsaved):
    """What every layer is: (..., d_in) -> (..., d_out).

    Attributes:
        loss_weights: names of the auxiliary losses that it can compute, and the weight of each unless told otherwise.
        losses: those of them that `forward_with_losses` computes now.
        constants: its own parameters that begin at a number, by name.
        untrained: its own parameters that no gradient trains, by name.
        reads_tokens: whether `forward` and `route` take the tokens' ids (...) int64 beside x (..., d_in).
    """

    loss_weights: Mapping[str, float] = MappingProxyType({})
    constants: Mapping[str, float] = MappingProxyType({})
    untrained: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    reads_tokens: bool = False

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As every module's. A loader puts new parameters in the places of those `untrained`, and says nothing."""
        super().register_parameter(name, param)
        if param is not None and name in self.untrained:
            param.requires_grad_(False)

    def forward_with_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The layer's output and the auxiliary losses that `losses` names, each a 0-dim float32 tensor."""
        return self(x), {}

    @torch.no_grad()
    def init_weights(self, std: float, init: Any = nn.init) -> None:
        """A model's initialisation of the layer's own parameters: N(0, std), biases 0, `constants` as they say.

        Child modules (nn.Linear) are the model's to initialise, as everywhere else in it.

        Args:
            init: `torch.nn.init`, or a module with the same functions that spares what is loaded already
                (`transformers.initialization`).
        """
        for name, parameter in self.named_parameters(recurse=False):
            if name in self.constants:
                init.constant_(parameter, self.constants[name])
            elif "b_" in name or "bias" in name:
                init.zeros_(parameter)
            else:
                init.normal_(parameter, mean=0.0, std=std)


class Routed(Feedforward):
    """A layer of which each token uses a part, and which tells which one.

    groups: trees, heads or routers beside each other; units: leaves, experts or keys of a group.
    """

    @property
    def groups(self) -> int:
        """Groups of units."""
        raise NotImplementedError

    @property
    def units(self) -> int:
        """Units of a group."""
        raise NotImplementedError

    def route(self, x: Tensor) -> Route:
        """What the tokens of x (..., d_in) use in evaluation, without gradients."""
        raise NotImplementedError


class Trees(Routed):
    """Trees beside each other, each of `depth` decisions, of which a token reaches one leaf each."""

    trees: int
    depth: int

    @property
    def groups(self) -> int:
        """Trees."""
        return self.trees

    @property
    def units(self) -> int:
        """Leaves of a tree."""
        return 2**self.depth

    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes on each token's path down to its leaf, and their scores, as the layer's class says."""
        raise NotImplementedError

    def route(self, x: Tensor) -> Route:
        """The leaf that each token of x (..., d_in) reaches in each tree, and the path to it. Without region leak."""
        return Route.of_path(*self.path(x))


class Hardenable(Trees):
    """What trees share: which form they take in training, at which temperature, with which auxiliary losses.

    In evaluation a layer is hard, unless inside `soft_evaluation`. Attributes, to be set by `set_hardening`:
        form: "hard" (no gradient through decisions), "soft" (mixture) or "straight_through" (hard forward, gradient of
            the decisions on the path).
        temperature: of the decisions' sigmoids; a 0-dim float32 tensor on the weights' device.
        region_leak: probability in [0, 0.5] that a decision is turned round in training (arXiv 2308.14711, section 3).
        losses: names of the auxiliary losses that `forward_with_losses` computes.
    """

    loss_weights = MappingProxyType(dict.fromkeys(TREE_LOSSES, 0.0))
    w_in: nn.Parameter

    def __init__(self) -> None:
        super().__init__()
        self.form, self.evaluation_form = "hard", "hard"
        self.region_leak = 0.0
        self.losses = ()
        self.keep("temperature", torch.ones((), dtype=torch.float32, device="cpu"))

    @property
    def temperature(self) -> Tensor:
        """Of the decisions' sigmoids; change it in place."""
        return self.unsaved("temperature", self.w_in.device)

    @property
    def active_form(self) -> str:
        """The form that a forward pass takes now."""
        return self.form if self.training else self.evaluation_form

    @property
    def decision_bias(self) -> Tensor | None:
        """Biases of the decisions (trees, 2^depth - 1), a parameter or a part of one; None where they have none."""
        raise NotImplementedError

    def refuse_form(self, form: str) -> str | None:
        """None, or why this layer cannot take the form."""
        return None

    def leak(self, *shape: int) -> Tensor | None:
        """Decisions (bool) that the region leak turns round in this forward pass; None for none."""
        if not self.training or self.region_leak == 0:
            return None
        return torch.rand(shape, device=self.temperature.device) < self.region_leak

    def auxiliary_losses(self, decisions: Decisions) -> dict[str, Tensor]:
        """The losses named in `losses`, each a 0-dim float32 tensor."""
        return {name: loss(decisions, self.temperature) for name, loss in TREE_LOSSES.items() if name in self.losses}
