"""What the dense model computes from text, on the disk: each block's input and output. Complete or absent.

Of a token and block three rows at most: x, what it was given; y, what it gave; r, the residual that the norm behind it
reads with y, where that is not x. Of decoders also the last hidden states. Files are memory-mapped, so that their size
is the disk's matter alone; a GPU that has the room holds them, because reading rows for each update takes it longer
than the update.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from cramming.convert.pretrained.compute import computing, device_of
from cramming.convert.pretrained.dense import Dense, watched
from cramming.convert.pretrained.teacher import Teacher, last_hidden
from cramming.convert.pretrained.text import Batch, batched, padded
from cramming.errors import UserError
from cramming.files import new_folder, no_space, read_json, write_json

MANIFEST = "manifest.json"
EMBEDDINGS = "embeddings.pt"
LAST = "last.h"
TYPE = torch.float16
LARGEST = 6e4  # of float16
SHARE = 0.5  # of a GPU's free memory that a recording may take


@dataclass(frozen=True)
class Recording:
    """An opened recording.

    Attributes:
        folder: where it is.
        batches: ids of every batch, (B, S) with their masks, in the order of the tokens.
        starts: first token of each batch, and the number of all at the end.
        embeddings: (B, H) float32 of each batch: the mean of the last hidden states.
        widths: (H, K) of each block.
        seconds: that it took.
        held_by: the GPU that keeps opened tables; None leaves them on the disk.
    """

    folder: Path
    batches: list[Batch]
    starts: list[int]
    embeddings: list[Tensor]
    widths: list[tuple[int, int]]
    seconds: float
    held_by: torch.device | None = None
    _opened: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @property
    def tokens(self) -> int:
        """All that were recorded, without padding."""
        return self.starts[-1]

    @property
    def fitted(self) -> int:
        """Tokens that blocks are fitted to; those after them tell their errors."""
        return self.tokens - min(8192, self.tokens // 10)

    def span(self, batch: int) -> slice:
        """The tokens of a batch."""
        return slice(self.starts[batch], self.starts[batch + 1])

    def taken(self, block: int, dense: Dense, rows: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and the residual of some tokens, float32 where the dense block is."""
        return self._taken(block, dense, "x", rows), *self.behind(block, dense, rows)

    def behind(self, block: int, dense: Dense, rows: Tensor | slice) -> tuple[Tensor, Tensor]:
        """y of the same, and what the norm behind the block reads beside it; x where there is no norm."""
        residual = "x" if dense.own_residual or not dense.norm else "r"
        return self._taken(block, dense, "y", rows), self._taken(block, dense, residual, rows)

    def last(self, rows: slice, device: torch.device) -> Tensor:
        """The last hidden states (N, H) of some tokens, float32 there."""
        return self._table(LAST, self.embeddings[0].shape[1])[rows].to(device).float()

    def _taken(self, block: int, dense: Dense, what: str, rows: Tensor | slice) -> Tensor:
        table = self._table(_name(block, what), self.widths[block][what != "x"])
        return table[rows].to(dense.w_in.device).float()

    def _table(self, name: str, width: int) -> Tensor:
        """(N, width) float16, memory-mapped or on the GPU; opened once."""
        if name not in self._opened:
            found = torch.from_file(str(self.folder / name), size=self.tokens * width, dtype=TYPE)
            self._opened[name] = found.view(self.tokens, width).to(self.held_by or found.device)
        return self._opened[name]


def bytes_needed(denses: Sequence[Dense], tokens: int, hidden: int) -> int:
    """On the disk; hidden: width of the last hidden states, where they are wanted, else 0."""
    rows = (each.block.d_in + each.block.d_out * (2 if _keeps_residual(each) else 1) for each in denses)
    return (sum(rows) + hidden) * tokens * 2


