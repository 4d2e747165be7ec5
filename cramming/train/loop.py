"""The training loop: step, then hooks. Not what the hooks do (hooks.py) nor how a run is set up (pretrain.py)."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import nn

from cramming.data.loader import Microbatch
from cramming.train.budget import batch_at, crosses_mark, lr_factor, progress
from cramming.train.checkpoint import TrainState
from cramming.train.compiled import begin_pass, clear_gradients
from cramming.train.config import TrainConfig
from cramming.train.hardening import Hardening, parts_of


@dataclass(frozen=True)
class Step:
    """What one update did.

    `loss` (MLM alone, nats per masked token), `gradient_norm` and `auxiliary` (the hardening losses by name) are means
    over the whole batch.
    """

    loss: torch.Tensor
    auxiliary: dict[str, torch.Tensor]
    gradient_norm: torch.Tensor
    lr: float
    batch: int
    before: float  # progress before the step
    after: float
    seconds: float
    due: bool  # whether hooks may read its figures: on the logging interval and at marks

    def crosses(self, marks: int) -> bool:
        """Whether a mark of progress fell into this step."""
        return crosses_mark(self.before, self.after, marks)


class Hook(Protocol):
    """Something that looks on. Each hook owns its own "is it time?"."""

    def on_start(self, trainer: "Trainer") -> None: ...  # noqa: D102
    def on_step(self, trainer: "Trainer", step: Step) -> None: ...  # noqa: D102
    def on_end(self, trainer: "Trainer") -> None: ...  # noqa: D102


class Trainer:
    """Runs updates until the budget is used or a hook asks to stop.

    Args:
        model: prepared by the accelerator; `raw_model` is the same without wrappers.
        batches: this process's endless microbatches, starting at `state.sequences`.
        clock: monotonic seconds, for budgets in hours.

    On a GPU the host runs ahead: it waits for the device at the end of steps that are `due` alone, and only there may a
    hook read a tensor.
    """

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        model: nn.Module,
        raw_model: nn.Module,
        optimiser: torch.optim.Optimizer,
        batches: Iterable[Microbatch],
        state: TrainState,
        hooks: Sequence[Hook],
        hardening: Hardening,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.accelerator = config, accelerator
        self.model, self.raw_model, self.optimiser = model, raw_model, optimiser
        self.batches: Iterator[Microbatch] = iter(batches)
        self.state, self.hooks, self.hardening, self.clock = state, hooks, hardening, clock
        self.stop_reason: str | None = None

    def train(self) -> None:
        """Step, then hooks, until the end; hooks are told of it also when one of them asked for it or an error came."""
        for hook in self.hooks:
            hook.on_start(self)
        try:
            while self.state.progress < 1 and self.stop_reason is None:
                step = self.step()
                for hook in self.hooks:
                    hook.on_step(self, step)
        finally:
            for hook in self.hooks:
                hook.on_end(self)

    def step(self) -> Step:
        """One update: accumulate the batch in microbatches, clip, AdamW; then advance the state."""
        state, config = self.state, self.config
        started, before = self.clock(), state.progress
        lr = config.lr * lr_factor(config.schedule, before)
        batch = self._batch(before)
        clear_gradients(self.model, self.optimiser, config)
        self.hardening.apply(before)
        self.model.train()
        parts = self._accumulate(batch // (config.microbatch * self.accelerator.num_processes))
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.step()
        state.step += 1
        state.sequences += batch
        state.tokens += batch * self.last_batch.input_ids.shape[1]
        seconds = self.add_seconds(self.agree(self.clock() - started))
        due = self._due(before)
        if due and self._wait():
            seconds += self.add_seconds(self.agree(self.clock() - started) - seconds)
        return Step(parts.pop("mlm"), parts, norm, lr, batch, before, state.progress, seconds, due)

    def add_seconds(self, seconds: float) -> float:
        """Count wall-clock time against the budget, and return it; hooks report what they take."""
        state = self.state
        state.seconds += seconds
        state.progress = progress(self.config, tokens=state.tokens, steps=state.step, seconds=state.seconds)
        return seconds

    def _wait(self) -> bool:
        """Wait until a GPU has done what it was asked for; False on a CPU, which has nothing to catch up on.

        What it has still to do is the steps' time; a hook that waits for it would hide it from the budget.
        """
        if self.accelerator.device.type != "cuda":
            return False
        torch.cuda.synchronize()
        return True

    def _due(self, before: float) -> bool:
        config, state = self.config, self.state
        marks = (config.validations, config.checkpoints)
        return state.step % config.log_steps == 0 or any(crosses_mark(before, state.progress, mark) for mark in marks)

    def _batch(self, t: float) -> int:
        """Sequences of the next step; the last one of a token budget is cut to what is left, in microbatches."""
        batch = batch_at(self.config, t, self.accelerator.num_processes)
        state = self.state
        if self.config.budget_tokens is not None and state.sequences:
            # From the state, because a resumed run has not seen a batch yet.
            length = state.tokens // state.sequences
            unit = self.config.microbatch * self.accelerator.num_processes
            left = -(-(self.config.budget_tokens - state.tokens) // (length * unit)) * unit
            batch = min(batch, left)
        return batch

    def _accumulate(self, microbatches: int) -> dict[str, torch.Tensor]:
        totals: dict[str, torch.Tensor] = {}
        config = self.config
        for number in range(1, microbatches + 1):
            batch = next(self.batches).to(self.accelerator.device)
            self.last_batch = batch
            begin_pass(config)
            # Gradients travel between processes once per update, with its last microbatch.
            last = number == microbatches
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                output = self.model(
                    input_ids=batch.input_ids,
                    masked_positions=batch.masked_positions,
                    labels=batch.labels,
                    with_logits=False,
                )
                self.accelerator.backward(output.loss / microbatches)
            for name, value in parts_of(output).items():
                totals[name] = totals.get(name, 0.0) + value / microbatches
        if self.accelerator.num_processes > 1:
            totals = {name: self.accelerator.reduce(value, "mean") for name, value in totals.items()}
        return totals

    def agree(self, value: float) -> float:
        """The largest of all processes' values, so that they take the same decisions."""
        if self.accelerator.num_processes == 1:
            return value
        gathered = self.accelerator.gather(torch.tensor([value], dtype=torch.float64, device=self.accelerator.device))
        return float(gathered.max())
