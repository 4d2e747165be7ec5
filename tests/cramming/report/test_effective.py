"""Effective widths of made-up records: the page, what it names as missing, and the figure."""

import csv
import io
from pathlib import Path

import pytest

from cramming.errors import UserError
from cramming.files import write_json
from cramming.model.config import FFNConfig
from cramming.report.comparisons import comparisons
from cramming.report.effective import effective_csv, effective_markdown, effective_tex
from cramming.report.figures.width import draw_widths
from cramming.report.groups import pretrain_groups
from cramming.report.tables import write_figures, write_tables
from tests.helpers.priced import SEED_NOISE, WIDTHS, compared, dense, loss_of, record, runs

PAPER = Path(__file__).resolve().parents[3] / "results" / "paper.yaml"


def lines(records):
    return list(csv.DictReader(io.StringIO(effective_csv(compared(records)))))


def line_of(records, label):
    return next(line for line in lines(records) if line["layer"] == label)


def test_rows_are_worth_what_their_losses_say():
    records = [*dense(), *runs("1x8", 90, spread=1.1), *runs("4x6", 20, spread=1.5), *runs("16x4", 3000)]
    tree, wide, many = (line_of(records, name) for name in ("1x8", "4x6", "16x4"))
    assert float(tree["w_eff"]) == pytest.approx(90, rel=0.01)
    assert (tree["n"], tree["neurons_used"], tree["neurons_trained"], tree["claim"]) == ("3", "9", "511", "above")
    assert float(tree["per_used"]) == pytest.approx(10, rel=0.01)
    assert float(tree["per_trained"]) == pytest.approx(90 / 511, rel=0.01)
    assert float(tree["w_eff_low"]) == pytest.approx(90 / 1.1, rel=0.01)
    assert tree["records"].split() == [f"micro-1x8-s{seed}-g1x8" for seed in range(3)]
    assert (wide["neurons_used"], wide["claim"]) == ("28", "not told apart")
    assert (many["w_eff"], many["w_eff_low"], many["per_used"], many["claim"]) == (">= 1024", ">= 1024", "", "above")


def test_dense_rows_stand_beside_them_with_their_own_width():
    found = [line for line in lines([*dense(), *runs("1x8", 90)]) if line["block"] == "dense"]
    assert [float(line["w_eff"]) for line in found] == pytest.approx(WIDTHS)
    assert [line["neurons_used"] for line in found] == [str(width) for width in WIDTHS]
    assert {line["claim"] for line in found[1:]} == {"not told apart"}


def test_the_page_gives_loss_interval_and_bounds():
    page = effective_markdown(compared([*dense(), *runs("1x8", 90, spread=1.1), *runs("64x2", 5000)]), [])
    loss = loss_of(90)
    assert f"| 1x8 | {loss:.3f} (" in page
    assert "| 90.0 (81.8 to 99.0) | 10.0" in page
    assert "| >= 1024 (>= 1024 to >= 1024) | — | — | above |" in page
    assert "Missing or odd:\n\nNothing." in page


def test_a_missing_control_is_named_and_bounds_the_curve():
    records = [*dense(WIDTHS[1:]), *runs("1x8", 1)]
    (found,) = compared(records)
    assert found.missing == ("the control without feedforward layers (ffn=none) was not run",)
    assert line_of(records, "1x8")["w_eff"] == "<= 4"
    assert line_of(records, "1x8")["claim"] == "below"


def test_a_width_with_two_seeds_is_named_and_left_out():
    records = [*dense(WIDTHS[:-1]), *runs(1024, seeds=(0, 1)), *runs("1x8", 500)]
    (found,) = compared(records)
    assert found.missing == ("dense 1024 is left out of the curve: 2 of at least 3 seeds",)
    assert line_of(records, "1x8")["w_eff"] == ">= 256"


