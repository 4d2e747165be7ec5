"""Bytes that processes send one another for weights and gradients, per token. Not for losses, figures and starts.

What an exchange of workers sends is counted where it is sent. Gradients of every step are torch's affair: a ring's
share of them is reckoned, 2 (N - 1) / N of their bytes from each of N processes.
"""

from typing import Protocol

from torch import nn

from cramming.train.loop import Hook, Step, Trainer


def ring_bytes(model: nn.Module, processes: int) -> float:
    """That each process sends for one mean of all gradients."""
    own = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return 2 * (processes - 1) / processes * own


class Sender(Protocol):
    """What workers meet by."""

    figures: dict[str, float]  # of the last meeting

    def taken(self) -> int:
        """Bytes that this worker has sent since it was asked last."""
        ...


class Traffic(Hook):
    """Counts them over all resumes.

    Args:
        sender: of workers that meet; None where gradients travel in every step.
    """

    name = "traffic"

    def __init__(self, sender: Sender | None) -> None:
        self.sender, self.sent, self.of_step = sender, 0.0, 0.0  # by this process
        self.figures: dict[str, float] = {}

    def state(self) -> dict[str, float]:
        """Bytes so far."""
        return {"sent": self.sent}

    def restore(self, state: dict[str, float]) -> None:
        """Go on counting."""
        self.sent = state["sent"]

    def on_start(self, trainer: Trainer) -> None:
        """See what a step sends."""
        self.of_step = ring_bytes(trainer.parts.model, trainer.world.size) if self.sender is None else 0.0

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Count, over all processes: each sends as much as any other."""
        self.sent += self.of_step if self.sender is None else self.sender.taken()
        self.figures = {"exchange/bytes_per_token": self.sent * trainer.world.workers / max(1, trainer.state.tokens)}
        self.figures |= {} if self.sender is None else self.sender.figures
