"""A trained model made fast on a CPU in one call, by bfloat16 or int8 linears and trees. Not how they compute (layers).

    model = AutoModel.from_pretrained(folder).eval()
    print(optimise_for_cpu(model))

In place, because a copy would need the memory that is saved: `copy.deepcopy(model)` first keeps the float one. What
comes out is not saved: save the float model, and optimise after loading, which takes a second.
"""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fff.inside import narrow
from fff.kernels.int8_linear import unusable
from fff.layers.base import Hardenable
from fff.layers.bfloat16_linear import has_tiles
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.store import StoredPath
from fff.successors import ALREADY, OURS, candidates, put, size, title

LINEARS = ("auto", "int8", "bfloat16", "keep")
TREES = ("int8", "bfloat16", "keep")
DTYPES = (torch.float32, torch.bfloat16)
SHORT = 128  # tokens of a call up to which int8 linears are as fast as bfloat16 by tiles, or faster: docs/kernels.md
LEAST = 2**14  # weights of a linear; smaller ones, classifiers and routers, gain nothing


@dataclass(frozen=True)
class Changed:
    """What became of one module: its path, what it was and is, and the bytes of its weights before and after."""

    path: str
    was: str
    now: str
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class Optimised:
    """What `optimise_for_cpu` did. Printable.

    Attributes:
        changed: the modules that became others.
        left: (path, reason) of linears and trees that stayed.
        bytes_before, bytes_after: of all parameters and buffers of the model, each shared one once. A linear tied to
            an embedding (a decoder's) has int8 rows of its own then: the float ones stay for the embedding.
    """

    changed: tuple[Changed, ...]
    left: tuple[tuple[str, str], ...]
    bytes_before: int
    bytes_after: int

    def __str__(self) -> str:
        kinds: dict[tuple[str, str], list[Changed]] = {}
        for each in self.changed:
            kinds.setdefault((each.was, each.now), []).append(each)
        rows = [
            f"{len(found)} x {was} -> {now}: {sum(each.bytes_before for each in found) / 1e6:,.1f} MB -> "
            f"{sum(each.bytes_after for each in found) / 1e6:,.1f} MB"
            for (was, now), found in kinds.items()
        ]
        rows += [f"left {path}: {reason}" for path, reason in self.left]
        return "\n".join([*rows, f"model: {self.bytes_before / 1e6:,.1f} MB -> {self.bytes_after / 1e6:,.1f} MB"])


