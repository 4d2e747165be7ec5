"""Workers that train alone and meet: the mean of their weights, and an outer step from it. Not when (train.outer).

DiLoCo (arXiv 2311.08105): what the workers' weights came to on average is a gradient for an outer optimiser, SGD with
Nesterov's momentum, whose weights all go on with. The workers' own optimisers stay their own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cramming.errors import UserError
from cramming.parallel.peers import Peers
from cramming.parallel.rows import DIGEST, Table, tables


@dataclass(frozen=True)
class Meeting:
    """What a meeting came to: rows of tables that travelled, of how many."""

    moved: int
    rows: int


class Outer:
    """The weights at the last meeting and the outer momentum, alike in all workers, on the CPU.

    Args:
        model: plain, its weights float32, alike in all workers.
        lr: of the outer step; at 1, and no momentum, the weights become the mean.
        momentum: Nesterov's; 0: none.
        by_rows: of feedforward layers send the rows alone that differ between workers; the result is the same.
    """

    def __init__(self, model: nn.Module, peers: Peers, *, lr: float, momentum: float, by_rows: bool = True) -> None:
        self.model, self.peers, self.lr, self.momentum = model, peers, lr, momentum
        self.tables = tables(model) if by_rows else [Table((name,), 0) for name, _ in model.named_parameters()]
        self.before = self._weights()
        self.velocity = {
            name: torch.zeros_like(self.before[name]) for name, p in model.named_parameters() if p.requires_grad
        }

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self.model.named_parameters()}

    def begin(self, velocity: dict[str, Tensor]) -> None:
        """Go on with the first worker's momentum, of the parameters that it has one of."""
        for name, own in self.velocity.items():
            own.copy_(velocity.get(name, own))
            self.peers.from_first(own)

    @torch.no_grad()
    def meet(self) -> Meeting:
        """Exchange and step; every worker takes part, and all have the same weights afterwards.

        Raises:
            UserError: a worker's weights hold what is no finite number.
        """
        mean = self._weights()
        meeting = self._average(mean)
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self._stepped(name, mean[name]))
        self.before = self._weights()
        return meeting

    def _stepped(self, name: str, mean: Tensor) -> Tensor:
        if name not in self.velocity:
            return mean  # no gradient moves it, and no optimiser
        before, velocity = self.before[name], self.velocity[name]
        # At lr 1 the mean itself: `before - (before - mean)` would round it.
        stepped = torch.lerp(before, mean, self.lr)
        if self.momentum:
            velocity.mul_(self.momentum).add_(before - mean)
            stepped.sub_(velocity, alpha=self.lr * self.momentum)
        return stepped

    def _average(self, weights: dict[str, Tensor]) -> Meeting:
        """Everybody's mean in place of a worker's own weights."""
        moved = self._moved(weights)
        pieces = []
        for table, rows in zip(self.tables, moved, strict=True):
            pieces += [view[rows] for view in table.views(weights)]
        mean, bad = self.peers.mean(torch.cat([piece.flatten() for piece in pieces]))
        if bad:
            who = ", ".join(map(str, bad))
            raise UserError(
                f"The weights of worker {who} hold what is no finite number, and are refused; lower train.lr or "
                "train.clip, and start the same command: it goes on from the last checkpoint."
            )
        parts = iter(mean.split([piece.numel() for piece in pieces]))
        for table, rows in zip(self.tables, moved, strict=True):
            for view in table.views(weights):
                view[rows] = next(parts).view(-1, view.shape[1])
        of_tables = [rows for table, rows in zip(self.tables, moved, strict=True) if table.rows]
        return Meeting(sum(int(rows.sum()) for rows in of_tables), sum(len(rows) for rows in of_tables))

    def _moved(self, weights: dict[str, Tensor]) -> list[Tensor]:
        """(rows) bool of each table: whether a row differs between any two workers."""
        by_rows = [table for table in self.tables if table.rows]
        if not by_rows or self.peers.size == 1:
            return [torch.ones(max(1, table.rows), dtype=torch.bool) for table in self.tables]
        found = self.peers.gather(torch.cat([table.digests(weights) for table in by_rows]))
        differ = torch.stack([each != found[0] for each in found]).any(0).view(-1, DIGEST).any(1)
        parts = iter(differ.split([table.rows for table in by_rows]))
        return [next(parts) if table.rows else torch.ones(1, dtype=torch.bool) for table in self.tables]
