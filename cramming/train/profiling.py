"""A profile of a few steps: where the host waits for the device, and what that does. Not benchmarks (bench.py)."""

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from cramming.files import write_json
from cramming.train.loop import Hook, Step, Trainer

# Operators that read a tensor from the device, and the driver's calls that wait for it.
WAITS = (
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "cudaStreamSynchronize",
    "cudaDeviceSynchronize",
    "cudaEventSynchronize",
    "cudaMemcpy",
    "cuStreamSynchronize",
    "cuCtxSynchronize",
    "cuEventSynchronize",
)
# What a run on a GPU should use, by parts of the names of operators and kernels.
USES = {"flash attention": "flash", "fused AdamW": "fused_adam"}
END = "end of the profiled steps"
SHOWN = 25  # kernels and operators, by their time


class Profile:
    """Profiles `steps` whole steps between two rows of the history, the earliest that follow the first row.

    Writes `profile.json`: per step, seconds, busy seconds of the device, how often the host waited (`waits`, by name;
    empty is the aim on a GPU; on a CPU the finite guard reads each loss), which of USES were seen, the costliest
    operators and kernels. It is two hooks, because the others belong to what is profiled: `first` and `last` in the
    list.
    """

    def __init__(self, steps: int, file: Path) -> None:
        self.steps, self.file = steps, file
        self.running: Any = None
        self.left = steps
        self.done = False
        self.first, self.last = _First(self), _Last(self)

    def start(self) -> None:
        """Begin with the next step."""
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        self.running = profile(activities=activities)
        self.running.start()

    def stop(self) -> None:
        """End, and write what was found."""
        with record_function(END):
            pass
        running, self.running, self.done = self.running, None, True
        running.stop()
        write_json(self.file, summary(running, self.steps - self.left))


class _First(Hook):
    def __init__(self, owner: Profile) -> None:
        self.owner = owner

    def on_step(self, trainer: Trainer, step: Step) -> None:
        owner = self.owner
        if owner.running is not None:
            owner.left -= 1
            if not owner.left:
                owner.stop()

    def on_end(self, trainer: Trainer) -> None:
        if self.owner.running is not None:
            self.owner.stop()


class _Last(Hook):
    def __init__(self, owner: Profile) -> None:
        self.owner = owner

    def on_step(self, trainer: Trainer, step: Step) -> None:
        # The step after a row: no hook reads anything, so the profile begins with an empty list of its own waits.
        after_row = trainer.state.step > trainer.config.log_steps and trainer.state.step % trainer.config.log_steps == 1
        if after_row and not step.due and self.owner.running is None and not self.owner.done:
            self.owner.start()


def summary(run: profile, steps: int) -> dict[str, Any]:
    """What a finished profile says of its steps; events after the mark END are the profiler's own."""
    events = list(run.events() or [])
    end = max((event.time_range.start for event in events if event.name == END), default=float("inf"))
    within = [event for event in events if event.time_range.start < end]
    host = [event for event in within if event.device_type == torch.autograd.DeviceType.CPU]
    device = [event for event in within if event.device_type == torch.autograd.DeviceType.CUDA]
    begin = min((event.time_range.start for event in within), default=0.0)
    waits: dict[str, int] = {}
    for event in host:
        if event.name in WAITS:
            waits[event.name] = waits.get(event.name, 0) + 1
    per = max(1, steps)
    return {
        "steps": steps,
        "seconds_per_step": (end - begin) / 1e6 / per if host else 0.0,
        "device_busy_seconds_per_step": _covered(device) / 1e6 / per,
        "waits": waits,
        "uses": {what: any(part in event.name for event in within) for what, part in USES.items()},
        "host": _costliest(host, per),
        "device": _costliest(device, per),
    }


def _covered(events: list[Any]) -> float:
    """Microseconds in which at least one of the events runs."""
    total, until = 0.0, float("-inf")
    for start, end in sorted((event.time_range.start, event.time_range.end) for event in events):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _costliest(events: list[Any], steps: int) -> list[dict[str, Any]]:
    """Name, calls and seconds per step (children included) of the events that take longest."""
    found: dict[str, list[float]] = {}
    for event in events:
        seen = found.setdefault(event.name, [0, 0.0])
        seen[0] += 1
        seen[1] += event.time_range.elapsed_us() / 1e6
    ordered = sorted(found.items(), key=lambda item: -item[1][1])[:SHOWN]
    return [{"name": name, "calls": calls / steps, "seconds": seconds / steps} for name, (calls, seconds) in ordered]
