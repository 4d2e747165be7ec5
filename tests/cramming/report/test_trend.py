"""How effective widths go with size, of made-up losses: the ground by hand, the same layer in several sets."""

import csv
import io
import math

import pytest

from cramming.report.trend import followed, ground_of, trend_csv, trend_markdown, trend_tex
from cramming.report.width import Curve
from tests.helpers.priced import compared, dense, runs


def of_size(records, hidden_size):
    for each in records:
        each["config"]["model"]["hidden_size"] = hidden_size
        each["name"] += f"-{hidden_size}"
        each["group"] += f"-{hidden_size}"
    return records


def two_sizes():
    small = of_size([*dense(), *runs("1x8", 20), *runs("4x6", 60)], 64)
    return compared([*small, *of_size([*dense(), *runs("1x8", 40)], 128), *of_size(runs("1x8", 9), 256)])


def test_the_ground_is_the_gap_and_the_range_over_seeds_with_and_without_what_a_seed_shares():
    curve = Curve((0, 4, 256), (0, 1), ((4.0, 3.9, 3.8), (4.2, 4.1, 3.9)))
    ground = ground_of(curve)
    assert ground.gap == pytest.approx(4.1 - 3.85)
    assert ground.spread == pytest.approx(0.2)
    # Means of the seeds are 3.9 and 4.0667: without them 0.1, 0, -0.1 and 0.1333, 0.0333, -0.1667.
    assert ground.paired == pytest.approx(0.0667, abs=1e-4)
    assert not ground.firm


def test_firm_is_what_has_a_wide_gap_and_close_seeds():
    assert ground_of(Curve((0, 256), (0, 1), ((4.0, 3.8), (4.009, 3.801)))).firm
    assert not ground_of(Curve((0, 256), (0, 1), ((4.0, 3.8), (4.02, 3.82)))).firm  # seeds apart
    assert not ground_of(Curve((0, 256), (0, 1), ((4.0, 3.95), (4.001, 3.951)))).firm  # layers close
    assert not ground_of(Curve((0, 64), (0, 1), ((4.0, 3.8), (4.001, 3.801)))).firm  # not known


def test_a_layer_is_followed_from_size_to_size_where_both_have_a_curve():
    found = followed(two_sizes())
    assert [(label, each.hidden_size) for label, each, _ in found] == [("1x8", 64), ("1x8", 128)]
    lines = list(csv.DictReader(io.StringIO(trend_csv(two_sizes()))))
    assert [float(line["w_eff"]) for line in lines] == pytest.approx([20, 40], rel=1e-4)
    assert [float(line["per_used"]) for line in lines] == pytest.approx([20 / 9, 40 / 9], rel=1e-4)
    assert float(lines[0]["gap"]) == pytest.approx(0.2 * math.log1p(256), rel=1e-5)
    assert float(lines[0]["spread"]) == pytest.approx(0.06)
    assert lines[0]["records"].split() == [f"micro-1x8-s{seed}-g1x8-64" for seed in range(3)]


def test_the_page_prints_the_ground_of_every_set_and_what_is_left_out():
    page = trend_markdown(two_sizes())
    rows = [line for line in page.splitlines() if line.startswith("| micro | 4 layers x")]
    assert [line.split(" | ")[5:8] for line in rows] == [["0.060", "0.000", "no |"]] * 2
    assert "4 layers x 256, 12,000,000 tokens, data abcdef: no dense curve" in page
    assert "4x6" not in page  # in one set alone
    assert trend_tex(two_sizes()).count(r"\begin{tabular}") == 2


def test_without_a_curve_it_says_so():
    page = trend_markdown(compared(runs("1x8", 9)))
    assert "No set has a dense curve yet." in page
    assert "No layer stands in several sets" in page
    assert trend_tex([]).startswith("%")
