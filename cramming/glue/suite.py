"""The runs of a suite: every task with every seed, one record each, finished ones skipped. Not the training itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cramming.errors import Diverged, UserError
from cramming.files import check_writable, short_hash
from cramming.glue.classifier import load_classifier, write_classifier
from cramming.glue.config import GlueConfig
from cramming.glue.finetune import (
    EncodedTask,
    Log,
    check_optimised,
    encode_task,
    epochs_of,
    finetune,
    single_process,
    steps_of,
)
from cramming.glue.metrics import rehearse
from cramming.glue.mini import load_mini
from cramming.glue.schedule import warmup_steps
from cramming.glue.sources import TaskData, limited, load_hub, load_local
from cramming.glue.summary import line_of
from cramming.glue.tasks import Task, chosen_tasks
from cramming.model.foreign import tokenizer_of
from cramming.model.saved import Pretrained, first_line, load_tokenizer
from cramming.parallel.world import World
from cramming.record import Record, computed_by, in_one_word, recognised
from cramming.runs import RecordedRun


@dataclass(frozen=True)
class Suite:
    """What all runs share.

    Attributes:
        documents: held-out documents, for `mini`.
        log: mirrors metrics.
        kept: folder for the finetuned classifiers; None keeps none.
    """

    config: GlueConfig
    pretrained: Pretrained
    results_dir: Path
    documents: Sequence[str] = ()
    log: Log | None = None
    kept: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: "finished" with metrics and the model, "diverged" or "failed" with an error. Who computed."""

    status: str
    metrics: dict[str, float]
    error: str = ""
    model: PreTrainedModel | None = None
    provider: str | None = None


def run_suite(suite: Suite, world: World | None = None) -> list[Record]:
    """Finetune every task with every seed and return the records of all of them, skipped ones included.

    All inputs are read and checked, metrics tried and folders made before the first training. A run that diverges or
    fails is recorded as such, and the next one starts.

    Args:
        world: this process; None opens it.

    Raises:
        UserError: an input is missing or wrong, or the precision needs another machine.
    """
    config, pretrained = suite.config, suite.pretrained
    if config.max_length > pretrained.max_length:
        raise UserError(
            f"glue.max_length is {config.max_length}; {pretrained.folder} takes {pretrained.max_length} tokens at most."
        )
    tokenizer = tokenizer_of(pretrained.folder) if pretrained.foreign else load_tokenizer(pretrained)
    world = world or single_process(config.precision)
    check_optimised(config, world)
    tasks = chosen_tasks(config.suite, config.tasks)
    load_classifier(pretrained, tasks[0], config.dropout)  # weights that do not fit must show before the first training
    with tqdm(tasks, desc="reading tasks", unit="task", leave=False) as bar:  # closed before an error is told
        data = [load_task(suite, task) for task in bar]
    rehearse(dict.fromkeys(name for task in tasks for name in task.metrics))
    for key, folder in (("results_dir", suite.results_dir / "runs"), ("output_dir", suite.kept)):
        if folder is not None:
            check_writable(folder, key)
    steps = {each.task.name: steps_of(config, each) for each in data}
    warmups = warmup_steps(steps, config.warmup_fraction, config.warmup)
    records = []
    for each, warmup in zip(data, warmups, strict=True):
        records.extend(run_task(suite, world, tokenizer, each, warmup))
    return records


def load_task(suite: Suite, task: Task) -> TaskData:
    """One task's examples from the configured source."""
    config = suite.config
    if config.source == "mini":
        return limited(
            load_mini(task, suite.documents, config.mini_train, config.mini_dev, config.mini_seed), config.limit_train
        )
    if config.source == "local":
        return limited(load_local(task, Path(config.dir or ".")), config.limit_train)
    return limited(load_hub(task), config.limit_train)


def run_task(
    suite: Suite, world: World, tokenizer: PreTrainedTokenizerBase, data: TaskData, warmup: int
) -> list[Record]:
    """All seeds of one task; tokenises only when a seed is left to run."""
    settings = {**suite.config.settings(), "task_epochs": epochs_of(suite.config, data.task), "warmup_steps": warmup}
    content = {"data_fingerprint": data.fingerprint(), "weights_sha256": suite.pretrained.weights_sha256}
    encoded: EncodedTask | None = None
    records = []
    for seed in suite.config.seeds:
        run = recorded_run(suite, data, settings, content, seed)
        name, record = recognised(suite.results_dir, run.name, content)
        if name != run.name:
            print(f"{run.name}: that record is of other examples or weights, and stays; this one is {name}")
        folder = suite.kept / name if suite.kept else None
        if record is None or (folder and not folder.exists()):
            encoded = encoded or encode_task(suite.config, data, tokenizer, warmup)
            outcome = run_seed(suite, world, encoded, seed)
            record = record or save(run, outcome, samples_of(data))
            if folder and outcome.model is not None:
                write_classifier(outcome.model, tokenizer, data.task, folder, record["metrics"])
            elif folder:
                print(f"not kept   {folder}: {outcome.status} ({outcome.error})", flush=True)
        records.append(record)
        print(line_of(record, data.task), flush=True)
        if folder and folder.exists():
            print(f"kept       {folder}", flush=True)
    return records


def recorded_run(
    suite: Suite, data: TaskData, settings: dict[str, Any], content: dict[str, str], seed: int
) -> RecordedRun:
    """One task with one seed on these examples, as records tell it.

    Its name ends in a hash of the settings: other settings never replace a result.
    """
    pretrained, task = suite.pretrained, data.task
    return RecordedRun(
        suite.results_dir,
        kind="glue",
        name=f"glue-{pretrained.run}-{suite.config.suite}-{task.name}-s{seed}-{short_hash(settings, 6)}",
        seed=seed,
        config={"glue": settings, **pretrained.config},
        content=content,
        facts={
            "task": task.name,
            "suite": suite.config.suite,
            "headline": task.headline,
            "pretrain": pretrained.run,
            "experiment": pretrained.experiment,
            "ffn": pretrained.ffn,
            "group": pretrained.group,
            "partial": bool(data.partial),
            "partial_reason": data.partial,
        },
    )


def save(run: RecordedRun, outcome: Outcome, samples: dict[str, int]) -> Record:
    """The record of how it ended."""
    return run.save(outcome.status, samples, outcome.metrics, outcome.error, provider=outcome.provider)


def samples_of(data: TaskData) -> dict[str, int]:
    """Counts of examples, and of rows that were skipped."""
    samples = {"train": len(data.train), **{name: len(split) for name, split in data.dev.items()}}
    return samples | ({"skipped_rows": data.skipped_rows} if data.skipped_rows else {})


def run_seed(suite: Suite, world: World, encoded: EncodedTask, seed: int) -> Outcome:
    """One run. Only errors of input and of the system come through."""
    config = suite.config
    made: list[PreTrainedModel] = []

    def ended(status: str, metrics: dict[str, float], error: str = "") -> Outcome:
        model = made[-1] if made else None
        provider = None if model is None else in_one_word(computed_by(model))
        return Outcome(status, metrics, error, model if status == "finished" else None, provider)

    def make_model() -> PreTrainedModel:
        made.append(load_classifier(suite.pretrained, encoded.task, config.dropout))
        return made[-1]

    try:
        metrics = finetune(config, world, encoded, make_model, seed, suite.log)
    except Diverged as error:
        return ended("diverged", {}, str(error))
    except (UserError, OSError):
        raise
    except Exception as error:  # one task's bug or lack of memory must not cost the others their results
        return ended("failed", {}, first_line(error))
    return ended("finished", metrics)
