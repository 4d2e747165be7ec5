"""What happens between steps: stops, validation, progress bar, checkpoints. Not the history (history.py) or leaves."""

import math
import signal
from types import FrameType
from typing import Any

import torch
from tqdm import tqdm

from cramming.errors import Diverged
from cramming.train.checkpoint import Checkpoints
from cramming.train.loop import Hook, Step, Trainer
from cramming.train.validate import Validation


class StopSignals(Hook):
    """SIGINT, SIGTERM and SIGHUP end the run cleanly after the current step; a Ctrl-C after one ends it at once.

    SIGTERM may come several times within milliseconds, as from SLURM, which tells a job's steps and their processes.
    Several processes stop at the same step, the next at which they meet. The first hook of a list, so that the others
    know of the stop in the same step.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.received: str | None = None
        self.before: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        """Take the signals over; SIGCONT tells the stopwatch that the process had been halted."""
        self.before = {number: signal.signal(number, self._receive) for number in self.SIGNALS}
        self.before[signal.SIGCONT] = signal.signal(signal.SIGCONT, lambda *_: trainer.stopwatch.continued())

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Ask for a stop."""
        if trainer.meets and trainer.world.agree([float(self.received is not None)])[0]:
            trainer.stop_reason = self.received or "a signal to another process"

    def on_end(self, trainer: Trainer) -> None:
        """Give the signals back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number).name


class FiniteGuard(Hook):
    """Ends a run in which an update was left out because loss or gradient was no number, before a checkpoint hides it.

    With fp16 the gradient may overflow: the scaler then leaves the update out, and the run goes on. On a GPU the hook
    looks only where others read the loss anyway, so that the loop is not held up; the weights are finite all the while.
    """

    def __init__(self) -> None:
        self.good: torch.Tensor | None = None  # () bool, on the device
        self.first_bad: torch.Tensor | None = None  # () steps

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Raise Diverged on a non-finite loss or gradient, of this step or one since the last look."""
        good = torch.isfinite(step.loss) if trainer.world.scaled else step.finite
        number = torch.full_like(good, trainer.state.step, dtype=torch.long)
        if self.good is None or self.first_bad is None:
            self.good, self.first_bad = good, number
        else:
            self.first_bad = torch.where(self.good, number, self.first_bad)
            self.good = self.good & good
        if not (step.due or trainer.stop_reason is not None or trainer.world.device.type == "cpu"):
            return
        if bool(self.good):
            return
        named = trainer.parts.model.named_parameters()
        broken = [n for n, p in named if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
        cause = f"gradients not finite in {', '.join(broken[:3])}" if broken else "all gradients are finite"
        first = int(self.first_bad)
        seen = "" if first == trainer.state.step else f" (first at step {first})"
        raise Diverged(
            f"The loss is {step.loss.item()} and the gradient's norm {float(step.gradient_norm)} at step "
            f"{trainer.state.step}{seen} (train.lr now {step.lr:.2e}; {cause}). The update was left out, and the last "
            "checkpoint is kept. Lower train.lr or train.clip, or choose train.precision=fp32."
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
            trainer.stopwatch.start()
            result = self.validation.run(trainer.parts.wrapped, trainer.world)
            trainer.spend()
            self.latest = {f"valid/{key}": value for key, value in result.items()}
            if not all(map(math.isfinite, result.values())):
                raise Diverged(
                    f"The validation's {self.latest} at step {trainer.state.step} is no number; the last checkpoint "
                    "is kept. Lower train.lr or train.clip, or choose train.precision=fp32."
                )


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


class Checkpoint(Hook):
    """Writes checkpoints at marks of progress and when the run is stopped; the last hook that has a memory."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self.written = -1

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Save when a mark was crossed or a stop was asked for; every process takes part."""
        due = step.crosses(trainer.config.checkpoints) or trainer.stop_reason is not None
        if due and self.written != trainer.state.step:
            memory = {hook.name: found for hook in trainer.hooks if (found := hook.state())}
            self.checkpoints.write(trainer.parts, memory)
            self.written = trainer.state.step
