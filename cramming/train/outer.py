"""When workers that train alone meet, and what their checkpoints keep. Not what they exchange (parallel.outer)."""

import time
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from cramming.errors import Stopped
from cramming.parallel.elastic import Members
from cramming.parallel.greeting import BEGINS, TRAINED
from cramming.parallel.outer import Meeting, Outer
from cramming.parallel.peers import Peers
from cramming.train.loop import Hook, Step, Trainer
from cramming.train.parts import TrainState
from cramming.train.touched import Touched


class OuterSteps(Hook):
    """An exchange and an outer step wherever the trainer `meets`; whoever comes later sees the same weights everywhere.

    A worker's moments are its own. A checkpoint keeps the main process's as ever, and those of the others in what this
    hook remembers; a worker that was not there then begins with the main process's.

    Workers that come and go (train.lighthouse) have a checkpoint each. One that comes, or was away, takes over where
    another one stands, moments included, in the first meeting that it is in.

    Args:
        facts: plain values by name that all workers must have alike.
    """

    name = "outer"

    def __init__(self, peers: Peers, facts: Mapping[str, Any]) -> None:
        self.peers, self.facts = peers, facts
        self.outer: Outer | None = None
        self.members: Members | None = None
        self.remembered: dict[str, Any] = {}
        self.optimiser: Any = None
        self.touched: Touched | None = None
        self.figures: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """The outer momentum, alike in all, from the main process; of the others their moments."""
        assert self.outer is not None
        if self.peers.rank:
            return {"optimiser": self.optimiser.state_dict()}
        met = {"meetings": self.members.count, "past": self.outer.past.hex()} if self.members else {}
        return {"velocity": self.outer.velocity, **met}

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
            facts=self.facts,
        )
        self.touched = Touched(trainer.parts.model)
        self.outer.begin(self.remembered.get("velocity", {}))
        if "optimiser" in self.remembered:
            self.optimiser.load_state_dict(self.remembered["optimiser"])
        if config.lighthouse:
            self._join(trainer, config.lighthouse)
        self.remembered = {}

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Meet when it is time, and count the time against the budget."""
        assert self.outer is not None
        assert self.touched is not None
        self.touched.note()
        if not trainer.meets:
            return
        trainer.stopwatch.start()
        started = time.monotonic()
        meeting = self._meet(trainer) if self.members else self.outer.meet()
        assert meeting is not None  # this one has trained
        self._note(meeting, started)
        self.figures |= self.touched.taken(trainer.world)
        trainer.spend()

    def on_end(self, trainer: Trainer) -> None:
        """Leave the others."""
        if self.members:
            self.members.close()

    def taken(self) -> int:
        """Bytes that this worker has sent since it was asked last."""
        assert self.outer is not None
        sent, self.outer.sent = self.outer.sent, 0
        return sent

    def _note(self, meeting: Meeting, started: float) -> None:
        self.figures = {
            "exchange/workers": meeting.voted,
            "exchange/rows": meeting.moved / max(1, meeting.rows),
            "exchange/seconds": time.monotonic() - started,
        }

    def _join(self, trainer: Trainer, lighthouse: str) -> None:
        """A first meeting, in which those that begin see that they begin alike, and the others take over."""
        assert self.outer is not None
        config = trainer.config
        self.members = Members(
            lighthouse,
            config.worker,
            minutes=config.patience_minutes,
            give=lambda: self._give(trainer),
            take=lambda state: self._take(trainer, state),
        )
        if "past" in self.remembered:
            self.members.count, self.outer.past = self.remembered["meetings"], bytes.fromhex(self.remembered["past"])
        started = time.monotonic()
        if meeting := self._meet(trainer, BEGINS):
            self._note(meeting, started)

    def _meet(self, trainer: Trainer, part: int = TRAINED) -> Meeting | None:
        """Meet those that are there; None where all have just begun, or go on from their checkpoints.

        Raises:
            UserError: this worker's weights are no numbers, and the others have gone on without it.
            Stopped: it was away when the run came to its end.
        """
        outer, members = self.outer, self.members
        assert outer is not None
        assert members is not None
        meeting = members.meet(outer.exchange, part)
        if meeting:
            outer.settle(meeting, trainer.config.worker)
        if members.fresh and trainer.state.reached >= 1:
            raise Stopped(
                f"Worker {trainer.config.worker} was away when the run came to its end; the other workers have its "
                "results, in their folders."
            )
        return meeting

    def _give(self, trainer: Trainer) -> dict[str, Any]:
        """What a newcomer takes over: the last meeting's outcome, and where the run stands."""
        assert self.outer is not None
        return {
            "weights": self.outer.before,
            "buffers": dict(trainer.parts.model.named_buffers()),
            "velocity": self.outer.velocity,
            "optimiser": self.optimiser.state_dict(),
            "past": self.outer.past.hex(),
            "state": vars(trainer.state),
        }

    @torch.no_grad()
    def _take(self, trainer: Trainer, found: dict[str, Any]) -> None:
        assert self.outer is not None
        model, outer = trainer.parts.model, self.outer
        for own, theirs in ((dict(model.named_parameters()), "weights"), (dict(model.named_buffers()), "buffers")):
            for name, value in found[theirs].items():
                own[name].copy_(value)
        outer.before, outer.velocity = deepcopy(found["weights"]), deepcopy(found["velocity"])
        outer.past = bytes.fromhex(found["past"])
        self.optimiser.load_state_dict(found["optimiser"])
        trainer.jump(TrainState(**found["state"]))
