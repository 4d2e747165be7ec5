"""A short pretraining on made-up tokens through the real loop: loss curve, tokens/s, waits. Not a record of a run."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from bench.model import EAGER, Scale, encoder
from cramming.data.loader import Masker, MicrobatchLoader, SequenceOrder
from cramming.data.masking import hash_uniform
from cramming.files import read_json
from cramming.model.flops import training_flops
from cramming.parallel.world import make_accelerator
from cramming.train.checkpoint import TrainState
from cramming.train.compiled import compiled, warm_up
from cramming.train.config import TrainConfig
from cramming.train.hardening import Hardening, HardeningConfig
from cramming.train.hooks import FiniteGuard, History, Hook, read_history
from cramming.train.loop import Trainer
from cramming.train.meter import Meter
from cramming.train.optim import build_optimiser
from cramming.train.profiling import Profile

TOPICS, WORDS = 512, 64  # a sequence draws its tokens from one topic's words, by Zipf's law
FIRST_ID = 7  # after the special tokens
MASK_ID = 6
CURVE_POINTS = 60
SHORTEST_S = 3.0
SEQUENCES = 1 << 20
STREAM = 5  # of the hashed numbers, apart from the masks'


class TopicTokens:
    """Sequences as `TokenShards` gives them, made from their number: what is masked can be guessed from the topic."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self.seq_len = seq_len
        self.words = np.random.default_rng(0).integers(FIRST_ID, vocab_size, (TOPICS, WORDS))
        share = 1 / np.arange(1, WORDS + 1)
        self.borders = np.cumsum(share / share.sum())[:-1]

    def __len__(self) -> int:
        return SEQUENCES

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(n, seq_len) int64 of the sequences numbered `indices` (n,)."""
        topics = (hash_uniform(0, STREAM, indices) * TOPICS).astype(np.int64)
        counters = indices[:, None] * self.seq_len + np.arange(self.seq_len)
        ranks = np.searchsorted(self.borders, hash_uniform(0, STREAM + 1, counters), side="right")
        return self.words[topics[:, None], ranks]


def settings(scale: Scale, seconds: float) -> TrainConfig:
    """The recipe at one microbatch per step: many steps, because the time is short."""
    mode = scale.training[0]
    compiling = {} if mode == EAGER else {"compile": True, "compile_mode": mode}
    return TrainConfig(
        budget_hours=seconds / 3600,
        microbatch=scale.microbatch,
        batch=scale.microbatch,
        batch_ramp=0.0,
        schedule="linear",
        mask_rate=scale.predicted / scale.length,
        precision=scale.precision,
        validations=1,
        checkpoints=1,
        profile_steps=4,
        **compiling,  # type: ignore[arg-type]
    )


def loader(scale: Scale, config: TrainConfig, device: torch.device) -> MicrobatchLoader:
    """The real loader over made-up tokens."""
    return MicrobatchLoader(
        TopicTokens(scale.vocab_size, scale.length),  # type: ignore[arg-type]
        SequenceOrder(SEQUENCES, 0, shuffled=True),
        Masker(0, config.mask_rate, scale.vocab_size, MASK_ID),
        start=0,
        microbatch=config.microbatch,
        pin=device.type == "cuda",
    )


def pretrain_synthetic(feedforward: str, scale: Scale, seconds: float, folder: Path, end: float) -> dict[str, Any]:
    """Pretrain for some seconds (compiling not counted); returns curve, rates, memory and what a profile found.

    Args:
        end: time of `time.perf_counter` at which it should be over, be it sooner; SHORTEST_S are taken however late.
    """
    set_seed(0)
    torch._dynamo.reset()
    config, started = settings(scale, seconds), time.perf_counter()
    accelerator = make_accelerator("precision", config.precision, cpu=scale.device.type == "cpu")
    raw = encoder(feedforward, scale)
    hardening = Hardening(HardeningConfig(), raw)
    prepared, optimiser = accelerator.prepare(raw, build_optimiser(raw, config, accelerator.device))
    model, batches = compiled(prepared, config), loader(scale, config, accelerator.device)
    making = time.perf_counter()
    first = batches._make(0)
    made = time.perf_counter() - making
    warm_up(model, raw, optimiser, accelerator, config, first, evaluation=False)
    warmed = time.perf_counter() - started
    left = max(SHORTEST_S, end - time.perf_counter())
    config = replace(config, budget_hours=min(seconds, left) / 3600)
    meter = Meter(training_flops(raw.config, scale.length, scale.predicted), accelerator.device)
    profile = Profile(config.profile_steps, folder / "profile.json")
    history = History(folder / "metrics.jsonl", [], [], meter)
    hooks: list[Hook] = [profile.first, FiniteGuard(), history, profile.last]
    state = TrainState()
    try:
        Trainer(config, accelerator, model, raw, optimiser, batches, state, hooks, hardening).train()
    finally:
        batches.close()
        accelerator.free_memory()
    result = figures(read_history(folder / "metrics.jsonl"))
    found = read_json(folder / "profile.json") if (folder / "profile.json").exists() else None
    return {
        "ffn": feedforward,
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": state.seconds,
        "warm_up_s": warmed,
        "host_s_per_microbatch": made,
        **result,
        "profile": found,
    }


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Median rates, peak memory, and a curve of at most CURVE_POINTS points, from rows of a metrics.jsonl."""

    def median(key: str) -> float | None:
        values = sorted(row[key] for row in rows if key in row)
        return values[len(values) // 2] if values else None

    step, memory = max(1, -(-len(rows) // CURVE_POINTS)), "device/peak_memory_gb"
    return {
        "tokens_per_s": median("train/tokens_per_s"),
        "mfu": median("train/mfu"),
        "mfu_dense_equivalent": median("train/mfu_dense_equivalent"),
        "peak_memory_gb": max((row[memory] for row in rows if memory in row), default=None),
        "curve": [
            {"step": row["step"], "tokens": row["budget/tokens"], "loss": row["train/loss"]} for row in rows[::step]
        ],
        "last_loss": rows[-1]["train/loss"] if rows else None,
    }
