"""Which rows of feedforward layers the gradients of workers apart reached between two meetings. Not what travels."""

import torch
from torch import nn

from cramming.parallel.rows import tables
from cramming.parallel.world import World


class Touched:
    """Counts rows by the gradients that are left after each step.

    A row differs between workers also where moments move it on; what is counted here is visits alone.
    """

    def __init__(self, model: nn.Module) -> None:
        weights = dict(model.named_parameters())
        # A row's weights share its visits, so that the narrowest tells of all: a tree's biases, if it has them.
        self._tables = [
            (min((weights[name] for name in table.names), key=torch.numel), table.rows)
            for table in tables(model)
            if table.rows
        ]
        self.rows = [torch.zeros(rows, dtype=torch.bool, device=weight.device) for weight, rows in self._tables]

    @torch.no_grad()
    def note(self) -> None:
        """After each step."""
        for (weight, rows), seen in zip(self._tables, self.rows, strict=True):
            if weight.grad is not None:
                seen |= (weight.grad.reshape(rows, -1) != 0).any(1)

    def taken(self, world: World) -> dict[str, float]:
        """Figures since they were asked for last, over all processes, which meet.

        `exchange/touched`: the share of all rows that somebody touched. `exchange/overlap`: of those, the share that
        more than one touched (of two workers, the Jaccard index); not where workers come and go, each alone.
        """
        if not self.rows:
            return {}
        counts = world.reduce(torch.cat([seen.to(torch.int32) for seen in self.rows]))
        for seen in self.rows:
            seen.zero_()
        touched, shared = int((counts > 0).sum()), int((counts > 1).sum())
        figures = {"exchange/touched": touched / len(counts)}
        return figures | ({"exchange/overlap": shared / max(1, touched)} if world.size > 1 else {})
