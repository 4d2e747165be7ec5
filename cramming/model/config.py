"""Configuration groups `model` and `ffn`: what the user sets. Not the transformers configuration (configuration.py)."""

from dataclasses import asdict, dataclass
from typing import Any

from cramming.errors import UserError
from fff.activations import ACTIVATIONS
from fff.topology import trees_for_neurons

POSITIONS = ("sinusoidal", "rotary")
KINDS = ("dense", "leaf", "none", "path")
DENSE_ACTIVATIONS = ("gelu", "gated_gelu")


@dataclass(frozen=True)
class ModelConfig:
    """The encoder around the feedforward layers; the defaults are UltraFastBERT's (arXiv 2311.10770, crammed BERT)."""

    hidden_size: int = 768
    layers: int = 16
    heads: int = 12
    positions: str = "sinusoidal"  # added to the embedding as published, or "rotary" (leaves MLM's plateau far sooner)
    rotary_base: float = 10000.0  # of rotary positions: how slow the slowest rotation is
    norm_eps: float = 1e-12
    init_std: float = 0.02
    sparse_prediction: bool = True  # training computes MLM logits at the masked positions only

    def __post_init__(self) -> None:
        for key in ("hidden_size", "layers", "heads"):
            if getattr(self, key) < 1:
                raise UserError(f"model.{key} is {getattr(self, key)}; set it to 1 or more.")
        for key in ("rotary_base", "norm_eps", "init_std"):
            if not getattr(self, key) > 0:
                raise UserError(f"model.{key} is {getattr(self, key)}; set it above 0.")
        if self.hidden_size % self.heads:
            raise UserError(
                f"model.heads is {self.heads}, which does not divide model.hidden_size={self.hidden_size}; "
                f"choose a divisor, for example model.heads={_nearest_divisor(self.hidden_size, self.heads)}."
            )
        if self.positions not in POSITIONS:
            raise UserError(f"model.positions is {self.positions!r}; choose one of {', '.join(POSITIONS)}.")
        if self.hidden_size % 2:
            raise UserError(f"model.hidden_size is {self.hidden_size}; positions need an even width.")
        if self.positions == "rotary" and self.hidden_size // self.heads % 2:
            raise UserError(
                f"model.hidden_size / model.heads is {self.hidden_size // self.heads}; "
                "rotary positions pair the columns of a head, so make it even."
            )


