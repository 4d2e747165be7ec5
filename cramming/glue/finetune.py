"""Finetuning one task with one seed and scoring it after the last epoch. Not the runs of a suite, nor their records."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cramming.data.lengths import equal_lengths
from cramming.errors import Diverged, UserError
from cramming.glue.config import GlueConfig
from cramming.glue.encode import Encoded, encode, evaluation_batches, training_batches
from cramming.glue.metrics import compute_metrics
from cramming.glue.schedule import lr_factor, total_steps
from cramming.glue.sources import TaskData
from cramming.glue.tasks import Task
from cramming.parallel.world import World, open_world
from fff.kernels.int8_linear import unusable
from fff.optimise import optimise_for_cpu

CHECK_EVERY = 16  # updates between two looks at the loss; each look waits for the device

Log = Callable[[dict[str, float]], None]


@dataclass(frozen=True)
class EncodedTask:
    """A task ready for training: tokenised once, used by every seed. `warmup` and `steps` count updates."""

    task: Task
    train: Encoded
    dev: dict[str, Encoded]
    epochs: int
    steps: int
    warmup: int


def single_process(precision: str) -> World:
    """This process and its device; UserError when the precision needs a GPU or several processes were started."""
    world = open_world("glue.precision", precision)
    if world.size > 1:
        raise UserError(
            f"GLUE runs in one process, not {world.size}: start scripts/glue.py with plain python, and share tasks "
            "among machines with glue.tasks."
        )
    return world


def epochs_of(config: GlueConfig, task: Task) -> int:
    """Epochs of one task: the configuration's, else the task's own."""
    return task.epochs if config.epochs is None else config.epochs


def steps_of(config: GlueConfig, data: TaskData) -> int:
    """Updates of one run of this task."""
    return total_steps(len(data.train), config.batch, epochs_of(config, data.task))


def encode_task(config: GlueConfig, data: TaskData, tokenizer: PreTrainedTokenizerBase, warmup: int) -> EncodedTask:
    """Tokenise training and dev examples."""
    dev = {name: encode(tokenizer, split, config.max_length) for name, split in data.dev.items()}
    train = encode(tokenizer, data.train, config.max_length)
    return EncodedTask(data.task, train, dev, epochs_of(config, data.task), steps_of(config, data), warmup)


def finetune(
    config: GlueConfig,
    world: World,
    encoded: EncodedTask,
    make_model: Callable[[], PreTrainedModel],
    seed: int,
    log: Log | None = None,
) -> dict[str, float]:
    """Train and score one run; all randomness follows from `seed`.

    Args:
        make_model: gives the model with a fresh head; called after torch was seeded.
        log: told every 16 updates and at the end.

    Returns:
        The task's metrics (means over its dev sets, and `<metric>_<dev set>` where it has two), `train_loss` (mean of
        the last epoch), `epoch_seconds` (mean, training alone).

    Raises:
        Diverged: the loss is not finite.
        UndefinedMetricError: a metric has no value for what the model predicts.
    """
    torch.manual_seed(seed)
    model: torch.nn.Module = make_model()
    optimiser = torch.optim.AdamW(
        model.parameters(),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    try:
        model, optimiser = world.wrap(model, optimiser)
        loss, seconds = train(config, world, encoded, model, optimiser, seed, log)
        scores = evaluate_task(config, world, encoded, scored(config, model))
    finally:
        world.free()
    result = {**scores, "train_loss": loss, "epoch_seconds": seconds / encoded.epochs}
    if log:
        log({f"glue/{encoded.task.name}/{name}": value for name, value in result.items()})
    return result


def train(
    config: GlueConfig,
    world: World,
    encoded: EncodedTask,
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    seed: int,
    log: Log | None,
) -> tuple[float, float]:
    """All epochs; returns the mean loss of the last epoch and the seconds of all of them."""
    model.train()
    started, step, mean = time.perf_counter(), 0, math.nan
    task = encoded.task.name
    with tqdm(total=encoded.steps, desc=f"{task} seed {seed}", unit="step", leave=False, dynamic_ncols=True) as bar:
        for epoch in range(encoded.epochs):
            total, count = torch.zeros((), device=world.device), 0
            for indices in training_batches(len(encoded.train), config.batch, seed, epoch):
                rate = config.lr * lr_factor(step, encoded.steps, encoded.warmup)
                for group in optimiser.param_groups:
                    group["lr"] = rate
                batch = move(encoded.train.batch(indices), world.device)
                loss = model(**batch).loss
                world.backward(loss)
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                total, count, step = total + loss.detach(), count + 1, step + 1
                bar.update()
                if step % CHECK_EVERY == 0 or step == encoded.steps:
                    mean = finite(float(total) / count, step)
                    bar.set_postfix(loss=f"{mean:.3f}", epoch=epoch + 1)
                    if log:
                        log({f"glue/{task}/loss": mean, f"glue/{task}/lr": rate, f"glue/{task}/step": float(step)})
    return mean, time.perf_counter() - started


def finite(loss: float, step: int) -> float:
    """The loss, or Diverged."""
    if not math.isfinite(loss):
        raise Diverged(f"the training loss is {loss} at step {step}")
    return loss


@torch.inference_mode()
def evaluate_task(config: GlueConfig, world: World, encoded: EncodedTask, model: torch.nn.Module) -> dict[str, float]:
    """Metrics on every dev set of the task and, where there are two (MNLI), their means under the plain names."""
    model.eval()
    results = []
    for data in encoded.dev.values():
        padded = config.optimise is None
        predictions = predict(data, model, world.device, config.eval_batch, encoded.task.regression, padded=padded)
        results.append(compute_metrics(encoded.task.metrics, predictions, data.labels))
    means = {name: float(np.mean([result[name] for result in results])) for name in encoded.task.metrics}
    if len(results) > 1:
        for place, result in zip(encoded.dev, results, strict=True):
            means.update({f"{name}_{place}": value for name, value in result.items()})
    return means


def check_optimised(config: GlueConfig, world: World) -> None:
    """UserError where the copy that `glue.optimise` asks for cannot be made or used here."""
    reason = None if config.optimise == "auto" else unusable()
    if world.device.type != "cpu":
        reason = f"it is for a CPU, and this runs on {world.device}"
    if config.optimise is not None and reason:
        raise UserError(f"glue.optimise={config.optimise} cannot be used: {reason}. Leave it null.")


def scored(config: GlueConfig, model: torch.nn.Module) -> torch.nn.Module:
    """What is evaluated: the finetuned model, or an optimised copy of it, for the model itself may be kept."""
    if config.optimise is None:
        return model
    optimised = copy.deepcopy(model).eval()
    if config.optimise == "auto":
        optimise_for_cpu(optimised)
    else:
        optimise_for_cpu(optimised, linears="int8", trees=config.optimise)
    return optimised


def predict(
    data: Encoded, model: torch.nn.Module, device: torch.device, batch: int, regression: bool, *, padded: bool = True
) -> np.ndarray:
    """Class indices (int64) or numbers (float64) for all examples, in their own order.

    Args:
        padded: in batches of about one length each, or of one length each without any padding, which are smaller.
    """
    predictions = np.zeros(len(data), dtype=np.float64 if regression else np.int64)
    for indices in evaluation_batches(data, batch) if padded else equal_lengths(data.lengths, batch):
        inputs = move((data.batch if padded else data.alike)(indices), device)
        inputs.pop("labels")
        logits = model(**inputs).logits.float()
        if not bool(torch.isfinite(logits).all()):
            raise Diverged("the finetuned model's outputs are not finite")
        predictions[indices] = (logits[:, 0] if regression else logits.argmax(-1)).cpu().numpy()
    return predictions


def move(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch on the device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}
