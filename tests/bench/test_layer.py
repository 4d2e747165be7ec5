"""Benchmarks: a wrong layer is never timed, and cases are timed in turn."""

import time

import pytest
import torch
from torch import Tensor

from bench.cases import WIDTH
from bench.contenders import check, copy_of
from bench.layer import main, measure
from bench.options import Setting
from bench.rows import read_rows
from bench.timing import REPEATED_BELOW, figures, interleaved
from fff.kernels import PROVIDERS
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.layers.quantised import QuantisedPath
from fff.testing import inputs

CPU = torch.device("cpu")


class Wrong(PathFFF):
    """Its third token is off."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).clone()
        y[2, 0] += 0.01
        return y


@pytest.mark.parametrize("provider", ["masked", "gather"])
def test_a_wrong_layer_is_refused(provider: str) -> None:
    torch.manual_seed(0)
    x = inputs("iid", 8)[0]
    assert check(PathFFF(WIDTH, WIDTH, 3, provider=provider), x, provider) < 1e-5
    with pytest.raises(AssertionError, match=f"{provider}: error"):
        check(Wrong(WIDTH, WIDTH, 3, provider=provider), x, provider)


def test_a_wrong_walk_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, other = (PathFFF(WIDTH, WIDTH, 3, provider="gather") for _ in range(2))
    monkeypatch.setattr(layer, "w_in", other.w_in)
    monkeypatch.setattr("bench.contenders.path_fff", lambda x, w, *rest: _definition(x, -w, *rest))
    with pytest.raises(AssertionError, match="gather: other nodes than defined"):
        check(layer, inputs("iid", 64)[0], "gather")


def _definition(*arguments):
    from fff.reference import path_fff

    return path_fff(*arguments)


@pytest.mark.parametrize("provider", ["gather", "cpu"])
@pytest.mark.parametrize("depth", [0, 3])
def test_a_leaf_layer_is_held_to_its_definition(provider: str, depth: int) -> None:
    if reason := PROVIDERS[provider].available(CPU, torch.float32):
        pytest.skip(reason)
    torch.manual_seed(0)
    x = inputs("iid", 40)[0]
    layer = copy_of(LeafFFF(WIDTH, WIDTH, depth, 4), provider).eval()
    assert check(layer, x, provider) < 1e-5
    assert layer.b_out is not None
    forward = layer.forward
    layer.forward = lambda x: forward(x) + 1e-3  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match=f"{provider}: error"):
        check(layer, x, provider)


@pytest.mark.skipif(PROVIDERS["cpu"].available(CPU, torch.float32) is not None, reason="the C++ cannot be built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_trees_are_timed_and_held_to_their_own_definition(dtype: torch.dtype) -> None:
    rows = {row.name: row for row in measure(Setting(2, 3, 4, dtype, "inference", seconds=0.0), CPU)}
    assert rows["int8"].provider == "int8"
    assert rows["int8"].relative_error is not None
    for setting in (
        Setting(2, 3, 4, dtype, "training", seconds=0.0),
        Setting(2, 3, 4, dtype, "inference", seconds=0.0, providers=("gather",)),
    ):
        assert "int8" not in {row.name for row in measure(setting, CPU)}
    layer, x = QuantisedPath.from_float(PathFFF(WIDTH, WIDTH, 3)).eval(), inputs("iid", 40)[0].to(dtype)
    assert check(layer, x, "int8") < 1e-2
    forward = layer.forward
    layer.forward = lambda x: 1.1 * forward(x)  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="int8: error"):
        check(layer, x, "int8")


def test_both_ways_of_a_leaf_layer_are_timed() -> None:
    rows = measure(Setting(1, 3, 4, torch.float32, "inference", seconds=0.0, leaf_width=4), CPU)
    ways = [name for name in ("gather", "cpu") if PROVIDERS[name].available(CPU, torch.float32) is None]
    assert [row.name for row in rows if row.provider] == ways
    assert {row.shape for row in rows} == {"leaf4x3"}
    assert {row.opponent for row in rows} <= {"dense 32 float32", "dense 64 float32"}
    training = measure(Setting(1, 3, 4, torch.float32, "training", seconds=0.0, leaf_width=4), CPU)
    assert [row.name for row in training if row.provider] == ways


def test_skewed_inputs_visit_few_leaves_often() -> None:
    torch.manual_seed(0)
    layer = PathFFF(WIDTH, WIDTH, 8)
    leaves = {kind: layer.path(inputs(kind, 2048)[0])[0][:, 0, -1].unique().numel() for kind in ("iid", "skewed")}
    assert leaves["iid"] > 200
    assert leaves["skewed"] < leaves["iid"] / 2


def test_cases_take_turns_and_quick_ones_repeat() -> None:
    order: list[str] = []

    def case(name: str, seconds: float):
        def call(number: int) -> None:
            order.append(name)
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass

        return call

    cases = {"slow": case("slow", REPEATED_BELOW), "quick": case("quick", REPEATED_BELOW / 20)}
    samples = interleaved(cases, CPU, 0.0, least=3)
    turns = "".join(name[0] for name in order).lstrip("s").lstrip("q")
    assert [len(block) for block in turns.replace("q", " ").split()] == [1, 1, 1]
    assert all(sample.first == sample.steady >= REPEATED_BELOW for sample in samples["slow"])
    row = figures(samples["quick"])
    assert row["n"] == 3
    assert REPEATED_BELOW / 20 <= row["least"] <= row["median"] <= row["most"]
    assert order.count("quick") > 3 * 3


def test_the_command_prints_and_writes_ratios(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    out = tmp_path / "bench.json"
    options = f"--shapes 1x5 --tokens 4 --modes inference --seconds 0 --threads {threads} --out {out}"
    main(options.split())
    printed = capsys.readouterr().out
    assert "gather" in printed
    assert "dense 64 float32" in printed
    assert "floors: operations" in printed
    rows = {row.name: row for row in read_rows(out)}
    assert rows["gather"].opponent in ("dense 63 float32", "dense 64 float32")
    assert rows["gather"].ratio == pytest.approx(rows[str(rows["gather"].opponent)].median / rows["gather"].median)
    assert rows["gather"].floor_operations_s is not None
