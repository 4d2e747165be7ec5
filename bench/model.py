"""Timings of the whole crammed encoder and its pretraining step by feedforward. Not the layer alone (layer.py)."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from bench.encoder import PretrainingStep, Scale, encoder, inference, provider_of, shape_of
from bench.options import name_of
from bench.rows import SpeedRow, stamp
from bench.timing import figures, interleaved
from cramming.machine import extra_memory_mb, peak_flops
from cramming.parallel.world import open_world

DENSE, NONE = "dense 3072", "none"  # what a model with trees is compared with: the usual one, and the bound
Call = Callable[[int], None]


def measure_inference(scale: Scale, sequences: int) -> list[SpeedRow]:
    """Rows of inference at one batch: each feedforward and way in turn, one dtype after the other."""
    rows = []
    for dtype in scale.dtypes:
        calls: dict[tuple[str, str], Call] = {
            (name, mode): inference(encoder(name, scale), scale, sequences, mode, dtype)
            for name in scale.feedforwards
            for mode in scale.inference
        }
        with many_graphs():
            rows += timed("encoder", calls, scale, sequences, dtype)
    return rows


def measure_training(scale: Scale) -> list[SpeedRow]:
    """Rows of the pretraining step (tokens/s, FLOP utilisation, memory beside weights), and of its update alone."""
    world = open_world("precision", scale.precision, cpu=scale.device.type == "cpu")
    with many_graphs():
        calls = {
            (name, mode): PretrainingStep(name, scale, mode, world)
            for name in scale.feedforwards
            for mode in scale.training
        }
        rows = timed("pretraining step", calls, scale, scale.microbatch, scale.training_dtype)
        alone = {key: call.update for key, call in calls.items()}
        updates = timed("update alone", alone, scale, scale.microbatch, scale.training_dtype)
    rows = [replace(row, **of_a_step(calls[row.name, row.compiler], row, scale.device)) for row in rows]
    world.free()
    return rows + updates


def of_a_step(step: PretrainingStep, row: SpeedRow, device: torch.device) -> dict[str, Any]:
    """The columns that whole steps alone have: operations, and on a GPU utilisation and memory."""
    found: dict[str, Any] = {"flops_per_token": step.flops.path}
    found["flops_per_token_dense_equivalent"] = step.flops.dense
    if (peak := peak_flops(device)) and row.tokens_per_s:
        found |= step.flops.utilisation(row.tokens_per_s, peak)
    if device.type == "cuda":
        found["step_memory_gb"] = extra_memory_mb(functools.partial(step, 0), device) / 1e3
    return found


@contextlib.contextmanager
def many_graphs() -> Iterator[None]:
    """Room for the graphs of as many models, which share their code: beyond a limit torch would run them uncompiled."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield


def timed(
    what: str, calls: Mapping[tuple[str, str], Call], scale: Scale, sequences: int, dtype: torch.dtype
) -> list[SpeedRow]:
    """Rows of calls by (feedforward, mode); ratios are to the dense 3072 of the same mode, and to no feedforward."""
    named = {" | ".join(key): call for key, call in calls.items()}
    found = interleaved(named, scale.device, scale.seconds, scale.turns)
    rows = {key: figures(found[" | ".join(key)]) for key in calls}
    tokens = sequences * scale.length
    same: dict[str, Any] = {"what": what, "sequences": sequences, "tokens": tokens, "dtype": name_of(dtype)}
    same |= scale.title | stamp(scale.device, torch.get_num_threads())
    same["mode"] = "inference" if what == "encoder" else "training"
    return [
        SpeedRow(
            name=name,
            shape=shape_of(name),
            provider=provider_of(name, scale.device, dtype),
            compiler=compiler,
            tokens_per_s=tokens / row["median"],
            **same,
            **row,
            **compared(rows, compiler, row),
        )
        for (name, compiler), row in rows.items()
    ]


def compared(rows: dict[tuple[str, str], dict[str, Any]], compiler: str, row: dict[str, Any]) -> dict[str, Any]:
    """The columns of both comparisons, of those that were timed."""
    found: dict[str, Any] = {}
    for other, name, ratio in ((DENSE, "opponent", "ratio"), (NONE, "second", "ratio_second")):
        if (other, compiler) in rows:
            found |= {name: other, ratio: rows[other, compiler]["median"] / row["median"]}
    return found


def show(row: SpeedRow) -> None:
    """Print a row."""
    ratios = {row.opponent: row.ratio, row.second: row.ratio_second, "the peak": row.mfu}
    words = "".join(f" {value:6.2f}x of {name} " for name, value in ratios.items() if value is not None)
    sequences = row.sequences or 1
    print(
        f"  {row.what:<17} {sequences:>3} x {row.tokens // sequences}  {row.dtype:<9}{row.name:<18} "
        f"{row.compiler:<16}{row.median * 1e3:9.2f} ms {row.tokens_per_s:10,.0f} tokens/s{words}",
        flush=True,
    )


def run_models(threads: int, scale: Scale) -> list[SpeedRow]:
    """Rows of one number of threads: inference by batch, then a pretraining step."""
    torch.set_num_threads(threads)
    size = f"{scale.layers} layers x {scale.hidden_size}, length {scale.length}"
    print(f"\ncrammed encoder, {size}, on {scale.device}, {threads} threads", flush=True)
    rows = []
    for batch in (*scale.batches, None):
        found = measure_training(scale) if batch is None else measure_inference(scale, batch)
        rows += found
        for row in found:
            show(row)
    return rows
