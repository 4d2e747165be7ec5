"""Who computes attention in training: by device and type, with equal losses and one name. Not the attention itself."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cramming.train.assemble import attention
from cramming.train.config import TrainConfig
from cramming.train.pretrain import pretrain
from tests.helpers.tiny import tiny_root


@pytest.mark.parametrize(
    ("asked", "device", "precision", "expected"),
    [
        ("auto", "cpu", "fp32", "sdpa"),
        ("auto", "cpu", "bf16", "eager"),
        ("auto", "cuda", "bf16", "sdpa"),
        ("sdpa", "cpu", "bf16", "sdpa"),
        ("eager", "cuda", "fp32", "eager"),
    ],
)
def test_half_types_on_a_cpu_have_it_written_out(asked: str, device: str, precision: str, expected: str) -> None:
    config = TrainConfig(budget_steps=1, budget_hours=None, attention=asked, precision=precision)
    assert attention(config, torch.device(device)) == expected


def test_both_ways_train_to_the_same_loss_under_one_name(tmp_path: Path) -> None:
    found = {}
    for way in ("sdpa", "eager"):
        root = tiny_root(tmp_path, budget_steps=8, validations=1, checkpoints=1, attention=way)
        root = replace(root, output_dir=str(tmp_path / way), results_dir=str(tmp_path / way / "results"))
        pretrain(root)
        record = json.loads((Path(root.results_dir) / "runs" / f"{root.run_name}.json").read_text())
        found[way] = root.run_name, record["metrics"]["valid_loss"]
    assert found["sdpa"][0] == found["eager"][0]
    assert found["eager"][1] == pytest.approx(found["sdpa"][1], rel=1e-5)
