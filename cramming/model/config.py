"""Configuration groups `model` and `ffn`: what the user sets. Not the transformers configuration (configuration.py)."""

import typing
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from cramming.errors import UserError
from cramming.model.sizes import check_sizes
from fff.feedforward import KINDS, settings_class, settings_from
from fff.layers.base import Settings

# What transformers calls the keys of `model`.
TRANSFORMERS_NAMES = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "positions": "positions",
    "rotary_base": "rotary_base",
    "norm_eps": "layer_norm_eps",
    "init_std": "initializer_range",
}


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
        try:
            check_sizes(self.encoder(), {theirs: f"model.{ours}" for ours, theirs in TRANSFORMERS_NAMES.items()})
        except ValueError as error:
            raise UserError(str(error)) from None

    def encoder(self) -> dict[str, Any]:
        """The settings under transformers' names, as CrammedConfig takes them."""
        return {theirs: getattr(self, ours) for ours, theirs in TRANSFORMERS_NAMES.items()}


def keys_of(kind: str) -> dict[str, tuple[Any, Any]]:
    """The keys of a kind's settings: name -> (type, default), where a required one is None until it is given."""
    settings = settings_class(kind)
    hints = typing.get_type_hints(settings)
    return {
        item.name: (hints[item.name] | None, None) if item.default is MISSING else (hints[item.name], item.default)
        for item in fields(settings)
    }


def union_of_keys() -> dict[str, tuple[Any, Any]]:
    """The keys of all kinds.

    Raises:
        TypeError: two kinds have a key of one name that differs in type or default. The other name's default would
            change with the kind, and names of runs that are finished with it.
    """
    union: dict[str, tuple[Any, Any]] = {}
    for kind in KINDS:
        for name, found in keys_of(kind).items():
            if union.setdefault(name, found) != found:
                raise TypeError(
                    f"ffn.{name} of {kind} is {found}, but {union[name]} in another kind; name it otherwise"
                )
    return union


if TYPE_CHECKING:

    @dataclass(frozen=True)
    class Keys:
        """The keys of every kind of feedforward layer side by side."""

        kind: str = "path"

        def __init__(self, kind: str = "path", **values: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

else:
    _members = [(name, kind, field(default=default)) for name, (kind, default) in union_of_keys().items()]
    Keys = make_dataclass("Keys", [("kind", str, field(default="path")), *_members], frozen=True)


@dataclass(frozen=True)
class FFNConfig(Keys):
    """The feedforward layer of every block: `kind`, and the keys of that kind's settings (fff.layers).

    The group is flat: it has the keys of all kinds, and those that are not the chosen kind's keep their defaults.
    """

    def __post_init__(self) -> None:
        try:
            keys = keys_of(self.kind)
            self._refuse_others(keys)
            _ = self.settings
        except ValueError as error:
            raise UserError(str(error).replace("`kind`", "ffn.kind")) from None

    def _refuse_others(self, mine: dict[str, Any]) -> None:
        """Keys of another kind would be ignored in silence; a kind without any has nothing to contradict."""
        for item in fields(self) if mine else ():
            name, default = item.name, item.default
            if name == "kind" or name in mine or getattr(self, name) == default:
                continue
            owners = " and ".join(f"ffn={kind}" for kind in KINDS if name in keys_of(kind))
            if default is None:
                raise UserError(
                    f"ffn.{name} does not belong to ffn={self.kind}; set ffn.{name}=null. It belongs to {owners}."
                )
            raise UserError(f"ffn.{name} belongs to {owners}, and ffn.kind is {self.kind}; leave it at {default}.")

    @cached_property
    def settings(self) -> Settings:
        """The settings of the layer: its tag, neurons, FLOPs, and the layer itself."""
        given = {name: getattr(self, name) for name in keys_of(self.kind)}
        return settings_from({"kind": self.kind} | {k: v for k, v in given.items() if v is not None}, "ffn")

    @property
    def tag(self) -> str:
        """Short name for runs and tables, e.g. "1x11" or "dense3072"."""
        return self.settings.tag

    def specification(self) -> dict[str, Any]:
        """The settings as they go into the model's config.json."""
        return self.settings.specification()