@dataclass(frozen=True)
class FFNConfig:
    """The feedforward layer of every block.

    `kind` is "dense" (needs `width`), "none" (blocks of attention alone), "leaf" (needs `depth` and `leaf_width`) or
    "path" (needs `depth`, and `trees` or `neurons`: with `neurons` the number of trees follows, so that the trained
    neurons stay about equal over depths).
    """

    kind: str = "path"
    width: int | None = None  # dense: neurons; with gated_gelu half of them gate the other half
    activation: str = "gelu"  # dense: gelu, gated_gelu; path and leaf: gelu, gelu_tanh, relu, silu, tanh, identity
    depth: int | None = None  # path: decisions of a tree, a token visits depth + 1 nodes; leaf: decisions before a leaf
    trees: int | None = None  # path: parallel trees
    neurons: int | None = None  # path: trained neurons over all trees, instead of `trees`
    leaf_width: int | None = None  # leaf: hidden neurons of a leaf network; there are 2^depth of them
    master_width: int = 0  # leaf: hidden neurons of the master leaf, which every token passes (arXiv 2405.16836)
    bias: bool = True  # path: input bias of a node (the authors train one)
    execution: str = "auto"  # path: auto, masked, conditional
    provider: str = "auto"  # path: who computes it, see fff.kernels

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"ffn.kind is {self.kind!r}; choose one of {', '.join(KINDS)}.")
        if self.kind == "dense":
            self._check_dense()
        if self.kind == "path":
            self._check_path()
        if self.kind == "leaf":
            self._check_leaf()
        elif self.leaf_width is not None or self.master_width:
            raise UserError(
                f"ffn.leaf_width and ffn.master_width belong to ffn=leaf, and ffn.kind is {self.kind}; drop them."
            )

    def _check_dense(self) -> None:
        if self.width is None or self.width < 1:
            raise UserError(
                f"ffn.width is {self.width}; a dense layer needs its number of neurons, e.g. ffn.width=3072."
            )
        if self.activation not in DENSE_ACTIVATIONS:
            raise UserError(
                f"ffn.activation is {self.activation!r}; dense takes one of {', '.join(DENSE_ACTIVATIONS)}."
            )
        if self.activation == "gated_gelu" and self.width % 2:
            raise UserError(f"ffn.width is {self.width}; gated_gelu halves it, so it must be even.")
        for key in ("depth", "trees", "neurons"):
            if getattr(self, key) is not None:
                raise UserError(f"ffn.{key} belongs to ffn=path, and ffn.kind is dense; drop it or choose ffn=path.")

    def _check_leaf(self) -> None:
        if self.depth is None or not 0 <= self.depth <= 20:
            raise UserError(f"ffn.depth is {self.depth}; set it from 0 to 20, e.g. ffn.depth=5.")
        if self.leaf_width is None or self.leaf_width < 1:
            raise UserError(f"ffn.leaf_width is {self.leaf_width}; set it to 1 or more, e.g. ffn.leaf_width=8.")
        if self.master_width < 0:
            raise UserError(f"ffn.master_width is {self.master_width}; set it to 0 (no master leaf) or more.")
        if self.activation not in ACTIVATIONS:
            raise UserError(f"ffn.activation is {self.activation!r}; leaf takes one of {', '.join(ACTIVATIONS)}.")
        for key in ("width", "trees", "neurons"):
            if getattr(self, key) is not None:
                raise UserError(f"ffn.{key} does not belong to ffn=leaf; set ffn.{key}=null.")
        for key, default in (("bias", True), ("execution", "auto"), ("provider", "auto")):
            if getattr(self, key) != default:
                raise UserError(f"ffn.{key} belongs to ffn=path, and ffn.kind is leaf; leave it at {default}.")

    def _check_path(self) -> None:
        if self.depth is None or not 0 <= self.depth <= 20:
            raise UserError(f"ffn.depth is {self.depth}; set it from 0 to 20, e.g. ffn.depth=11.")
        if (self.trees is None) == (self.neurons is None):
            raise UserError("ffn.trees and ffn.neurons: give exactly one (set the other to null).")
        if self.trees is not None and self.trees < 1:
            raise UserError(f"ffn.trees is {self.trees}; set it to 1 or more.")
        if self.width is not None:
            raise UserError("ffn.width belongs to ffn=dense; a path layer's size is ffn.trees and ffn.depth.")
        if self.neurons is not None:
            try:
                trees_for_neurons(self.neurons, self.depth)
            except ValueError as error:
                raise UserError(f"ffn.neurons: {error}") from None

    @property
    def tree_count(self) -> int:
        """Trees of a path layer, given or derived from `neurons`."""
        if self.trees is not None:
            return self.trees
        assert self.neurons is not None
        assert self.depth is not None
        return trees_for_neurons(self.neurons, self.depth)

    @property
    def tag(self) -> str:
        """Short name for runs and tables: "1x11", "dense3072", "gated3072", "leaf8x5" or "none".

        A leaf layer's is leaf_width x depth, and "+m4" for a master leaf of 4 neurons.
        """
        if self.kind == "leaf":
            return f"leaf{self.leaf_width}x{self.depth}" + (f"+m{self.master_width}" if self.master_width else "")
        if self.kind == "path":
            return f"{self.tree_count}x{self.depth}"
        if self.kind == "none":
            return "none"
        return f"{'gated' if self.activation == 'gated_gelu' else 'dense'}{self.width}"

    def specification(self) -> dict[str, Any]:
        """The fields that `cramming.model.ffn.build_ffn` reads, as it goes into the model's config.json."""
        if self.kind == "none":
            return {"kind": "none"}
        if self.kind == "dense":
            return {"kind": "dense", "width": self.width, "activation": self.activation}
        if self.kind == "leaf":
            keys = ("kind", "depth", "leaf_width", "master_width", "activation")
            return {key: asdict(self)[key] for key in keys}
        fields = {key: asdict(self)[key] for key in ("kind", "depth", "bias", "activation", "execution", "provider")}
        return fields | {"trees": self.tree_count}


def _nearest_divisor(number: int, wish: int) -> int:
    return min((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - wish), d))
