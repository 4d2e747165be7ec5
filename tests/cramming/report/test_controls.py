"""The main tree against controls, repairs and rivals of made-up losses: differences by hand, roles, what is missing."""

import csv
import io
import math

import pytest

from cramming.model.config import FFNConfig
from cramming.report.controls import controls_csv, controls_markdown, controls_tex
from cramming.report.depth import BLOCKS, depth_csv, depth_markdown, depth_tex
from cramming.report.versus import lacking, lines_of, main_tree
from tests.helpers.priced import SEED_NOISE, compared, dense, layer, loss_of, record, runs

MOE = FFNConfig(kind="moe", experts=64, expert_width=8, top=1)
ORACLE = "dense64, its 9 most active"


def with_oracle(width, worth, neurons=9):
    """Dense runs whose most active neurons alone have the loss of another width."""
    found = runs(width)
    for each in found:
        each["metrics"][f"oracle_{neurons}"] = loss_of(worth) + SEED_NOISE[each["seed"]]
    return found


def fixed(way):
    """As a kind "fixed" would record itself."""
    found = runs("1x8", 12, group=f"g{way}")
    for each in found:
        each["ffn"] = f"{way}1x8"
        each["resolved"]["ffn"] |= {"kind": "fixed", "path": way}
        each["name"] = f"micro-{way}1x8-s{each['seed']}"
    return found


def everything():
    shared = FFNConfig(kind="path", trees=1, depth=8, shared=16)
    return [
        *dense((0, 4, 9, 16, 256, 1024)),
        *with_oracle(64, 30),
        *runs("1x8", 90),
        *runs(shared, 120, group="gs"),
        *runs("1x8", 60, group="st", hardening={"form": "straight_through"}),
        *fixed("random"),
        *fixed("token"),
        *runs(MOE, 100),
        *runs("1x10", 95),
        *runs("1x2", 20),
        *runs("4x6", 130),
        *runs("64x2", 200),
    ]


