"""Workers that train alone and meet: the mean of their weights, and an outer step from it. Not when (train.outer).

DiLoCo (arXiv 2311.08105): what the workers' weights came to on average is a gradient for an outer optimiser, SGD with
Nesterov's momentum, whose weights all go on with. The workers' own optimisers stay their own.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cramming.errors import UserError
from cramming.parallel.greeting import DIGEST, TRAINED, Astray, Refused, digest, greet
from cramming.parallel.peers import Peers
from cramming.parallel.rows import Table, differing, tables

NOT_FINITE = (
    "The weights of worker {who} hold what is no finite number, and are refused; lower train.lr or train.clip, and "
    "start the same command: it goes on from the last checkpoint."
)


@dataclass(frozen=True)
class Meeting:
    """What an exchange came to, alike in all workers; nothing has changed by it yet.

    `mean` of the weights of those that `voted`; `refused` are the numbers of workers whose weights hold what is no
    finite number; rows of tables that travelled (`moved`) of how many (`rows`); `name` is its digest.
    """

    mean: dict[str, Tensor]
    voted: int
    refused: list[int]
    moved: int
    rows: int
    name: bytes


class Outer:
    """The weights at the last meeting and the outer momentum, alike in all workers, on the CPU.

    Args:
        model: plain, its weights float32, alike in all workers.
        lr: of the outer step; at 1, and no momentum, the weights become the mean.
        momentum: Nesterov's; 0: none.
        by_rows: of feedforward layers send the rows alone that differ between workers; the result is the same.
        facts: plain values by name, beside names and shapes of the weights, that all workers have to have alike.

    Attributes:
        past: names the last meeting, and by it all before: who has another one has other weights.
        sent: bytes that this worker has sent at meetings.
    """

    def __init__(
        self,
        model: nn.Module,
        peers: Peers,
        *,
        lr: float,
        momentum: float,
        by_rows: bool = True,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.peers, self.lr, self.momentum = model, peers, lr, momentum
        self.tables = tables(model) if by_rows else [Table((name,), 0) for name, _ in model.named_parameters()]
        shapes = {f"the shape of {name}": list(p.shape) for name, p in model.named_parameters()}
        self.facts = {**(facts or {}), **shapes}
        self.before = self._weights()
        self.velocity = {
            name: torch.zeros_like(self.before[name]) for name, p in model.named_parameters() if p.requires_grad
        }
        self.past, self.sent = bytes(DIGEST), 0

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().to("cpu", torch.float32, copy=True) for name, p in self.model.named_parameters()}

    def begin(self, velocity: dict[str, Tensor]) -> None:
        """Go on with the first worker's momentum, of the parameters that it has one of."""
        for name, own in self.velocity.items():
            own.copy_(velocity.get(name, own))
            self.peers.from_first(own)

    def meet(self) -> Meeting:
        """Exchange and step; every worker takes part, and all have the same weights afterwards.

        Raises:
            UserError: a worker's weights hold what is no finite number, or workers do not fit together; all know it,
                and those beside the first leave with SystemExit.
        """
        try:
            meeting = self.exchange(self.peers)
            assert meeting is not None
            if meeting.refused:
                raise Refused({who: NOT_FINITE.format(who=who) for who in meeting.refused})
        except (Refused, Astray) as error:
            if self.peers.rank:
                raise SystemExit(2) from error
            raise UserError(str(error)) from error
        self.apply(meeting)
        return meeting

    @torch.no_grad()
    def exchange(self, peers: Peers, part: int = TRAINED) -> Meeting | None:
        """What the workers come to together, who all take part; None where none of them has trained yet.

        Args:
            part: see `greet`; who has not trained only listens.

        Raises:
            Refused, Astray: see `greet`.
        """
        weights = self._weights()
        try:
            votes = greet(peers, self.facts, self.past, part)
            return self._averaged(weights, peers, votes) if any(votes) else None
        finally:
            self.sent, peers.sent = self.sent + peers.sent, 0

    def settle(self, meeting: Meeting, worker: int) -> None:
        """The outer step of one of several workers that come and go: the others go on without those that are refused.

        Raises:
            UserError: this one is.
        """
        if worker in meeting.refused:
            raise UserError(NOT_FINITE.format(who=worker))
        for who in meeting.refused:
            warnings.warn(f"left out: {NOT_FINITE.format(who=who)}", stacklevel=2)
        self.apply(meeting)

    @torch.no_grad()
    def apply(self, meeting: Meeting) -> None:
        """The outer step."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(self._stepped(name, meeting.mean[name]))
        self.before, self.past = self._weights(), meeting.name

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

    def _averaged(self, weights: dict[str, Tensor], peers: Peers, votes: list[bool]) -> Meeting:
        """The voters' mean, in place of a worker's own weights."""
        moved = self._moved(weights, peers)
        pieces = []
        for table, rows in zip(self.tables, moved, strict=True):
            pieces += [view[rows] for view in table.views(weights)]
        mean, refused = peers.mean(torch.cat([piece.flatten() for piece in pieces]), votes)
        parts = iter(mean.split([piece.numel() for piece in pieces]))
        for table, rows in zip(self.tables, moved, strict=True):
            for view in table.views(weights):
                view[rows] = next(parts).view(-1, view.shape[1])
        of_tables = [rows for table, rows in zip(self.tables, moved, strict=True) if table.rows]
        voted = sum(vote and name not in refused for name, vote in zip(peers.names, votes, strict=True))
        return Meeting(
            weights,
            voted,
            refused,
            moved=sum(int(rows.sum()) for rows in of_tables),
            rows=sum(len(rows) for rows in of_tables),
            name=digest(self.past, repr((peers.names, votes, refused)).encode(), peers.label),
        )

    def _moved(self, weights: dict[str, Tensor], peers: Peers) -> list[Tensor]:
        """(rows) bool of each table: whether a row differs between any two workers."""
        by_rows = [table for table in self.tables if table.rows]
        if not by_rows or peers.size == 1:
            return [torch.ones(max(1, table.rows), dtype=torch.bool) for table in self.tables]
        found = peers.gather(torch.cat([table.digests(weights) for table in by_rows]))
        parts = iter(differing(found).split([table.rows for table in by_rows]))
        return [next(parts) if table.rows else torch.ones(1, dtype=torch.bool) for table in self.tables]
