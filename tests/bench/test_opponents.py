"""Opponents: every form is held to its module before it is timed, and named; what is not there is told."""

import importlib.metadata
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bench import forms
from bench.encoder import Scale
from bench.forms import FORMS, Form, distance, made
from bench.opponents import DENSE, OURS, Size, measure_encoder, measure_layer, measure_leaves, measure_minilm
from cramming.machine import CPU
from fff.kernels.int8_linear import unusable

QUICK = tuple(form for form in FORMS if form.package == "torch" and "compiled" not in form.name)
BY_NAME = {form.name: form for form in FORMS}
TINY = Size((4,), 3, Scale(CPU, batches=(2,), layers=1, vocab_size=99, length=8, hidden_size=96, heads=4), 0.0)

if reason := unusable():
    pytest.skip(reason, allow_module_level=True)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 256), nn.GELU(), nn.Linear(256, 128)).eval()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.opponents.DENSE", tuple(form for form in DENSE if form in QUICK))


def test_forms_compute_the_module_within_their_types_error(
    module: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    forms = made(module, [torch.randn(5, 128)], QUICK, "small", trees=False)
    found = {form.name: (call, error) for form, call, error in forms}
    assert list(found) == [form.name for form in QUICK]
    assert found["float32"][1] == 0
    assert 0 < found["int8"][1] < found["int8 torch"][1] < 0.05, "a scale for each token is nearer than one for all"
    version = importlib.metadata.version("torch")
    assert f"checked    small int8 torch, torch {version}: off by" in capsys.readouterr().out
    assert module[0].weight.dtype == torch.float32, "the module stays"


@pytest.mark.parametrize("name", ["int8 torchao", "int8 onnxruntime", "int8 openvino"])
def test_other_libraries_compute_it_too(module: nn.Module, name: str) -> None:
    form = BY_NAME[name]
    if reason := form.missing():
        pytest.skip(reason)
    ((_, _, error),) = made(module, [torch.randn(5, 128)], (form,), "small", trees=False)
    assert 0 < error < 0.05, "whole numbers of 8 bits"


def test_a_form_that_computes_something_else_is_not_timed(module: nn.Module) -> None:
    wrong = replace(BY_NAME["int8"], make=lambda module, _: lambda x: 1.2 * module(x))
    with pytest.raises(AssertionError, match="small int8: another result, off by"):
        list(made(module, [torch.randn(5, 128)], (wrong,), "small", trees=False))


def test_tokens_that_went_another_way_are_counted_and_a_tree_may_have_a_few(module: nn.Module) -> None:
    x = torch.randn(8, 128)
    expected = module(x).detach()
    found = expected * 1.01
    found[3] = -expected[3]
    off, apart = distance(found, expected)
    assert (off, apart) == (pytest.approx(0.01, rel=1e-3), 1 / 8)
    assert distance(-expected, expected) == (float("inf"), 1.0)
    signs = torch.ones(8, 1)
    signs[7] = -1
    flipping = replace(BY_NAME["int8"], make=lambda module, _: lambda x: module(x) * signs)
    ((_, _, error),) = made(module, [x], (flipping,), "small", trees=True)
    assert error == 0
    with pytest.raises(AssertionError, match=r"12\.5% of tokens another way"):
        list(made(module, [x], (flipping,), "small", trees=False))


def test_what_is_not_there_or_fails_is_left_out_with_the_reason(
    module: nn.Module, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no such operator\nand more")

    absent = Form("int8 nobody", fail, "no_such_package")
    failing = Form("int8 pytest", fail, "pytest")
    assert list(made(module, [torch.randn(5, 128)], (absent, failing), "small", trees=False)) == []
    printed = capsys.readouterr().out
    assert "left out   small int8 nobody: no_such_package cannot be imported" in printed
    assert "left out   small int8 pytest: RuntimeError: no such operator" in printed
    with pytest.raises(RuntimeError, match="no such operator"):  # ours and torch's must work
        list(made(module, [torch.randn(5, 128)], (replace(failing, package="torch"),), "small", trees=False))


@pytest.mark.usefixtures("quick")
def test_every_row_of_a_layer_names_opponent_and_libraries() -> None:
    rows = {row.name: row for row in measure_layer(TINY, 4)}
    assert set(rows) == {
        f"dense 64 {form.name}" for form in QUICK if form.name not in ("int8 in bfloat16", "optimised")
    } | {f"1x3 {form.name}" for form in OURS if form.name != "optimised"}
    torch_version = f"torch {importlib.metadata.version('torch')}"
    for row in rows.values():
        assert (row.what, row.shape, row.tokens, row.width) == ("layer", "1x3", 4, 768)
        assert (row.library, row.opponent_library) == (torch_version, torch_version)
        assert row.ratio == pytest.approx(rows[str(row.opponent)].median / row.median)
        assert row.ratio_second == pytest.approx(rows[str(row.second)].median / row.median)
        assert row.relative_error is not None
    assert {row.opponent for row in rows.values()} <= {name for name in rows if name.startswith("dense ")}
    assert {row.second for row in rows.values()} <= {"dense 64 int8", "dense 64 int8 torch"}
    assert {row.dtype for row in rows.values()} == {"float32", "bfloat16", "int8"}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_leaves_are_compared_with_dense_layers_of_minilms_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.opponents.MINILM", {"hidden_size": 96, "heads": 4})
    for what, rows in (("layer", measure_leaves(TINY, 40)), ("encoder", measure_minilm(TINY, 2, 8))):
        names = {row.name: row for row in rows}
        assert {"leaf 5x192+96 int8", "leaf 5x192+96 bfloat16", "dense 384 int8", "dense 1536 int8 torch"} <= set(names)
        assert ("leaf 5x192+96 optimised" in names) == (what == "encoder")
        for row in rows:
            assert (row.what, row.width, row.shape) == (what, 96, row.shape)
            assert str(row.opponent).startswith("dense 1536 ")
            assert row.ratio == pytest.approx(names[str(row.opponent)].median / row.median)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_encoders_are_compared_with_dense_ones_of_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.opponents.MINILM", {"hidden_size": 48, "heads": 2})
    rows = {row.name: row for row in measure_encoder(TINY, 2)}
    assert {"1x11 int8", "32x6 int8", "none int8", "dense 3072 int8", "dense 1536 of 48 int8"} <= set(rows)
    narrow = {"dense 16 bfloat16", "dense 128 int8 in bfloat16", "dense 256 optimised", "16x4 optimised"}
    assert narrow | {"dense 3072 optimised", "1x11 optimised", "none optimised"} <= set(rows)
    assert rows["1x11 optimised"].dtype == "optimised"
    assert {str(row.second).rsplit(" int8")[0] for row in rows.values()} == {"dense 3072"}
    small = rows["dense 1536 of 48 int8 torch"]
    assert (small.width, rows["1x11 int8"].width) == (48, 96)
    assert all(row.opponent and row.opponent.startswith("dense 3072 ") for row in rows.values())
    assert small.tokens_per_s == pytest.approx(16 / small.median)
    assert rows["1x11 int8 in bfloat16"].dtype == forms.INT8
