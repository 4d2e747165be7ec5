"""Which records belong together: repetitions of one experiment under one setting. Not their layout in a table."""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cramming.glue.config import GlueConfig
from cramming.glue.tasks import suite_tasks
from cramming.model.config import FFNConfig
from cramming.model.resolved import resolved
from cramming.record import Record
from cramming.report.stats import Summary, finite, summarise
from cramming.values import build

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
COUNTS = ("layers", "leaves", "neurons_used", "neurons_trained")  # that every layer has
OF_KIND = {**dict.fromkeys(("path", "fixed"), ("trees", "depth")), "moe": ("experts",), "peer": ("heads", "keys")}


def summary_of(records: Sequence[Record], part: str, name: str, factor: float = 1.0) -> Summary | None:
    """Summary of one number of records, without those that lack it or have no finite one; `part` is a field."""
    found = (finite(record.get(part, {}).get(name)) for record in records)
    return summarise([factor * value for value in found if value is not None])


def layers_of(record: Record) -> dict[str, Any]:
    """What a record's feedforward layers came to; of a record from before they were recorded, by its configuration."""
    if "resolved" in record:
        return record["resolved"]["ffn"]
    config = record["config"]
    return resolved(build(FFNConfig, config["ffn"]), config["model"]["layers"])


def whole_layers_of(record: Record) -> dict[str, Any]:
    """The same, where it has every count that rows are sorted and shown by; TypeError where one is missing or none."""
    layer = layers_of(record)
    odd = [key for key in (*COUNTS, *OF_KIND.get(layer["kind"], ())) if type(layer.get(key)) is not int]
    if odd:
        raise TypeError(f"resolved.ffn has no whole number as {', '.join(odd)}")
    return layer


def units_of(layer: dict[str, Any]) -> int:
    """Leaves, experts or keys of all layers of a model; 0 of layers that choose none."""
    of_kind = {"moe": ("experts",), "peer": ("heads", "keys", "keys")}.get(layer["kind"])
    return layer["leaves"] if of_kind is None else layer["layers"] * math.prod(layer[key] for key in of_kind)


@dataclass(frozen=True)
class PretrainGroup:
    """Repetitions of one pretraining: equal configuration and data, other seeds. Failed runs are in `bad` alone."""

    experiment: str
    ffn: str
    group: str
    scale: str
    good: tuple[Record, ...]
    bad: tuple[Record, ...]

    @property
    def names(self) -> str:
        """Names of the finished runs, for a table that says where its numbers are from."""
        return " ".join(record["name"] for record in self.good)

    def summary(self, part: str, name: str) -> Summary | None:
        """Summary of one number of the finished runs; `part` is "metrics" or "samples"."""
        return summary_of(self.good, part, name)


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
    good: tuple[Record, ...]
    bad: tuple[Record, ...]


def pretrain_groups(records: Sequence[Record]) -> list[PretrainGroup]:
    """Groups of the pretraining records, sorted by experiment, feedforward layer, group and data."""
    found: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        if record["kind"] == "pretrain":
            found[(*identity(record), record.get("data_fingerprint", ""))].append(record)
    groups = []
    for (experiment, ffn, group, data), mine in sorted(found.items()):
        good, bad = split_status(mine)
        shown = told_apart(group, data, [key[3] for key in found if key[:3] == (experiment, ffn, group)])
        groups.append(PretrainGroup(experiment, ffn, shown, scale_of(mine[0]["config"]), good, bad))
    return groups


def told_apart(group: str, data: str, all_data: Sequence[str]) -> str:
    """The group's name, with the data's fingerprint where it was run on several."""
    return group if len(all_data) == 1 else f"{group}, data {data[:6] or 'unknown'}"


def suite_groups(records: Sequence[Record], suite: str) -> list[SuiteGroup]:
    """Groups of one suite's records, sorted by experiment, feedforward layer, group, data and settings.

    A task that was run on several sets of examples has a row for each; the row of the largest has the other tasks too.
    """
    texts = {r["name"]: r.get("data_fingerprint", "") for r in records if r["kind"] == "pretrain"}
    found: dict[tuple, list[Record]] = defaultdict(list)
    sets: dict[tuple, set[tuple[int, str]]] = defaultdict(set)  # row, task -> its sets of examples, the largest first
    mine = [record for record in records if record["kind"] == "glue" and record.get("suite") == suite]
    for record in mine:
        sets[row_of(record, texts), record["task"]].add(examples_of(record))
    for record in mine:
        row = row_of(record, texts)
        place = sorted(sets[row, record["task"]]).index(examples_of(record))
        found[(*row, place)].append(record)
    groups = []
    for key in sorted(found):
        experiment, ffn, group, text, settings, place = key
        shown = told_apart(group, text, sorted({other[3] for other in found if other[:3] == key[:3]}))
        if place:
            examples = sorted({(r["task"], *examples_of(r)) for r in found[key]})
            settings += "; examples " + ", ".join(f"{task} {data[:6]} ({-count:,})" for task, count, data in examples)
        groups.append(suite_group(suite, (experiment, ffn, shown, settings), found[key]))
    return groups


def examples_of(record: Record) -> tuple[int, str]:
    """Which examples a task was trained on: minus their number, and their fingerprint."""
    return -int(record.get("samples", {}).get("train", 0)), record.get("data_fingerprint", "")


def row_of(record: Record, texts: Mapping[str, str]) -> tuple[str, str, str, str, str]:
    """What finetuning runs of one row share: identity and text of the pretraining, settings."""
    return (*identity(record), texts.get(record.get("pretrain", ""), ""), settings_of(record))


def suite_group(suite: str, key: tuple[str, str, str, str], records: Sequence[Record]) -> SuiteGroup:
    """One group with the summary of each task's headline metric."""
    good, bad = split_status(records)
    experiment, ffn, group, settings = key
    cells, partial = {}, {}
    for task in suite_tasks(suite).values():
        mine = [r for r in good if r["task"] == task.name]
        summary = summary_of(mine, "metrics", task.headline, 100.0)
        if summary is not None:
            cells[task.name] = summary
        reasons = sorted({r.get("partial_reason") or "yes" for r in mine if r.get("partial")})
        if reasons:
            partial[task.name] = ", ".join(reasons)
    config = records[0]["config"]
    pretrained = len({r["pretrain"] for r in good})
    row = paper_row_of(experiment, config)
    other = deviations(config.get("glue", {}))
    return SuiteGroup(
        experiment, ffn, group, scale_of(config), settings, other, row, cells, partial, pretrained, good, bad
    )


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
    if (objective := config.get("objective", {}).get("kind", "masked")) != "masked":
        parts.insert(0, f"objective {objective}")
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


def odd_metrics(record: Record) -> list[str]:
    """What a finished record has instead of finite numbers, in words; no average takes them."""
    if record["status"] != "finished":
        return []
    return [f"{name} is {value}" for name, value in sorted(record["metrics"].items()) if finite(value) is None]


def left_out(records: Sequence[Record]) -> list[str]:
    """Names of failed and diverged runs with their reason, and of numbers that are none, for the list under a table."""
    lines = []
    for record in sorted(records, key=lambda record: record["name"]):
        if record["status"] != "finished":
            reason = f" ({record['error']})" if record.get("error") else ""
            lines.append(f"`{record['name']}`: {record['status']}{reason}")
        elif odd := odd_metrics(record):
            lines.append(f"`{record['name']}`: finished, but {', '.join(odd)}")
    return lines