def test_fewer_than_four_widths_are_no_curve():
    records = [*dense(WIDTHS[:3]), *runs("1x8", 2)]
    (found,) = compared(records)
    assert found.curve is None
    assert found.missing == ("no curve: 3 of at least 4 widths have enough seeds (0, 4, 16)",)
    assert line_of(records, "1x8")["w_eff"] == ""
    assert draw_widths([found]) == {}


@pytest.mark.parametrize(
    ("changes", "key", "ours", "theirs"),
    [
        ({"train": {"budget_tokens": 6_000_000}}, "train.budget_tokens", 12_000_000, 6_000_000),
        ({"data_fingerprint": "ffff"}, "data_fingerprint", "abcdef0123", "ffff"),
        ({"schema_version": 2}, "schema_version", 1, 2),
        ({"train": {"mask_rate": 0.4}}, "train.mask_rate", "default", 0.4),
    ],
)
def test_unequal_runs_are_not_compared_and_said_so(changes, key, ours, theirs):
    found = compared([*dense(), *runs("1x8", 90), *runs("4x6", 20, **changes)])
    assert len(found) == 2
    here = next(each for each in found if each.rows[0].label == "4x6")
    there = next(each for each in found if each is not here)
    assert [row.label for row in there.rows] == ["1x8"]
    assert here.curve is None
    told = " ".join((*found[0].missing, *found[1].missing))
    assert any(f"{key} {one} there, {two} here" in told for one, two in ((ours, theirs), (theirs, ours)))


def test_what_cannot_change_a_loss_does_not_part_runs():
    records = [*dense(), *runs("1x8", 90, train={"log_steps": 3, "mask_rate": 0.25, "compile": True})]
    (found,) = compared(records)
    assert found.rows[0].worth.value == pytest.approx(90)


def test_two_groups_of_one_width_are_neither_averaged_nor_chosen():
    records = [*dense(), *runs(64, 70, group="other"), *runs("1x8", 90)]
    (found,) = compared(records)
    assert found.missing == ("dense 64 is left out of the curve: 2 groups have it (gdense64, other)",)
    assert found.curve.widths == (0, 4, 16, 256, 1024)


def test_two_records_of_one_seed_are_left_out_and_named():
    double = runs("1x8", 90)
    double.append(double[0] | {"name": "micro-1x8-s0-again", "metrics": {"valid_loss": 1.0}})
    row = line_of([*dense(), *double], "1x8")
    assert (row["n"], row["seeds"], row["w_eff_low"]) == ("2", "1 2", "")
    assert "seed 0 left out: 2 records have it" in row["notes"]


def test_failed_runs_and_losses_that_are_none_are_named():
    broken = runs("1x8", 90)
    broken[0] |= {"status": "diverged", "metrics": {}, "error": "loss is nan at step 3"}
    broken[1] |= {"metrics": {"valid_loss": "nan"}}
    records = [*dense(), *broken]
    row = line_of(records, "1x8")
    assert row["n"] == "1"
    assert "has no finite loss" in row["notes"]
    assert "1 run(s) left out" in row["notes"]
    assert "loss is nan at step 3" in effective_markdown(compared(records), pretrain_groups(records))


def test_seeds_that_the_curve_lacks_are_named():
    records = [*dense(), *runs("1x8", 90, seeds=(0, 1, 2, 3)), *runs("4x6", 20, seeds=(7, 8, 9))]
    assert line_of(records, "1x8")["notes"] == "the curve lacks seed 3"
    assert line_of(records, "1x8")["seeds"] == "0 1 2"
    assert line_of(records, "4x6")["notes"] == "shares no seed with the curve"
    assert line_of(records, "4x6")["w_eff"] == ""


def test_rows_of_one_layer_are_told_apart_by_their_hardening():
    records = [*dense(), *runs("1x8", 90), *runs("1x8", 40, group="st", hardening={"form": "straight_through"})]
    (found,) = compared(records)
    assert {row.label for row in found.rows} == {"1x8", "1x8 straight_through"}
    (again,) = compared([*records, *runs("1x8", 50, group="third")])
    assert {row.label for row in again.rows} == {"1x8 (g1x8)", "1x8 (third)", "1x8 straight_through"}


