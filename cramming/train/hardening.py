"""Configuration group `hardening`, and its part of every step: schedules set on the model. Not the maths (fff)."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cramming.checks import number, numbers, one_of
from cramming.errors import UserError
from fff.hardening import LOSSES, SCHEDULES, scheduled, set_hardening

if TYPE_CHECKING:
    from cramming.model.language import CrammedLanguageModel

# The form that a recipe gives to the layers.
LAYER_FORMS = {"hard": "hard", "entropy": "soft", "anneal": "soft", "straight_through": "straight_through"}


@dataclass(frozen=True)
class Ramp:
    """A number that follows progress: from `start` to `end` (null: the same) along a schedule."""

    schedule: str = "constant"  # constant, linear, cosine, exponential, step (at half of the way)
    start: float = 0.0
    end: float | None = None

    def at(self, t: float) -> float:
        """The value at progress t in [0, 1]."""
        return scheduled(self.schedule, self.start, self.start if self.end is None else self.end, t)

    def check(self, key: str, least: float, *, open_end: bool = False) -> None:
        """Raise UserError naming `key` for an unknown schedule or an end below `least` (at it too, with `open_end`)."""
        one_of(f"{key}.schedule", self.schedule, SCHEDULES)
        bound = {"above": least} if open_end else {"least": least}
        numbers(key, self, ("start", "end"), **bound)
        if self.schedule == "exponential" and min(self.start, self.start if self.end is None else self.end) <= 0:
            raise UserError(f"{key}: an exponential schedule needs start and end above 0.")


@dataclass(frozen=True)
class TemperatureRamp(Ramp):
    """A temperature: 1 unless said otherwise."""

    start: float = 1.0


@dataclass(frozen=True)
class HardeningConfig:
    """How FFF layers go from soft to hard in pretraining; without such layers it has no effect.

    Forms: "hard" (arXiv 2311.10770: no gradient through decisions), "entropy" (soft mixture + weight x the nodes'
    summed entropies, arXiv 2308.14711), "anneal" (soft mixture, temperature falls), "straight_through" (hard forward,
    gradient of the probabilities of the decisions on the path).
    """

    form: str = "hard"
    temperature: TemperatureRamp = field(default_factory=TemperatureRamp)  # of the decisions' sigmoids
    entropy_weight: Ramp = field(default_factory=Ramp)  # of the summed entropies (nats per token, mean over layers)
    # Of the balance loss, in [0, 1], see fff.hardening.balance_loss: of each microbatch by itself, mean over them.
    balance_weight: Ramp = field(default_factory=Ramp)
    region_leak: float = 0.0  # probability that a decision is turned round in training
    harden_at: float = 1.0  # progress from which training is exactly hard, without hardening losses

    def __post_init__(self) -> None:
        one_of("hardening.form", self.form, LAYER_FORMS)
        self.temperature.check("hardening.temperature", 0.0, open_end=True)
        self.entropy_weight.check("hardening.entropy_weight", 0.0)
        self.balance_weight.check("hardening.balance_weight", 0.0)
        number("hardening.region_leak", self.region_leak, least=0, most=0.5, hint="it is a probability")
        number("hardening.harden_at", self.harden_at, least=0, most=1, hint="it is a share of the budget")

    @property
    def losses(self) -> tuple[str, ...]:
        """The auxiliary losses that have a weight."""
        ramps = {"entropy": self.entropy_weight, "balance": self.balance_weight}
        return tuple(name for name in LOSSES if ramps[name] != Ramp())


class Hardening:
    """Sets a model's FFF layers for a step at progress t.

    Raises:
        UserError: the layers' provider cannot take the form.
    """

    def __init__(self, config: HardeningConfig, model: "CrammedLanguageModel") -> None:
        self.config, self.model = config, model
        self.values = self.apply(0.0)

    def apply(self, t: float) -> dict[str, float]:
        """Set form, temperature, leak and weights; returns what a history shows of them."""
        config = self.config
        hard = t >= config.harden_at
        form, losses = ("hard", ()) if hard else (LAYER_FORMS[config.form], config.losses)
        temperature = config.temperature.at(t)
        try:
            set_hardening(
                self.model,
                form=form,
                temperature=temperature,
                region_leak=0.0 if hard else config.region_leak,
                losses=losses,
            )
        except ValueError as error:
            raise UserError(f"hardening: {error}") from None
        weights = {"entropy": config.entropy_weight.at(t), "balance": config.balance_weight.at(t)}
        if losses:
            self.model.set_auxiliary_weights(weights)
        self.values = {"hardening/hard": float(form == "hard"), "hardening/temperature": temperature}
        self.values |= {f"hardening/{name}_weight": weights[name] for name in losses}
        return self.values
