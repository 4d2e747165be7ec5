"""The whole crammed encoder and its pretraining step as they are timed: sizes, passes, a step. Not timing them."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.made_up import MadeUpData, MadeUpTokens
from cramming.data.loader import Sequences
from cramming.machine import this_device
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.model.config import FFNConfig, ModelConfig
from cramming.objectives.masked import MaskedBatch
from cramming.parallel.world import World
from cramming.train.assemble import assemble
from cramming.train.compiled import compiled, warm_up
from cramming.train.config import TrainConfig
from cramming.train.loop import Trainer
from cramming.train.parts import Parts
from cramming.train.root import PretrainRoot
from fff.kernels import choose

FEEDFORWARDS: dict[str, dict[str, Any]] = {
    "dense 3072": {"kind": "dense", "width": 3072, "activation": "gelu"},
    "dense 1536": {"kind": "dense", "width": 1536, "activation": "gelu"},  # MiniLM's, which is 384 wide
    "dense 384": {"kind": "dense", "width": 384, "activation": "gelu"},  # and what is in its place: opponents.py
    "leaf 5x192+96": {"kind": "leaf", "depth": 5, "leaf_width": 192, "master_width": 96},
    "dense 256": {"kind": "dense", "width": 256, "activation": "gelu"},  # what trees are worth: opponents.py
    "dense 128": {"kind": "dense", "width": 128, "activation": "gelu"},
    "dense 16": {"kind": "dense", "width": 16, "activation": "gelu"},
    "dense 4095": {"kind": "dense", "width": 4095, "activation": "gelu"},
    "128x4 masked": {"kind": "path", "trees": 128, "depth": 4, "execution": "masked"},
    "128x4 conditional": {"kind": "path", "trees": 128, "depth": 4, "execution": "conditional"},
    "1x11 masked": {"kind": "path", "trees": 1, "depth": 11, "execution": "masked"},
    "1x11": {"kind": "path", "trees": 1, "depth": 11},
    "16x4": {"kind": "path", "trees": 16, "depth": 4},
    "32x6": {"kind": "path", "trees": 32, "depth": 6},
    "none": {"kind": "none"},  # the bound: no layer can be faster than no layer
}
FOR_OPPONENTS = ("dense 1536", "dense 384", "leaf 5x192+96", "dense 256", "dense 128", "dense 16", "16x4")
EAGER = "eager"


def shape_of(feedforward: str) -> str:
    """The shape column of a feedforward: "1x11", or what it is called where it has no trees."""
    chosen = FEEDFORWARDS[feedforward]
    return f"{chosen['trees']}x{chosen['depth']}" if chosen["kind"] == "path" else feedforward


def provider_of(feedforward: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """The provider that a feedforward's trees take here; None where it has none."""
    chosen = FEEDFORWARDS[feedforward]
    if chosen["kind"] != "path":
        return None
    execution = chosen.get("execution", "auto")
    return choose(execution, "auto", device, dtype, chosen["trees"], chosen["depth"]).name


