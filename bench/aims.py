"""What the layer and the model should reach on a CPU, and what the rows of a benchmark have of it. Not its timing.

The aims are ratios: of the layer to the fastest dense layer of as many neurons, of the whole model to the one with a
dense feedforward of 3072 or with none; of int8 trees to the strongest dense int8 that is there. `scripts/bench.py
--aims` runs `settings` and the opponents and writes `table`; with `--opponents` it has what these say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from bench.cases import WIDTH
from bench.encoder import Scale
from bench.forms import INT8, OPTIMISED
from bench.options import Setting, Shape
from bench.rows import SpeedRow

Rows = Sequence[SpeedRow]
PATH_ONLY = ("cpu", "gather")
DTYPES = (torch.float32, torch.bfloat16)
MEMORY_SHAPES, MEMORY_TOKENS = [Shape(1, 11)], 16384

Value = Callable[[Rows, int], float | None]  # of a report's rows and a number of threads


@dataclass(frozen=True)
class Aim:
    """One line of the table: what is asked for and where the rows have it; `least` or `most` of it is wanted."""

    what: str
    value: Value
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


def _found(rows: Rows, **wanted: object) -> SpeedRow | None:
    """The first row with these columns."""
    return next((row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())), None)


def _layer(
    shape: str, tokens: int, dtype: str, mode: str = "inference", provider: str = "cpu", against: str = "dense"
) -> Value:
    """How many times faster a provider is than the dense layers, or than another provider."""

    def value(rows: Rows, threads: int) -> float | None:
        group = {"shape": shape, "tokens": tokens, "dtype": dtype, "mode": mode, "threads": threads}
        ours = _found(rows, what="layer", name=provider, **group)
        if ours is None or against == "dense":
            return None if ours is None else ours.ratio
        theirs = _found(rows, what="layer", name=against, **group)
        return None if theirs is None else theirs.median / ours.median

    return value


def _share(batch: int, dtype: str) -> Aim:
    """Of the speed that the encoder would have without feedforward layers, in percent."""

    def value(rows: Rows, threads: int) -> float | None:
        found = _found(rows, what="encoder", name="1x11", dtype=dtype, sequences=batch, threads=threads)
        return None if found is None or found.ratio_second is None else 100 * found.ratio_second

    return Aim(f"encoder, {batch} x 128, {dtype}, share of the bound", value, 97, unit=" %")


def _int8(shape: str, tokens: int, against: str = INT8, what: str = "layer") -> Value:
    """How many times faster the quickest form with int8 trees is than the quickest dense form of a kind, in one run."""

    def value(rows: Rows, threads: int) -> float | None:
        group = [row for row in rows if (row.what, row.tokens, row.threads) == (what, tokens, threads) and row.library]
        ours = [row.median for row in group if row.name.startswith((f"{shape} {INT8}", f"{shape} {OPTIMISED}"))]
        dense = [row for row in group if row.name.startswith("dense ") and row.width == WIDTH]
        widest = max((neurons(row) for row in dense), default=0)  # others are as good as trees, not as wide
        theirs = [row.median for row in dense if row.dtype == against and neurons(row) == widest]
        return min(theirs) / min(ours) if ours and theirs else None

    return value


def neurons(row: SpeedRow) -> int:
    """Of a dense row, which its name begins with: "dense 3072 bfloat16"."""
    return int(row.name.split()[1])


def _step(rows: Rows, threads: int) -> float | None:
    found = _found(rows, what="pretraining step", name="1x11", dtype="float32", threads=threads)
    return None if found is None else found.ratio


def _memory(rows: Rows, threads: int) -> float | None:
    found = _found(rows, what="training memory", shape="1x11", name="cpu")
    return None if found is None else found.median


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
    Aim("whole pretraining step against dense 3072", _step, 2.3),
    Aim("1x11, memory of a training step, 16384 tokens", _memory, most=130, unit=" MB"),
    Aim("encoder, 32 x 128, 1x11 optimised or int8, against dense int8", _int8("1x11", 32 * 128, what="encoder"), 2.3),
    Aim("encoder, 1 x 128, 1x11 optimised or int8, against dense int8", _int8("1x11", 128, what="encoder"), 2.5),
    Aim("encoder, 32 x 128, 32x6 optimised or int8, against dense int8", _int8("32x6", 32 * 128, what="encoder"), 1.6),
    Aim("1x11 int8, 128 tokens, against dense int8", _int8("1x11", 128), 60),
    Aim("1x11 int8, 16384 tokens, against dense int8", _int8("1x11", 16384), 60),
    Aim("1x11 int8, 16384 tokens, against dense float32", _int8("1x11", 16384, "float32"), 300),
    Aim("plain torch (gather), 16384 tokens", _layer("1x11", 16384, "float32", provider="gather"), 11),
    Aim("plain torch (gather), training step", _layer("1x11", 16384, "float32", "training", "gather"), 17),
)


def table(rows: Rows, threads: Sequence[int]) -> str:
    """The aims and what the rows have of them, as Markdown; what is missed is in bold."""
    lines = ["| what | aim | " + " | ".join(f"{count} thread{'s' * (count > 1)}" for count in threads) + " |"]
    lines.append("|---" * (len(threads) + 2) + "|")
    for aim in AIMS:
        cells = [_cell(aim, aim.value(rows, count)) for count in threads]
        lines.append(f"| {aim.what} | {aim.wanted} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(aim: Aim, value: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value:,.0f}{aim.unit}" if value >= 100 else f"{value:.3g}{aim.unit}"
    return text if aim.met(value) else f"**{text}**"
