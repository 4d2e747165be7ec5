"""Who computed a run's layers, over all of its parts. Not the choice (fff.kernels)."""

import warnings
from typing import Any

from cramming.record import computed_by, in_one_word
from cramming.train.loop import Hook, Step, Trainer


class Providers(Hook):
    """Remembers the providers of the FFF layers, and says when a run goes on with other ones than it had.

    Equal in results to rounding, they are not equal in bits: a machine without a compiler, say, takes another.
    """

    name = "providers"

    def __init__(self) -> None:
        self.before: frozenset[str] = frozenset()  # of the run that this one continues
        self.now: frozenset[str] = frozenset()
        self.told = False

    @property
    def names(self) -> str | None:
        """All of them for a record; None where no layer asked one."""
        return in_one_word(self.before | self.now)

    def state(self) -> dict[str, Any]:
        """Their names."""
        return {"names": sorted(self.before | self.now)}

    def restore(self, state: dict[str, Any]) -> None:
        """Those of the run so far."""
        self.before = frozenset(state["names"])

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Look, where the history has a row anyway or a checkpoint will be."""
        if self.now and not (step.due or trainer.stop_reason is not None):
            return
        self.now = computed_by(trainer.parts.model)
        if self.before and (other := self.now - self.before) and not self.told:
            self.told = True
            warnings.warn(
                f"The run began with provider {', '.join(sorted(self.before))} and goes on with "
                f"{', '.join(sorted(other))}: results agree, but not to the last bit. ffn.provider asks for one.",
                stacklevel=2,
            )
