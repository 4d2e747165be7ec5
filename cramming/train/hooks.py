"""What happens between steps: validation, history, progress bar, checkpoints, stops. Not the step itself (loop.py)."""

import json
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, TextIO

import torch
from tqdm import tqdm

from cramming.errors import Diverged
from cramming.files import write_atomic
from cramming.train.checkpoint import Checkpoints
from cramming.train.loop import Step, Trainer
from cramming.train.validate import Validation


class Hook:
    """A hook that does nothing; the others override what they need."""

    def on_start(self, trainer: Trainer) -> None:
        """Before the first step of this process, after a resume."""

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """After each step."""

    def on_end(self, trainer: Trainer) -> None:
        """After the last step, also when the run was stopped."""


class FiniteGuard(Hook):
    """Stops a run whose loss or gradient is not finite, before anything of it is written.

    The gradient has already gone into the weights, which the next checkpoint would keep. With fp16 it may overflow: the
    scaler then leaves the update out. On a GPU the hook looks only where others read the loss anyway, so that the loop
    is not held up.
    """

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Raise Diverged on a non-finite loss or gradient."""
        if not (step.due or trainer.accelerator.device.type == "cpu"):
            return
        scaled = trainer.accelerator.scaler is not None
        if math.isfinite(step.loss.item()) and (scaled or math.isfinite(float(step.gradient_norm))):
            return
        named = trainer.raw_model.named_parameters()
        broken = [n for n, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        cause = f"gradients not finite in {', '.join(broken[:3])}" if broken else "all gradients are finite"
        raise Diverged(
            f"The loss is {step.loss.item()} and the gradient's norm {float(step.gradient_norm)} at step "
            f"{trainer.state.step} (train.lr now {step.lr:.2e}; {cause}). "
            "The last checkpoint is kept. Lower train.lr or train.clip, or choose train.precision=fp32."
        )


class Validate(Hook):
    """Validation loss at fixed marks of progress; the newest result stays in `latest`."""

    def __init__(self, validation: Validation) -> None:
        self.validation = validation
        self.latest: dict[str, float] = {}

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Validate when a mark was crossed, and count the time against the budget."""
        self.latest = {}
        if step.crosses(trainer.config.validations):
            started = trainer.clock()
            result = self.validation.run(trainer.model, trainer.accelerator)
            trainer.add_seconds(trainer.agree(trainer.clock() - started))
            self.latest = {f"valid/{key}": value for key, value in result.items()}


class Source(Protocol):
    """A hook with figures for the history: those of the present step, or none."""

    latest: dict[str, float]


class History(Hook):
    """metrics.jsonl: a row per `log_steps` steps and per validation. The truth that W&B and the bar mirror.

    Args:
        sources: hooks before this one, whose `latest` figures belong into the row of their step.
        mirrors: called with (step, row) for each row.
        meter: what a row says of the device's use, from tokens per second.
    """

    def __init__(
        self, path: Path, sources: Sequence[Source], mirrors: list[Any], meter: Callable[[float], dict[str, float]]
    ) -> None:
        self.path, self.sources, self.mirrors, self.meter = path, sources, mirrors, meter
        self.file: TextIO | None = None
        self.tokens, self.seconds = 0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Drop rows after the checkpoint that the run resumes from: they are written again."""
        kept = [row for row in read_history(self.path) if row["step"] <= trainer.state.step]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.file = open(self.path, "a")  # noqa: SIM115 (open as long as the run)
        self.tokens, self.seconds = trainer.state.tokens, 0.0

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Write a row when one is due."""
        state = trainer.state
        self.seconds += step.seconds
        state.loss_sum = state.loss_sum + step.loss
        state.loss_steps += 1
        latest = {key: value for source in self.sources for key, value in source.latest.items()}
        if state.step % trainer.config.log_steps and not latest and state.progress < 1:
            return
        rate = (state.tokens - self.tokens) / max(self.seconds, 1e-9)
        row = {
            "step": state.step,
            "train/loss": float(state.loss_sum) / state.loss_steps,
            "train/lr": step.lr,
            "train/batch": step.batch,
            "train/gradient_norm": float(step.gradient_norm),
            "train/tokens_per_s": rate,
            "budget/progress": state.progress,
            "budget/tokens": state.tokens,
            "budget/hours": state.seconds / 3600,
            **self.meter(rate),
            **{f"train/{name}": float(value) for name, value in step.auxiliary.items()},
            **trainer.hardening.values,
            **latest,
        }
        state.loss_sum, state.loss_steps = 0.0, 0
        self.tokens, self.seconds = state.tokens, 0.0
        assert self.file is not None
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        for mirror in self.mirrors:
            mirror(state.step, row)

    def on_end(self, trainer: Trainer) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()


def read_history(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl; a last line that a kill cut off is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class Bar(Hook):
    """Live progress on the terminal: rate, loss, time left."""

    def on_start(self, trainer: Trainer) -> None:
        """Open the bar where the run stands."""
        form = "{desc} {percentage:5.1f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(total=1.0, initial=trainer.state.progress, desc="pretrain", bar_format=form, mininterval=1.0)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Advance the bar."""
        self.bar.update(step.after - self.bar.n)

    def show(self, number: int, row: dict[str, Any]) -> None:
        """Put a row of the history beside the bar."""
        text = f"step {number}, loss {row['train/loss']:.3f}, {row['train/tokens_per_s']:,.0f} tokens/s"
        self.bar.set_postfix_str(text, refresh=False)
        if "valid/loss" in row:
            note = f"  {row['budget/progress']:6.1%}  step {number:>6}  train loss {row['train/loss']:.4f}"
            self.bar.write(f"{note}  validation loss {row['valid/loss']:.4f}, accuracy {row['valid/accuracy']:.2%}")

    def on_end(self, trainer: Trainer) -> None:
        """Close the bar."""
        self.bar.close()


class Remembering(Protocol):
    """A hook with memory that a resumed run needs, as tensors and plain values."""

    def state(self) -> dict[str, Any]: ...  # noqa: D102


class Checkpoint(Hook):
    """Writes checkpoints at marks of progress and when the run is stopped.

    Args:
        remembering: hooks by name whose memory goes into the checkpoint.
    """

    def __init__(self, checkpoints: Checkpoints, remembering: Mapping[str, Remembering]) -> None:
        self.checkpoints, self.remembering = checkpoints, remembering
        self.written = -1

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Save when a mark was crossed or a stop was asked for."""
        if step.crosses(trainer.config.checkpoints) or trainer.stop_reason is not None:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of the present state; every process takes part."""
        accelerator, state = trainer.accelerator, trainer.state
        if self.written == state.step:
            return
        state.loss_sum = float(state.loss_sum)
        memory = {name: hook.state() for name, hook in self.remembering.items()}
        self.checkpoints.write_process(state, accelerator.process_index, memory)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
            self.checkpoints.write(state, trainer.raw_model, trainer.optimiser.state_dict(), scaler)
        accelerator.wait_for_everyone()
        self.written = state.step


class StopSignals(Hook):
    """SIGINT and SIGTERM end the run cleanly after the current step; a second one ends it at once."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received: str | None = None

    def on_start(self, trainer: Trainer) -> None:
        """Take the signals over."""
        self.before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Ask for a stop; with several processes all of them stop at the same step."""
        asked = trainer.agree(float(self.received is not None))
        if asked:
            trainer.stop_reason = self.received or "a signal to another process"

    def on_end(self, trainer: Trainer) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
