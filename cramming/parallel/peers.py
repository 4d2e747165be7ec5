"""Workers that meet: bytes from each to each, and means that do not depend on who sums. Not what they send (outer.py).

A mean is taken in float64 and in the order of the workers, so that every number of it is the same however a message
was cut; what all workers have alike is its own mean, exactly.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Peers:
    """Those that take part in one meeting, `rank` of `size`, over a Gloo process group; tensors are on the CPU.

    Attributes:
        names: numbers of the workers, in their order here.
        label: what tells these from the same workers at another time, if anything can.
        sent: bytes of tensors that this worker has sent to others so far.
    """

    def __init__(self, group: Any = None, rank: int = 0, size: int = 1, names: Sequence[int] = ()) -> None:
        self.group, self.rank, self.size, self.sent, self.label = group, rank, size, 0, b""
        self.names = list(names or range(size))

    @classmethod
    def of_launch(cls) -> "Peers":
        """All processes that a launcher started together; this one alone if none did."""
        if not dist.is_initialized():
            return cls()
        return cls(dist.group.WORLD, dist.get_rank(), dist.get_world_size())

    def gather(self, own: Tensor) -> list[Tensor]:
        """Everybody's tensor, of one shape, in the order of the workers."""
        if self.size == 1:
            return [own]
        found = [torch.empty_like(own) for _ in range(self.size)]
        self.group.allgather([found], [own.contiguous()]).wait()
        self.sent += own.numel() * own.element_size() * (self.size - 1)
        return found

    def swap(self, own: Tensor) -> Tensor:
        """Row r of everybody's (size, n) tensor for worker r: (size, n), in the order of who sent it."""
        found = torch.empty_like(own)
        self.group.alltoall_base(found, own.contiguous(), [], []).wait()
        self.sent += own[0].numel() * own.element_size() * (self.size - 1)
        return found

    def from_first(self, own: Tensor) -> None:
        """Take over the first worker's tensor, in place; its bytes are not counted, for it happens at starts alone."""
        if self.size > 1:
            self.group.broadcast([own]).wait()

    def mean(self, own: Tensor, votes: Sequence[bool] = ()) -> tuple[Tensor, list[int]]:
        """The mean of the voters' float32 vectors (all, unless said), and numbers of workers that were left out of it.

        Each worker sums a part and tells it to all. Left out are those whose vectors hold what is no finite number; of
        the rest it is the mean, and of none NaN.
        """
        if self.size == 1:
            return own, [] if bool(torch.isfinite(own).all()) else list(self.names)
        length = -(-len(own) // self.size)
        padded = own.new_zeros(self.size * length)
        padded[: len(own)] = own
        parts = self.swap(padded.view(self.size, length))
        seen = torch.stack(self.gather(torch.isfinite(parts).all(1).to(torch.uint8)))
        good = seen.bool().all(0).tolist()  # by everybody, each in its part
        total = torch.full((length,), torch.nan, dtype=torch.float64)
        voting = votes or [True] * self.size
        used = [part.double() for part, fit, vote in zip(parts, good, voting, strict=True) if fit and vote]
        for number, part in enumerate(used):
            total = total + part if number else part
        found = torch.cat(self.gather((total / max(1, len(used))).float()))
        return found[: len(own)], [name for name, fit in zip(self.names, good, strict=True) if not fit]
