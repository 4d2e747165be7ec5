"""Figures of made-up results: what each shows and leaves out, and that its bytes follow from its content."""

from pathlib import Path

import pytest

from cramming.files import write_json
from cramming.report.figures import build_figures
from cramming.report.figures.curves import comparable
from cramming.report.figures.glue import draw_glue, neurons_used
from cramming.report.figures.pareto import draw_pareto
from cramming.report.figures.speed import draw_speed, speed_panels
from cramming.report.figures.style import DENSE, line, looks, mark
from cramming.report.figures.usage import draw_usage, history
from cramming.report.groups import suite_groups
from cramming.report.tables import read_paper, write_figures
from cramming.report.times import layer_times
from tests.cramming.report.test_tables import TASKS, crammed, glue_record
from tests.cramming.report.test_times import layers, timed
from tests.helpers.priced import compared, dense, runs

PAPER = Path(__file__).resolve().parents[3] / "results" / "paper.yaml"
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def paper():
    return read_paper(PAPER)


def with_history(found, dead=512.0):
    for each in found:
        loss = each["metrics"]["valid_loss"]
        leaves = {"dead_leaves": dead, "usage_entropy_relative": 0.25} if each["resolved"]["ffn"]["leaves"] else {}
        each["curve"] = [{"progress": t, "tokens": 1e6 * t, "valid_loss": loss + 1 - t, **leaves} for t in (0.5, 1.0)]
    return found


def results():
    records = [*dense(), *runs("1x8", 90), *runs("1x8", 120, group="st", hardening={"form": "straight_through"})]
    return with_history(records), [*layers(), *layers(tokens=1), *layers(tokens=4096)]


def test_all_figures_are_png_and_svg_of_equal_bytes(paper):
    records, rows = results()
    found = build_figures(records, paper, rows)
    names = (
        "worth",
        "effective_width",
        "loss_against_time",
        "glue",
        "speed",
        "usage",
        "curves-micro-12000000-tokens-abcdef",
    )
    assert set(found) == {f"{name}.{form}" for name in names for form in ("png", "svg")}
    assert all(content.startswith(PNG) for name, content in found.items() if name.endswith("png"))
    sets = compared(list(reversed(records)))
    again = draw_usage(sets) | draw_speed(rows)  # the others are drawn twice in test_effective and test_tables
    assert {name: found[name] for name in again} == again


def test_loss_against_time_has_the_timed_layers_and_the_control_as_a_line():
    sets = compared([*results()[0], *runs("4x6", 130)])
    svg = draw_pareto(sets, layer_times(layers()))["loss_against_time.svg"].decode()
    shown = ("1x8", "1x8 straight_through", "no feedforward layer", "dense, by width")
    assert all(f">{text}<" in svg for text in shown)
    assert ">4x6<" not in svg  # not timed
    assert draw_pareto(sets, []) == {}


def test_glue_draws_what_was_run_whole_and_nothing_else(paper):
    ffn = {"resolved": {"ffn": {"neurons_used": 12, "kind": "path"}}}
    partly = [glue_record(task, 0, 0.5, **ffn) for task in TASKS[:-1]]
    empty = draw_glue(suite_groups(partly, "glue"), paper["glue"])["glue.svg"].decode()
    assert ">ours: no row of the paper was run<" in empty
    assert ">1x9<" not in empty
    whole = [*partly, glue_record(TASKS[-1], 0, 0.5, **ffn)]
    other = draw_glue(suite_groups(whole, "glue"), paper["glue"])["glue.svg"].decode()
    assert ">1x9<" in other
    assert ">ours: no row of the paper was run<" in other
    assert ">ours: other models (medians of tasks)<" in other
    ours = [crammed(task, 0, 0.8, **ffn) for task in TASKS]
    rows = draw_glue(suite_groups(ours, "glue"), paper["glue"])["glue.svg"].decode()
    assert ">ours: rows of the paper (medians of tasks)<" in rows
    assert "no row of the paper" not in rows


def test_the_papers_neurons_used_agree_with_its_shares(paper):
    for name, facts in paper["glue"]["rows"].items():
        share = neurons_used(name, facts["neurons"]) / facts["neurons"]
        assert share == pytest.approx(facts["used"], abs=0.001), name


def test_speed_needs_several_numbers_of_tokens_of_one_run():
    rows = [timed(name, 1e-6, tokens=n, shape="1x11") for name in ("cpu", "dense 4096 float32") for n in (1, 128, 4096)]
    ((title, lines),) = speed_panels(rows).items()
    assert title == "1x11, width 128, 1 thread\nCPU"
    assert {name: sorted(by) for name, by in lines.items()} == {key: [1, 128, 4096] for key in ("cpu", "dense 4096")}
    apart = [{**row, "run": f"r{row['tokens']}"} for row in rows]
    assert speed_panels(apart) == {}
    assert draw_speed(apart) == {}
    assert speed_panels([{**row, "mode": "training"} for row in rows]) == {}


def test_layers_that_stand_alone_share_a_panel():
    rows = [
        timed(f"{name} float32", 1e-6, tokens=n, shape=name) for name in ("leaf 5x96", "dense 384") for n in (1, 128, 9)
    ]
    ((title, lines),) = speed_panels(rows).items()
    assert (title, set(lines)) == ("layers, width 128, 1 thread\nCPU", {"leaf 5x96", "dense 384"})


def test_usage_is_the_mean_over_seeds_as_a_share():
    tree = with_history(runs("1x8", 90), dead=512.0)
    tree[0]["curve"][0] |= {"dead_leaves": 0.0, "usage_entropy_relative": "nan"}
    (found,) = compared([*with_history(dense()), *tree])
    (row,) = found.rows
    assert history(row) == {
        50: {"dead_leaves": pytest.approx(2 / 3 * 512 / 1024), "usage_entropy_relative": 0.25},
        100: {"dead_leaves": 0.5, "usage_entropy_relative": 0.25},
    }
    assert history(found.dense[0]) == {}


def test_curves_of_another_recipe_are_another_figure():
    records = with_history([*runs("1x8", 90), *runs("1x8", 80, group="lr", train={"lr": 0.01})])
    pages = comparable(records)
    assert [len(mine) for mine in pages.values()] == [3, 3]
    assert list(pages) == ["curves-micro-12000000-tokens-abcdef", "curves-micro-12000000-tokens-abcdef-2"]


def test_no_two_lines_look_alike():
    names = [f"dense{n}" for n in range(7)] + [f"1x{n}" for n in range(40)]
    found = looks(names, set(names[:7]))
    assert len({repr(look) for look in found.values()}) == len(names)
    assert {found[name]["color"] for name in names[:7]} == {DENSE}
    assert len({repr(mark(n)) for n in range(66)}) == 66
    assert line(7)["linestyle"] != line(1)["linestyle"]


def test_the_files_are_written_beside_the_tables(tmp_path: Path):
    (tmp_path / "paper.yaml").write_bytes(PAPER.read_bytes())
    records, _ = results()
    for each in records[:2]:
        write_json(tmp_path / "runs" / f"{each['name']}.json", each)
    written = {path.relative_to(tmp_path).as_posix() for path in write_figures(tmp_path)}
    assert "figures/glue.svg" in written
    assert {path.parent.name for path in tmp_path.rglob("*.*") if path.suffix in (".png", ".svg")} == {"figures"}
    assert not (tmp_path / "tables").exists()
