"""What the layer and the model should reach on a CPU, and what a report of the benchmark has of it. Not its timing.

The aims are ratios: of the layer to the fastest dense layer of as many neurons, of the whole model to the one with a
dense feedforward of 3072 or with none. `scripts/bench.py --aims` runs `settings` and writes `table`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.layer import Setting
from bench.model import Scale

Report = dict[str, Any]
Row = dict[str, Any]
PATH_ONLY = ("cpu", "gather")
DTYPES = (torch.float32, torch.bfloat16)
MEMORY_SHAPES, MEMORY_TOKENS = "1x11", 16384


@dataclass(frozen=True)
class Aim:
    """One line of the table: what is asked for and where the report has it; `least` or `most` of it is wanted."""

    what: str
    value: Callable[[Report, int], float | None]  # of a report and a number of threads
    least: float | None = None
    most: float | None = None
    unit: str = "x"

    def met(self, value: float) -> bool:
        """Whether the value is as good as wanted."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    @property
    def wanted(self) -> str:
        """The bound, for the table."""
        sign, bound = (">=", self.least) if self.least is not None else ("<=", self.most)
        return f"{sign} {bound:g}{self.unit}"


def settings(seconds: float) -> list[Setting]:
    """The layers' part. Masked execution where an aim is against it, and nowhere else: it is as slow as dense."""

    def of(
        trees: int, depth: int, mode: str, *more: str, tokens: int = 16384, dtype: torch.dtype = DTYPES[0]
    ) -> Setting:
        return Setting(trees, depth, tokens, dtype, mode, seconds=seconds, providers=(*PATH_ONLY, *more))

    return [
        *(of(1, 11, "inference", tokens=tokens, dtype=dtype) for tokens in (1, 128, 16384) for dtype in DTYPES),
        of(32, 6, "inference"),
        of(128, 4, "inference"),
        of(1, 11, "training", "masked"),
        of(32, 6, "training"),
    ]


def models(scale: Scale) -> Scale:
    """The whole model's part."""
    return replace(scale, batches=(1, 32), dtypes=DTYPES)


def _part(report: Report, name: str, threads: int) -> list[Row]:
    return [row for part in report.get(name, []) if part["machine"]["threads"] == threads for row in part["rows"]]


def _layer(
    shape: str, tokens: int, dtype: str, mode: str = "inference", provider: str = "cpu", against: str = "dense"
) -> Callable[[Report, int], float | None]:
    """How many times faster a provider is than the dense layers, or than another provider."""

    def value(report: Report, threads: int) -> float | None:
        wanted = {"shape": shape, "tokens": tokens, "dtype": dtype, "mode": mode}
        rows = {
            row["provider"]: row
            for row in _part(report, "layers", threads)
            if all(row[key] == item for key, item in wanted.items())
        }
        if provider not in rows:
            return None
        ours = rows[provider]
        if against == "dense":
            return float(ours["times_faster_than_dense"])
        return rows[against]["median_s"] / ours["median_s"] if against in rows else None

    return value


def _model(work: str, column: str, dtype: str, batch: int | None = None) -> Callable[[Report, int], float | None]:
    """A column of the whole model with 1x11."""

    def value(report: Report, threads: int) -> float | None:
        for row in _part(report, "models", threads):
            if (row["work"], row["ffn"], row["dtype"]) == (work, "1x11", dtype) and batch in (None, row["batch"]):
                return float(row[column])
        return None

    return value


def _share(batch: int, dtype: str) -> Aim:
    """Of the speed that the encoder would have without feedforward layers, in percent."""
    part = _model("inference", "share_of_bound", dtype, batch)

    def value(report: Report, threads: int) -> float | None:
        found = part(report, threads)
        return None if found is None else 100 * found

    return Aim(f"encoder, {batch} x 128, {dtype}, share of the bound", value, 97, unit=" %")


def _memory(report: Report, threads: int) -> float | None:
    found = [row["mb"] for row in report.get("memory", []) if (row["shape"], row["provider"]) == ("1x11", "cpu")]
    return found[0] if found else None


AIMS = (
    Aim("1x11, 1 token, float32", _layer("1x11", 1, "float32"), 220),
    Aim("1x11, 1 token, bfloat16", _layer("1x11", 1, "bfloat16"), 150),
    Aim("1x11, 128 tokens, float32", _layer("1x11", 128, "float32"), 115),
    Aim("1x11, 128 tokens, bfloat16", _layer("1x11", 128, "bfloat16"), 100),
    Aim("1x11, 16384 tokens, float32", _layer("1x11", 16384, "float32"), 170),
    Aim("1x11, 16384 tokens, bfloat16", _layer("1x11", 16384, "bfloat16"), 140),
    Aim("32x6, 16384 tokens, float32", _layer("32x6", 16384, "float32"), 10),
    Aim("128x4, 16384 tokens, float32", _layer("128x4", 16384, "float32"), 3.5),
    Aim("1x11, training step, 16384 tokens, float32", _layer("1x11", 16384, "float32", "training"), 150),
    Aim("the same, against masked", _layer("1x11", 16384, "float32", "training", against="masked"), 180),
    Aim("32x6, training step, 16384 tokens, float32", _layer("32x6", 16384, "float32", "training"), 8),
    *(_share(batch, dtype) for dtype in ("float32", "bfloat16") for batch in (1, 32)),
    Aim(
        "whole pretraining step against dense 3072", _model("pretraining step", "times_faster_than_dense", "fp32"), 2.3
    ),
    Aim("1x11, memory of a training step, 16384 tokens", _memory, most=130, unit=" MB"),
    Aim("plain torch (gather), 16384 tokens", _layer("1x11", 16384, "float32", provider="gather"), 11),
    Aim("plain torch (gather), training step", _layer("1x11", 16384, "float32", "training", "gather"), 17),
)


def table(report: Report, threads: Sequence[int]) -> str:
    """The aims and what the report has of them, as Markdown; what is missed is in bold."""
    lines = ["| what | aim | " + " | ".join(f"{count} thread{'s' * (count > 1)}" for count in threads) + " |"]
    lines.append("|---" * (len(threads) + 2) + "|")
    for aim in AIMS:
        cells = [_cell(aim, aim.value(report, count)) for count in threads]
        lines.append(f"| {aim.what} | {aim.wanted} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(aim: Aim, value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}{aim.unit}" if value >= 100 else f"{value:.3g}{aim.unit}"
    return text if aim.met(value) else f"**{text}**"
