"""Which provider computes a call, chosen once and told once. Not what is known of the providers (registry.py)."""

import logging
from typing import Any

import torch
from torch.compiler import is_compiling

from fff.kernels.registry import OPERATIONS, PATH, Operation, Provider, Shortcut, takes_floats
from fff.topology import nodes_in_tree, path_length

EXECUTIONS = ("auto", "masked", "conditional")

log = logging.getLogger("fff")
_told: set[object] = set()


def check(execution: str, provider: str, operation: Operation = PATH) -> None:
    """Refuse unknown names and contradictions (ValueError names the argument and what is allowed)."""
    providers = operation.providers
    if execution not in EXECUTIONS:
        raise ValueError(f"execution={execution!r} is unknown; allowed: {', '.join(EXECUTIONS)}")
    if provider != "auto" and provider not in providers:
        raise ValueError(f"provider={provider!r} is unknown; allowed: auto, {', '.join(providers)}")
    if provider != "auto" and execution not in ("auto", providers[provider].execution):
        raise ValueError(
            f"provider={provider!r} computes {providers[provider].execution}, but execution={execution!r} was asked "
            "for; leave one of them at 'auto'"
        )


def choose(
    execution: str,
    provider: str,
    device: torch.device,
    dtype: torch.dtype,
    trees: int,
    depth: int,
    operation: Operation = PATH,
) -> Provider:
    """The provider for a call; `auto` says once per shape which one it took.

    Raises:
        RuntimeError: the provider asked for is not available here, with the reason.
    """
    if provider != "auto":
        chosen = operation.providers[provider]
        if reason := chosen.available(device, dtype):
            raise RuntimeError(f"provider={provider!r} is not available: {reason}")
        return chosen
    if reason := takes_floats(device, dtype):
        raise RuntimeError(f"provider='auto' found none: {reason}")
    chosen = operation.providers["masked"]
    if execution != "masked":
        chosen = _fastest(execution, device, dtype, depth, operation)
    key, name = (operation.layer, chosen.name, trees, depth), operation.layer
    _say(key, logging.INFO, "%s %dx%d: provider %s (%s execution)", name, trees, depth, chosen.name, chosen.execution)
    return chosen


def _fastest(execution: str, device: torch.device, dtype: torch.dtype, depth: int, operation: Operation) -> Provider:
    """The first ranked provider that can and, with execution "auto", pays; else masked.

    A provider that does not pay is not asked whether it is available, because the question may compile it. Where one
    pays but is missing on a machine that has the device for it, a warning says once which takes its place, and why.
    """
    missing = {}
    found = operation.providers["masked"]
    ranked = [provider for provider in operation.providers.values() if provider.rank is not None]
    for provider in sorted(ranked, key=lambda provider: provider.rank or 0):
        if provider.devices is not None and device.type not in provider.devices:
            continue
        if dtype not in provider.dtypes or (provider.deepest is not None and depth > provider.deepest):
            continue
        pays_from = provider.pays_from.get(device.type, provider.pays_from_other)
        if execution == "auto" and nodes_in_tree(depth) < pays_from * path_length(depth):
            continue
        reason = provider.available(device, dtype)
        if reason is None:
            found = provider
            break
        missing[provider.name] = reason
    for name, reason in missing.items():
        message = "%s: provider %s is not available, the slower %s takes its place: %s"
        _say((operation.layer, name, reason), logging.WARNING, message, operation.layer, name, found.name, reason)
    return found


def _say(key: object, level: int, message: str, *values: object) -> None:
    if not is_compiling() and key not in _told:
        _told.add(key)
        log.log(level, message, *values)


class Chooser:
    """One layer's choice: a provider for each device and dtype, and the short way of inference, if there is one.

    Attributes:
        shortcut: see `Provider`; None until a provider that has one was chosen, and where the layer does not want it.
    """

    def __init__(self, operation: Operation) -> None:
        self.operation = operation
        self.forget()

    def forget(self) -> None:
        """Choose anew: what the choice depends on was changed."""
        self._chosen: dict[tuple[torch.device, torch.dtype], str] = {}
        self.shortcut: Shortcut | None = None

    @property
    def chosen(self) -> frozenset[str]:
        """Names of the providers that were chosen since the last change."""
        return frozenset(self._chosen.values())

    def provider_for(self, layer: Any, x: torch.Tensor, *, short: bool = False) -> Provider:
        """The provider for x; `short`: whether inference may go the provider's short way from now on.

        Args:
            layer: has execution, provider, trees, depth and activation.
        """
        key = (x.device, x.dtype)
        compiling = is_compiling()
        if not compiling and (known := self._chosen.get(key)) is not None:
            return self.operation.providers[known]  # chosen once: at one token the choice would show
        chosen = choose(layer.execution, layer.provider, *key, layer.trees, layer.depth, self.operation)
        if compiling:
            return chosen
        self._chosen[key] = chosen.name
        if chosen.settle and short:
            chosen.settle((*layer.parameters(), *layer.buffers()))
        if chosen.shortcut and short:
            self.shortcut = chosen.shortcut(layer.activation)
        return chosen

    def __getstate__(self) -> str:
        # Another machine may choose otherwise, and a shortcut is a function of this one's library.
        return self.operation.layer

    def __setstate__(self, layer: str) -> None:
        self.__init__(OPERATIONS[layer])  # type: ignore[misc]
