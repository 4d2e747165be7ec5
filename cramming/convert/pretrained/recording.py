"""What the dense model computes from text, on the disk: each block's input and output. Complete or absent.

Of a token three rows at most: x, what the block was given; y, what it gave; r, the residual that the norm behind it
reads with y, where that is not x. Files are memory-mapped, so that their size is the disk's matter alone.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
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
TYPE = torch.float16
LARGEST = 6e4  # of float16


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
    """

    folder: Path
    batches: list[Batch]
    starts: list[int]
    embeddings: list[Tensor]
    widths: list[tuple[int, int]]
    seconds: float

    @property
    def tokens(self) -> int:
        """All that were recorded, without padding."""
        return self.starts[-1]

    @property
    def fitted(self) -> int:
        """Tokens that blocks are fitted to; those after them tell their errors."""
        return self.tokens - min(8192, self.tokens // 10)

    def rows(self, block: int, what: str) -> Tensor:
        """x (N, H), y or r (N, K) of a block, memory-mapped float16."""
        width = self.widths[block][what != "x"]
        found = torch.from_file(str(_file(self.folder, block, what)), size=self.tokens * width, dtype=TYPE)
        return found.view(self.tokens, width)

    def residual(self, block: int, dense: Dense) -> Tensor:
        """What the norm behind the block reads beside y; x where that is it."""
        return self.rows(block, "x" if dense.own_residual or not dense.norm else "r")

    def taken(self, block: int, dense: Dense, rows: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and the residual of some tokens, float32 where the dense block is."""
        device = dense.w_in.device
        tables = (self.rows(block, "x"), self.rows(block, "y"), self.residual(block, dense))
        x, y, residual = (table[rows].to(device).float() for table in tables)
        return x, y, residual


def bytes_needed(denses: Sequence[Dense], tokens: int) -> int:
    """On the disk."""
    rows = (each.block.d_in + each.block.d_out * (2 if _keeps_residual(each) else 1) for each in denses)
    return sum(rows) * tokens * 2


def refuse_large(denses: Sequence[Dense], tokens: int, most_gb: float) -> None:
    """UserError where the recording would take more than it may."""
    if (needed := bytes_needed(denses, tokens) / 1e9) > most_gb:
        raise UserError(
            f"distill.tokens={tokens:,} take {needed:.1f} GB on the disk, and distill.record_gb is {most_gb:g}; "
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
) -> Recording:
    """Open the recording in `folder`, or make it first. UserError where another one is there."""
    order = batched(sequences, batch)
    batches = [padded([sequences[n] for n in rows], teacher.pad) for rows in order]
    starts = [0]
    for each in batches:
        starts.append(starts[-1] + int(each.mask.sum()))
    widths = [(each.block.d_in, each.block.d_out) for each in denses]
    if not folder.exists():
        with no_space(folder, "output_dir"), new_folder(folder) as beside:
            began = time.perf_counter()
            embeddings = _record(beside, teacher, denses, batches, starts, compute)
            seconds = time.perf_counter() - began
            torch.save({"embeddings": embeddings, "seconds": seconds}, beside / EMBEDDINGS)
            write_json(beside / MANIFEST, made_of)
    if read_json(folder / MANIFEST) != made_of:
        raise UserError(f"{folder} is a recording of something else; move it away.")
    found = torch.load(folder / EMBEDDINGS, weights_only=True)
    return Recording(folder, batches, starts, found["embeddings"], widths, found["seconds"])


def _record(
    folder: Path, teacher: Teacher, denses: Sequence[Dense], batches: list[Batch], starts: list[int], compute: str
) -> list[Tensor]:
    tables: dict[tuple[int, str], Tensor] = {}
    for number, dense in enumerate(denses):
        wanted = {"x": dense.block.d_in, "y": dense.block.d_out} | (
            {"r": dense.block.d_out} if _keeps_residual(dense) else {}
        )
        for what, width in wanted.items():
            path = str(_file(folder, number, what))
            table = torch.from_file(path, shared=True, size=starts[-1] * width, dtype=TYPE)
            tables[number, what] = table.view(starts[-1], width)
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
            for number, dense in enumerate(denses):
                path = dense.block.path
                x, y = seen.x[path][real], seen.y[path][real]
                found = {"x": x, "y": y}
                if _keeps_residual(dense):
                    found["r"] = seen.u[path][real].float() - y.float()
                for what, rows in found.items():
                    if float(rows.abs().max()) > LARGEST:
                        raise UserError(f"{path}: its values are beyond float16 ({float(rows.abs().max()):.0e}).")
                    tables[number, what][first:last] = rows
            bar.update(last - first)
    return embeddings


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean of hidden states (B, S, H) over the tokens of a mask (B, S)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


def _keeps_residual(dense: Dense) -> bool:
    return bool(dense.norm) and not dense.own_residual


def _file(folder: Path, block: int, what: str) -> Path:
    return folder / f"{block:03d}.{what}"
