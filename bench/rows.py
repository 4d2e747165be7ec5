"""One flat row for every figure of speed or memory, and files of such rows. Not how figures are taken (timing.py)."""

import functools
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_type_hints

import torch

import fff
from cramming.checks import number, one_of
from cramming.errors import UserError
from cramming.files import read_json, write_atomic
from cramming.machine import describe
from cramming.provenance import git_state

SCHEMA_VERSION = 1
WHAT = (
    "layer",
    "cold calls",
    "level 1",  # of the paper's table: paper.py
    "level 2",
    "level 3",
    "training memory",
    "encoder",
    "pretraining step",
    "update alone",
    "pretraining",  # through the training loop
    "busy machine",  # pretraining steps beside other work: busy.py
    "decode",  # one text, token by token, with a cache
)
UNITS = ("s", "MB", "tokens/s")
DATE = "%Y-%m-%dT%H:%M:%SZ"


@dataclass(frozen=True, kw_only=True)
class SpeedRow:
    """What one thing took in one run; None where a figure does not apply or was not taken.

    Rows that differ in `name` alone were taken in turn. `ratio` says how many times better than the row named
    `opponent`, and `ratio_second` than the one named `second`: less time or memory, more tokens/s. Times of different
    numbers of tokens (the paper's levels) are compared per token.

    Raises:
        UserError: a name that does not exist, a figure that is no finite number or out of order, or a ratio to nobody.
    """

    what: str
    name: str  # a layer's provider, "dense 4096 float32", a model's feedforward, ...
    shape: str  # 1x11, leaf32x7 (leaf_width x depth), a rival's tag; a model's may also be "dense 3072" or "none"
    width: int  # d_in and d_out, a model's hidden size
    layers: int | None = None  # of a model
    vocab_size: int | None = None
    tokens: int  # of one call
    sequences: int | None = None  # of one call, where tokens come in sequences
    dtype: str  # of the group, whose dense rows say their own in their names; opponents.py has int8 and optimised too
    mode: str
    inputs: str | None = None  # iid, skewed, or the trained layer that they were recorded at
    compiler: str = "eager"  # or a mode of torch.compile
    threads: int
    provider: str | None = None  # of the FFF layers
    library: str | None = None  # that computes it, with its version, where not all rows have the same

    unit: str = "s"
    median: float
    q10: float | None = None
    q90: float | None = None
    least: float | None = None
    most: float | None = None
    cold: float | None = None  # median of the turns' first calls
    n: int  # turns, or processes

    opponent: str | None = None
    ratio: float | None = None
    ratio_cold: float | None = None  # to the quickest first call of the dense layers of as many neurons
    opponent_library: str | None = None
    second: str | None = None  # the usual feedforward layer, no feedforward at all, or the best dense layer
    ratio_second: float | None = None

    relative_error: float | None = None  # of the output, against the float64 definition
    floor_operations_s: float | None = None  # what the path's operations take at the machine's best
    floor_bytes_s: float | None = None  # what the bytes that must move take at the machine's best
    peak_gflops: float | None = None
    peak_memory_gb_per_s: float | None = None
    peak_cache_gb_per_s: float | None = None
    tokens_per_s: float | None = None
    flops_per_token: float | None = None
    flops_per_token_dense_equivalent: float | None = None
    mfu: float | None = None
    mfu_dense_equivalent: float | None = None
    step_memory_gb: float | None = None
    bytes_per_token: int | None = None  # of weights that one token reads in decoding
    leaves_used: int | None = None
    checkpoint: str | None = None  # base name

    run: str  # rows of one run of a command have the same
    device: str  # cpu, cuda
    machine: str  # the device's name
    capability: str | None = None  # of the CPU
    system: str | None = None
    torch: str
    python: str
    fff: str | None = None
    commit: str | None = None
    dirty: bool | None = None
    date: str  # UTC
    converted_from: str | None = None  # an older form: commit and date are those of the commit that recorded it

    def __post_init__(self) -> None:
        one_of("what", self.what, WHAT)
        one_of("mode", self.mode, ("inference", "training"))
        one_of("unit", self.unit, UNITS)
        for key in ("width", "tokens", "threads", "n"):
            number(key, getattr(self, key), least=1)
        for key, kind in get_type_hints(type(self)).items():
            value = getattr(self, key)
            if not isinstance(value, (kind | int) if kind in (float, float | None) else kind):
                raise UserError(f"{key} is {value!r}; it should be {kind}.")
            if isinstance(value, float):
                number(key, value)
        known = [value for value in (self.least, self.q10, self.median, self.q90, self.most) if value is not None]
        if known != sorted(known):
            raise UserError(f"least, q10, median, q90 and most are {known}; they should ascend.")
        for name, ratio in ((self.opponent, self.ratio), (self.second, self.ratio_second)):
            if (name is None) != (ratio is None):
                raise UserError(f"a ratio of {ratio} to {name}: give both or none.")
        try:
            datetime.strptime(self.date, DATE)
        except ValueError:
            raise UserError(f"date is {self.date!r}; it should be like 2026-01-31T12:00:00Z.") from None

    def flat(self) -> dict[str, Any]:
        """The columns that are known, in order."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@functools.cache
def run_name() -> str:
    """The name of this run of a command, which the processes that it starts inherit."""
    return os.environ.setdefault("FFF_BENCH_RUN", f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.urandom(2).hex()}")


def stamp(device: torch.device, threads: int) -> dict[str, Any]:
    """The columns that tell by what, on what and when a row was taken."""
    here, git = describe(threads), git_state()
    machine = here["gpu"] if device.type == "cuda" else here["cpu"]
    same = {key: here[key] for key in ("threads", "capability", "system", "torch", "python")}
    when = {"date": f"{datetime.now(UTC):{DATE}}", "commit": git["commit"], "dirty": git["dirty"]}
    return {"run": run_name(), "device": device.type, "machine": machine, "fff": fff.__version__, **same, **when}


def write_rows(path: Path, rows: Iterable[SpeedRow], notes: dict[str, Any] | None = None) -> None:
    """Write rows atomically as JSON, one a line; `notes` is what a file has to say beside them."""
    lines = ",\n".join(json.dumps(row.flat(), allow_nan=False) for row in rows)
    head = {"schema_version": SCHEMA_VERSION} | ({"notes": notes} if notes else {})
    write_atomic(path, f'{json.dumps(head, allow_nan=False)[:-1]}, "rows": [\n{lines}\n]}}\n')


def read_rows(path: Path) -> list[SpeedRow]:
    """The rows of a file; UserError names the file, and the row that is none."""
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} holds no rows of speed of schema version {SCHEMA_VERSION}.")
    rows = content.get("rows")
    if not isinstance(rows, list):
        raise UserError(f"{path}: rows is no list; it was changed after it was written.")
    return [_row(values, f"{path}, row {place}") for place, values in enumerate(rows, 1)]


def _row(values: Any, where: str) -> SpeedRow:
    try:
        return SpeedRow(**values)
    except (TypeError, UserError) as error:
        raise UserError(f"{where}: {error}") from None