def optimise_for_cpu(
    model: nn.Module,
    *,
    linears: str = "auto",
    trees: str = "int8",
    keep: Iterable[str] = (),
    least: int = LEAST,
    tokens: int | None = None,
) -> Optimised:
    """Make a model fast for inference on this CPU, in place; its parameters are frozen.

    It may be anybody's model: every `torch.nn.Linear` that its module calls, every PathFFF and every LeafFFF. The model
    may be float32 or bfloat16, and goes on taking and giving that.

    Args:
        linears: "auto": what is fastest on this processor for calls of so many `tokens` (`fastest_linears`).
            "int8": each row and each token has a scale of its own, and what lies between linears is as it was.
            "bfloat16": the whole model computes in that, except norms' weights; a float32 one still takes and gives
            float32, and so does each transformers model in it, while modules deeper inside give bfloat16. Code
            that bfloat16 has no operation for (Fourier transforms) asks for another choice. "keep": they stay.
        trees: "int8", "bfloat16" or "keep", of PathFFF and LeafFFF.
        keep: globs of paths of modules that stay as they are, e.g. ("*.classifier", "lm_head").
        least: weights of a linear that is changed to int8; smaller ones gain nothing.
        tokens: about how many a call has, all texts together: 1 of a decoder that writes, 16 of a lone sentence; None:
            many. What "auto" goes by.

    Raises:
        ValueError: the model is in training mode or has gradients, is not on a CPU, has weights of another type than
            float32 and bfloat16 or is quantised already, there is nothing to change, or an unknown choice. The model is
            then as it was.
        RuntimeError: linears="int8", and torch's int8 products are not there or not exact on this processor.
    """
    for name, value, allowed in (("linears", linears, LINEARS), ("trees", trees, TREES)):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} is unknown; allowed: {', '.join(allowed)}")
    refuse(model)
    if linears == "int8" and (reason := unusable()):
        raise RuntimeError(reason)
    fastest = fastest_linears(tokens)
    linears = fastest if linears == "auto" else linears
    before, patterns = size(model), tuple([keep] if isinstance(keep, str) else keep)
    made: dict[nn.Module, nn.Module] = {}
    changed: list[tuple[str, nn.Module, str, int]] = []
    left: list[tuple[str, str]] = []
    for path, module, make in candidates(model, linears, trees, least):
        if matches(path, patterns):
            left.append((path, "it was asked to stay"))
        elif isinstance(make, str):
            left.append((path, make))
        else:
            try:
                made[module] = make(module)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            changed.append((path, made[module], title(module), size(module)))
    if not changed and not any(reason == ALREADY for _, reason in left):
        reasons = "; ".join(f"{path}: {reason}" for path, reason in left[:3])
        raise ValueError(f"the model has no linear and no tree to change{f' ({reasons})' if reasons else ''}")
    put(model, made)
    if linears == "bfloat16":
        whole = model.named_modules()
        narrow(model, [module for path, module in whole if path and stays(path, module, patterns, trees)])
    model.requires_grad_(False)
    told = tuple(Changed(path, was, title(new), held, size(new)) for path, new, was, held in changed)
    return Optimised(told, tuple(left), before, size(model))


def fastest_linears(tokens: int | None = None) -> str:
    """What `linears="auto"` is on this processor for calls of about so many tokens, None for many.

    "bfloat16" where it has tiles for that and tokens are more than `SHORT`, else "int8", else "keep".

    Raises:
        ValueError: tokens is no whole number from 1 up.
    """
    if tokens is not None and (not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1):
        raise ValueError(f"tokens={tokens!r} is no number of tokens; give about how many a call has, or None for many")
    int8 = unusable() is None
    if has_tiles() and not (int8 and tokens is not None and tokens <= SHORT):
        return "bfloat16"
    return "int8" if int8 else "keep"


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a module's path is one of those that stay."""
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def stays(path: str, module: nn.Module, patterns: tuple[str, ...], trees: str) -> bool:
    """Whether a module is float32 in a bfloat16 model."""
    tree = isinstance(module, StoredPath) or (trees == "keep" and isinstance(module, Hardenable))
    return tree or matches(path, patterns)


def refuse(model: nn.Module) -> None:
    """ValueError where a model is none that can be optimised."""
    for path, module in model.named_modules():
        where = f"{path or 'the model itself'} ({type(module).__name__})"
        if isinstance(module, OURS) or type(module).__module__.startswith("torch.ao"):
            raise ValueError(f"{where} is quantised already; optimise the float model")
        if module.training:
            raise ValueError(f"{where} is in training mode; call model.eval() first")
        for name, tensor in module.named_parameters(recurse=False):
            if tensor.device.type != "cpu":
                raise ValueError(f"{where}: {name} is on {tensor.device}; move the model to the CPU first")
            if tensor.dtype not in DTYPES or type(tensor.data) is not Tensor:
                kind = type(tensor.data).__name__ if tensor.dtype in DTYPES else tensor.dtype
                raise ValueError(
                    f"{where}: {name} is {kind}; give a model of plain float32 or bfloat16 weights, which is not "
                    "quantised or wrapped yet"
                )
            if tensor.grad is not None:
                raise ValueError(f"{where}: {name} has a gradient; call model.zero_grad() when training is over")
    if isinstance(model, nn.Linear | PathFFF | LeafFFF):
        raise ValueError(f"a {type(model).__name__} cannot be replaced in itself; give the model that it is a part of")
