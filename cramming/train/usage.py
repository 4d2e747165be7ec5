"""What the leaves do in pretraining: measured at validation marks, counted in between. Not the figures (fff.usage)."""

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cramming.train.hooks import Hook
from cramming.train.loop import Step, Trainer
from cramming.train.validate import Validation
from fff.hardening import hardenable, soft_evaluation
from fff.layers.base import Route, Routed
from fff.regions import routed_layers
from fff.usage import QUANTILES, Usage, measure, unit_counts, usage_entropy

TREES_SHOWN = 8  # with more trees than this a row has their mean alone

# Called at each mark with the step, the layers' figures and the picture's file.
Show = Callable[[int, list[Usage], Path], None]


@contextmanager
def recorded_routes(model: nn.Module) -> Iterator[list[list[Route]]]:
    """Inside, each forward pass of the model adds its flat route to its layer's list."""
    layers = list(routed_layers(model).values())
    found: list[list[Route]] = [[] for _ in layers]

    def record(number: int) -> Callable[[Routed, tuple[Tensor, ...]], None]:
        def hook(layer: Routed, inputs: tuple[Tensor, ...]) -> None:
            found[number].append(layer.route(inputs[0]).flat())

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
    changed since the last mark (churn), the soft-hard gap (MLM loss soft minus hard), and the share of the time since
    the last mark that these measures took. In between, every `steps` steps, the leaves of one training microbatch are
    counted, over all processes.

    Args:
        sequences: probe sequences, from the head of the validation set.
        folder: where the pictures go.
        shows: told of each mark, on the main process.
    """

    def __init__(self, validation: Validation, *, sequences: int, steps: int, folder: Path, shows: list[Show]) -> None:
        self.validation, self.steps, self.folder, self.shows = validation, steps, folder, shows
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
        """Go on from a checkpoint's state."""
        self.leaves, self.counts = state["leaves"], state["counts"]

    def on_start(self, trainer: Trainer) -> None:
        """Note the time."""
        self.started = trainer.state.seconds

    def on_step(self, trainer: Trainer, step: Step) -> None:
        """Count or measure when it is time, and count the time against the budget."""
        self.latest = {}
        marked = step.crosses(trainer.config.validations)
        if not marked and trainer.state.step % self.steps:
            return
        started = trainer.clock()
        self._count(trainer)
        if marked:
            self._mark(trainer)
        spent = trainer.agree(trainer.clock() - started)
        trainer.add_seconds(spent)
        self.seconds += spent
        if marked and self.latest:
            now = trainer.state.seconds
            self.latest["fff/usage_time"] = self.seconds / (now - self.started)
            self.seconds, self.started = 0.0, now

    @torch.no_grad()
    def _count(self, trainer: Trainer) -> None:
        """Add the leaves of the step's last microbatch, on the present weights."""
        model, batch = trainer.raw_model.eval(), trainer.last_batch
        with trainer.accelerator.autocast(), recorded_routes(model) as routes:
            model.model(input_ids=batch.input_ids)  # type: ignore[operator]
        found = [unit_counts(route).cpu() for (route,) in routes]
        self.counts = [a + b for a, b in zip(self.counts, found, strict=True)] if self.counts else found

    @torch.no_grad()
    def _mark(self, trainer: Trainer) -> None:
        accelerator, model = trainer.accelerator, trainer.raw_model.eval()
        counts = self.counts
        if accelerator.num_processes > 1:
            counts = [accelerator.reduce(count.to(accelerator.device), "sum").cpu() for count in counts]
        self.counts = []
        if not accelerator.is_main_process:
            return
        with accelerator.autocast(), recorded_routes(model) as routes:
            hard = self._probe_loss(trainer)
        temperatures = [float(getattr(layer, "temperature", 1.0)) for layer in routed_layers(model).values()]
        usages = [measure(Route.joined(route), t) for route, t in zip(routes, temperatures, strict=True)]
        self.latest = summary(usages, self.leaves)
        if hardenable(model):
            with accelerator.autocast(), soft_evaluation(model):
                self.latest["fff/soft_hard_gap"] = self._probe_loss(trainer) - hard
        self.latest |= running(counts)
        for number, usage in enumerate(usages):
            earlier = self.leaves[number] if self.leaves else None
            self.latest |= layer_row(f"fff/layer_{number:02d}", usage, earlier)
        self.leaves = [usage.leaves for usage in usages]
        picture = self.folder / f"step-{trainer.state.step:08d}.png"
        for show in self.shows:
            show(trainer.state.step, usages, picture)

    def _probe_loss(self, trainer: Trainer) -> float:
        total, count = 0.0, 0
        for batch in self.batches:
            b = batch.to(trainer.accelerator.device)
            output = trainer.raw_model(input_ids=b.input_ids, masked_positions=b.masked_positions, labels=b.labels)
            total, count = total + float(output.loss) * b.labels.numel(), count + b.labels.numel()
        return total / count


