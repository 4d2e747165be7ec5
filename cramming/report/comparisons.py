"""Which pretraining groups one dense curve can price, and what such a comparison lacks. Not the measure (width.py)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from cramming.model.config import ModelConfig
from cramming.objectives.config import ObjectiveConfig
from cramming.record import Record
from cramming.report.groups import PretrainGroup, layers_of, units_of, whole_layers_of
from cramming.report.labels import labels_apart
from cramming.report.stats import Summary, finite, summarise
from cramming.report.width import Curve, Worth, worth
from cramming.runs import default_of
from cramming.train.config import TrainConfig
from cramming.train.root import COSMETIC, EQUAL

LEAST_WIDTHS = 4  # of a curve
LEAST_SEEDS = 3  # of each of its widths
# What is a row's own, or measured beside it, and so no condition of its set.
NO_CONDITION = COSMETIC | EQUAL | {"train.initial_split", "train.oracle", "train.width_base"}


@dataclass(frozen=True)
class Row:
    """One group with its losses by seed [nats], its neurons in one layer, and what it is worth."""

    label: str
    brief: str  # for a figure
    losses: dict[int, float]
    neurons_used: int
    neurons_trained: int
    worth: Worth | None
    notes: tuple[str, ...]
    records: tuple[str, ...]
    group: PretrainGroup

    @property
    def layer(self) -> dict[str, Any]:
        """What one of its feedforward layers came to."""
        return layers_of(self.group.good[0])

    @property
    def units(self) -> int:
        """Leaves, experts or keys of all layers; 0 of layers that choose none."""
        return units_of(self.layer)

    @property
    def tag(self) -> str:
        """Short name of its layer, as the bench too calls it."""
        return self.group.ffn

    @property
    def loss(self) -> Summary | None:
        """Summary of the losses."""
        return summarise(list(self.losses.values()))


@dataclass(frozen=True)
class Comparison:
    """Groups of one experiment, size, budget, recipe and data: their dense curve, the others, and what is missing."""

    experiment: str
    scale: str
    data: str
    curve: Curve | None
    dense: tuple[Row, ...]  # by width; whether in the curve or not
    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    @property
    def title(self) -> str:
        """What is equal in all of its rows, in words."""
        return f"{self.experiment}, {self.scale}, data {self.data}"

    @property
    def hidden_size(self) -> int | None:
        """Of the models, where the records say it."""
        return (self.dense or self.rows)[0].group.good[0]["config"].get("model", {}).get("hidden_size")


def comparisons(groups: Sequence[PretrainGroup]) -> list[Comparison]:
    """Every set of comparable groups with a finished run, small ones first; said of each is how the first differs."""
    sets: dict[tuple[str, str], dict[str, Any]] = {}
    members: dict[tuple[str, str], list[PretrainGroup]] = defaultdict(list)
    odd: dict[tuple[str, str], list[str]] = defaultdict(list)
    for group in groups:
        if group.good and tells_its_layers(group.good[0]):
            found, (equal, strange) = conditions(group.good[0]), equal_runs(group)
            key = (group.experiment, repr(sorted(found.items())))
            sets[key] = found
            members[key].append(equal)
            odd[key] += strange
    first: dict[str, dict[str, Any]] = {}
    result = []
    for key in sorted(sets, key=lambda key: (key[0], *in_order(sets[key]), key[1])):
        reference = first.setdefault(key[0], sets[key])
        apart = differences(reference, sets[key])
        told = [f"not compared with the first set of this experiment: {apart}"] if apart else []
        result.append(comparison(members[key], [*told, *odd[key]]))
    return result


def in_order(found: dict[str, Any]) -> tuple[float, ...]:
    """Conditions by width, layers and budget of the models, as numbers."""
    size = {"model.hidden_size": ModelConfig.hidden_size, "model.layers": ModelConfig.layers}  # by default
    budget = {f"train.budget_{unit}": 0 for unit in ("tokens", "steps", "hours")}
    return tuple(finite(found.get(key, default)) or 0.0 for key, default in (size | budget).items())


def equal_runs(group: PretrainGroup) -> tuple[PretrainGroup, list[str]]:
    """The group without the runs whose conditions are not its first run's, and what is to be said of them."""
    first = conditions(group.good[0])
    apart = {record["name"]: differences(first, conditions(record)) for record in group.good}
    same = tuple(record for record in group.good if not apart[record["name"]])
    strange = [f"{name} is left out, unlike other runs of its group: {what}" for name, what in apart.items() if what]
    return replace(group, good=same), strange


def tells_its_layers(record: Record) -> bool:
    """Whether a record says what its feedforward layers were; one that does not stands in no comparison."""
    return "resolved" in record or "ffn" in record["config"]


def conditions(record: Record) -> dict[str, Any]:
    """What has to be equal for losses to be comparable: schema, data, size, and the recipe but for its defaults."""
    found = {"schema_version": record.get("schema_version"), "data_fingerprint": record.get("data_fingerprint", "")}
    for part, settings in (("model", ModelConfig), ("train", TrainConfig), ("objective", ObjectiveConfig)):
        defaults = {item.name: default_of(item) for item in fields(settings)}
        for name, value in record["config"].get(part, {}).items():
            key = f"{part}.{name}"
            if key not in NO_CONDITION and not (name in defaults and value == defaults[name]):
                found[key] = value
    return found


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """The conditions that differ, in words; a key that stands at its default is "default"."""
    keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    return ", ".join(f"{key} {ours.get(key, 'default')} there, {theirs.get(key, 'default')} here" for key in keys)


