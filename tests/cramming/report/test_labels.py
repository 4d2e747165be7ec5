"""What rows are called: every row of the micro experiment by a name that no other has."""

from cramming.plan import planned
from cramming.record import SCHEMA_VERSION
from cramming.report.comparisons import comparisons
from cramming.report.groups import pretrain_groups
from cramming.report.labels import is_plain_tree, label_of
from tests.helpers.priced import compared, dense, layer, record, runs

TEXT = ["data.files=[text.txt]"]


def as_records(rows=(), overrides=(), seeds=(0,)):
    """Records as the micro experiment's rows would leave them, all of one loss."""
    return {
        f"{run.row}-{run.root.seed}": {
            "schema_version": SCHEMA_VERSION,
            "kind": "pretrain",
            "name": run.root.run_name,
            "status": "finished",
            "seed": run.root.seed,
            "experiment": "micro",
            "ffn": run.root.ffn.tag,
            "group": run.root.group,
            "data_fingerprint": "abcdef",
            "config": run.root.as_recorded(),
            "metrics": {"valid_loss": 4.0},
            "resolved": run.root.resolved(),
        }
        for run in planned("micro", rows, seeds, [*TEXT, *overrides])
    }


def test_every_row_of_the_experiment_has_a_label_of_its_own() -> None:
    records = as_records()
    (found,) = comparisons(pretrain_groups(list(records.values())))
    for name in ("label", "brief"):
        labels = [getattr(row, name) for row in (*found.dense, *found.rows)]
        assert len(set(labels)) == len(records)
        assert not any("(" in label.partition("temperature")[0] for label in labels)  # no group's hash
    assert label_of(records["1x8-0"]) == "1x8"
    assert label_of(records["1x8_straight_through-0"]) == "1x8 straight_through"
    assert label_of(records["1x8_balance_loss-0"]) == "1x8 balance loss 0.01"
    assert label_of(records["1x8_rebalance-0"]) == "1x8 rebalanced 0.001"
    assert label_of(records["1x8_shared-0"]) == "1x8+16 shared"
    assert label_of(records["1x8_split-0"]) == "1x8 initial split"
    assert label_of(records["1x8_random-0"]) == "random1x8 not learned"
    plain = {row for row, each in records.items() if is_plain_tree(each)}
    assert plain == {f"{shape}-0" for shape in ("1x8", "4x6", "16x4", "64x2", "1x2", "1x5", "1x10")}


def test_who_computes_and_what_is_measured_beside_are_no_conditions() -> None:
    own = {"oracle": [9], "attention": "eager", "compile": False, "initial_split": 64}
    (found,) = compared([*dense(), *runs("1x8", 90, train=own)])
    assert [row.label for row in found.rows] == ["1x8 initial split"]


def test_rows_of_one_label_have_their_groups_beside_it() -> None:
    groups = {"ga": 0.01, "gb": 0.01, "gc": 0.1}
    records = [record(layer("1x8"), 0, 4.0, group=group, hardening=balance(w)) for group, w in groups.items()]
    (found,) = compared(records)
    assert {row.label for row in found.rows} == {
        "1x8 balance loss 0.01 (ga)",
        "1x8 balance loss 0.01 (gb)",
        "1x8 balance loss 0.1",
    }


def balance(weight: float):
    return {"form": "hard", "balance_weight": {"start": weight, "end": None, "schedule": "constant"}}
