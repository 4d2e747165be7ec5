"""Bytes that a step of training sends between processes, and what they cost on a link: arithmetic. Nothing is timed.

`python -m bench.traffic` prints the table of docs/scale.md.
"""

from dataclasses import dataclass
from typing import Any

import torch

from cramming.model import CrammedConfig, CrammedForMaskedLM
from fff.feedforward import settings_from

LINKS = {"1 Gbit/s": 1e9 / 8, "25 Gbit/s": 25e9 / 8, "NVLink": 450e9}  # bytes/s each way; NVLink as an H100 has it
FLOAT32, BFLOAT16 = 4, 2
MODELS = {"1x11": {"kind": "path", "trees": 1, "depth": 11}, "dense 3072": {"kind": "dense", "width": 3072}}
PROCESSES, BATCH, MICROBATCH, SEQ_LEN = 8, 8192, 128, 128  # the recipe's batch and microbatch, in sequences


@dataclass(frozen=True)
class Weights:
    """Parameters of a model: all, and those of its blocks, which are gathered anew for the way back."""

    whole: int
    blocks: int


def weights(ffn: dict, **sizes: Any) -> Weights:
    """Of the crammed BERT with a feedforward layer of that specification; needs no memory."""
    specification = settings_from(ffn, "ffn").specification()
    with torch.device("meta"):
        model = CrammedForMaskedLM(CrammedConfig(ffn=specification, **sizes))
    return Weights(*(sum(p.numel() for p in part.parameters()) for part in (model, model.model.blocks)))


def sent_per_step(
    model: Weights, processes: int, sharding: str, microbatches: int, travelling: int = BFLOAT16
) -> float:
    """Bytes that each process sends in a step, by rings, in which a part of 1 / processes stays at home.

    ddp: gradients in float32, reduced and gathered, once. fsdp: of each microbatch the weights there and those of the
    blocks back, and gradients in float32 reduced.

    Args:
        travelling: bytes of a weight on the way: 2 at train.precision=bf16, else 4.
    """
    share = (processes - 1) / processes
    if sharding == "ddp":
        return 2 * share * model.whole * FLOAT32
    return microbatches * share * ((model.whole + model.blocks) * travelling + model.whole * FLOAT32)


def table() -> list[str]:
    """Rows in Markdown: bytes of a step, its seconds on each link, and the speed above which a process waits for it."""
    tokens, microbatches = BATCH * SEQ_LEN // PROCESSES, BATCH // MICROBATCH // PROCESSES
    links = " | ".join(f"{link}: s, tokens/s" for link in LINKS)
    rows = [
        f"| model | sharding | GB sent by a process in a step | {links} |",
        "|---|---|---|" + "---|" * len(LINKS),
    ]
    for name, ffn in MODELS.items():
        model = weights(ffn)
        for sharding in ("ddp", "fsdp"):
            sent = sent_per_step(model, PROCESSES, sharding, microbatches)
            costs = [f"{sent / speed:.3g}, {float(f'{tokens * speed / sent:.3g}'):,.0f}" for speed in LINKS.values()]
            cells = [name, sharding, f"{sent / 1e9:.2f}", *costs]
            rows.append("| " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    print("\n".join(table()))
