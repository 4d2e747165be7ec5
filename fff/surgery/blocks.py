"""What a feedforward block of a foreign model is, and which modules could be one by their shapes. No proof (find).

Candidates follow from widths alone: one or two linears H -> F (or one of H -> 2F) and one F -> H, all children of one
module, or each alone in a child of it. No name of a module or class is looked at, but for transformers' Conv1D, which
cannot be imported here. Whether a candidate computes a feedforward block is found out by calling it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Self

from torch import nn

from fff.layers.base import Feedforward


@dataclass(frozen=True)
class Block:
    """A feedforward block: out(act(in(x))), or gated out(act(a) * b). Paths are names in the model, outermost first.

    Attributes:
        path: the module whose forward computes it.
        whole: whether that is all that the module computes, so that the module itself can be replaced. Otherwise its
            forward stays, and the linears and the activation in it are replaced.
        ins: the linears in: one, or two of which one gates the other.
        out: the linear out.
        gated: whether half of the neurons gate the other half; one linear in then has 2 x `neurons` outputs.
        activation: where the activation is set as an attribute; "" where the block is whole.
        inner: dropouts of hidden neurons alone. They go with the neurons.
        outer: dropouts of the output that a whole module contains. They stay.
        d_in, neurons, d_out: H, F and K.
        bias: whether the linear out has a bias.
    """

    path: str
    whole: bool
    ins: tuple[str, ...]
    out: str
    gated: bool
    activation: str
    inner: tuple[str, ...]
    outer: tuple[str, ...]
    d_in: int
    neurons: int
    d_out: int
    bias: bool

    def plain(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_plain(cls, values: dict[str, Any]) -> Self:
        """From what `plain` gave; TypeError where it is something else."""
        given: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in values.items()}
        return cls(**given)

    def __str__(self) -> str:
        shape = f"{self.d_in} -> {self.neurons}{' gated' if self.gated else ''} -> {self.d_out}"
        return f"{self.path or 'the model itself'}: {shape}"


@dataclass(frozen=True)
class Left:
    """What could be a block by its shapes, or is one, and why it stays."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'}: {self.reason}"


@dataclass(frozen=True)
class Found:
    """Blocks in the order of the model's modules, and what was left, with reasons. Printable."""

    blocks: tuple[Block, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        return "\n".join([*map(str, self.blocks), *(f"left {each}" for each in self.left)])


@dataclass(frozen=True)
class Candidate:
    """Linears of a module that fit by their widths.

    likely: whether it is strange if this is no block: there are more neurons than inputs, and no linears beside them.
        Others are mostly attention, and the same linears in the wrong order.
    """

    path: str
    ins: tuple[str, ...]
    out: str
    likely: bool

    @property
    def linears(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.ins, self.out)


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Inputs and outputs of a linear, also of transformers' Conv1D (whose weight is transposed); None for others."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and weight is not None and weight.dim() == 2:
        return weight.shape[0], weight.shape[1]
    return None


def is_replaced(module: nn.Module) -> bool:
    """Whether this is a layer of this library's, in which nothing is to be found."""
    return isinstance(module, Feedforward)


def candidates(model: nn.Module) -> Iterator[Candidate]:
    """All of a model, in the order of its modules."""
    inside: list[str] = []
    for path, module in model.named_modules():
        if is_replaced(module):
            inside.append(f"{path}.")
        if not is_replaced(module) and not path.startswith(tuple(inside)):
            yield from _of(path, module)


def _of(path: str, module: nn.Module) -> Iterator[Candidate]:
    dot = f"{path}." if path else ""
    direct: dict[str, tuple[int, int]] = {}
    single: dict[str, tuple[int, int]] = {}
    for name, child in module.named_children():
        if (width := widths(child)) is not None:
            direct[dot + name] = width
        elif not is_replaced(child):
            inner = {f"{dot}{name}.{below}": width for below, each in child.named_modules() if (width := widths(each))}
            if len(inner) == 1:
                single |= inner
    yield from _fitting(path, direct)
    yield from (each for each in _fitting(path, single) if direct == {})


def _fitting(path: str, linears: dict[str, tuple[int, int]]) -> Iterator[Candidate]:
    """Of linears beside each other those that could be a block."""
    for out, (neurons, d_out) in linears.items():
        others = {name: width for name, width in linears.items() if name != out}
        for hidden in (neurons, 2 * neurons):
            ins = tuple(name for name, width in others.items() if width == (d_out, hidden))
            alone = len(ins) + 1 == len(linears)
            # Of equal widths anything could be in or out; then only a pair in its order is one.
            square = neurons == d_out and hidden == neurons
            if len(ins) not in (1, 2) or (hidden != neurons and len(ins) == 2):
                continue
            if not square or (alone and list(linears) == [*ins, out]):
                yield Candidate(path, ins, out, likely=alone and neurons > d_out)
