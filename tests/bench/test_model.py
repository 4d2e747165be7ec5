"""Timing a saved model's own layers: on the inputs that they see, and refused in one line where there are none."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from bench.options import Setting
from bench.trained import record, run_trained
from cramming.errors import UserError
from tests.helpers.data import make_documents
from tests.helpers.saved import save_model


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(make_documents(20)))
    return path


def test_the_inputs_are_those_that_the_layers_see(tmp_path: Path, text: Path) -> None:
    layers, inputs = record(save_model(tmp_path / "model"), text, 64)
    assert list(layers) == list(inputs)
    assert len(layers) == 2
    assert all(x.shape == (64, 32) for x in inputs.values())
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "model")(text.read_text(), add_special_tokens=False).input_ids
    seen: list[torch.Tensor] = []
    first = next(iter(layers))
    model.get_submodule(first).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=torch.tensor(ids[32:64])[None])
    assert torch.allclose(seen[0][0], inputs[first][32:], atol=1e-5)


def test_rows_tell_layer_and_leaves(tmp_path: Path, text: Path) -> None:
    setting = Setting(1, 0, 16, torch.float32, "inference", seconds=0.0)
    found = run_trained(save_model(tmp_path / "model"), text, [setting], [torch.get_num_threads()])
    rows = [row for row in found if row.provider == "gather"]
    assert [row.shape for row in rows] == ["2x6", "2x6"]
    assert rows[0].inputs != rows[1].inputs
    assert {row.checkpoint for row in rows} == {"model"}
    for row in rows:
        assert row.leaves_used is not None
        assert row.relative_error is not None
        assert 1 <= row.leaves_used <= 32
        assert row.relative_error < 1e-5
    assert {row.name for row in found} >= {"dense 254 float32", "dense 256 float32", "dense 128 float32"}


def test_what_cannot_be_timed_is_named(tmp_path: Path, text: Path) -> None:
    with pytest.raises(UserError, match="has no PathFFF layer"):
        record(save_model(tmp_path / "dense", kind="dense", width=64, activation="gelu"), text, 64)
    with pytest.raises(UserError, match="less --tokens"):
        record(save_model(tmp_path / "model"), text, 10**6)
