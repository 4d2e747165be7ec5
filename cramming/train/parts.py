"""What a pretraining run consists of, and where it stands. Not how it is put together (assemble.py) or used."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from cramming.data.loader import MicrobatchLoader, SequenceOrder, Sequences
from cramming.model.flops import ModelFlops, training_flops
from cramming.model.language import CrammedLanguageModel
from cramming.objectives.base import Batch, Objective
from cramming.parallel.world import World
from cramming.train.config import TrainConfig
from cramming.train.hardening import Hardening
from cramming.train.root import PretrainRoot


@dataclass
class TrainState:
    """Where a run stands between two steps. `sequences` is the data position: loader and masks follow from it."""

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of training, over all resumes
    uncounted: float = 0.0  # seconds in which the process was stopped, which are not among them
    progress: float = 0.0
    reached: float = 0.0  # progress at the end of the last step; a budget in hours goes on in the hooks after it


class Tokens(Protocol):
    """What a run asks of its data, as `cramming.data.shards.PreparedData` answers."""

    @property
    def train(self) -> Sequences:
        """Sequences to train on."""
        ...

    @property
    def vocab_size(self) -> int:
        """V."""
        ...

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence."""
        ...

    def token_id(self, token: str) -> int:
        """Id of a special token."""
        ...


@dataclass
class Parts:
    """What trains: `model` plain and `wrapped` (device, processes, precision, compiler), and all that a step needs."""

    root: PretrainRoot
    world: World
    data: Tokens
    objective: Objective
    model: CrammedLanguageModel
    wrapped: nn.Module
    optimiser: Any
    hardening: Hardening
    state: TrainState = field(default_factory=TrainState)

    @property
    def config(self) -> TrainConfig:
        """The recipe."""
        return self.root.train

    @property
    def seq_len(self) -> int:
        """Tokens of a sequence."""
        return self.data.seq_len

    @property
    def flops(self) -> ModelFlops:
        """FLOPs of training, per token."""
        return training_flops(self.model.config, self.seq_len, self.objective.predicted(self.seq_len))

    @property
    def order(self) -> SequenceOrder:
        """Which sequence stands at which position of the run."""
        return SequenceOrder(len(self.data.train), self.root.seed, shuffled=self.root.data.order == "random")

    def loader(self) -> MicrobatchLoader[Batch]:
        """This process's microbatches from where the state stands."""
        return MicrobatchLoader(
            self.data.train,
            self.order,
            self.objective.batch,
            start=self.state.sequences,
            microbatch=self.config.microbatch,
            process=self.world.worker,
            processes=self.world.workers,
            own=self.config.documents is not None,
            pin=self.world.device.type == "cuda",
        )