def refuse_large(needed: int, tokens: int, most_gb: float) -> None:
    """UserError where the recording would take more than it may."""
    if (gigabytes := needed / 1e9) > most_gb:
        raise UserError(
            f"distill.tokens={tokens:,} take {gigabytes:.1f} GB on the disk, and distill.record_gb is {most_gb:g}; "
            "raise it, or record less."
        )


def recorded(
    folder: Path,
    teacher: Teacher,
    denses: Sequence[Dense],
    sequences: Sequence[Sequence[int]],
    *,
    made_of: dict[str, Any],
    batch: int,
    compute: str,
    words: bool,
) -> Recording:
    """Open the recording in `folder`, or make it first. UserError where another one is there.

    words: whether the last hidden states are wanted.
    """
    order = batched(sequences, batch)
    batches = [padded([sequences[n] for n in rows], teacher.pad) for rows in order]
    starts = [0]
    for each in batches:
        starts.append(starts[-1] + int(each.mask.sum()))
    widths = [(each.block.d_in, each.block.d_out) for each in denses]
    if not folder.exists():
        with no_space(folder, "output_dir"), new_folder(folder) as beside:
            began = time.perf_counter()
            embeddings = _record(beside, teacher, denses, batches, starts, compute, words)
            seconds = time.perf_counter() - began
            torch.save({"embeddings": embeddings, "seconds": seconds}, beside / EMBEDDINGS)
            write_json(beside / MANIFEST, made_of)
    if read_json(folder / MANIFEST) != made_of:
        raise UserError(f"{folder} is a recording of something else; move it away.")
    found = torch.load(folder / EMBEDDINGS, weights_only=True)
    embeddings, device = found["embeddings"], device_of(teacher.model)
    needed = bytes_needed(denses, starts[-1], embeddings[0].shape[1] if words else 0)
    there = device if device.type == "cuda" and needed < SHARE * torch.cuda.mem_get_info(device)[0] else None
    return Recording(folder, batches, starts, embeddings, widths, found["seconds"], there)


def _record(
    folder: Path,
    teacher: Teacher,
    denses: Sequence[Dense],
    batches: list[Batch],
    starts: list[int],
    compute: str,
    words: bool,
) -> list[Tensor]:
    tables: dict[str, Tensor] = {}

    def write(name: str, where: str, first: int, rows: Tensor) -> None:
        if float(rows.abs().max()) > LARGEST:
            raise UserError(f"{where}: its values are beyond float16 ({float(rows.abs().max()):.0e}).")
        if name not in tables:
            size = starts[-1] * rows.shape[1]
            table = torch.from_file(str(folder / name), shared=True, size=size, dtype=TYPE)
            tables[name] = table.view(starts[-1], rows.shape[1])
        tables[name][first : first + len(rows)] = rows

    embeddings = []
    norms = {each.block.path: each.norm for each in denses}
    model, device = teacher.model, device_of(teacher.model)
    bar = tqdm(total=starts[-1], desc="recording", unit="token", unit_scale=True)
    with bar, torch.no_grad(), watched(model, [each.block for each in denses], norms) as seen:
        for batch, first, last in zip(batches, starts, starts[1:], strict=False):
            there = batch.to(device)
            with computing(compute, device):
                hidden = last_hidden(model, there).float()
            embeddings.append(pooled(hidden, there.mask).cpu())
            real = there.mask.bool()
            if words:
                write(LAST, "distill.model, its last hidden states", first, hidden[real])
            for number, dense in enumerate(denses):
                path = dense.block.path
                x, y = seen.x[path][real], seen.y[path][real]
                write(_name(number, "x"), path, first, x)
                write(_name(number, "y"), path, first, y)
                if _keeps_residual(dense):
                    write(_name(number, "r"), path, first, seen.u[path][real].float() - y.float())
            bar.update(last - first)
    return embeddings


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden states (B, S, H) over the tokens of a mask (B, S)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _keeps_residual(dense: Dense) -> bool:
    return bool(dense.norm) and not dense.own_residual


def _name(block: int, what: str) -> str:
    return f"{block:03d}.{what}"
