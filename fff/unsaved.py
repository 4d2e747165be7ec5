"""Tensors of a module that no checkpoint holds and no load sets. Not its parameters, nor buffers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Unsaved(nn.Module):
    """A module with such tensors, kept by name and given on the device where they are wanted.

    They are no buffers, because a module that was built on the meta device and then loaded (`from_pretrained`,
    `to_empty`) has uninitialised memory wherever the checkpoint has nothing; and because mixed precision may convert
    the parameters alone, which leaves buffers behind in another dtype. They are tensors, not numbers, so that changing
    one in place does not make torch.compile start again.
    """

    def keep(self, name: str, value: Tensor) -> None:
        """Keep a tensor; it must be made on a device of its own, "cpu", whatever torch's default device is."""
        self.__dict__.setdefault("_unsaved", {})[name] = value

    def unsaved(self, name: str, device: torch.device) -> Tensor:
        """The tensor of that name on a device; the same one each time, so that it may be changed in place.

        On the meta device it is a copy without content.
        """
        value: Tensor = self._unsaved[name]  # type: ignore[index]
        if value.device == device:
            return value
        with torch.inference_mode(False), torch.no_grad():  # what is kept may later take part in training
            moved = value.to(device)
        if type(moved) is Tensor and device.type != "meta":  # not a tracer's
            self._unsaved[name] = moved  # type: ignore[index, operator]
        return moved

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # `fn` says where to; what it makes of the content does not matter, and `to_empty` makes nothing of it.
        super()._apply(fn, recurse)
        for name, value in self.__dict__.get("_unsaved", {}).items():
            self.unsaved(name, fn(value.new_empty(0)).device)
        return self
