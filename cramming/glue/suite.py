"""The runs of a suite: every task with every seed, one record each, finished ones skipped. Not the training itself."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from cramming.errors import Diverged, UserError
from cramming.files import read_json, short_hash
from cramming.glue.averages import averages
from cramming.glue.classifier import load_classifier
from cramming.glue.config import GlueConfig
from cramming.glue.finetune import (
    EncodedTask,
    Log,
    encode_task,
    epochs_of,
    finetune,
    single_process_accelerator,
    steps_of,
)
from cramming.glue.mini import load_mini
from cramming.glue.schedule import warmup_steps
from cramming.glue.sources import TaskData, limited, load_hub, load_local
from cramming.glue.tasks import Task, chosen_tasks
from cramming.model.saved import Pretrained, first_line, load_tokenizer
from cramming.record import record_file, write_record


@dataclass(frozen=True)
class Suite:
    """What all runs share. `documents` gives the held-out documents for `mini`; `log` mirrors metrics."""

    config: GlueConfig
    pretrained: Pretrained
    results_dir: Path
    documents: Sequence[str] = ()
    log: Log | None = None


def run_suite(suite: Suite) -> list[dict[str, Any]]:
    """Finetune every task with every seed and return the records of all of them, skipped ones included.

    All inputs are read and checked before the first training. A run that diverges or fails is recorded as such, and the
    next one starts.

    Raises:
        UserError: an input is missing or wrong, or the precision needs another machine.
    """
    config, pretrained = suite.config, suite.pretrained
    if config.max_length > pretrained.max_length:
        raise UserError(
            f"glue.max_length is {config.max_length}; {pretrained.folder} takes {pretrained.max_length} tokens at most."
        )
    tokenizer = load_tokenizer(pretrained)
    accelerator = single_process_accelerator(config.precision)
    tasks = chosen_tasks(config.suite, config.tasks)
    load_classifier(pretrained, tasks[0], config.dropout)  # weights that do not fit must show before the first training
    data = [load_task(suite, task) for task in tqdm(tasks, desc="reading tasks", unit="task", leave=False)]
    steps = {each.task.name: steps_of(config, each) for each in data}
    warmups = warmup_steps(steps, config.warmup_fraction, config.warmup)
    records = []
    for each, warmup in zip(data, warmups, strict=True):
        records.extend(run_task(suite, accelerator, tokenizer, each, warmup))
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
    suite: Suite, accelerator: Accelerator, tokenizer: PreTrainedTokenizerBase, data: TaskData, warmup: int
) -> list[dict[str, Any]]:
    """All seeds of one task; tokenises only when a seed is left to run."""
    settings = {**suite.config.settings(), "task_epochs": epochs_of(suite.config, data.task), "warmup_steps": warmup}
    fingerprint = data.fingerprint()
    encoded: EncodedTask | None = None
    records = []
    for seed in suite.config.seeds:
        name = run_name(suite, data.task, settings, seed)
        record = finished_record(suite, name, fingerprint)
        if record is None:
            encoded = encoded or encode_task(suite.config, data, tokenizer, warmup)
            outcome = run_seed(suite, accelerator, encoded, seed)
            record = save(suite, name, settings, data, fingerprint, seed, outcome)
        records.append(record)
        print(line_of(record, data.task), flush=True)
    return records


def run_name(suite: Suite, task: Task, settings: dict[str, Any], seed: int) -> str:
    """Name of a run and its record. It ends in a hash of the settings: other settings never replace a result."""
    return f"glue-{suite.pretrained.run}-{suite.config.suite}-{task.name}-s{seed}-{short_hash(settings, 6)}"


def finished_record(suite: Suite, name: str, fingerprint: str) -> dict[str, Any] | None:
    """The record of this very run (same settings, examples and weights) if it finished."""
    path = record_file(suite.results_dir, name)
    if not path.exists():
        return None
    record = read_json(path)
    same = record["data_fingerprint"] == fingerprint and record["weights_sha256"] == suite.pretrained.weights_sha256
    return record if same and record["status"] == "finished" else None


def run_seed(
    suite: Suite, accelerator: Accelerator, encoded: EncodedTask, seed: int
) -> tuple[str, dict[str, float], str]:
    """Status, metrics and error text of one run. Only errors of input and of the disk come through."""
    config = suite.config

    def make_model():
        return load_classifier(suite.pretrained, encoded.task, config.dropout)

    try:
        return "finished", finetune(config, accelerator, encoded, make_model, seed, suite.log), ""
    except Diverged as error:
        return "diverged", {}, str(error)
    except (UserError, OSError):
        raise
    except Exception as error:  # one task's bug or lack of memory must not cost the others their results
        return "failed", {}, first_line(error)


def save(
    suite: Suite,
    name: str,
    settings: dict[str, Any],
    data: TaskData,
    fingerprint: str,
    seed: int,
    outcome: tuple[str, dict[str, float], str],
) -> dict[str, Any]:
    """Write the record of one run and return it as written."""
    status, metrics, error = outcome
    pretrained = suite.pretrained
    samples = {"train": len(data.train), **{name: len(split) for name, split in data.dev.items()}}
    if data.skipped_rows:
        samples["skipped_rows"] = data.skipped_rows
    path = write_record(
        suite.results_dir,
        kind="glue",
        name=name,
        status=status,
        config={"glue": settings, **pretrained.config},
        seed=seed,
        data_fingerprint=fingerprint,
        samples=samples,
        metrics=metrics,
        extra={
            "task": data.task.name,
            "suite": suite.config.suite,
            "headline": data.task.headline,
            "pretrain": pretrained.run,
            "experiment": pretrained.experiment,
            "ffn": pretrained.ffn,
            "group": pretrained.group,
            "weights_sha256": pretrained.weights_sha256,
            "partial": bool(data.partial),
            "partial_reason": data.partial,
            **({"error": error} if error else {}),
        },
    )
    return read_json(path)


def line_of(record: dict[str, Any], task: Task) -> str:
    """What is printed when a run ends."""
    head = f"{task.name} seed {record['seed']}: "
    if record["status"] != "finished":
        return f"{head}{record['status']} ({record['error']})"
    return head + ", ".join(f"{name} {100 * record['metrics'][name]:.1f}" for name in task.metrics)


def summary(config: GlueConfig, records: list[dict[str, Any]]) -> str:
    """The table printed at the end: per task median (min–max) and n over finished runs, then the averages."""
    lines, medians = [f"{'task':<15}{'metric':<10}median (min–max) in percent, finished runs / all"], {}
    for task in chosen_tasks(config.suite, config.tasks):
        mine = [record for record in records if record["task"] == task.name]
        values = [100 * r["metrics"][task.headline] for r in mine if r["status"] == "finished"]
        cell = "none finished"
        if values:
            middle = statistics.median(values)
            cell = f"{middle:.1f} ({min(values):.1f}–{max(values):.1f})"
            if any(record["partial"] for record in mine):
                cell += f" partial: {mine[0]['partial_reason']}"
            else:
                medians[task.name] = middle
        lines.append(f"{task.name:<15}{task.headline:<10}{cell}, {len(values)} / {len(mine)}")
    for average in averages(config.suite, medians):
        value = (
            f"{average.value:.1f}" if average.value is not None else f"missing or partial: {', '.join(average.missing)}"
        )
        lines.append(f"{average.title}: {value}")
    return "\n".join(lines)
