"""Which records belong together: repetitions of one experiment under one setting. Not their layout in a table."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cramming.glue.config import GlueConfig
from cramming.glue.tasks import suite_tasks
from cramming.report.stats import Summary, summarise

Record = dict[str, Any]

# Settings that follow from the task, and so differ between the tasks of one suite.
PER_TASK = ("task_epochs", "warmup_steps")

PAPER_TREES = ("3072x0", "1536x1", "512x2", "256x3", "128x4", "64x5", "32x6", "16x7", "8x8", "4x9", "2x10", "1x11")

# Rows of arXiv 2311.10770, Table 1, and the experiments that reproduce them, with their GPU time in hours.
PAPER_EXPERIMENTS = {
    "crammed_dense_3072": ("crammedBERT-3072", 24.0),
    "crammed_dense_4095": ("crammedBERT-4095", 24.0),
    "crammed_1x11_long": ("1x11-long", 48.0),
    **{f"crammed_{row}": (row, 24.0) for row in PAPER_TREES},
}
PAPER_LAYERS, PAPER_WIDTH = 16, 768


@dataclass(frozen=True)
class PretrainGroup:
    """Repetitions of one pretraining: equal configuration, different seeds. Failed runs are in `bad` alone."""

    experiment: str
    ffn: str
    group: str
    scale: str
    good: tuple[Record, ...]
    bad: tuple[Record, ...]

    def summary(self, part: str, name: str) -> Summary | None:
        """Summary of one number of the finished runs; `part` is "metrics" or "samples"."""
        return summarise([float(r[part][name]) for r in self.good if name in r.get(part, {})])


@dataclass(frozen=True)
class SuiteGroup:
    """Finetuning runs of one pretraining group under one setting: tasks x finetuning seeds x pretraining seeds."""

    experiment: str
    ffn: str
    group: str
    scale: str
    settings: str
    deviations: str  # settings that differ from the paper's recipe, "" if none
    paper_row: str | None
    cells: dict[str, Summary]  # percent, finished runs alone
    partial: dict[str, str]  # task -> why its training data are incomplete
    pretrained: int  # number of pretraining runs
    bad: tuple[Record, ...]


def pretrain_groups(records: Sequence[Record]) -> list[PretrainGroup]:
    """Groups of the pretraining records, sorted by experiment, feedforward layer and group."""
    found: dict[tuple[str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "pretrain":
            found[identity(record)].append(record)
    groups = []
    for (experiment, ffn, group), mine in sorted(found.items()):
        good, bad = split_status(mine)
        groups.append(PretrainGroup(experiment, ffn, group, scale_of(mine[0]["config"]), good, bad))
    return groups


def suite_groups(records: Sequence[Record], suite: str) -> list[SuiteGroup]:
    """Groups of one suite's records, sorted by experiment, feedforward layer, group and settings."""
    found: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "glue" and record.get("suite") == suite:
            found[(*identity(record), settings_of(record))].append(record)
    parts = {(*key[:3], text): mine for key in found for text, mine in by_examples(key[3], found[key]).items()}
    return [suite_group(suite, key, parts[key]) for key in sorted(parts)]


def by_examples(settings: str, records: Sequence[Record]) -> dict[str, list[Record]]:
    """Settings in words -> their records; a task's results on other examples are no repetitions, and stand apart."""
    examples: dict[str, set[str]] = defaultdict(set)
    for record in records:
        if record["status"] == "finished":
            examples[record["task"]].add(record.get("data_fingerprint", ""))
    parts: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        several = len(examples[record["task"]]) > 1
        own = f", examples of {record['task']}={record.get('data_fingerprint', '')}" if several else ""
        parts[settings + own].append(record)
    return parts


def suite_group(suite: str, key: tuple[str, ...], records: Sequence[Record]) -> SuiteGroup:
    """One group with the summary of each task's headline metric."""
    good, bad = split_status(records)
    experiment, ffn, group, settings = key
    cells, partial = {}, {}
    for task in suite_tasks(suite).values():
        mine = [r for r in good if r["task"] == task.name and task.headline in r["metrics"]]
        summary = summarise([100.0 * r["metrics"][task.headline] for r in mine])
        if summary is not None:
            cells[task.name] = summary
        reasons = sorted({r.get("partial_reason") or "yes" for r in mine if r.get("partial")})
        if reasons:
            partial[task.name] = ", ".join(reasons)
    config = records[0]["config"]
    pretrained = len({r["pretrain"] for r in good})
    row = paper_row_of(experiment, config)
    other = deviations(config.get("glue", {}))
    return SuiteGroup(experiment, ffn, group, scale_of(config), settings, other, row, cells, partial, pretrained, bad)


def identity(record: Record) -> tuple[str, str, str]:
    """Experiment, feedforward layer and group; a model without a group stands for itself."""
    return (
        record.get("experiment") or "unnamed",
        record.get("ffn") or "unknown",
        record.get("group") or record.get("pretrain") or record["name"],
    )


def split_status(records: Sequence[Record]) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Finished records, and all others; each sorted by name."""
    ordered = sorted(records, key=lambda record: record["name"])
    good = tuple(record for record in ordered if record["status"] == "finished")
    return good, tuple(record for record in ordered if record["status"] != "finished")


def settings_of(record: Record) -> str:
    """The finetuning settings as one line of sorted key=value pairs, without what follows from the task."""
    settings = record["config"].get("glue", {})
    shown = {key: value for key, value in settings.items() if key not in PER_TASK}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in shown.items()}
    return ", ".join(f"{key}={text[key]}" for key in sorted(text))


def deviations(settings: dict[str, Any]) -> str:
    """The settings that are not the paper's recipe, which is `GlueConfig`'s default; source and precision aside."""
    recipe = GlueConfig(source="hub").settings()
    other = settings.keys() - {"source", "precision", *PER_TASK}  # a key that the recipe lacks is not at its default
    keys = sorted(key for key in other if key not in recipe or settings[key] != recipe[key])
    return ", ".join(f"{key}={settings[key]}" for key in keys)


def scale_of(config: dict[str, Any]) -> str:
    """Model size and budget in words, as far as the configuration says."""
    model = config.get("model", {})
    parts = [f"{model['layers']} layers x {model['hidden_size']}"] if {"layers", "hidden_size"} <= model.keys() else []
    for key, unit in (("budget_tokens", "tokens"), ("budget_steps", "steps"), ("budget_hours", "hours")):
        value = config.get("train", {}).get(key)
        if value is not None:
            parts.append(f"{value:,g} {unit}" if isinstance(value, float) else f"{value:,} {unit}")
    return ", ".join(parts) or "unknown"


def paper_row_of(experiment: str, config: dict[str, Any]) -> str | None:
    """The paper's row that a run reproduces; None unless experiment, model size and GPU time are all the paper's."""
    if experiment not in PAPER_EXPERIMENTS:
        return None
    row, hours = PAPER_EXPERIMENTS[experiment]
    model, train = config.get("model", {}), config.get("train", {})
    full = (train.get("budget_hours") or 0.0) >= hours
    whole = model.get("layers") == PAPER_LAYERS and model.get("hidden_size") == PAPER_WIDTH
    return row if full and whole else None


def left_out(records: Sequence[Record]) -> list[str]:
    """Names of failed and diverged runs with their reason, for the list under a table."""
    ordered = sorted(records, key=lambda record: record["name"])
    return [f"`{r['name']}`: {r['status']}" + (f" ({r['error']})" if r.get("error") else "") for r in ordered]
