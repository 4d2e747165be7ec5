"""When layers that balance their choices without a loss move their biases: after each update. Not how (fff.balance)."""

from cramming.train.loop import Hook, Step, Trainer
from fff.balance import balanced_layers, forget, rebalance


class Balance(Hook):
    """Moves the biases by the step's choices over all microbatches and processes.

    Stands before whatever evaluates or writes checkpoints: those see a step's weights and biases together.
    """

    def on_start(self, trainer: Trainer) -> None:
        """Drop what passes before the first step have counted, such as those that warm up a compiler."""
        forget(trainer.parts.model)

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Move; the host waits for no device, and the processes meet only if there is such a layer."""
        model = trainer.parts.model
        with trainer.world.whole(balanced_layers(model), "b_"):
            rebalance(model, trainer.world.of_step)
