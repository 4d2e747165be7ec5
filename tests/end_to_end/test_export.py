"""scripts/export.py: a model folder becomes a file for elsewhere; what cannot is one line and no file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM

import cramming.model  # noqa: F401  registers the Auto classes
from tests.helpers.commands import inline
from tests.helpers.saved import save_model


def logits(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask).logits


@pytest.mark.slow
def test_a_model_in_onnxruntime(tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="optional extra onnx")
    runtime = pytest.importorskip("onnxruntime", reason="optional extra onnx")
    folder, out = save_model(tmp_path / "model"), tmp_path / "model.onnx"
    done = inline("export", str(folder), "--to", "onnx", "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert "up to 32 tokens" in done.stdout
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    ids_in, mask_in = session.get_inputs()
    assert (ids_in.name, mask_in.name) == ("input_ids", "attention_mask")
    assert ids_in.shape == mask_in.shape
    assert len(set(ids_in.shape)) == 2
    assert all(isinstance(size, str) for size in ids_in.shape), "batch and length are open"
    for size in ((1, 1), (3, 32)):
        ids = torch.randint(7, 200, size)
        mask = torch.ones_like(ids)
        mask[0, size[1] // 2 + 1 :] = 0
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        close = torch.isclose(torch.from_numpy(found), logits(folder, ids, mask), rtol=1e-3, atol=1e-4).all(-1)
        assert close[mask.bool()].float().mean() > 0.95  # a score near 0 is decided by rounding


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("MODEL --to onnx --out TMP/a.pt2", "--to onnx writes files that end in .onnx"),
        ("MODEL --to pt2 --out TMP/a.onnx", "--to pt2 writes files that end in .pt2"),
        ("MODEL --to pt2 --out TMP/there.pt2", "which exists, and nothing is written over it"),
        ("MODEL --to pt2 --out TMP/there.pt2/a.pt2", "it is a file where a folder is needed"),
        ("TMP/nowhere --to pt2 --out TMP/a.pt2", "holds no finished model"),
        ("TMP --to onnx --out TMP/a.onnx", "holds no finished model"),
        ("MODEL --to onnx --out TMP/a.onnx", "onnx writes ONNX, and is missing"),
    ],
)
def test_what_cannot_be_written_is_one_line(
    arguments: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    folder = save_model(tmp_path / "saved")
    (tmp_path / "there.pt2").write_text("")
    before = sorted(tmp_path.iterdir())
    done = inline("export", *arguments.replace("MODEL", str(folder)).replace("TMP", str(tmp_path)).split())
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before
