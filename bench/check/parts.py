"""The parts of the measurement of a machine; each yields rows as they are found. Not how they are run (run.py)."""

import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.check.size import DENSE, PATH, Size
from bench.check.synthetic import pretrain_synthetic
from bench.encoder import provider_of
from bench.layer import measure
from bench.model import measure_inference, measure_training
from bench.options import Setting, name_of
from cramming.machine import describe, peaks
from fff.kernels import PROVIDERS
from fff.testing import ParityCase, parity

Rows = Iterator[dict[str, Any]]
NO_PROVIDER = ("none",)
PLAIN = ("masked", "gather")
RESERVE_S = 15.0  # of a part's time, for its start and its end


def machine(size: Size, _: Mapping[str, Any]) -> Rows:
    """What this is, and what it can do at most."""
    yield describe(torch.get_num_threads()) | {"device": str(size.model.device), "peaks": peaks(size.model.device)}


def correctness(size: Size, _: Mapping[str, Any]) -> Rows:
    """Every provider that is available, on every case, against the float64 definition.

    One dtype after the other, the timed one first: what ends the part early leaves that of all providers.
    """
    device = size.model.device
    # A product may otherwise sum in bfloat16, and decide otherwise than the definition beyond any margin.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    for dtype in sorted({case.dtype for case in size.cases}, key=lambda dtype: (dtype != size.dtype, str(dtype))):
        for name in PROVIDERS:
            for case in size.cases if PROVIDERS[name].timed else ():
                if case.dtype == dtype:
                    yield checked(name, case, device)


def checked(name: str, case: ParityCase, device: torch.device) -> dict[str, Any]:
    """The row of a provider and a case; a kernel that does not compile for one says nothing of the others."""
    if reason := PROVIDERS[name].available(device, case.dtype):
        return {"provider": name, **case.title, "skipped": reason}
    try:
        return parity(name, case, device)
    except Exception:
        return {"provider": name, **case.title, "ok": False, "error": traceback.format_exc()}


def layer(size: Size, known: Mapping[str, Any]) -> Rows:
    """The layer's forward and training step against dense layers, checked on the timed shape first."""
    for mode in ("inference", "training"):
        left = sound_providers(known.get("correctness", []), size)
        while True:
            setting = Setting(
                size.trees,
                size.depth,
                size.tokens,
                size.dtype,
                mode,
                compiled=size.compiled,
                seconds=size.layer_seconds,
                providers=left or NO_PROVIDER,
            )
            try:
                yield from (row.flat() for row in measure(setting, size.model.device))
                break
            except Exception as error:  # a layer that is wrong or fails is not timed, the others are
                wrong = suspects(str(error), left)
                if not wrong:
                    raise
                yield {**setting.title, "provider": ", ".join(wrong), "error": traceback.format_exc()}
                left = tuple(name for name in left if name not in wrong)


def suspects(error: str, providers: tuple[str, ...]) -> tuple[str, ...]:
    """The provider that an error begins with; else all but those of plain torch."""
    named = error.split(":")[0]
    return (named,) if named in providers else tuple(name for name in providers if name not in PLAIN)


def sound_providers(rows: list[dict[str, Any]], size: Size) -> tuple[str, ...]:
    """Providers whose rows of the timing's dtype are all right; all that can where nothing was checked."""
    mine = [row for row in rows if row["dtype"] == name_of(size.dtype) and "skipped" not in row]
    if not mine:
        return tuple(name for name, p in PROVIDERS.items() if not p.available(size.model.device, size.dtype))
    wrong = {row["provider"] for row in mine if not row["ok"]}
    return tuple(dict.fromkeys(row["provider"] for row in mine if row["provider"] not in wrong))


def feedforwards(size: Size, known: Mapping[str, Any]) -> tuple[str, ...]:
    """DENSE, and PATH unless the provider that it takes here is wrong: no speed is told of that."""
    taken = provider_of(PATH, size.model.device, size.dtype)
    return (DENSE, PATH) if taken in sound_providers(known.get("correctness", []), size) else (DENSE,)


def model_training(size: Size, known: Mapping[str, Any]) -> Rows:
    """The whole model's pretraining step on one microbatch, one model after the other, so that a cut leaves some."""
    for feedforward in feedforwards(size, known):
        yield from (row.flat() for row in measure_training(replace(size.model, feedforwards=(feedforward,))))


def model_inference(size: Size, known: Mapping[str, Any]) -> Rows:
    """The whole model's inference on one sequence; one way of running after the other, so that a cut leaves some."""
    model = replace(size.model, feedforwards=feedforwards(size, known))
    for mode in model.inference:
        yield from (row.flat() for row in measure_inference(replace(model, inference=(mode,)), model.batches[0]))


def pretraining(size: Size, known: Mapping[str, Any]) -> Rows:
    """A minute of the real loop for dense and path on made-up tokens; what compiling took longer is the last one's."""
    end = time.perf_counter() + size.limit_s - RESERVE_S
    for feedforward in feedforwards(size, known):
        with tempfile.TemporaryDirectory() as folder:
            yield pretrain_synthetic(feedforward, size.model, size.pretrain_seconds, Path(folder), end)


# Name -> (function, seconds at most). Beside these, all together have a limit.
PARTS: dict[str, tuple[Callable[[Size, Mapping[str, Any]], Rows], float]] = {
    "machine": (machine, 40.0),
    "correctness": (correctness, 100.0),
    "layer": (layer, 80.0),
    "model_training": (model_training, 140.0),
    "model_inference": (model_inference, 80.0),
    "pretraining": (pretraining, 260.0),
}
