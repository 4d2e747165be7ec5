"""Another layer in the place of a model's feedforward blocks, and what came of it. Not how they are found (find)."""

import copy
import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fff.feedforward import settings_from
from fff.layers.base import Feedforward, Settings
from fff.surgery.blocks import Block, Found, Left
from fff.surgery.find import find_feedforward, owner_of, without

Where = str | Iterable[int] | Callable[[Block], bool]
KEY = "fff"  # of a model's config.json
TREE = MappingProxyType({"kind": "path", "depth": 7, "trees": 1})


class Replaced(nn.Module):
    """A layer in the place of a whole block: dropout(layer(x) + bias), (..., d_in) -> (..., d_out)."""

    bias: nn.Parameter | None

    def __init__(self, layer: nn.Module, bias: nn.Parameter | None, dropouts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layer, self.dropout = layer, nn.Sequential(*dropouts)
        self.register_parameter("bias", bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Apply it."""
        y = self.layer(hidden_states)
        return self.dropout(y if self.bias is None else y + self.bias)


class OutputBias(nn.Module):
    """y + bias, in the place of the linear out of a block whose layer stands where its linear in stood."""

    bias: nn.Parameter | None

    def __init__(self, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.register_parameter("bias", bias)

    def forward(self, y: Tensor) -> Tensor:
        """(..., d_out) -> the same."""
        return y if self.bias is None else y + self.bias


class Nothing(Feedforward):
    """Zeros, for the kind `none`: of a block only its bias is left."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> the same."""
        return torch.zeros_like(x)


@dataclass(frozen=True)
class Report:
    """What was replaced by what, and what was left and why. Printable.

    Attributes:
        layer: the new layers' settings, with neurons trained and used of each.
        replaced: the blocks as they were; `neurons` of them were trained, and as many used.
        left: what looks like a block and stayed, with reasons.
    """

    layer: Settings
    replaced: tuple[Block, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        new = f"{self.layer.tag}, {self.layer.neurons_trained} neurons trained, {self.layer.neurons_used} used"
        rows = [f"{block} ({block.neurons} neurons) is now {new}" + _gone(block, self.layer) for block in self.replaced]
        return "\n".join([*rows, *(f"left {each}" for each in self.left)])


def _gone(block: Block, settings: Settings) -> str:
    return "; its gate went with it" if block.gated and not _has_gate(settings) else ""


def _has_gate(settings: Settings) -> bool:
    return getattr(settings, "gated", False)


def replace_feedforward(
    model: nn.Module,
    layer: Mapping[str, Any] | Settings = TREE,
    where: Where | None = None,
    *,
    sample: Any = None,
    keep_gates: bool = False,
) -> Report:
    """Put layers of a kind in the place of a model's feedforward blocks, in place, with weights that are yet to train.

    A block goes as a whole, neurons, input biases and gate; residual, norms and dropouts of its output stay where they
    are. The output's bias, if the block has one, stays beside the new layer as a parameter of its own and begins at the
    dense one, for no kind of tree but LeafFFF has one. Dropout of hidden neurons goes with them; one that is written
    in a layer's own forward, as BART's, then acts on the new layer's output. Where the model has a transformers
    config, what was done is noted in it under `fff`, so that `save_pretrained` writes it and `fff.surgery.load` reads
    it: give the whole model that will be saved, not a part.

    Args:
        layer: a kind and its settings, as `fff.feedforward.settings_from` takes them.
        where: which blocks: a glob of their paths ("*.layers.[0-5].*"), numbers among those found (-1 is the last), or
            a predicate of the block; None for all.
        sample: as `find_feedforward`.
        keep_gates: refuse to replace a gated block by a kind without a gate.

    Raises:
        ValueError: no block was found or chosen, one that was asked for is of unknown structure, or the kind cannot
            take its place. The model is then as it was.
    """
    settings = layer if isinstance(layer, Settings) else settings_from(layer, "layer")
    found = find_feedforward(model, sample)
    blocks = _chosen(found, where)
    for block in blocks:
        if keep_gates and block.gated and not _has_gate(settings):
            raise ValueError(
                f"{block} has a gate, and kind {settings.kind} ({settings.tag}) takes none; leave keep_gates=False, "
                "by which the gate goes with the block, or take kind leaf with gated=True."
            )
    layers = [_built(model, block, settings) for block in blocks]  # all, before any is put
    for block, new in zip(blocks, layers, strict=True):
        _put(model, block, new)
    _note(model, settings, blocks)
    chosen = {block.path for block in blocks}
    others = [Left(block.path, "it was not asked for") for block in found.blocks if block.path not in chosen]
    return Report(settings, blocks, (*found.left, *others))


def _chosen(found: Found, where: Where | None) -> tuple[Block, ...]:
    blocks, left = found.blocks, "; ".join(map(str, found.left))
    if not blocks:
        hint = f" What looks like one: {left}." if left else ""
        raise ValueError(
            f"No feedforward block was found, two linears with an activation between or a gated one.{hint}"
        )
    names = ", ".join(block.path for block in blocks)
    if where is None:
        return blocks
    if isinstance(where, str):
        unknown = [each for each in found.left if fnmatch.fnmatchcase(each.path, where)]
        if unknown:
            raise ValueError(f"where={where!r} asks for {unknown[0]}; choose among {names}.")
        blocks = tuple(block for block in blocks if fnmatch.fnmatchcase(block.path, where))
    elif callable(where):
        blocks = tuple(block for block in blocks if where(block))
    else:
        numbers = list(where)
        for number in numbers:
            if type(number) is not int or not -len(blocks) <= number < len(blocks):
                raise ValueError(f"where has {number!r}; choose numbers below {len(blocks)}, which stand for {names}.")
        places = sorted({number % len(blocks) for number in numbers})
        blocks = tuple(blocks[place] for place in places)
    if not blocks:
        raise ValueError(f"where={where!r} chooses none of the blocks that were found: {names}.")
    return blocks


def rebuild(model: nn.Module) -> None:
    """Put the layers that a fresh model's config names (`fff`) where it says, without proof and without weights.

    For a model's `__init__`, on any device, meta included. Nothing to do where the config names none.

    Raises:
        ValueError: the config's entry cannot be read, or names a module that the model has not.
    """
    config = model.config
    for entry in getattr(config, KEY, None) or []:
        try:
            settings = settings_from(entry["layer"], f"{KEY}.layer")
            blocks = [Block.from_plain(values) for values in entry["modules"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"`{KEY}` of the model's config cannot be read ({error!r}); save the model again."
            ) from None
        for block in blocks:
            try:
                _put(model, block, _built(model, block, settings))
            except AttributeError as error:
                raise ValueError(
                    f"`{KEY}` of the model's config names {block.path or block.out}, and a {type(model).__name__} has "
                    f"no such module ({error}); replace in the whole model that is saved, not in a part of it."
                ) from None


def _built(model: nn.Module, block: Block, settings: Settings) -> nn.Module:
    weight: Tensor = model.get_submodule(block.out).weight  # type: ignore[assignment]
    layer = settings.build(block.d_in, block.d_out, device=weight.device, dtype=weight.dtype)
    if layer is not None and layer.reads_tokens:
        raise ValueError(
            f"{block.path}: kind {settings.kind} ({settings.tag}) reads the tokens' ids, which a block of a foreign "
            'model is not given; take a kind that reads vectors, e.g. {"kind": "path", "depth": 7, "trees": 1}.'
        )
    return layer if layer is not None else Nothing()


def _put(model: nn.Module, block: Block, layer: nn.Module) -> None:
    out, host = model.get_submodule(block.out), model.get_submodule(block.path)
    first = model.get_submodule(block.ins[0])
    bias: Tensor | None = out.bias if block.bias else None  # type: ignore[assignment]
    kept = None if bias is None else nn.Parameter(bias.detach().clone())
    layer.train(host.training)
    if block.whole:
        new = Replaced(layer, kept, [model.get_submodule(name) for name in block.outer])
        new.training = host.training
        return _exchange(model, host, new)
    owner, name = owner_of(model, block.activation)
    setattr(owner, name, _alike(without(activation := getattr(owner, name)), activation))
    for dropout in block.inner:
        _exchange(model, model.get_submodule(dropout), nn.Identity())
    _exchange(model, first, layer)
    _exchange(model, out, OutputBias(kept))
    leave_fused_path(model, host)


def _alike(new: Any, old: Any) -> Any:
    """In the mode, training or evaluation, of what it replaces."""
    if isinstance(new, nn.Module) and isinstance(old, nn.Module):
        new.training = old.training
    return new


def _exchange(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Wherever it stands: layers may be shared."""
    _alike(new, old)
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() gives a module once
            if child is old:
                setattr(parent, name, new)


def leave_fused_path(model: nn.Module, host: nn.Module) -> None:
    """torch's TransformerEncoderLayer infers by one kernel that reads linear1 and linear2, past what replaced them.

    It does so where it knows its activation, and TransformerEncoder hands it nested tensors, which only that kernel
    takes. Neither is asked for by transformers' models, where the attributes are not there.
    """
    if hasattr(host, "activation_relu_or_gelu"):
        host.activation_relu_or_gelu = 0  # type: ignore[assignment]
    for module in model.modules():
        if hasattr(module, "use_nested_tensor") and any(each is host for each in module.modules()):
            module.use_nested_tensor = False  # type: ignore[assignment]


def _note(model: nn.Module, settings: Settings, blocks: Iterable[Block]) -> None:
    config = getattr(model, "config", None)
    if hasattr(config, "to_dict"):
        done = copy.deepcopy(getattr(config, KEY, None) or [])
        entry = {"layer": settings.specification(), "modules": [block.plain() for block in blocks]}
        setattr(config, KEY, [*done, entry])
