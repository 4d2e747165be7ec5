"""Timings of the whole crammed encoder and of its pretraining step by feedforward. Not the layer alone (fff.bench)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.train.config import TrainConfig
from cramming.train.optim import build_optimiser
from fff.machine import describe
from fff.timing import figures, interleaved

LENGTH = 128
MASKED = 32  # predicted tokens of a sequence, a quarter
FEEDFORWARDS: dict[str, dict[str, Any]] = {
    "dense 3072": {"kind": "dense", "width": 3072, "activation": "gelu"},
    "1x11": {"kind": "path", "trees": 1, "depth": 11},
    "none": {"kind": "none"},  # the bound: no layer can be faster than no layer
}


def encoder(feedforward: str, layers: int, vocab_size: int) -> CrammedForMaskedLM:
    """The crammed encoder, 768 wide, with random weights."""
    torch.manual_seed(0)
    config = CrammedConfig(vocab_size=vocab_size, num_hidden_layers=layers, ffn=FEEDFORWARDS[feedforward])
    return CrammedForMaskedLM(config)


def inference(model: CrammedForMaskedLM, ids: torch.Tensor) -> Callable[[int], None]:
    """One pass of the encoder, without the decoder."""

    def run(turn: int) -> None:
        with torch.inference_mode():
            model.model(ids)

    model.eval()
    return run


def pretraining(model: CrammedForMaskedLM, ids: torch.Tensor) -> Callable[[int], None]:
    """One update: forward, backward, clipping, AdamW."""
    optimiser = build_optimiser(model, TrainConfig(budget_steps=1), ids.device)
    places = torch.stack([torch.randperm(LENGTH)[:MASKED] for _ in ids])
    labels = ids.gather(1, places)

    def run(turn: int) -> None:
        model(ids, labels=labels, masked_positions=places).loss.backward()
        update(optimiser, model)

    model.train()
    return run


def update(optimiser: torch.optim.Optimizer, model: nn.Module) -> None:
    """Clipping and AdamW: passes over all parameters, whichever rows of them the tokens visited."""
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def updating(model: CrammedForMaskedLM, ids: torch.Tensor) -> Callable[[int], None]:
    """The update alone, as part of a pretraining step: what is left of it when the layers are fast."""
    optimiser = build_optimiser(model, TrainConfig(budget_steps=1), ids.device)
    gradients = [torch.full_like(parameter, 1e-3) for parameter in model.parameters()]

    def run(turn: int) -> None:
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        update(optimiser, model)

    return run


WORK = {"inference": inference, "pretraining step": pretraining, "update alone": updating}


def measure(work: str, batch: int, layers: int, turns: int) -> list[dict[str, Any]]:
    """Rows of one kind of work: each feedforward in turn, `turns` times after one to warm up."""
    vocab_size = 32768
    ids = torch.randint(5, vocab_size, (batch, LENGTH))
    calls = {name: WORK[work](encoder(name, layers, vocab_size), ids) for name in FEEDFORWARDS}
    rows = {name: figures(found) for name, found in interleaved(calls, ids.device, 0.0, turns).items()}
    dense, bound = rows["dense 3072"]["median_s"], rows["none"]["median_s"]
    return [
        {
            "work": work,
            "batch": batch,
            "layers": layers,
            "ffn": name,
            **row,
            "tokens_per_s": batch * LENGTH / row["median_s"],
            "times_faster_than_dense": dense / row["median_s"],
            "share_of_bound": bound / row["median_s"],
        }
        for name, row in rows.items()
    ]


def run_models(threads: list[int], batches: list[int], layers: int = 16, turns: int = 3) -> list[dict[str, Any]]:
    """One part of the report for each number of threads: inference by batch, then a pretraining step and its update."""
    parts = []
    for count in threads:
        torch.set_num_threads(count)
        print(f"\ncrammed encoder, {layers} layers x 768, length {LENGTH}, float32, {count} threads", flush=True)
        rows, step = [], min(8, max(batches))
        for work, batch in [
            *(("inference", batch) for batch in batches),
            ("pretraining step", step),
            ("update alone", step),
        ]:
            found = measure(work, batch, layers, turns)
            rows += found
            for row in found:
                print(
                    f"  {work:<17} {batch:>3} x {LENGTH}  {row['ffn']:<11} {row['median_s'] * 1e3:9.1f} ms "
                    f"{row['tokens_per_s']:8.0f} tokens/s {row['times_faster_than_dense']:6.2f}x  "
                    f"{row['share_of_bound']:6.1%} of the bound",
                    flush=True,
                )
        parts.append({"machine": describe(count), "rows": rows})
    return parts
