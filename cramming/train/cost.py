"""What a run will cost, in tokens, FLOPs and hours, before it begins. Not what it used (meter.py)."""

from dataclasses import dataclass

from cramming.model.flops import ModelFlops
from cramming.train.config import TrainConfig


@dataclass(frozen=True)
class Cost:
    """What a recipe reads.

    Attributes:
        tokens: None for a budget in hours, which a machine's speed turns into tokens.
        hours: None for a budget in tokens or steps.
    """

    tokens: float | None
    hours: float | None


def cost_of(config: TrainConfig, seq_len: int, processes: int = 1) -> Cost:
    """What the budget comes to; with steps and a ramp of the batch, its mean."""
    if config.budget_hours is not None:
        return Cost(None, config.budget_hours)
    if config.budget_tokens is not None:
        return Cost(float(config.budget_tokens), None)
    assert config.budget_steps is not None
    first = config.microbatch * processes
    mean = config.batch - config.batch_ramp * max(0, config.batch - first) / 2
    return Cost(config.budget_steps * mean * seq_len, None)


def told(cost: Cost, flops: ModelFlops, peak: float | None, device: str) -> str:
    """The cost in one line.

    Args:
        peak: FLOP/s of all devices together, where they are known; hours and tokens then follow as a bound.
        device: what it runs on, for who wonders why nothing follows.
    """
    if flops.path == flops.dense:
        each = f"{figure(flops.path / 1e6)} MFLOPs a token"
    else:
        each = (
            f"{figure(flops.path / 1e6)} MFLOPs a token on its path ({figure(flops.dense / 1e6)} through all neurons)"
        )
    if cost.tokens is not None:
        given = f"about {cost.tokens:,.0f} tokens, {cost.tokens * flops.path:.3g} FLOPs"
        follows = "hours" if peak is None else f"at least {figure(cost.tokens * flops.path / peak / 3600)} hours"
    else:
        given = f"{cost.hours:,.3g} hours"
        follows = "tokens" if peak is None else f"at most {figure((cost.hours or 0) * 3600 * peak / flops.path)} tokens"
    if peak is None:
        return f"{given}; {each}; {follows} are not known before it runs, as the peak of {device} is not"
    return f"{given}; {each}; {follows} at the peak of {device}, {figure(peak / 1e12)} TFLOP/s"


def figure(value: float) -> str:
    """Three digits; whole from 100 on."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
