"""What the leaves do in pretraining: measured at validation marks, counted in between. Not the figures (fff.usage)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from cramming.train.loop import Hook, Step, Trainer
from cramming.train.usage_rows import layer_row, running, summary
from cramming.train.validate import Validation
from fff.hardening import hardenable, soft_evaluation
from fff.layers.base import Route, Routed
from fff.regions import routed_layers
from fff.usage import Usage, measure, unit_counts

# Called at each mark with the step, the layers' figures and the picture's file.
Show = Callable[[int, list[Usage], Path], None]


@contextmanager
def recorded_routes(model: nn.Module) -> Iterator[list[list[Route]]]:
    """Inside, each forward pass of the model adds its flat route to its layer's list."""
    layers = list(routed_layers(model).values())
    found: list[list[Route]] = [[] for _ in layers]

    def record(number: int) -> Callable[[Routed, tuple[Tensor, ...]], None]:
        def hook(layer: Routed, inputs: tuple[Tensor, ...]) -> None:
            found[number].append(layer.route(*inputs).flat())

        return hook

    handles = [layer.register_forward_pre_hook(record(number)) for number, layer in enumerate(layers)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class UsageHook(Hook):
    """Leaf usage of every layer of which tokens use a part.

    At validation marks on a fixed probe set: figures per layer, tree and level, the share of probe tokens whose leaf
    changed since the last mark (churn), the soft-hard gap (loss soft minus hard), and the share of the time since
    the last mark that these measures took. In between, every `steps` steps, the leaves of one training microbatch are
    counted, over all processes. Every process makes the same passes, the main one alone takes the figures.

    Args:
        sequences: probe sequences, from the head of the validation set.
        folder: where the pictures go.
        shows: told of each mark, on the main process.
    """

    name = "usage"

    def __init__(self, validation: Validation, *, sequences: int, steps: int, folder: Path, shows: list[Show]) -> None:
        self.objective, self.steps, self.folder, self.shows = validation.objective, steps, folder, shows
        self.batches = validation.batches()[: max(1, sequences // validation.microbatch)]
        self.latest: dict[str, float] = {}
        self.leaves: list[Tensor] = []  # of the probe tokens at the last mark, per layer
        self.counts: list[Tensor] = []  # of training tokens since then
        self.seconds = 0.0  # that this hook took since then
        self.started = 0.0  # when that was, in seconds of the budget

    def state(self) -> dict[str, list[Tensor]]:
        """What a checkpoint must keep so that a resumed run finds the same figures."""
        return {"leaves": self.leaves, "counts": self.counts}

    def restore(self, state: dict[str, list[Tensor]]) -> None:
        """Go on from a checkpoint's state; with another probe set than then, churn begins anew."""
        self.counts = state["counts"]
        tokens = sum(batch.input_ids.numel() for batch in self.batches)
        self.leaves = [leaves for leaves in state["leaves"] if len(leaves) == tokens]

    def on_start(self, trainer: Trainer) -> None:
        """Note the time."""
        self.started = trainer.state.seconds

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Count or measure when it is time, and count the time against the budget."""
        self.latest = {}
        marked = step.crosses(trainer.config.validations)
        if not marked and trainer.state.step % self.steps:
            return
        trainer.stopwatch.start()
        self._count(trainer, step)
        if marked:
            self._mark(trainer)
        self.seconds += trainer.spend()
        if marked and self.latest:
            now = trainer.state.seconds
            self.latest["fff/usage_time"] = self.seconds / max(now - self.started, 1e-9)
            self.seconds, self.started = 0.0, now

    @torch.no_grad()
    def _count(self, trainer: Trainer, step: Step) -> None:
        """Add the leaves of the step's last microbatch, on the present weights."""
        model = trainer.parts.model.eval()
        with trainer.world.autocast(), recorded_routes(model) as routes:
            self.objective.encode(model, step.last)
        found = [unit_counts(route).cpu() for (route,) in routes]
        self.counts = [a + b for a, b in zip(self.counts, found, strict=True)] if self.counts else found

    @torch.no_grad()
    def _mark(self, trainer: Trainer) -> None:
        world, model = trainer.world, trainer.parts.model.eval()
        counts = [world.reduce(count.to(world.device), "sum").cpu() for count in self.counts]
        self.counts, gap = [], {}
        with world.autocast(), recorded_routes(model) as routes:
            hard = self._probe_loss(trainer)
        if hardenable(model):
            with world.autocast(), soft_evaluation(model):
                gap = {"fff/soft_hard_gap": self._probe_loss(trainer) - hard}
        if not world.main:
            return
        temperatures = [float(getattr(layer, "temperature", 1.0)) for layer in routed_layers(model).values()]
        usages = [measure(Route.joined(route), t) for route, t in zip(routes, temperatures, strict=True)]
        self._take(trainer.state.step, usages)
        self.latest |= gap | running(counts)

    def _take(self, step: int, usages: list[Usage]) -> None:
        """The figures of a mark into `latest`, and shown."""
        self.latest = summary(usages, self.leaves)
        for number, usage in enumerate(usages):
            earlier = self.leaves[number] if self.leaves else None
            self.latest |= layer_row(f"fff/layer_{number:02d}", usage, earlier)
        self.leaves = [usage.leaves for usage in usages]
        picture = self.folder / f"step-{step:08d}.png"
        for show in self.shows:
            show(step, usages, picture)

    def _probe_loss(self, trainer: Trainer) -> float:
        """The objective's loss on the probe set, by the plain model."""
        world = trainer.world
        found = [self.objective.sums(trainer.parts.model, batch.to(world.device)) for batch in self.batches]
        return self.objective.figures(torch.stack(found).sum(0).tolist())["loss"]
