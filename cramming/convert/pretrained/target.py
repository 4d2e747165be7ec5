"""What blocks become: the text of `to`, read and checked against a block. Not how it is trained or put in place."""

import re
from dataclasses import dataclass
from typing import Any

from cramming.errors import UserError
from fff.feedforward import settings_from
from fff.layers.base import Settings

GRAMMAR = (
    "path:TxD (T trees of depth D), leaf:DxW (depth D, leaves of W neurons), either with +S for S dense neurons beside "
    "the trees, narrow:K (the K best dense neurons), none"
)
TREES = re.compile(r"(path|leaf):(\d{1,6})x(\d{1,6})(?:\+(\d{1,6}))?")
NARROW = re.compile(r"narrow:(\d{1,7})")


@dataclass(frozen=True)
class Target:
    """A read `to`.

    Attributes:
        text: as it was given.
        kind: path, leaf, narrow or none.
        specification: of a tree, as `fff.feedforward.settings_from` takes it, without the activation.
        neurons: of narrow; 0 for others.
    """

    text: str
    kind: str
    specification: dict[str, Any]
    neurons: int = 0

    @property
    def tag(self) -> str:
        """For names of files and runs, e.g. "leaf-5x192+96"."""
        return self.text.replace(":", "-")

    @property
    def in_place(self) -> bool:
        """Whether the model's own linears stay, with fewer neurons."""
        return self.kind == "narrow"

    def settings(self, activation: str, gated: bool) -> Settings:
        """A tree's or `none`'s settings, with the block's activation and, of leaves, its gate."""
        chosen: dict[str, Any] = {"activation": activation} if self.kind in ("path", "leaf") else {}
        if self.kind == "leaf":
            chosen["gated"] = gated
        return settings_from(self.specification | chosen, "distill.to")


def read_target(text: str, key: str = "distill.to") -> Target:
    """Read `to`. UserError names the key and shows the grammar."""
    if text == "none":
        return Target(text, "none", {"kind": "none"})
    if (found := NARROW.fullmatch(text)) is not None and int(found[1]) > 0:
        return Target(f"narrow:{int(found[1])}", "narrow", {}, int(found[1]))
    if (found := TREES.fullmatch(text)) is None:
        raise UserError(f"{key} is {text!r}; use one of {GRAMMAR}.")
    kind, first, second, beside = found[1], int(found[2]), int(found[3]), int(found[4] or 0)
    if kind == "path":
        values = {"kind": kind, "trees": first, "depth": second, "shared": beside}
    else:
        values = {"kind": kind, "depth": first, "leaf_width": second, "master_width": beside}
    try:
        settings_from(values)
    except ValueError as error:
        raise UserError(f"{key} is {text!r}: {error} The grammar: {GRAMMAR}.") from None
    shown = f"{kind}:{first}x{second}" + (f"+{beside}" if beside else "")
    return Target(shown, kind, values)


def refuse_unfit(target: Target, path: str, *, neurons: int, activation: str, gated: bool, keep_gates: bool) -> None:
    """UserError where a block cannot become the target.

    Args:
        path, neurons, activation, gated: the block's.
        keep_gates: whether a gate that would be lost is an error.
    """
    if target.in_place and target.neurons > neurons:
        raise UserError(f"distill.to is {target.text}, and {path} has {neurons} neurons; ask for at most as many.")
    if gated and keep_gates and target.kind == "path":
        raise UserError(
            f"distill.to is {target.text}, and {path} has a gate, which kind path cannot take; set "
            "distill.keep_gates=false (the gate goes with the block), or take leaf:DxW or narrow:K, which keep gates."
        )
    if target.kind == "path" and target.specification["shared"] and (gated or activation != "gelu"):
        has = f"the activation {activation}" + (" and a gate" if gated else "")
        raise UserError(
            f"distill.to is {target.text}, and {path} has {has}, while kind path's dense neurons beside the trees "
            "are plain gelu alone; leave out the +S, or take leaf:DxW+S, which takes any."
        )
