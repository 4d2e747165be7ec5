"""Records of made-up pretraining runs whose worth in dense neurons is known exactly. Not a test."""

import math

from cramming.model.config import FFNConfig
from cramming.model.resolved import resolved
from cramming.record import SCHEMA_VERSION
from cramming.report.comparisons import comparisons
from cramming.report.groups import pretrain_groups

WIDTHS = (0, 4, 16, 64, 256, 1024)
SEED_NOISE = (-0.03, 0.0, 0.03)  # [nats] shared by all layers of a seed


def loss_of(width: float) -> float:
    return 6.0 - 0.2 * math.log1p(width)


def record(ffn: FFNConfig, seed: int, loss: float, **changes):
    train = {"budget_tokens": 12_000_000, "lr": 0.003, **changes.pop("train", {})}
    group = changes.setdefault("group", f"g{ffn.tag}")
    name = f"micro-{ffn.tag}-s{seed}-{group}"
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "pretrain",
        "name": name,
        "status": "finished",
        "seed": seed,
        "experiment": "micro",
        "ffn": ffn.tag,
        "data_fingerprint": "abcdef0123",
        "config": {
            "model": {"layers": 4, "hidden_size": 128},
            "train": train,
            "hardening": changes.pop("hardening", {"form": "hard"}),
        },
        "metrics": {"valid_loss": loss},
        "samples": {},
        "resolved": {"ffn": resolved(ffn, 4)},
        **changes,
    }


def layer(width: int | str | FFNConfig) -> FFNConfig:
    if isinstance(width, FFNConfig):
        return width
    if isinstance(width, str):
        trees, depth = map(int, width.split("x"))
        return FFNConfig(kind="path", trees=trees, depth=depth)
    return FFNConfig(kind="dense", width=width) if width else FFNConfig(kind="none")


def runs(width: int | str | FFNConfig, worth: float | None = None, seeds=(0, 1, 2), **changes):
    """A group of runs with the loss of `worth` dense neurons; `spread` factors the seeds' own worth apart."""
    spread = changes.pop("spread", 1.0)
    value = width if worth is None else worth
    return [
        record(layer(width), seed, loss_of(value * spread ** (seed - 1)) + SEED_NOISE[seed % 3], **changes)
        for seed in seeds
    ]


def dense(widths=WIDTHS, **changes):
    return [each for width in widths for each in runs(width, **changes)]


def compared(records):
    return comparisons(pretrain_groups(records))
