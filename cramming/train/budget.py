"""Progress t in [0, 1], and what follows from it: learning rate, batch, marks. Pure functions. Not the loop."""

import math

from cramming.train.config import TrainConfig


def progress(config: TrainConfig, *, tokens: int, steps: int, seconds: float) -> float:
    """Share of the budget that is used, in [0, 1]."""
    if config.budget_tokens is not None:
        used = tokens / config.budget_tokens
    elif config.budget_steps is not None:
        used = steps / config.budget_steps
    else:
        assert config.budget_hours is not None
        used = seconds / 3600 / config.budget_hours
    return min(1.0, used)


def lr_factor(schedule: str, t: float) -> float:
    """Factor on the peak learning rate at progress t.

    "triangle2" is the recipe's `budget-triangle2`: min(0.25 + t, 4 - 4t), a quarter at the start, 1 at t = 0.75, 0 at
    the end (arXiv 2212.14034, section 4.3). "linear" and "cosine" warm up over the first 5 % and then fall to 0.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "triangle2":
        return max(0.0, min(0.25 + t, 4.0 - 4.0 * t))
    warm, rest = min(1.0, t / 0.05), (1.0 - t) / 0.95
    return min(warm, rest) if schedule == "linear" else min(warm, 0.5 * (1.0 + math.cos(math.pi * (1.0 - rest))))


def batch_at(config: TrainConfig, t: float, processes: int) -> int:
    """Sequences of the step at progress t: a linear ramp from one microbatch, in whole microbatches of all processes.

    The size of the ramp's start is `microbatch * processes`, so that runs which agree on it agree on every batch.
    """
    unit = config.microbatch * processes
    share = 1.0 if config.batch_ramp == 0 else min(1.0, t / config.batch_ramp)
    wanted = unit + share * max(0, config.batch - unit)
    return unit * max(1, round(wanted / unit))


def crosses_mark(before: float, after: float, marks: int) -> bool:
    """Whether one of `marks` evenly spaced marks of progress, the last at t = 1, lies in (before, after]."""
    return math.floor(after * marks) > math.floor(before * marks)
