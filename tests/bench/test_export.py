"""The bench of exports: its rows, other outputs, and its command line."""

from pathlib import Path

import pytest
import torch

from bench import export
from bench.rows import read_rows


@pytest.mark.slow
def test_rows_compare_with_the_layer(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="optional extra onnx")
    out = tmp_path / "export.json"
    export.main(["--shapes", "1x3", "--tokens", "5", "--seconds", "0", "--out", str(out)])
    rows = {row.name: row for row in read_rows(out)}
    assert list(rows) == ["fff", "onnxruntime", "AOTInductor", "dense 3072"]
    for name, row in rows.items():
        assert (row.shape, row.tokens, row.opponent) == ("1x3", 5, None if name == "fff" else "fff")
        assert row.ratio is None or row.ratio == pytest.approx(rows["fff"].median / row.median)


def test_other_outputs_are_refused() -> None:
    expected = torch.randn(100, 4)
    found = expected.clone()
    found[0] += 1
    export.refuse_other_outputs("it", found, expected)
    found[1] += 1
    with pytest.raises(AssertionError, match=r"it agrees on 98\.0% of the tokens alone"):
        export.refuse_other_outputs("it", found, expected)


def test_a_missing_library_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", torch)  # there, whether it is or not
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(SystemExit) as left:
        export.main([])
    told = capsys.readouterr().err
    assert left.value.code == 2
    assert "onnxscript is needed and missing" in told
    assert told.count("\n") == 1
