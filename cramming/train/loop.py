"""The training loop: step, then hooks. Not what the hooks do (hooks.py) nor what it is made of (assemble.py)."""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, runtime_checkable

import torch

from cramming.objectives.base import Batch
from cramming.train.budget import batch_at, crosses_mark, lr_factor, progress
from cramming.train.clock import Stopwatch
from cramming.train.compiled import begin_pass, clear_gradients
from cramming.train.parts import Parts, TrainState
from fff.frozen import FrozenLevels


@runtime_checkable
class Movable(Protocol):
    """Microbatches that may go on from another run position."""

    def move(self, start: int) -> None:
        """Go on from there."""
        ...


MEETING_STEPS = 10  # steps between two meetings of several processes, for what each must know of the others


@dataclass(frozen=True)
class Step:
    """What one update did.

    `loss` (the objective's own, nats), `gradient_norm` and `auxiliary` (other losses by name) are means over the whole
    batch; of workers apart, over this one's share. Where loss or norm is not `finite`, the update was left out.
    """

    loss: torch.Tensor
    auxiliary: dict[str, torch.Tensor]
    gradient_norm: torch.Tensor
    finite: torch.Tensor  # () bool
    lr: float
    batch: int  # sequences
    last: Batch  # this process's last microbatch
    before: float  # progress at the end of the step before; of workers apart, at the last meeting, or now between two
    after: float
    seconds: float
    due: bool  # whether hooks may read its figures: on the logging interval and at marks

    def crosses(self, marks: int) -> bool:
        """Whether a mark of progress fell into this step."""
        return crosses_mark(self.before, self.after, marks)


class Hook:
    """Something that looks on; each owns its own "is it time?". This one does nothing, others override what they need.

    What a resumed run must know again stands in `state` as tensors and plain values; checkpoints hold it by `name`.
    """

    name = ""

    def on_start(self, trainer: "Trainer") -> None:
        """Before the first step of this process, after a resume."""

    def on_step(self, trainer: "Trainer", step: Step) -> None:
        """After each step."""

    def on_end(self, trainer: "Trainer") -> None:
        """After the last step, also when the run was stopped or failed."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep; nothing by default."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave; called before `on_start`, of a run that continues."""