def comparison(groups: Sequence[PretrainGroup], missing: Sequence[str]) -> Comparison:
    """One set of groups, priced where its curve allows."""
    widths = {id(group): dense_width(group.good[0]) for group in groups}
    dense = sorted((g for g in groups if widths[id(g)] is not None), key=lambda g: (widths[id(g)], g.group))
    others = [group for group in groups if widths[id(group)] is None]
    curve, lacks = curve_of({g.group: (widths[id(g)] or 0, losses_of(g)[0]) for g in dense})
    rows = named_rows(others, curve)
    if not rows:
        lacks.append("no layer of another kind")
    record = groups[0].good[0]
    return Comparison(
        groups[0].experiment,
        groups[0].scale,
        record.get("data_fingerprint", "")[:6] or "unknown",
        curve,
        tuple(named_rows(dense, curve)),
        tuple(sorted(rows, key=lambda row: (row.neurons_used, row.label))),
        (*missing, *lacks),
    )


def dense_width(record: Record) -> int | None:
    """Neurons of a plain dense layer, 0 of none; None for every other kind, gated dense layers among them."""
    ffn = layers_of(record)
    if ffn["kind"] == "none":
        return 0
    plain = ffn["kind"] == "dense" and ffn.get("activation", "gelu") == "gelu"
    return ffn["neurons_trained"] if plain else None


def curve_of(dense: dict[str, tuple[int, dict[int, float]]]) -> tuple[Curve | None, list[str]]:
    """The curve of dense groups (group -> width, losses by seed), or None; and in words what is missing or odd."""
    lacks, kept = [], {}
    by_width: dict[int, list[str]] = defaultdict(list)
    for group, (width, _) in dense.items():
        by_width[width].append(group)
    for width, mine in sorted(by_width.items()):
        name, losses = (f"dense {width}" if width else "none"), dense[mine[0]][1]
        if len(mine) > 1:
            lacks.append(f"{name} is left out of the curve: {len(mine)} groups have it ({', '.join(mine)})")
        elif len(losses) < LEAST_SEEDS:
            lacks.append(f"{name} is left out of the curve: {len(losses)} of at least {LEAST_SEEDS} seeds")
        else:
            kept[width] = losses
    if 0 not in by_width:
        lacks.append("the control without feedforward layers (ffn=none) was not run")
    if len(kept) < LEAST_WIDTHS:
        found = f" ({', '.join(map(str, kept))})" if kept else ""
        lacks.append(f"no curve: {len(kept)} of at least {LEAST_WIDTHS} widths have enough seeds{found}")
        return None, lacks
    every = set.union(*(set(losses) for losses in kept.values()))
    seeds = tuple(sorted(set.intersection(*(set(losses) for losses in kept.values()))))
    if len(seeds) < len(every):
        lacks.append(
            f"widths of the curve have unequal seeds; those of all enter: {', '.join(map(str, seeds)) or 'none'}"
        )
    if len(seeds) < LEAST_SEEDS:
        lacks.append(f"no curve: its widths share {len(seeds)} of at least {LEAST_SEEDS} seeds")
        return None, lacks
    curve = Curve(tuple(kept), seeds, tuple(tuple(kept[width][seed] for width in kept) for seed in seeds))
    lacks += [f"the curve rises from {a} to {b} by {step:.4f} nat: pooled to fall" for a, b, step in curve.rises]
    return curve, lacks


def named_rows(groups: Sequence[PretrainGroup], curve: Curve | None) -> list[Row]:
    """Rows, each under a label of its own."""
    labels = labels_apart([group.good[0] for group in groups], [group.group for group in groups])
    return [row_of(group, *names, curve) for group, names in zip(groups, labels, strict=True)]


def row_of(group: PretrainGroup, label: str, brief: str, curve: Curve | None) -> Row:
    """One group, priced by the curve."""
    losses, notes = losses_of(group)
    ffn = whole_layers_of(group.good[0])
    value = worth(curve, losses) if curve else None
    if curve and losses and value is None:
        notes.append("shares no seed with the curve")
    if value and (alone := sorted(losses.keys() - set(value.seeds))):
        notes.append(f"the curve lacks seed {', '.join(map(str, alone))}")
    if value and value.low is None:
        notes.append(f"{len(value.seeds)} seed(s): no interval")
    if group.bad:
        notes.append(f"{len(group.bad)} run(s) left out")
    kept = tuple(record for record in group.good if record["seed"] in losses)  # what is left out enters no other mean
    return Row(
        *(label, brief, losses, ffn["neurons_used"], ffn["neurons_trained"], value, tuple(notes)),
        records=tuple(record["name"] for record in kept),
        group=replace(group, good=kept or group.good),
    )


def losses_of(group: PretrainGroup) -> tuple[dict[int, float], list[str]]:
    """Validation loss by seed [nats], and what had to be left out: no numbers, and seeds with two records."""
    found: dict[int, list[float]] = defaultdict(list)
    notes = []
    for record in group.good:
        loss = finite(record["metrics"].get("valid_loss"))
        if loss is None:
            notes.append(f"{record['name']} has no finite loss")
        else:
            found[record["seed"]].append(loss)
    notes += [f"seed {seed} left out: {len(mine)} records have it" for seed, mine in found.items() if len(mine) > 1]
    return {seed: mine[0] for seed, mine in sorted(found.items()) if len(mine) == 1}, notes