def csv_lines(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_roles_and_differences_are_those_of_the_losses():
    (found,) = compared(everything())
    assert main_tree(found).label == "1x8"
    lines = {line["layer"]: line for line in csv_lines(controls_csv([found]))}
    roles = {label: line["role"] for label, line in lines.items()}
    assert roles == {
        "1x8": "main tree",
        **dict.fromkeys(("none", "dense9", ORACLE, "random1x8 not learned", "token1x8 not learned"), "control"),
        **dict.fromkeys(("1x8+16 shared", "1x8 straight_through"), "repair"),
        "moe8x64top1": "rival",
    }
    for label, worth, told in (("none", 0, "worse"), (ORACLE, 30, "worse"), ("1x8+16 shared", 120, "better")):
        assert float(lines[label]["difference"]) == pytest.approx(loss_of(worth) - loss_of(90), rel=1e-4), label
        assert float(lines[label]["w_eff"]) == pytest.approx(worth, abs=1e-6), label
        assert lines[label]["against_the_tree"] == told, label
    assert lines[ORACLE]["neurons_used"] == "9"
    assert lines[ORACLE]["records"].split() == [f"micro-dense64-s{seed}-gdense64" for seed in range(3)]
    assert lines["none"]["main_records"].split() == [f"micro-1x8-s{seed}-g1x8" for seed in range(3)]
    assert lines["1x8"]["difference"] == ""
    assert not lacking(lines_of(found, main_tree(found)), main_tree(found))


def test_the_interval_is_students_over_paired_seeds():
    other = runs("1x8", 90, group="st", hardening={"form": "straight_through"})
    for each, apart in zip(other, (0.01, 0.02, 0.06), strict=True):
        each["metrics"]["valid_loss"] += apart
    (found,) = compared([*dense(), *runs("1x8", 90), *other])
    (line,) = [each for each in lines_of(found, main_tree(found)) if each.role == "repair"]
    reach = 4.302653 * math.sqrt(0.0007) / math.sqrt(3)  # t(0.975, 2 degrees), sample variance 0.0007
    assert line.difference.mean == pytest.approx(0.03)
    assert (line.difference.mean_low, line.difference.mean_high) == pytest.approx((0.03 - reach, 0.03 + reach))
    assert line.told == "not told apart"
    assert "+0.030 (-0.036 to +0.096), n=3 | not told apart" in controls_markdown([found])


def test_two_seeds_give_a_difference_and_no_claim():
    (found,) = compared([*dense(), *runs("1x8", 90), *runs(MOE, 300, seeds=(1, 2, 7))])
    (line,) = [each for each in lines_of(found, main_tree(found)) if each.role == "rival"]
    assert (line.seeds, line.told) == ((1, 2), "—")
    assert "n=2 | — |" in controls_markdown([found])


def test_missing_controls_are_named():
    (found,) = compared([*dense((4, 16, 64, 256)), *runs("1x8", 90)])
    names = [
        text.removeprefix("missing control: ") for text in lacking(lines_of(found, main_tree(found)), main_tree(found))
    ]
    assert names == [
        "no feedforward layer (ffn=none)",
        "a dense layer of the 9 neurons used (ffn.width=9)",
        "1x8 along random paths (ffn=fixed ffn.path=random)",
        "1x8 along paths by the token (ffn=fixed ffn.path=token)",
        "dense layers with their 9 most active neurons alone (train.oracle=[9])",
    ]
    for text in (controls_markdown([found]), controls_csv([found]), controls_tex([found])):
        assert all(f"missing control: {name}" in text for name in names)


def test_an_oracle_of_other_neurons_or_without_a_number_is_none():
    found = with_oracle(64, 30, neurons=12)
    (each,) = compared([*dense((0, 4, 16, 256)), *found, *runs("1x8", 90)])
    assert not any("most active" in line.row.label for line in lines_of(each, main_tree(each)))
    found = with_oracle(64, 30)
    found[1]["metrics"]["oracle_9"] = "nan"
    (each,) = compared([*dense((0, 4, 16, 256)), *found, *runs("1x8", 90)])
    (line,) = [line for line in lines_of(each, main_tree(each)) if "most active" in line.row.label]
    assert (line.row.losses.keys(), line.row.notes) == ({0, 2}, ("1 not measured",))


def test_the_main_tree_is_the_one_that_others_vary_then_the_deepest():
    (plain,) = compared([*runs("1x5", 40), *runs("1x8", 90), *runs("4x8", 90), *runs("1x10", 90, seeds=(0, 1))])
    assert main_tree(plain).label == "1x8"
    (varied,) = compared([*runs("1x5", 40), *runs("1x8", 90), *runs("1x5", 50, group="st", hardening={"form": "soft"})])
    assert main_tree(varied).label == "1x5"
    (none,) = compared(dense())
    assert main_tree(none) is None
    assert "No plain tree in this set." in controls_markdown([none])
    assert "no plain tree" in controls_csv([none])


def test_dead_leaves_stand_beside_all_that_there_are():
    tree, moe = runs("1x8", 90), runs(MOE, 90)
    for each in (*tree, *moe):
        each["metrics"] |= {"dead_leaves": 100.0, "usage_entropy_relative": 0.5}
    page = controls_markdown(compared([*dense(), *tree, *moe]))
    assert "| 100 of 1,024 | 50.0 |" in page
    assert "| 100 of 256 | 50.0 |" in page


def test_depth_has_trees_of_about_equal_neurons_and_one_tree_by_depth():
    (found,) = compared([*everything(), *runs("2x8", 100)])
    lines = csv_lines(depth_csv([found]))
    blocks = {block: [line["layer"] for line in lines if line["block"] == block] for block in BLOCKS}
    assert blocks == {BLOCKS[0]: ["1x8", "4x6", "64x2"], BLOCKS[1]: ["1x2", "1x8", "1x10"]}
    wide = next(line for line in lines if line["layer"] == "4x6")
    assert float(wide["w_eff"]) == pytest.approx(130, rel=1e-4)
    assert float(wide["per_used"]) == pytest.approx(130 / 28, rel=1e-4)
    assert (wide["trees"], wide["depth"], wide["neurons_trained"]) == ("4", "6", "508")
    assert wide["records"].split() == [f"micro-4x6-s{seed}-g4x6" for seed in range(3)]
    assert depth_markdown([found]).count("| by depth |") == 3
    body = depth_tex([found])
    assert body[body.index(r"\midrule") : body.index(r"\bottomrule")].count(r"\\") == 6


def test_one_tree_alone_has_no_family():
    (found,) = compared([*dense(), *runs("1x8", 90)])
    assert "No two plain trees to compare in this set." in depth_markdown([found])
    assert depth_csv([found]).count("\n") == 1


def test_runs_of_one_group_with_other_conditions_are_named_and_left_out():
    odd = record(layer("1x8"), 2, 1.0, train={"budget_tokens": 24_000_000}, group="g1x8")
    (found,) = compared([*dense(), *runs("1x8", 90, seeds=(0, 1)), odd])
    (row,) = found.rows
    assert row.losses.keys() == {0, 1}
    assert any(
        text.startswith(f"{odd['name']} is left out") and "train.budget_tokens 12000000 there, 24000000 here" in text
        for text in found.missing
    )