class Trainer:
    """Runs updates until the budget is used or a hook asks to stop.

    Args:
        parts: what trains; hooks may read and advance its state.
        batches: this process's endless microbatches, starting at `parts.state.sequences`.
        hooks: told in this order; later ones read what earlier ones found.
        stopwatch: for budgets in hours.

    On a GPU the host runs ahead: it waits for the device at the end of steps that are `due` alone, and only there may a
    hook read a tensor. Several processes meet in every step for their gradients, which is the devices' affair; the
    hosts meet every MEETING_STEPS steps at most, because progress by tokens and steps is the same for all anyway. A
    budget in hours then moves from meeting to meeting, by the slowest process's seconds.
    """

    def __init__(
        self, parts: Parts, batches: Iterable[Batch], hooks: Sequence[Hook], stopwatch: Stopwatch | None = None
    ) -> None:
        self.parts, self.config, self.world, self.state = parts, parts.config, parts.world, parts.state
        self.loader, self.batches = batches, iter(batches)
        self.hooks, self.stopwatch = hooks, stopwatch or Stopwatch()
        levels = self.config.frozen_levels
        self.frozen = FrozenLevels(parts.model, levels) if levels else None
        self.pending = 0.0  # seconds that are not agreed upon yet
        self.met = parts.state.reached  # progress at the last step at which what is due at marks could be done
        self.stop_reason: str | None = None

    def train(self) -> None:
        """Step, then hooks, until the end; hooks are told of it also when one of them asked for it or an error came."""
        for hook in self.hooks:
            hook.on_start(self)
        try:
            while self.state.reached < 1 and self.stop_reason is None:
                step = self.step()
                for hook in self.hooks:
                    hook.on_step(self, step)
        finally:
            for hook in self.hooks:
                hook.on_end(self)

    def step(self) -> Step:
        """One update: accumulate the batch in microbatches, clip, AdamW; then advance the state."""
        parts, state, config = self.parts, self.state, self.config
        self.stopwatch.start()
        t = state.progress
        batch = self._batch(t)
        clear_gradients(parts.wrapped, parts.optimiser, config)
        parts.hardening.apply(t)
        parts.wrapped.train()
        last, losses = self._accumulate(batch // (config.microbatch * self.world.workers))
        lr = config.lr * lr_factor(config.schedule, t)
        norm, finite = self.update(losses[parts.objective.name], lr)
        state.step += 1
        state.sequences += batch
        state.tokens += batch * parts.seq_len
        seconds = self.spend(meeting=self.meets)
        before = state.progress if self.apart and not self.meets else self.met
        if (due := self._due(before)) and self._wait():
            seconds += self.spend()
        state.reached = state.progress
        if not self.apart or self.meets:
            self.met = state.reached
        loss = losses.pop(parts.objective.name)
        return Step(loss, losses, norm, finite, lr, batch, last, before, state.reached, seconds, due)

    def update(self, loss: torch.Tensor, lr: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Clip and update, unless loss or gradient is not finite; returns the gradient's norm and whether it was done.

        Decided on the device: what is not finite never reaches the weights, and the host need not wait to know.
        """
        parts, frozen = self.parts, self.frozen
        if frozen:
            frozen.drop_gradients()
        norm = self.world.clip(parts.wrapped.parameters(), self.config.clip)
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        for group in parts.optimiser.param_groups:
            group["lr"] = lr * group.get("lr_factor", 1.0)
        self.world.update(parts.optimiser, finite)
        if frozen:
            frozen.restore()
        return norm, finite

    def jump(self, state: TrainState) -> None:
        """Go on from where another worker stands."""
        for field in fields(TrainState):
            setattr(self.state, field.name, getattr(state, field.name))
        self.met = self.state.reached
        assert isinstance(self.loader, Movable)
        self.loader.move(self.state.sequences)

    @property
    def apart(self) -> bool:
        """Whether processes train alone between their meetings."""
        return self.config.sync == "outer"

    @property
    def meets(self) -> bool:
        """Whether the hosts of several processes may meet after the present step; workers apart do, also at the end."""
        if self.apart:
            return self.state.step % self.config.outer_steps == 0 or self.state.progress >= 1
        return self.world.size == 1 or self.state.step % MEETING_STEPS == 0

    def spend(self, *, meeting: bool = False) -> float:
        """Count this process's seconds since the stopwatch's start or last lap against the budget, and return them.

        Steps do, and hooks that start the stopwatch themselves; what other hooks take is not training. With several
        processes and a budget in hours the seconds wait for the next meeting, which is here if `meeting`.
        """
        state, seconds = self.state, self.stopwatch.lap()
        self.pending += seconds
        state.uncounted += self.stopwatch.uncounted
        self.stopwatch.uncounted = 0.0
        alone = self.world.size == 1 or self.config.budget_hours is None
        if alone or meeting:
            state.seconds += self.pending if alone else self.world.agree([self.pending])[0]
            self.pending = 0.0
        state.progress = progress(self.config, tokens=state.tokens, steps=state.step, seconds=state.seconds)
        return seconds

    def _wait(self) -> bool:
        """Wait until a GPU has done what it was asked for; False on a CPU, which has nothing to catch up on.

        What it has still to do is the steps' time; a hook that waits for it would hide it from the budget.
        """
        if self.world.device.type != "cuda":
            return False
        torch.cuda.synchronize()
        return True

    def _due(self, before: float) -> bool:
        config, state = self.config, self.state
        marks = (config.validations, config.checkpoints)
        return state.step % config.log_steps == 0 or any(crosses_mark(before, state.progress, mark) for mark in marks)

    def _batch(self, t: float) -> int:
        """Sequences of the next step; the last one of a token budget is cut to what is left, in microbatches."""
        batch = batch_at(self.config, t, self.world.workers)
        if self.config.budget_tokens is not None:
            unit = self.config.microbatch * self.world.workers
            left = -(-(self.config.budget_tokens - self.state.tokens) // (self.parts.seq_len * unit)) * unit
            batch = min(batch, left)
        return batch

    def _accumulate(self, microbatches: int) -> tuple[Batch, dict[str, torch.Tensor]]:
        """Gradients of as many microbatches; returns the last of them, and the losses' means over all processes."""
        parts, totals = self.parts, dict[str, torch.Tensor]()
        for number in range(1, microbatches + 1):
            batch = next(self.batches).to(self.world.device)
            begin_pass(self.config)
            # Gradients travel between processes once per update, with its last microbatch.
            last = number == microbatches
            with contextlib.nullcontext() if last else self.world.no_sync(parts.wrapped):
                loss, losses = parts.objective.losses(parts.wrapped, batch)
                self.world.backward(loss / microbatches)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value / microbatches
        return batch, {name: self.world.of_step(value, "mean") for name, value in totals.items()}
