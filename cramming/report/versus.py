"""The main tree of a set, and what other rows are to it: controls, repairs, rivals. Not their page (controls.py)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cramming.record import Record
from cramming.report.comparisons import Comparison, Row
from cramming.report.labels import is_plain_tree
from cramming.report.markup import MISSING
from cramming.report.stats import Summary, finite, summarise
from cramming.report.width import worth

ROLES = ("main tree", "control", "repair", "rival")


@dataclass(frozen=True)
class Line:
    """A row beside the main tree: what it is to it, and its loss minus the tree's by seed, summarised [nats]."""

    role: str
    row: Row
    difference: Summary | None
    seeds: tuple[int, ...]

    @property
    def told(self) -> str:
        """On which side of zero the whole interval lies."""
        if self.difference is None or self.difference.mean_low is None or self.difference.mean_high is None:
            return MISSING
        if self.difference.mean_low <= 0 <= self.difference.mean_high:
            return "not told apart"
        return "worse" if self.difference.mean_low > 0 else "better"


def main_tree(found: Comparison) -> Row | None:
    """The row that the others are held against, by the rule that controls.py prints; None without a plain tree."""
    plain = [row for row in found.rows if is_plain_tree(row.group.good[0])]

    def rank(row: Row) -> tuple[int, int, int, int]:
        variants = sum(same_tree(other, row) for other in found.rows)
        return variants, len(row.losses), -row.layer["trees"], row.layer["depth"]

    return max(plain, key=rank, default=None)


def same_tree(row: Row, tree: Row) -> bool:
    """Whether a row has trees of the same number and depth, of PathFFF's neurons."""
    shape = ("trees", "depth")
    return row.layer["kind"] in ("path", "fixed") and all(row.layer[key] == tree.layer[key] for key in shape)


def role_of(row: Row, tree: Row) -> str | None:
    """What a row that is no part of the dense curve is to the main tree; None for trees of other shapes."""
    if row is tree:
        return "main tree"
    if row.layer["kind"] not in ("path", "fixed"):
        return "rival"
    return None if not same_tree(row, tree) else "repair" if row.layer["kind"] == "path" else "control"


def lines_of(found: Comparison, tree: Row) -> list[Line]:
    """The main tree, then controls, repairs and rivals."""
    dense = [row for row in found.dense if row.neurons_used in (0, tree.neurons_used)]
    rows = [("control", row) for row in (*dense, *oracles(found, tree))]
    rows += [(role, row) for row in found.rows if (role := role_of(row, tree))]
    return [line(role, row, tree) for role, row in sorted(rows, key=lambda each: ROLES.index(each[0]))]


def line(role: str, row: Row, tree: Row) -> Line:
    """A row with its differences from the tree; the tree has none from itself."""
    seeds = () if row is tree else tuple(sorted(row.losses.keys() & tree.losses.keys()))
    return Line(role, row, summarise([row.losses[seed] - tree.losses[seed] for seed in seeds]), seeds)


def oracles(found: Comparison, tree: Row) -> list[Row]:
    """Trained dense layers by their loss with as many of their most active neurons alone as the tree uses."""
    used, rows = tree.neurons_used, []
    for row in found.dense:
        measured = {each["seed"]: oracle_of(each, used) for each in row.group.good if each["seed"] in row.losses}
        losses = {seed: loss for seed, loss in measured.items() if loss is not None}
        if losses and row.neurons_used > used:
            rows.append(
                replace(
                    row,
                    label=f"{row.label}, its {used} most active",
                    losses=losses,
                    neurons_used=used,
                    worth=worth(found.curve, losses) if found.curve else None,
                    notes=() if len(losses) == len(measured) else (f"{len(measured) - len(losses)} not measured",),
                    records=tuple(each["name"] for each in row.group.good if each["seed"] in losses),
                )
            )
    return rows


def oracle_of(record: Record, neurons: int) -> float | None:
    """The loss of a dense model with so many of its most active neurons alone [nats], where it was measured."""
    return finite(record["metrics"].get(f"oracle_{neurons}"))


def lacking(lines: Sequence[Line], tree: Row) -> list[str]:
    """The controls that were not run, in words."""
    rows = [each.row for each in lines if each.role == "control"]
    used, shape = tree.neurons_used, f"{tree.layer['trees']}x{tree.layer['depth']}"
    ways = {row.layer["path"] for row in rows if row.layer["kind"] == "fixed"}
    kinds = {row.layer["kind"]: row for row in rows}
    wanted = {
        "no feedforward layer (ffn=none)": "none" in kinds,
        f"a dense layer of the {used} neurons used (ffn.width={used})": any(
            row.neurons_trained == used and row.layer["kind"] == "dense" for row in rows
        ),
        f"{shape} along random paths (ffn=fixed ffn.path=random)": "random" in ways,
        f"{shape} along paths by the token (ffn=fixed ffn.path=token)": "token" in ways,
        f"dense layers with their {used} most active neurons alone (train.oracle=[{used}])": any(
            row.layer["kind"] == "dense" and row.neurons_trained > used for row in rows
        ),
    }
    return [f"missing control: {name}" for name, there in wanted.items() if not there]


def usage_of(row: Row) -> tuple[Summary | None, Summary | None]:
    """Dead leaves and relative usage entropy of the runs whose losses count; of dense layers neither."""
    if row.layer["kind"] in ("none", "dense") or not row.losses:
        return None, None
    return row.group.summary("metrics", "dead_leaves"), row.group.summary("metrics", "usage_entropy_relative")
