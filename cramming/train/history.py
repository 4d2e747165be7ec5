"""metrics.jsonl, a run's history: written, checked, read. Not what its rows come to (finish.py)."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch

from cramming.errors import UserError
from cramming.files import write_atomic
from cramming.train.loop import Hook, Step, Trainer
from cramming.train.traffic import Traffic

TAIL_BYTES = 1 << 16  # of a history, which hold a row at least


class Source(Protocol):
    """A hook with figures for the history: those of the present step, or none."""

    latest: dict[str, float]


class History(Hook):
    """metrics.jsonl: a row per `log_steps` steps and per validation. The truth that W&B and the bar mirror.

    A checkpoint knows how many rows there were and their hash: what they were is what a resumed run goes on with.

    Args:
        sources: hooks before this one, whose `latest` figures belong into the row of their step.
        mirrors: called with (step, row) for each row.
        meter: what a row says of the device's use, from tokens per second.
        traffic: what it says of bytes between processes, if there are several.
    """

    name = "history"

    def __init__(
        self,
        path: Path,
        sources: Sequence[Source],
        mirrors: list[Any],
        meter: Callable[[float], dict[str, float]],
        traffic: Traffic | None = None,
    ) -> None:
        self.path, self.sources, self.mirrors, self.meter, self.traffic = path, sources, mirrors, meter, traffic
        self.file: BinaryIO | None = None
        self.tokens, self.seconds = 0, 0.0
        self.loss_sum: torch.Tensor | float = 0.0  # of the steps since the last row
        self.loss_steps = 0
        self.rows, self.hash = 0, hashlib.sha256()
        self.expected: dict[str, Any] | None = None  # of the checkpoint that the run goes on from

    def state(self) -> dict[str, Any]:
        """Rows and their hash, after they are safely on the disk; the losses of the row to come.

        Raises:
            UserError: somebody removed the file under the run.
        """
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())
            if not (self.path.exists() and os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())):
                raise UserError(
                    f"{self.path} was removed or replaced while the run wrote it; leave the run's folder alone, and "
                    "start the same command: it goes on from what is left."
                )
        self.loss_sum = float(self.loss_sum)
        losses = {"loss_sum": self.loss_sum, "loss_steps": self.loss_steps}
        return losses | {"rows": self.rows, "sha256": self.hash.hexdigest()}

    def restore(self, state: dict[str, Any]) -> None:
        """Remember what the file must begin with."""
        self.expected = state
        self.loss_sum, self.loss_steps = state["loss_sum"], state["loss_steps"]

    def on_start(self, trainer: Trainer) -> None:
        """Drop rows after the checkpoint that the run resumes from: they are written again.

        Raises:
            UserError: the rows before it are not those that were written.
        """
        kept = self._checked() if self.expected else _until(self.path, trainer.state.step)
        self.rows = kept.count(b"\n")
        self.hash.update(kept)
        write_atomic(self.path, kept)
        self.file = open(self.path, "ab")  # noqa: SIM115 (open as long as the run)
        self.tokens, self.seconds = trainer.state.tokens, 0.0

    def _checked(self) -> bytes:
        """The file's rows that the checkpoint counted."""
        assert self.expected is not None
        if not self.path.exists():
            warnings.warn(f"{self.path} is missing: the history begins anew where the run goes on.", stacklevel=2)
            return b""
        lines = self.path.read_bytes().splitlines(keepends=True)[: self.expected["rows"]]
        if hashlib.sha256(b"".join(lines)).hexdigest() != self.expected["sha256"]:
            where = next((number for number, line in enumerate(lines, 1) if not _whole(line)), None)
            at = f" at line {where}" if where else ""
            raise UserError(
                f"{self.path} is damaged{at}: its first {self.expected['rows']} rows are not those that the checkpoint "
                "counted. Put a copy of it back, or move it away to go on without them."
            )
        return b"".join(lines)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Write a row when one is due."""
        state = trainer.state
        self.seconds += step.seconds
        self.loss_sum = self.loss_sum + step.loss
        self.loss_steps += 1
        latest = {key: value for source in self.sources for key, value in source.latest.items()}
        if state.step % trainer.config.log_steps and not latest and state.reached < 1:
            return
        rate = (state.tokens - self.tokens) / max(self.seconds, 1e-9)
        row = {
            "step": state.step,
            "train/loss": float(self.loss_sum) / self.loss_steps,
            "train/lr": step.lr,
            "train/batch": step.batch,
            "train/gradient_norm": float(step.gradient_norm),
            "train/tokens_per_s": rate,
            "budget/progress": state.progress,
            "budget/tokens": state.tokens,
            "budget/hours": state.seconds / 3600,
            **self.meter(rate),
            **(self.traffic.figures if self.traffic else {}),
            **{f"train/{name}": float(value) for name, value in step.auxiliary.items()},
            **trainer.parts.hardening.values,
            **latest,
        }
        self.loss_sum, self.loss_steps = 0.0, 0
        self.tokens, self.seconds = state.tokens, 0.0
        self._append(row)
        for mirror in self.mirrors:
            mirror(state.step, row)

    def _append(self, row: dict[str, Any]) -> None:
        assert self.file is not None
        line = (json.dumps(row) + "\n").encode()
        self.file.write(line)
        self.file.flush()
        self.rows += 1
        self.hash.update(line)

    def on_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line that a kill cut off is left out.

    Raises:
        UserError: another line is damaged.
    """
    return [json.loads(line) for line in _lines(path)]


def last_row(path: Path) -> dict[str, Any] | None:
    """The last whole row of a metrics.jsonl that may be growing, by the file's end alone; None where there is none."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        rows = [json.loads(line) for line in file.read().splitlines(keepends=True) if _whole(line)]
    return rows[-1] if rows else None


def _lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not _whole(line):
            if number == len(lines):
                return lines[:-1]
            raise UserError(f"{path} is damaged at line {number}; put a copy of it back, or remove that line.")
    return lines


def _until(path: Path, step: int) -> bytes:
    """The rows of a file up to a step, for a checkpoint that did not count them."""
    return b"".join(line for line in _lines(path) if json.loads(line)["step"] <= step)


def _whole(line: bytes) -> bool:
    """Whether a line is a row from its first byte to its end."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and isinstance(row.get("step"), int) and line.endswith(b"\n")
