"""What a row of pretraining is called in tables and figures. Not which rows stand together (comparisons.py)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cramming.record import Record
from cramming.report.groups import layers_of
from cramming.report.leaves import hardening_of


def label_of(record: Record, *, brief: bool = False) -> str:
    """The layer's tag, and in words what its training had beside the plain tree's; equal for runs of other seeds.

    A word is a key's own where it has one: "1x8", "1x8 straight_through", "1x8 balance loss 0.01", "1x8 rebalanced
    0.001", "1x8 initial split", "1x8+16 shared".

    Args:
        brief: without how a form of hardening is set, for a figure.
    """
    layer = layers_of(record)
    words = [record.get("ffn") or "unknown", form_in_words(record["config"], brief) if layer["leaves"] else ""]
    words += extras_in_words(layer, record["config"])
    return " ".join(word for word in words if word)


def labels_apart(records: Sequence[Record], groups: Sequence[str]) -> list[tuple[str, str]]:
    """Label and brief label of each of several groups, by a record of it: no two alike.

    The group's name stands beside a label that several have; where a brief label would say the same of two, the whole
    one stands for it.
    """
    labels, briefs = ([label_of(record, brief=short) for record in records] for short in (False, True))
    several, alike = Counter(labels), Counter(briefs)
    found = []
    for label, brief, group in zip(labels, briefs, groups, strict=True):
        whole = label if several[label] == 1 else f"{label} ({group})"
        found.append((whole, brief if alike[brief] == 1 else whole))
    return found


def form_in_words(config: dict[str, Any], brief: bool) -> str:
    """The form of hardening and what is set beside it; nothing for plain hard training."""
    form = hardening_of(config)
    first, _, rest = form.partition(", ")
    if first == "hard":
        return rest.replace("balance_weight", "balance loss")
    return first if brief else form


def extras_in_words(layer: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """What a tree has beside its own neurons and learned decisions."""
    words = []
    if layer["kind"] == "path" and layer.get("shared"):
        words.append("shared")
    if layer["kind"] == "path" and layer.get("rebalance_rate"):
        words.append(f"rebalanced {layer['rebalance_rate']:g}")
    if layer["kind"] == "fixed":
        words.append("not learned")
    if config.get("train", {}).get("initial_split"):
        words.append("initial split")
    return words


def is_plain_tree(record: Record) -> bool:
    """Whether a record is of PathFFF trained hard, with nothing beside."""
    layer, config = layers_of(record), record["config"]
    return layer["kind"] == "path" and not form_in_words(config, True) and not extras_in_words(layer, config)
