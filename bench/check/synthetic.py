"""A short pretraining on made-up tokens through the real loop: loss curve, tokens/s, waits. Not a record of a run."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.encoder import Scale, pretraining, provider_of, shape_of, train_config
from bench.made_up import FIRST_ID, SEQUENCES
from bench.options import name_of
from bench.rows import SpeedRow, stamp
from cramming.data.masking import hash_uniform
from cramming.files import read_json
from cramming.parallel.world import open_world
from cramming.train.compiled import warm_up
from cramming.train.config import TrainConfig
from cramming.train.history import History, read_history
from cramming.train.hooks import FiniteGuard
from cramming.train.loop import Hook, Trainer
from cramming.train.meter import Meter
from cramming.train.profiling import Profile

TOPICS, WORDS = 512, 64  # a sequence draws its tokens from one topic's words, by Zipf's law
CURVE_POINTS = 60
SHORTEST_S = 3.0
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
    return train_config(
        scale,
        scale.training[0],
        budget_hours=seconds / 3600,
        schedule="linear",
        mask_rate=scale.predicted / scale.length,
        validations=1,
        checkpoints=1,
        profile_steps=4,
    )


def pretrain_synthetic(feedforward: str, scale: Scale, seconds: float, folder: Path, end: float) -> dict[str, Any]:
    """Pretrain for some seconds (compiling not counted); returns curve, rates, memory and what a profile found.

    Args:
        end: time of `time.perf_counter` at which it should be over, be it sooner; SHORTEST_S are taken however late.
    """
    torch._dynamo.reset()
    config, started = settings(scale, seconds), time.perf_counter()
    world = open_world("precision", config.precision, cpu=scale.device.type == "cpu")
    parts = pretraining(feedforward, scale, config, world, TopicTokens(scale.vocab_size, scale.length))
    making = time.perf_counter()
    parts.loader().made(0)
    made = time.perf_counter() - making
    warm_up(parts, evaluation=False)
    warmed = time.perf_counter() - started
    left = max(SHORTEST_S, end - time.perf_counter())
    parts.root = replace(parts.root, train=replace(config, budget_hours=min(seconds, left) / 3600))
    profile = Profile(config.profile_steps, folder / "profile.json")
    history = History(folder / "metrics.jsonl", [], [], Meter(parts.flops, world.device))
    hooks: list[Hook] = [profile.first, FiniteGuard(), history, profile.last]
    try:
        with parts.loader() as batches:
            Trainer(parts, batches, hooks).train()
    finally:
        world.free()
    result = figures(read_history(folder / "metrics.jsonl"))
    found = read_json(folder / "profile.json") if (folder / "profile.json").exists() else None
    return speed_columns(feedforward, scale, read_history(folder / "metrics.jsonl")) | {
        "steps": parts.state.step,
        "trained_tokens": parts.state.tokens,
        "seconds": parts.state.seconds,
        "warm_up_s": warmed,
        "host_s_per_microbatch": made,
        **result,
        "profile": found,
    }


def speed_columns(feedforward: str, scale: Scale, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of a row of speed, from rows of a metrics.jsonl; the name alone where there are none."""
    rates = [row["train/tokens_per_s"] for row in rows if "train/tokens_per_s" in row]
    if not rates:
        return {"what": "pretraining", "name": feedforward}
    q10, median, q90 = map(float, np.quantile(rates, (0.1, 0.5, 0.9)))
    return SpeedRow(
        what="pretraining",
        name=feedforward,
        shape=shape_of(feedforward),
        **scale.title,
        tokens=scale.microbatch * scale.length,
        sequences=scale.microbatch,
        dtype=name_of(scale.training_dtype),
        mode="training",
        inputs="topics",
        compiler=scale.training[0],
        provider=provider_of(feedforward, scale.device, scale.training_dtype),
        unit="tokens/s",
        median=median,
        q10=q10,
        q90=q90,
        n=len(rates),
        **stamp(scale.device, torch.get_num_threads()),
    ).flat()


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