def test_a_gated_layer_is_a_row_and_no_part_of_the_curve():
    gated = FFNConfig(kind="dense", width=64, activation="gated_gelu")
    records = [*dense(), *(record(gated, seed, loss_of(100) + SEED_NOISE[seed]) for seed in range(3))]
    assert float(line_of(records, "gated64")["w_eff"]) == pytest.approx(100)


def test_a_record_that_does_not_say_its_layers_is_named():
    silent = runs("1x8", 90)
    for each in silent:
        del each["resolved"]
    groups = pretrain_groups([*dense(), *silent])
    page = effective_markdown(comparisons(groups), groups)
    assert "- `micro-1x8-s0-g1x8`: does not say what its layers were" in page
    assert "| 1x8 |" not in page


def test_latex_has_a_line_for_each_row_and_escapes_its_signs():
    text = effective_tex(compared([*dense(), *runs("1x8", 90), *runs("64x2", 5000)]))
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")]
    assert body.count(r"\\") == len(WIDTHS) + 2
    assert r"\textgreater{}= 1024" in body
    assert r"w\_eff" in text
    assert all(line.count("&") == 7 for line in body.splitlines()[1:])


def test_records_become_tables_and_a_figure(tmp_path: Path):
    (tmp_path / "paper.yaml").write_text(PAPER.read_text())
    for each in [*dense(), *runs("1x8", 90, spread=1.2), *runs("4x6", 20, spread=1.5)]:
        write_json(tmp_path / "runs" / f"{each['name']}.json", each)
    written = {path.relative_to(tmp_path).as_posix() for path in (*write_tables(tmp_path), *write_figures(tmp_path))}
    figures = {"figures/effective_width.png", "figures/effective_width.svg"}
    assert figures | {f"tables/effective_width.{form}" for form in ("md", "csv", "tex")} <= written
    before = {name: (tmp_path / name).read_bytes() for name in figures}
    write_figures(tmp_path)
    assert before == {name: (tmp_path / name).read_bytes() for name in figures}
    svg = before["figures/effective_width.svg"].decode()
    assert all(text in svg for text in (">none<", ">1,024<", ">1x8<", ">4x6<", "range of 3 seeds"))


def test_a_record_of_another_schema_is_refused_by_name(tmp_path: Path):
    (tmp_path / "paper.yaml").write_text(PAPER.read_text())
    (each,) = runs("1x8", 90, seeds=(0,), schema_version=2)
    write_json(tmp_path / "runs" / f"{each['name']}.json", each)
    with pytest.raises(UserError, match=r"micro-1x8-s0-g1x8\.json is not a record of schema version 1"):
        write_tables(tmp_path)


def test_a_half_written_record_is_refused_by_name_and_leftovers_are_none(tmp_path: Path):
    (tmp_path / "paper.yaml").write_text(PAPER.read_text())
    for each in runs("1x8", 90):
        write_json(tmp_path / "runs" / f"{each['name']}.json", each)
    whole = tmp_path / "runs" / "micro-1x8-s1-g1x8.json"
    (tmp_path / "runs" / ".micro-1x8-s7-g1x8.json.part").write_text("{")  # beside, as a killed run leaves it
    assert len(write_tables(tmp_path)) > 0
    whole.write_text(whole.read_text()[:-20])
    with pytest.raises(UserError, match=r"micro-1x8-s1-g1x8\.json"):
        write_tables(tmp_path)


def test_the_committed_records_say_what_they_lack():
    page = (PAPER.parent / "tables/effective_width.md").read_text()
    block = page[page.index("## cpu_wiki, 4 layers x 256, 7,500,000 tokens") :].split("\n## ")[0]
    assert "dense 1024 is left out of the curve: 1 of at least 3 seeds" in block
    assert "(ffn=none) was not run" in block
