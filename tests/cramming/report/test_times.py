"""Times of layers beside those of dense ones: ratios by hand, bounds where the timed widths end, what is missing."""

import csv
import io
import json
from pathlib import Path

import pytest

from cramming.report.effective import effective_csv, effective_markdown, effective_tex
from cramming.report.groups import pretrain_groups
from cramming.report.speed import read_speed
from cramming.report.times import layer_times
from cramming.report.width import Worth
from tests.helpers.priced import compared, dense, runs


def timed(tag, seconds, tokens=128, **changes):
    same = {"what": "layer", "name": tag, "shape": tag, "width": 128, "tokens": tokens, "dtype": "float32"}
    same |= {"mode": "inference", "inputs": "iid", "unit": "s", "median": seconds, "q10": seconds, "q90": seconds}
    same |= {"n": 3, "threads": 1, "run": "r1", "device": "cpu", "machine": "CPU", "torch": "2", "python": "3"}
    return {**same, "date": "2026-01-02T03:04:05Z", "file": "micro-layers.json", **changes}


def layers(tree=4e-6, widest=1024, **changes):
    """Dense layers that take a nanosecond per neuron and one for all, and a tree."""
    widths = [width for width in (4, 16, 64, 256, 1024) if width <= widest]
    return [timed("1x8", tree, **changes), *(timed(f"dense{w}", 1e-6 * (1 + w), **changes) for w in widths)]


def records():
    return [*dense(), *runs("1x8", 90, spread=1.1), *runs("64x2", 5000)]


def columns(rows, label="1x8"):
    lines = csv.DictReader(io.StringIO(effective_csv(compared(records()), layer_times(rows))))
    line = next(line for line in lines if line["layer"] == label)
    return [line[f"time_ratio_128_tokens{end}"] for end in ("", "_low", "_high")]


def test_the_ratio_is_of_the_dense_layer_of_the_effective_width():
    value, low, high = map(float, columns(layers()))
    assert value == pytest.approx((1 + 90) / 4, rel=0.01)
    assert low == pytest.approx((1 + 90 / 1.1) / 4, rel=0.01)
    assert high == pytest.approx((1 + 90 * 1.1) / 4, rel=0.01)


def test_a_layer_of_no_neurons_takes_no_time_and_the_widest_its_own():
    (times,) = layer_times(layers())
    assert times.ratio(Worth(2.0, None, None, (0,)), "1x8") == (pytest.approx(2.5 / 4), None, None)
    assert times.ratio(Worth(1024 * (1 + 1e-12), None, None, (0,)), "dense1024")[0] == pytest.approx(1)


def test_beyond_what_was_timed_or_measured_a_bound_stands():
    assert columns(layers(), "64x2") == ["", "", ""]  # not timed
    rows = [*layers(), timed("64x2", 5e-4)]
    assert columns(rows, "64x2") == [">= 2.05"] * 3
    assert columns(layers(widest=64)) == [">= 16.25"] * 3  # the curve goes on, the times do not
    (times,) = layer_times(layers())
    assert times.text(Worth(float("-inf"), None, None, (0,)), "1x8", (4, 1024)) == "<= 1.25"


def test_an_interval_spans_all_widths_in_it_where_a_wider_layer_was_timed_as_faster():
    rows = [timed("1x8", 1e-6), timed("dense4", 4e-6), timed("dense16", 7e-6), timed("dense64", 3e-6)]
    (times,) = layer_times(rows)
    assert times.ratio(Worth(4.0, 4.0, 64.0, (0, 1, 2)), "1x8") == pytest.approx((4, 3, 7))
    assert times.text(Worth(16.0, 4.0, 64.0, (0, 1, 2)), "1x8", (0, 64)) == "7.00 (3.00 to 7.00)"


def test_each_number_of_tokens_has_a_column_and_the_newest_run_counts():
    again = layers(tree=8e-6, run="r2", date="2026-02-02T00:00:00Z")
    rows = sorted([*layers(), *layers(tokens=1, tree=1e-6), *again], key=lambda row: row["date"])
    page = effective_markdown(compared(records()), [], layer_times(rows))
    ours = next(line for line in page.splitlines() if line.startswith("| 1x8 |"))
    assert "time of the layer, 1 token |" in page
    assert "time of the layer, 128 tokens |" in page
    assert "| 91.00 (82.8" in ours
    assert "| 11.37 (10." in ours or "| 11.38 (10." in ours
    assert "- timed on CPU, float32, 2026-01-02" in page
    assert "- not timed at 1 token: 64x2" in page


@pytest.mark.parametrize(
    "changes", [{"file": "aims.json"}, {"mode": "training"}, {"name": "cpu"}, {"width": 768}, {"unit": "MB"}]
)
def test_rows_of_other_things_are_no_times(changes):
    sets = compared(records())
    times = layer_times([{**row, **changes} for row in layers()])
    page = effective_markdown(sets, pretrain_groups(records()), times)
    assert "layers of width 128 were not timed (python -m bench.worth)" in page
    assert "above | — |" in page
    assert "layers of width 128 were not timed" in effective_csv(sets, times)
    assert "time of" not in effective_tex(sets, times).replace("% missing", "")


def test_the_file_is_read_as_the_bench_writes_it(tmp_path: Path):
    rows = [{key: value for key, value in row.items() if key != "file"} for row in layers()]
    (tmp_path / "micro-layers.json").write_text(json.dumps({"schema_version": 1, "rows": rows}))
    assert columns(read_speed(tmp_path)) == columns(layers())
