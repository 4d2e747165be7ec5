"""Timings of the whole crammed encoder and its pretraining step by feedforward. Not the layer alone (layer.py)."""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.made_up import MadeUpData, MadeUpTokens
from bench.timing import figures, interleaved
from cramming.data.loader import Sequences
from cramming.machine import describe, extra_memory_mb, peak_flops, this_device
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.model.config import FFNConfig, ModelConfig
from cramming.objectives.masked import MaskedBatch
from cramming.parallel.world import World, open_world
from cramming.train.assemble import Parts, assemble
from cramming.train.compiled import compiled
from cramming.train.config import TrainConfig
from cramming.train.loop import Trainer
from cramming.train.root import PretrainRoot

FEEDFORWARDS: dict[str, dict[str, Any]] = {
    "dense 3072": {"kind": "dense", "width": 3072, "activation": "gelu"},
    "dense 4095": {"kind": "dense", "width": 4095, "activation": "gelu"},
    "128x4 masked": {"kind": "path", "trees": 128, "depth": 4, "execution": "masked"},
    "128x4 conditional": {"kind": "path", "trees": 128, "depth": 4, "execution": "conditional"},
    "1x11 masked": {"kind": "path", "trees": 1, "depth": 11, "execution": "masked"},
    "1x11": {"kind": "path", "trees": 1, "depth": 11},
    "none": {"kind": "none"},  # the bound: no layer can be faster than no layer
}
EAGER = "eager"


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
    def predicted(self) -> int:
        """Predicted tokens of a sequence, a quarter."""
        return max(1, self.length // 4)

    @property
    def title(self) -> dict[str, Any]:
        """A row's columns that all rows share."""
        names = ("hidden_size", "layers", "vocab_size", "length")
        return {name: getattr(self, name) for name in names} | {"device": str(self.device)}


def scale_here(**given: Any) -> Scale:
    """What suits this machine: a GPU gets all feedforwards, compiled, at 16384 tokens. A value of None is no choice."""
    device = this_device()
    scale = Scale(device)
    if device.type == "cuda":
        both = (EAGER, "reduce-overhead")
        scale = Scale(device, tuple(FEEDFORWARDS), (1, 128), 128, both, ("default",), (torch.bfloat16,), turns=10)
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
        parts.warm_up(evaluation=False)
        self.flops = parts.flops
        self.trainer = Trainer(parts, itertools.repeat(microbatch(scale, scale.microbatch)), [])
        self.loss = torch.zeros((), device=world.device)

    def __call__(self, turn: int) -> None:
        """Run it."""
        self.trainer.step()

    def update(self, turn: int) -> None:
        """Clip and update: passes over all parameters, whichever rows of them the tokens visited."""
        self.trainer.update(self.loss, self.trainer.config.lr)


def measure_inference(scale: Scale, sequences: int) -> list[dict[str, Any]]:
    """Rows of inference at one batch: each feedforward and way in turn, one dtype after the other."""
    rows = []
    for dtype in scale.dtypes:
        calls: dict[tuple[str, str], Callable[[int], None]] = {
            (name, mode): inference(encoder(name, scale), scale, sequences, mode, dtype)
            for name in scale.feedforwards
            for mode in scale.inference
        }
        with many_graphs():
            rows += timed("inference", calls, scale, sequences, str(dtype)[6:])
    return rows


def measure_training(scale: Scale) -> list[dict[str, Any]]:
    """Rows of the pretraining step (tokens/s, FLOP utilisation, memory beside weights), and of its update alone."""
    world = open_world("precision", scale.precision, cpu=scale.device.type == "cpu")
    with many_graphs():
        calls = {
            (name, mode): PretrainingStep(name, scale, mode, world)
            for name in scale.feedforwards
            for mode in scale.training
        }
        rows = timed("pretraining step", calls, scale, scale.microbatch, scale.precision)
        alone = {key: call.update for key, call in calls.items()}
        updates = timed("update alone", alone, scale, scale.microbatch, scale.precision)
    peak = peak_flops(scale.device)
    for row in rows:
        flops = calls[row["ffn"], row["mode"]].flops
        row |= {"flops_per_token": flops.path, "flops_per_token_dense_equivalent": flops.dense}
        row |= flops.utilisation(row["tokens_per_s"], peak) if peak else {"mfu": None, "mfu_dense_equivalent": None}
        if scale.device.type == "cuda":
            call = calls[row["ffn"], row["mode"]]
            row["step_memory_gb"] = extra_memory_mb(functools.partial(call, 0), scale.device) / 1e3
    world.free()
    return rows + updates


@contextlib.contextmanager
def many_graphs() -> Iterator[None]:
    """Room for the graphs of as many models, which share their code: beyond a limit torch would run them uncompiled."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield


def timed(
    work: str, calls: Mapping[tuple[str, str], Callable[[int], None]], scale: Scale, sequences: int, dtype: str
) -> list[dict[str, Any]]:
    """Rows of calls by (feedforward, mode); ratios are to the dense 3072 of the same mode, and to no feedforward."""
    named = {" | ".join(key): call for key, call in calls.items()}
    found = interleaved(named, scale.device, scale.seconds, scale.turns)
    rows = {key: figures(found[" | ".join(key)]) for key in calls}
    return [
        {
            "work": work,
            "batch": sequences,
            **scale.title,
            "dtype": dtype,
            "ffn": name,
            "mode": mode,
            **row,
            "tokens_per_s": sequences * scale.length / row["median_s"],
            "times_faster_than_dense": ratio(rows.get(("dense 3072", mode)), row),
            "share_of_bound": ratio(rows.get(("none", mode)), row),
        }
        for (name, mode), row in rows.items()
    ]


def ratio(other: dict[str, Any] | None, row: dict[str, Any]) -> float | None:
    """How many times faster a row is than another; None without another."""
    return None if other is None else other["median_s"] / row["median_s"]


def show(row: dict[str, Any]) -> None:
    """Print a row."""
    ratios = "".join(f" {row[key]:6.2f}x of {name} " for key, name in RATIOS.items() if row.get(key) is not None)
    print(
        f"  {row['work']:<17} {row['batch']:>3} x {row['length']}  {row['dtype']:<9}{row['ffn']:<18} {row['mode']:<16}"
        f"{row['median_s'] * 1e3:9.2f} ms {row['tokens_per_s']:10,.0f} tokens/s{ratios}",
        flush=True,
    )


RATIOS = {"times_faster_than_dense": "dense 3072", "share_of_bound": "none", "mfu": "the peak"}


def run_models(threads: int, scale: Scale) -> dict[str, Any]:
    """The report's part of one number of threads: inference by batch, then a pretraining step."""
    torch.set_num_threads(threads)
    size = f"{scale.layers} layers x {scale.hidden_size}, length {scale.length}"
    print(f"\ncrammed encoder, {size}, on {scale.device}, {threads} threads", flush=True)
    rows = []
    for found in (*(measure_inference(scale, batch) for batch in scale.batches), measure_training(scale)):
        rows += found
        for row in found:
            show(row)
    return {"machine": describe(threads), "rows": rows}
