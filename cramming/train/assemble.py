"""The parts of a pretraining run, put together in one place for runs, checks and benches. Not their use (loop.py)."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from cramming.data.loader import MicrobatchLoader, SequenceOrder, Sequences
from cramming.errors import UserError
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.model.flops import ModelFlops, training_flops
from cramming.objectives.base import Batch, Objective
from cramming.objectives.masked import MASK_TOKEN, MaskedTokens
from cramming.parallel.world import World
from cramming.train.checkpoint import TrainState
from cramming.train.compiled import compiled, warm_up
from cramming.train.config import TrainConfig
from cramming.train.hardening import LAYER_FORMS, Hardening
from cramming.train.optim import build_optimiser
from cramming.train.root import PretrainRoot
from fff.hardening import set_hardening


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
    model: CrammedForMaskedLM
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

    def loader(self) -> MicrobatchLoader[Batch]:
        """This process's microbatches from where the state stands."""
        return MicrobatchLoader(
            self.data.train,
            SequenceOrder(len(self.data.train), self.root.seed, shuffled=self.root.data.order == "random"),
            self.objective.batch,
            start=self.state.sequences,
            microbatch=self.config.microbatch,
            process=self.world.rank,
            processes=self.world.size,
            pin=self.world.device.type == "cuda",
        )

    def warm_up(self, *, evaluation: bool = True) -> None:
        """Compile what a first pass would, before the clock starts; changes nothing.

        Only where somebody asked for compiling, or for hours, which the kernels' compilers must not use up: elsewhere
        the first step may as well do it.
        """
        if self.config.compile or self.config.budget_hours is not None:
            self.hardening.apply(self.state.progress)
            batch = self.objective.example(self.data.train, self.config.microbatch).to(self.world.device)
            warm_up(self, batch, evaluation=evaluation)


def assemble(root: PretrainRoot, data: Tokens, world: World) -> Parts:
    """Everything at its beginning; weights follow from the seed.

    Raises:
        UserError: the feedforward layer cannot be, or cannot take the form of training.
    """
    objective = objective_of(root, data)
    model = build_model(root, data, world.seed)
    if world.size > 1:
        # Up to here equal generators made equal weights. From here each process draws its own numbers: otherwise the
        # region leak would turn round the same decisions in all of them.
        world.seed(root.seed, each_its_own=True)
    hardening = Hardening(root.hardening, model)
    wrapped, optimiser = world.wrap(model, build_optimiser(model, root.train, world.device))
    return Parts(root, world, data, objective, model, compiled(wrapped, root.train), optimiser, hardening)


def objective_of(root: PretrainRoot, data: Tokens) -> Objective:
    """The objective that the configuration names; so far there is one."""
    return MaskedTokens(root.seed, root.train.mask_rate, data.vocab_size, data.token_id(MASK_TOKEN))


def build_model(root: PretrainRoot, data: Tokens, seed: Callable[[int], None]) -> CrammedForMaskedLM:
    """A freshly initialised model that fits the data; its weights follow from the seed."""
    seed(root.seed)
    model = root.model
    config = CrammedConfig(
        vocab_size=data.vocab_size,
        max_position_embeddings=data.seq_len,
        **model.encoder(),
        ffn=root.ffn.specification(),
        sparse_prediction=model.sparse_prediction,
    )
    try:
        return CrammedForMaskedLM(config)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"ffn: {error}") from error


def check_layer(root: PretrainRoot) -> None:
    """Refuse what the feedforward layer cannot be, or a form of training that it cannot take; needs no memory.

    Raises:
        UserError: naming the group of keys.
    """
    try:
        with torch.device("meta"):
            layer = root.ffn.settings.build(root.model.hidden_size, root.model.hidden_size)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"ffn: {error}") from error
    try:
        set_hardening(nn.Sequential(layer) if layer else nn.Sequential(), form=LAYER_FORMS[root.hardening.form])
    except ValueError as error:
        raise UserError(f"hardening: {error}") from None
