"""The layer over a store: PathFFF in evaluation whose parameters are maps of files. Not the files (files.py)."""

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fff.layers.operands import autocast_dtype, check_place
from fff.layers.path import PathFFF
from fff.store.files import ROWS
from fff.store.maps import Map, read
from fff.topology import depth_of

WARMED_BYTES = 2**24  # read ahead at a time


class StoredPath(PathFFF):
    """A PathFFF whose parameters are maps of files: (..., d_in) -> (..., d_out), the rows of the path alone are read.

    As PathFFF in evaluation, with its `path`, `route` and providers, except that nothing may change, convert or move
    the rows, or copy them all: training, `load_state_dict` and `to` of another device or dtype are refused, and
    `state_dict` has none of them. A copy, or a pickle, is the same folder opened again. Autocast leaves the rows as
    they are: the input is converted, and the output is autocast's. The maps can only be read: to write into one in
    place (`layer.w_in.zero_()`) ends the process.

    Attributes:
        folder: where the files are, absolute; they must stay as they are while the layer is in use.
    """

    def __init__(self, folder: Path, maps: tuple[Map, ...], provider: str) -> None:
        rows = {name: tensor for each in maps for name, tensor in each.tensors.items()}
        trees, nodes, d_in = rows["w_in"].shape
        super().__init__(
            d_in,
            rows["w_out"].shape[-1],
            depth_of(nodes),
            trees,
            bias="b_in" in rows,
            activation=maps[0].activation,
            execution="conditional",
            provider=provider,
            device="meta",
        )
        self.folder, self._maps = folder.absolute(), maps
        for name, tensor in rows.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=False))
        super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, in the rows' dtype; the output is in autocast's, where it is on.

        Raises:
            ValueError: x has another last dimension, device or, without autocast, dtype than the rows.
        """
        check_place(x, self.w_in, self.d_in)
        narrow = autocast_dtype(x)
        if narrow is None:
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.to(self.w_in.dtype)).to(narrow)

    @torch.no_grad()
    def path(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As PathFFF's; autocast leaves the rows as they are."""
        if autocast_dtype(x) is not None:
            x = x.to(self.w_in.dtype)
        with torch.autocast(x.device.type, enabled=False):
            return super().path(x)

    def release(self) -> None:
        """Give back what was read, also of the system's cache: from now on rows are read from the disk anew."""
        for each in self._maps:
            each.release()

    @torch.no_grad()
    def warm(self, counts: Tensor, most_bytes: int) -> int:
        """Read the rows ahead that tokens used most, until `most_bytes` of them are in memory; returns the bytes.

        Args:
            counts: tokens per leaf (trees, 2^depth), as `fff.usage.measure` counts them.

        Raises:
            ValueError: counts of another shape.
        """
        if tuple(counts.shape) != (self.trees, 2**self.depth):
            raise ValueError(f"counts must be ({self.trees}, {2**self.depth}), got {tuple(counts.shape)}")
        visits = node_visits(counts).flatten()
        row = (self.d_in + self.d_out) * self.w_in.element_size()
        wanted = min(most_bytes // row, int((visits > 0).sum()))
        hot = visits.topk(wanted).indices.sort().values
        for weight in (self.w_in, self.w_out):
            for part in hot.split(max(1, WARMED_BYTES // row)):
                weight.flatten(0, 1).index_select(0, part)
        return len(hot) * row

    @property
    def resident_bytes(self) -> int:
        """Of the rows, what this process has in memory now, in whole pages (Linux: /proc/self/smaps)."""
        return sum(each.resident_bytes for each in self._maps)

    def train(self, mode: bool = True) -> Self:
        """Refuse (ValueError) to train; `eval` changes nothing."""
        if mode:
            raise ValueError("a stored layer is for inference alone; call eval(), or train the layer that was stored")
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        kept = self.w_in
        to = fn(kept.new_empty(0))
        if to.dtype != kept.dtype or to.device != kept.device:
            raise ValueError(
                f"{self.folder} holds rows of {kept.dtype} that stay on the disk, and {to.dtype} on {to.device} was "
                "asked for; convert the input, or write the layer again in that dtype"
            )
        return self

    def _save_to_state_dict(self, *_: Any) -> None:
        """The rows are in their folder."""

    def _load_from_state_dict(self, state: Any, prefix: str, *given: Any) -> None:
        if any(f"{prefix}{name}" in state for name in ROWS):
            raise ValueError(f"the rows of a stored layer are those of {self.folder}; write another folder and open it")

    def __reduce_ex__(self, protocol: Any) -> Any:
        return open, (self.folder, self.provider)

    def extra_repr(self) -> str:
        """Sizes and choices, for print."""
        return f"{super().extra_repr()}, folder={str(self.folder)!r}"


def node_visits(counts: Tensor) -> Tensor:
    """Tokens per node (T, M) in heap order, from tokens per leaf (T, 2^D)."""
    levels = [counts]
    while levels[0].shape[-1] > 1:
        levels.insert(0, levels[0].unflatten(-1, (-1, 2)).sum(-1))
    return torch.cat(levels, -1)


def open(folder: str | Path, provider: str = "auto") -> StoredPath:
    """The layer that a store holds, its files mapped and none of their rows read.

    Raises:
        ValueError: the folder is no store, a file is cut or another's, or the provider is not conditional.
    """
    folder = Path(folder)
    return StoredPath(folder, read(folder), provider)
