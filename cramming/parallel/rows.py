"""A model's weights as rows, and which of them differ between workers: the others need not travel. Not the meeting.

What moves a row is more than a visit: weight decay moves all, everywhere alike, and a moment goes on moving a row for
some hundred steps after its last visit, in the workers that saw it. Nobody has to know of either: rows are compared by
their digests, and those that are alike everywhere are their own mean.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cramming.parallel.greeting import DIGEST
from fff.layers.base import Feedforward


@dataclass(frozen=True)
class Table:
    """Weights that share their first dimensions, e.g. nodes' w_in, b_in and w_out: row by row they belong together."""

    names: tuple[str, ...]
    rows: int  # 0: no rows, it always travels as a whole

    def views(self, weights: dict[str, Tensor]) -> list[Tensor]:
        """The weights as (rows, n) each, or whole as (1, n)."""
        return [weights[name].view(max(1, self.rows), -1) for name in self.names]

    def digests(self, weights: dict[str, Tensor]) -> Tensor:
        """(rows, DIGEST) uint8."""
        arrays = [view.numpy() for view in self.views(weights)]
        found = bytearray()
        for row in range(self.rows):
            digest = hashlib.blake2b(digest_size=DIGEST)
            for array in arrays:
                digest.update(array[row])
            found += digest.digest()
        return torch.frombuffer(found, dtype=torch.uint8).view(self.rows, DIGEST)


def differing(digests: Sequence[Tensor]) -> Tensor:
    """(rows,) bool: which rows are not alike in all workers, of each of whom (rows, DIGEST) is given."""
    return torch.stack([each != digests[0] for each in digests]).any(0).any(1)


def tables(model: nn.Module) -> list[Table]:
    """A model's weights: those of feedforward layers by rows, the rest as wholes; each once, in a fixed order."""
    found: list[Table] = []
    taken = set[str]()
    for prefix, module in model.named_modules():
        if isinstance(module, Feedforward):
            found += _of_layer(prefix, module)
    for table in found:
        taken.update(table.names)
    found += [Table((name,), 0) for name, _ in model.named_parameters() if name not in taken]
    return found


def _of_layer(prefix: str, layer: nn.Module) -> Iterator[Table]:
    left = dict(layer.named_parameters(recurse=False))
    for weight in sorted(left.values(), key=lambda each: -each.dim()):
        head = weight.shape[:-1]
        # With a weight (..., n) go the others of its rows, and what has one number for each of them.
        names = [name for name, p in left.items() if head in (p.shape, p.shape[:-1])]
        if weight.dim() > 1 and names:
            for name in names:
                del left[name]
            yield Table(tuple(f"{prefix}.{name}" if prefix else name for name in names), head.numel())