def summary(usages: list[Usage], earlier: list[Tensor]) -> dict[str, float]:
    """The few figures to watch, means over layers and trees; dead leaves are summed over them."""

    def mean(values: list[Tensor]) -> float:
        return float(torch.stack([value.double().mean() for value in values]).mean())

    row = {
        "fff/usage_entropy": mean([u.entropy for u in usages]),
        "fff/usage_entropy_relative": mean([u.relative_entropy for u in usages]),
        "fff/dead_leaves": float(sum(int(u.dead.sum()) for u in usages)),
        "fff/fullest_leaf": mean([u.fullest for u in usages]),
        "fff/margin_median": mean([u.margins[:, QUANTILES.index(0.5)] for u in usages]),
    }
    if usages[0].depth:
        row |= {
            "fff/imbalance": mean([u.imbalance for u in usages]),
            "fff/decision_entropy": mean([u.decision_entropy for u in usages]),
            "fff/decided": mean([u.decided for u in usages]),
        }
    if earlier:
        row["fff/churn"] = mean([u.churn(e) for u, e in zip(usages, earlier, strict=True)])
    return row


def running(counts: list[Tensor]) -> dict[str, float]:
    """Usage over the training tokens counted since the last mark."""
    entropy = torch.stack([usage_entropy(count).mean() for count in counts]).mean()
    return {
        "fff/running_usage_entropy": float(entropy),
        "fff/running_dead_leaves": float(sum(int((count == 0).sum()) for count in counts)),
        "fff/running_tokens": float(counts[0][0].sum()),
    }


def layer_row(prefix: str, usage: Usage, earlier: Tensor | None) -> dict[str, float]:
    """One layer's figures per level (means over trees) and, where there are few trees, per tree."""
    row: dict[str, float] = {}
    per_tree = {
        "usage_entropy": usage.entropy,
        "usage_entropy_relative": usage.relative_entropy,
        "dead_leaves": usage.dead.double(),
        "fullest_leaf": usage.fullest,
    }
    per_tree |= {f"margin_q{round(100 * q):02d}": usage.margins[:, i] for i, q in enumerate(QUANTILES)}
    if earlier is not None:
        per_tree["churn"] = usage.churn(earlier)
    for name, values in per_tree.items():
        row[f"{prefix}/{name}"] = float(values.mean())
        if 1 < len(values) <= TREES_SHOWN:
            row |= {f"{prefix}/tree_{tree}/{name}": float(value) for tree, value in enumerate(values)}
    per_level = {"imbalance": usage.imbalance, "decision_entropy": usage.decision_entropy, "decided": usage.decided}
    for name, matrix in per_level.items():
        row |= {f"{prefix}/level_{level:02d}/{name}": float(value) for level, value in enumerate(matrix.mean(0))}
    return row


def heatmap(step: int, usages: list[Usage], file: Path) -> None:
    """Draw tokens per leaf, layers downwards and leaves across (all trees side by side), as a PNG.

    Without matplotlib it warns: a machine for training alone may lack it, and the figures are in the history.
    """
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(f"matplotlib is not installed: no pictures in {file.parent}", stacklevel=2)
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shares = torch.stack([(u.counts / u.counts.sum(-1, keepdim=True)).flatten() for u in usages])
    leaves = usages[0].counts.shape[1]
    figure, axes = pyplot.subplots(figsize=(10, 1.6 + 0.35 * len(usages)), layout="constrained")
    image = axes.imshow(
        torch.log10(shares * leaves + 1e-3), aspect="auto", cmap="magma", interpolation="nearest", vmin=-3
    )
    trees = usages[0].counts.shape[0]
    axes.set(xlabel=f"leaf, left to right{f' ({trees} trees)' if trees > 1 else ''}", ylabel="layer")
    axes.set_yticks(range(len(usages)))
    axes.set_title(f"Leaf usage on the probe set, step {step}")
    figure.colorbar(image, label="log10 of usage / even usage")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def wandb_usage(run: Any) -> Show:
    """A show that logs the picture and a histogram of leaf usage per layer to a W&B run; comes after `heatmap`."""
    import wandb

    def show(step: int, usages: list[Usage], file: Path) -> None:
        row: dict[str, Any] = {"fff/leaf_usage": wandb.Image(str(file))} if file.exists() else {}
        for number, usage in enumerate(usages):
            share = (usage.counts / usage.counts.sum(-1, keepdim=True)).flatten()
            row[f"fff/layer_{number:02d}/leaf_share"] = wandb.Histogram(share.tolist())
        run.log(row, step=step)

    return show
