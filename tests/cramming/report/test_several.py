"""Several groups of one name, sizes of one budget, records of one seed: told apart, never drawn or averaged as one."""

from pathlib import Path

import pytest

from cramming.errors import UserError
from cramming.files import write_json
from cramming.report.comparisons import comparisons
from cramming.report.figures.curves import comparable, lines_of
from cramming.report.figures.pareto import draw_pareto
from cramming.report.figures.style import marks
from cramming.report.figures.usage import history
from cramming.report.figures.width import draw_widths
from cramming.report.figures.worth import draw_worth
from cramming.report.groups import pretrain_groups
from cramming.report.tables import write_tables
from cramming.report.times import layer_times
from cramming.report.versus import usage_of
from tests.cramming.report.test_times import layers, timed
from tests.helpers.priced import compared, dense, runs

PAPER = Path(__file__).resolve().parents[3] / "results" / "paper.yaml"


def at_end(records, **quantities):
    for each in records:
        each["metrics"] |= quantities
        each["curve"] = [{"progress": 1.0, "tokens": 12_000_000, "valid_loss": 4.0, **quantities}]
    return records


def of_size(records, hidden_size):
    for each in records:
        each["config"]["model"]["hidden_size"] = hidden_size
        each["name"] += f"-{hidden_size}"
        each["group"] += f"-{hidden_size}"
    return records


def entropy(weight):
    return {"form": "entropy", "entropy_weight": {"start": weight, "end": None, "schedule": "constant"}}


def two_weights():
    return [*runs("1x8", 90, group="ga", hardening=entropy(0.01)), *runs("1x8", 20, group="gb", hardening=entropy(0.1))]


def test_sizes_of_one_budget_have_a_page_of_curves_each() -> None:
    records = [each for size in (64, 128, 256) for each in at_end(of_size(runs("1x8", 90), size))]
    pages = comparable(records)
    assert list(pages) == [f"curves-micro-12000000-tokens-abcdef{end}" for end in ("", "-2", "-3")]
    assert sorted(each["name"] for mine in pages.values() for each in mine) == sorted(each["name"] for each in records)


def test_forms_that_differ_in_a_weight_are_two_lines_under_two_names() -> None:
    records = at_end(two_weights())
    (mine,) = comparable(records).values()
    lines = lines_of(mine)
    assert {label: {each["group"] for each in found} for label, found in lines.items()} == {
        "1x8 entropy, entropy_weight 0.01": {"ga"},
        "1x8 entropy, entropy_weight 0.1": {"gb"},
    }
    (found,) = compared([*dense(), *two_weights(), *runs("1x8", 30, group="st", hardening={"form": "soft"})])
    assert [row.brief for row in found.rows] == ["1x8 entropy, entropy_weight 0.01", *sorted(lines)[1:], "1x8 soft"]


def test_groups_of_one_label_are_lines_with_the_group_beside() -> None:
    records = at_end([*runs("1x8", 90), *runs("1x8", 80, group="other")])
    assert {label: len(mine) for label, mine in lines_of(records).items()} == {"1x8 (g1x8)": 3, "1x8 (other)": 3}


def test_records_of_one_seed_enter_no_mean_of_the_leaves_either() -> None:
    records = at_end(runs("1x8", 90), dead_leaves=100.0, usage_entropy_relative=0.5)
    again = {"name": "micro-1x8-s0-again", "metrics": {"valid_loss": 1.0, "dead_leaves": 900.0}}
    records.append({**records[0], **again, "curve": [{**records[0]["curve"][0], "dead_leaves": 900.0}]})
    (found,) = comparisons(pretrain_groups([*dense(), *records]))
    (row,) = found.rows
    dead, _ = usage_of(row)
    assert dead is not None
    assert (dead.n, dead.high) == (2, 100.0)
    assert history(row)[100]["dead_leaves"] == pytest.approx(100 / 1024)
    ((label, mine),) = lines_of(records).items()
    assert (label, sorted(each["seed"] for each in mine)) == ("1x8", [1, 2])


