"""When workers that train alone meet, and what their checkpoints keep. Not what they exchange (parallel.outer)."""

from typing import Any

from cramming.parallel.outer import Meeting, Outer
from cramming.parallel.peers import Peers
from cramming.train.loop import Hook, Step, Trainer


class OuterSteps(Hook):
    """An exchange and an outer step wherever the trainer `meets`; whoever comes later sees the same weights everywhere.

    A worker's moments are its own. A checkpoint keeps the main process's as ever, and those of the others in what this
    hook remembers; a worker that was not there then begins with the main process's.
    """

    name = "outer"

    def __init__(self, peers: Peers) -> None:
        self.peers = peers
        self.outer: Outer | None = None
        self.last: Meeting | None = None
        self.remembered: dict[str, Any] = {}
        self.optimiser: Any = None

    def state(self) -> dict[str, Any]:
        """The outer momentum, alike in all, from the main process; of the others their moments."""
        assert self.outer is not None
        if self.peers.rank == 0:
            return {"velocity": self.outer.velocity}
        return {"optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Keep it until the weights are there."""
        self.remembered = state

    def on_start(self, trainer: Trainer) -> None:
        """Begin from the weights that all have, with the main process's outer momentum."""
        config, self.optimiser = trainer.config, trainer.parts.optimiser
        self.outer = Outer(
            trainer.parts.model,
            self.peers,
            lr=config.outer_lr,
            momentum=config.outer_momentum,
            by_rows=config.exchange == "rows",
        )
        self.outer.begin(self.remembered.get("velocity", {}))
        if "optimiser" in self.remembered:
            self.optimiser.load_state_dict(self.remembered["optimiser"])
        self.remembered = {}

    def taken(self) -> int:
        """Bytes that this worker has sent since it was asked last."""
        assert self.outer is not None
        sent, self.outer.sent = self.outer.sent, 0
        return sent

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Meet when it is time, and count the time against the budget."""
        assert self.outer is not None
        if trainer.meets:
            trainer.stopwatch.start()
            self.last = self.outer.meet()
            trainer.spend()
