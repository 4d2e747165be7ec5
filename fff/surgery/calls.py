"""A module of a foreign model called alone: what its children were given and gave. Not what follows of it (find)."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fff.surgery.blocks import widths

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class NoBlockError(Exception):
    """Why a candidate is none, or none that can be replaced."""


@contextlib.contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, a model is in evaluation mode without gradients; then modes and random state are as they were."""
    training = [module for module in model.modules() if module.training]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            model.eval()
            yield
    finally:
        for module in training:
            module.training = True  # not train(), which would set its children too


def given_by(model: nn.Module, paths: set[str], sample: Any) -> dict[str, Arguments]:
    """What a call of the model on the sample first gives to the modules of these paths."""
    seen: dict[str, Arguments] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda module, args, kwargs: seen.setdefault(path, (args, kwargs)) and None

    hooks = [model.get_submodule(path).register_forward_pre_hook(note(path), with_kwargs=True) for path in paths]
    try:
        if isinstance(sample, Mapping):
            model(**sample)
        else:
            model(*(sample if isinstance(sample, tuple) else (sample,)))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@dataclass(frozen=True)
class Call:
    """What happened in a call of a module: (child, its first input, its output) in order, and the module's output."""

    events: list[tuple[nn.Module, Tensor, Any]]
    output: Any

    def first(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Input and output of a child's first call."""
        for each, x, y in self.events:
            if each is module:
                return x, y
        raise NoBlockError("its forward does not call its linears")


def called(host: nn.Module, watched: list[nn.Module], arguments: Arguments) -> Call:
    """Call a module and record the calls of those watched in it. Raises what its forward raises."""
    events: list[tuple[nn.Module, Tensor, Any]] = []
    hooks = [
        each.register_forward_hook(lambda module, args, y: events.append((module, args[0], y)) if args else None)
        for each in watched
    ]
    try:
        return Call(events, host(*arguments[0], **arguments[1]))
    finally:
        for hook in hooks:
            hook.remove()


def noise(host: nn.Module, linear: nn.Module) -> list[Arguments]:
    """Ways to call a module alone: with noise for its first argument, and None or noise for others that it wants."""
    weight: Tensor = linear.weight  # type: ignore[assignment]
    if weight.is_meta:
        raise NoBlockError("its weights are on the meta device; load them first")
    if not weight.is_floating_point():
        raise NoBlockError(f"its weights are {weight.dtype}, which is no floating type; replace before quantising")
    width, generator = (widths(linear) or (0, 0))[0], torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, width, generator=generator).to(weight.device, weight.dtype)
    others = list(inspect.signature(host.forward).parameters.values())[1:]
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wanted = [each.name for each in others if each.default is inspect.Parameter.empty and each.kind in kinds]
    fills = [None, x] if wanted else [None]
    return [((x,), dict.fromkeys(wanted, fill)) for fill in fills]