def test_a_row_without_a_loss_says_nothing_of_its_leaves() -> None:
    records = at_end(runs("1x8", 90), dead_leaves=100.0, usage_entropy_relative=0.5)
    for each in records:
        each["metrics"]["valid_loss"] = "nan"
    (found,) = compared([*dense(), *records])
    assert (usage_of(found.rows[0]), history(found.rows[0])) == ((None, None), {})


@pytest.mark.parametrize("key", ["trees", "depth", "leaves", "neurons_used"])
@pytest.mark.parametrize("value", [None, "x"])
def test_a_record_whose_layer_lacks_a_count_is_named_beside_others(tmp_path: Path, key: str, value: str | None) -> None:
    (tmp_path / "paper.yaml").write_bytes(PAPER.read_bytes())
    bent = runs("1x8", 90, group="st", hardening={"form": "straight_through"})
    bent[0]["resolved"]["ffn"][key] = value
    for each in (*runs("1x8", 80), *bent):
        write_json(tmp_path / "runs" / f"{each['name']}.json", each)
    with pytest.raises(UserError, match=rf"runs/micro-1x8-s0-st\.json: .*{key}"):
        write_tables(tmp_path)


def test_a_row_looks_the_same_in_the_panels_of_all_sizes() -> None:
    small = [*dense(), *runs("1x2", 20), *runs("1x8", 90)]
    large = of_size([*dense(), *runs("1x8", 90)], 256)
    sets = compared([*small, *large])
    assert len(sets) == 2
    assert marks(row.brief for found in sets for row in found.rows).keys() == {"1x2", "1x8"}
    rows = [*layers(), timed("1x2", 1e-6), *layers(width=256)]
    drawn = [draw_widths(sets)["effective_width.svg"], draw_pareto(sets, layer_times(rows))["loss_against_time.svg"]]
    for svg in drawn:
        assert svg.count(b"4 layers x 128") == svg.count(b"4 layers x 256") == 1
    assert drawn[1].count(b">1x8<") == 1  # one legend for both


def test_worth_shows_the_layers_that_several_sizes_have_and_all_of_a_lone_size() -> None:
    small = [*dense(), *runs("1x2", 20), *runs("1x8", 90)]
    large = of_size([*dense(), *runs("1x8", 90)], 256)
    both, alone = (draw_worth(compared(records))["worth.svg"] for records in ([*small, *large], small))
    assert (both.count(b">1x8<"), both.count(b">1x2<")) == (1, 0)
    assert both.count(b"4 layers x 128") == both.count(b"4 layers x 256") == 1
    assert (alone.count(b">1x8<"), alone.count(b">1x2<")) == (1, 1)
    assert draw_worth(compared(runs("1x8", 90))) == {}  # no curve, no worth
    third = of_size([*dense(), *runs("1x8", 90), *runs("1x2", 20)], 512)
    most = draw_worth(compared([*small, *large, *third]))["worth.svg"]
    assert (most.count(b">1x8<"), most.count(b">1x2<")) == (1, 0)  # one that a size lacks would be no trend


def test_sets_stand_by_size_and_not_by_the_letters_of_their_numbers() -> None:
    records = [each for size in (1024, 64, 192) for each in of_size(runs("1x8", 90), size)]
    whole = runs("1x8", 90, train={"budget_tokens": 9_000_000}, group="early")
    titles = [found.title.split(",")[1] for found in compared([*records, *whole])]
    assert titles == [f" 4 layers x {size}" for size in (64, 128, 192, 1024)]
    budgets = [
        found.scale
        for found in compared([*runs("1x8", 90), *runs("1x8", 90, train={"budget_tokens": 9_000_000}, group="early")])
    ]
    assert budgets == ["4 layers x 128, 9,000,000 tokens", "4 layers x 128, 12,000,000 tokens"]
