"""The loss on held-out text, and that of guessing on the same. Not when it is due (hooks.py)."""

import numpy as np
import torch
from torch import nn

from cramming.data.shards import PreparedData
from cramming.objectives.base import Batch, Objective
from cramming.parallel.world import World


class Validation:
    """A fixed set of validation batches, the same for every run on the same data.

    Args:
        objective: the run's.
        sequences: at most this many, evenly spread over the held-out text.
    """

    def __init__(self, data: PreparedData, objective: Objective, *, sequences: int, microbatch: int) -> None:
        count = min(sequences, len(data.valid))
        self.data, self.objective, self.microbatch = data, objective.for_validation(), microbatch
        self.positions = np.unique(np.linspace(0, len(data.valid) - 1, count).round().astype(np.int64))

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.positions)

    def batches(self, process: int = 0, processes: int = 1) -> list[Batch]:
        """This process's share of the set."""
        chunks = [self.positions[i : i + self.microbatch] for i in range(0, len(self), self.microbatch)]
        return [self.objective.batch(self.data.valid.take(chunk), chunk) for chunk in chunks[process::processes]]

    @torch.no_grad()
    def run(self, model: nn.Module, world: World) -> dict[str, float]:
        """The objective's figures of the model in evaluation mode, over all processes, which meet.

        Each makes as many passes as any other: where a model is spread over them, a pass is a meeting too.
        """
        was_training = model.training
        model.eval()
        own, first = self.batches(world.rank, world.size), self.batches(0, world.size)
        sums: torch.Tensor | None = None
        for number, other in enumerate(first):
            batch = own[number] if number < len(own) else other
            found = self.objective.sums(model, batch.to(world.device))
            found = found if number < len(own) else torch.zeros_like(found)
            sums = found if sums is None else sums + found
        model.train(was_training)
        assert sums is not None
        return self.objective.figures(world.reduce(sums, "sum").tolist())

    def unigram_loss(self) -> float:
        """Loss (nats) of guessing by the training tokens' frequencies."""
        return self.objective.baseline(self.data.unigram_counts(), self.batches())