@dataclass(frozen=True)
class Scale:
    """What is timed: how large, on which device, and through which compiler.

    `inference` and `training` name ways to run a pass: "eager", or a mode of torch.compile ("default",
    "reduce-overhead", which adds CUDA graphs). On a GPU a training step is the product's: bfloat16 by autocast over
    float32 weights; inference has bfloat16 weights.
    """

    device: torch.device
    feedforwards: tuple[str, ...] = ("dense 3072", "1x11", "none")
    batches: tuple[int, ...] = (1, 8)  # of inference, sequences
    microbatch: int = 8  # of the pretraining step, sequences
    inference: tuple[str, ...] = (EAGER,)
    training: tuple[str, ...] = (EAGER,)
    dtypes: tuple[torch.dtype, ...] = (torch.float32,)
    hidden_size: int = 768
    heads: int = 12
    layers: int = 16
    vocab_size: int = 32768
    length: int = 128
    turns: int = 3
    seconds: float = 0.0  # for each case, beyond the turns

    @property
    def precision(self) -> str:
        """Of training, as TrainConfig names it."""
        return "bf16" if self.device.type == "cuda" else "fp32"

    @property
    def training_dtype(self) -> torch.dtype:
        """The type that training computes in."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32

    @property
    def predicted(self) -> int:
        """Predicted tokens of a sequence, a quarter."""
        return max(1, self.length // 4)

    @property
    def title(self) -> dict[str, Any]:
        """The columns that all rows share."""
        return {"width": self.hidden_size, "layers": self.layers, "vocab_size": self.vocab_size}


def scale_here(**given: Any) -> Scale:
    """What suits this machine: a GPU gets all feedforwards, compiled, at 16384 tokens. A value of None is no choice."""
    device = this_device()
    scale = Scale(device)
    if device.type == "cuda":
        both = (EAGER, "reduce-overhead")
        usual = tuple(name for name in FEEDFORWARDS if name not in FOR_OPPONENTS)
        scale = Scale(device, usual, (1, 128), 128, both, ("default",), (torch.bfloat16,), turns=10)
    return replace(scale, **{name: value for name, value in given.items() if value is not None})


def encoder(feedforward: str | dict[str, Any], scale: Scale) -> CrammedForMaskedLM:
    """The crammed encoder with random weights, on the device; a feedforward of FEEDFORWARDS, or its specification."""
    torch.manual_seed(0)
    config = CrammedConfig(
        vocab_size=scale.vocab_size,
        hidden_size=scale.hidden_size,
        num_hidden_layers=scale.layers,
        num_attention_heads=scale.heads,
        max_position_embeddings=scale.length,
        ffn=FEEDFORWARDS[feedforward] if isinstance(feedforward, str) else feedforward,
    )
    model: Any = CrammedForMaskedLM(config)
    return model.to(scale.device)


def microbatch(scale: Scale, sequences: int) -> MaskedBatch:
    """Random tokens, of which the same number is predicted in each sequence."""
    torch.manual_seed(0)
    ids = torch.randint(5, scale.vocab_size, (sequences, scale.length))
    places = torch.stack([torch.randperm(scale.length)[: scale.predicted].sort().values for _ in ids])
    return MaskedBatch(ids, places, ids.gather(1, places)).to(scale.device)


def inference(
    model: CrammedForMaskedLM, scale: Scale, sequences: int, mode: str, dtype: torch.dtype
) -> Callable[[int], None]:
    """One pass of the encoder, without the decoder."""
    ids = microbatch(scale, sequences).input_ids
    whole: Any = model.eval().to(dtype)
    called = compiled(whole.model, train_config(scale, mode))

    def run(turn: int) -> None:
        with torch.inference_mode():
            called(ids)

    return run


def train_config(scale: Scale, mode: str, **more: Any) -> TrainConfig:
    """The recipe's, at one microbatch per step, run as `mode` says."""
    chosen = {"microbatch": scale.microbatch, "batch": scale.microbatch, "batch_ramp": 0.0, **more}
    if mode != EAGER:
        chosen |= {"compile": True, "compile_mode": mode}
    if "budget_hours" not in more:
        chosen |= {"budget_steps": 1}
    return TrainConfig(precision=scale.precision, **chosen)


def pretraining(
    feedforward: str, scale: Scale, config: TrainConfig, world: World, tokens: Sequences | None = None
) -> Parts:
    """What trains in a run of the product, on made-up tokens."""
    size = ModelConfig(hidden_size=scale.hidden_size, layers=scale.layers, heads=scale.heads)
    root = PretrainRoot(model=size, ffn=FFNConfig(**FEEDFORWARDS[feedforward]), train=config)
    data = MadeUpData(
        MadeUpTokens(scale.vocab_size, scale.length) if tokens is None else tokens, scale.vocab_size, scale.length
    )
    return assemble(root, data, world)


class PretrainingStep:
    """One update of the training loop, on one microbatch: forward, backward, clipping, AdamW."""

    def __init__(self, feedforward: str, scale: Scale, mode: str, world: World) -> None:
        parts = pretraining(feedforward, scale, train_config(scale, mode), world)
        warm_up(parts, evaluation=False)
        self.flops = parts.flops
        self.trainer = Trainer(parts, itertools.repeat(microbatch(scale, scale.microbatch)), [])
        self.loss = torch.zeros((), device=world.device)

    def __call__(self, turn: int) -> None:
        """Run it."""
        self.trainer.step()

    def update(self, turn: int) -> None:
        """Clip and update: passes over all parameters, whichever rows of them the tokens visited."""
        self.trainer.update(self.loss, self.trainer.config.lr)
