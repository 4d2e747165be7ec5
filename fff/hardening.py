"""Going from soft to hard: what is set on a model's layers, and schedules. Not layers nor losses."""

import contextlib
import math
from collections.abc import Iterator

from torch import nn

from fff.layers.base import Hardenable
from fff.losses import TREE_LOSSES, Decisions, balance_loss, entropy_loss
from fff.meanwhile import meanwhile

__all__ = [
    "FORMS",
    "LOSSES",
    "SCHEDULES",
    "Decisions",
    "Hardenable",
    "balance_loss",
    "entropy_loss",
    "hardenable",
    "scheduled",
    "set_hardening",
    "soft_evaluation",
]

FORMS = ("hard", "soft", "straight_through")
LOSSES = tuple(TREE_LOSSES)
SCHEDULES = ("constant", "linear", "cosine", "exponential", "step")


def hardenable(model: nn.Module) -> list[Hardenable]:
    """The FFF layers of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Hardenable)]


def set_hardening(
    model: nn.Module,
    *,
    form: str = "hard",
    temperature: float = 1.0,
    region_leak: float = 0.0,
    losses: tuple[str, ...] = (),
) -> None:
    """Set form, temperature, leak and losses of every FFF layer of a model.

    Raises:
        ValueError: an unknown name, a temperature not above 0, a leak outside [0, 0.5], or a provider that cannot take
            the form.
    """
    if form not in FORMS:
        raise ValueError(f"form={form!r} is unknown; allowed: {', '.join(FORMS)}")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be above 0; the hard form is form='hard'")
    if not 0 <= region_leak <= 0.5:
        raise ValueError(
            f"region_leak={region_leak} must be from 0 to 0.5: above, most decisions would be turned round"
        )
    for name in losses:
        if name not in LOSSES:
            raise ValueError(f"losses names {name!r}; allowed: {', '.join(LOSSES)}")
    for layer in hardenable(model):
        if reason := layer.refuse_form(form):
            raise ValueError(f"form={form!r} cannot be taken: {reason}")
        layer.form, layer.region_leak, layer.losses = form, region_leak, tuple(losses)
        layer.temperature.fill_(temperature)


@contextlib.contextmanager
def soft_evaluation(model: nn.Module) -> Iterator[None]:
    """Inside, the FFF layers of a model in evaluation mode are soft, at their present temperature."""
    with meanwhile(hardenable(model), "evaluation_form", "soft"):
        yield


def scheduled(schedule: str, start: float, end: float, t: float) -> float:
    """A weight or temperature at progress t in [0, 1], from `start` to `end`; a pure function.

    constant: start. linear, cosine: as they say. exponential: start * (end / start) ** t, both above 0. step: start
    until half of the way, then end.

    Raises:
        ValueError: unknown schedule, or an exponential one from or to 0.
    """
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start + (end - start) * t
    if schedule == "cosine":
        return end + (start - end) * 0.5 * (1 + math.cos(math.pi * t))
    if schedule == "exponential":
        if start <= 0 or end <= 0:
            raise ValueError(f"an exponential schedule needs both ends above 0, not {start} and {end}")
        return start * (end / start) ** t
    if schedule == "step":
        return start if t < 0.5 else end
    raise ValueError(f"schedule={schedule!r} is unknown; allowed: {', '.join(SCHEDULES)}")
