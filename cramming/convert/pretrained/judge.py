"""What a converted model is worth beside the dense one: held-out text, STS-B, the clock. Not how it was made."""

import contextlib
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from cramming.convert.pretrained.compute import device_of
from cramming.convert.pretrained.teacher import Teacher
from cramming.convert.pretrained.text import padded
from cramming.glue.metrics import UndefinedMetricError
from cramming.glue.sources import Split
from cramming.sentences.encoder import SentenceEncoder
from cramming.sentences.stsb import read_pairs, stsb

NEAREST = 10
BATCH = 64
LONGEST = 128  # tokens of a sentence of STS-B
TURNS = 15
SHAPES = {"batch": (32, 64), "single": (1, 16)}  # of what is timed: texts, tokens of each
Judged = dict[str, float]


@dataclass(frozen=True)
class Exam:
    """What models are judged by.

    Attributes:
        held_out: ids of held-out pieces of text.
        pairs: STS-B's sentences and scores; None without STS-B.
    """

    held_out: list[list[int]]
    pairs: Split | None


def sts_pairs(teacher: Teacher, glue_dir: str | None) -> Split | None:
    """STS-B's dev set, or None; UserError where the folder has none that can be read."""
    return None if glue_dir is None or teacher.causal else read_pairs(Path(glue_dir))


def neighbours(rows: Tensor) -> Tensor:
    """Numbers (B, 10) of each text's nearest others by cosine."""
    near = rows @ rows.t()
    near.fill_diagonal_(-2.0)
    return near.topk(NEAREST, dim=1).indices


def kept(found: Tensor, wanted: Tensor) -> float:
    """Share of the wanted neighbours (B, 10) that were found, in any order."""
    return float((found[:, :, None] == wanted[:, None, :]).any(1).float().mean())


def judge(model: Any, teacher: Teacher, exam: Exam, dense: Tensor | None) -> tuple[Judged, Tensor | None]:
    """Metrics of a model, and its embeddings of the held-out text.

    Args:
        dense: the dense model's embeddings of it; None for the dense model itself.

    Returns:
        encoders: spearman (STS-B; missing where all cosines are equal), neighbours, cosine; decoders: perplexity.
    """
    if teacher.causal:
        return {"perplexity": perplexity(model, exam.held_out, teacher.pad)}, None
    encoder = SentenceEncoder(getattr(model, "base_model", model), teacher.tokenizer, LONGEST, {})
    rows = torch.from_numpy(encoder.encode_ids(exam.held_out, BATCH))
    metrics: Judged = {}
    if dense is not None:
        metrics["neighbours"] = kept(neighbours(rows), neighbours(dense))
        metrics["cosine"] = float((rows * dense).sum(1).mean())
    if exam.pairs is not None:
        with contextlib.suppress(UndefinedMetricError):
            metrics["spearman"] = stsb(encoder, exam.pairs, BATCH)["spearman"]
    return metrics, rows


@torch.no_grad()
def perplexity(model: Any, sequences: Sequence[Sequence[int]], pad: int) -> float:
    """exp of the mean loss (nats) of a next token."""
    total, count = 0.0, 0
    for first in range(0, len(sequences), 16):
        batch = padded(sequences[first : first + 16], pad).to(device_of(model))
        logits = model(**batch.inputs).logits[:, :-1].float()
        labels = batch.ids[:, 1:].masked_fill(batch.mask[:, 1:] == 0, -100)
        total += float(
            functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        )
        count += int((labels != -100).sum())
    return float(torch.tensor(total / max(1, count)).exp())


def times(models: Mapping[str, Any], sequences: Sequence[Sequence[int]], pad: int) -> dict[str, Judged]:
    """Seconds of a whole pass of each model, in turns, medians: `batch_s` (32 x 64 tokens), `single_s` (1 x 16)."""
    stream = [token for sequence in sequences for token in sequence]
    found: dict[str, Judged] = {name: {} for name in models}
    for shape, (texts, length) in SHAPES.items():
        few = (stream * (1 + texts * length // max(1, len(stream))))[: texts * length]
        batch = padded([few[first : first + length] for first in range(0, len(few), length)], pad)
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for turn in range(TURNS + 1):
            for name, model in models.items():
                repeats = 1 if shape == "batch" else 5
                with torch.inference_mode():
                    model(**batch.inputs)  # the first finds the caches as another model left them
                    started = time.perf_counter()
                    for _ in range(repeats):
                        model(**batch.inputs)
                if turn:
                    seconds[name].append((time.perf_counter() - started) / repeats)
        for name, each in seconds.items():
            found[name][f"{shape}_s"] = statistics.median(each)
    return found
