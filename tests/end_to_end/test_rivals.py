"""The rivals through Hydra and a whole tiny run: trained, measured, stopped and continued, saved, loaded elsewhere."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cramming.errors import Stopped
from cramming.model import CrammedForMaskedLM
from cramming.train import loop
from cramming.train.history import read_history
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.composed import composed
from tests.helpers.tiny import tiny_root

ROOT = Path(__file__).parents[2]
SIZES = {
    "moe": [
        "ffn.experts=4",
        "ffn.expert_width=8",
        "ffn.top=2",
        "ffn.balance_rate=0.01",
        "ffn.expert_balance_weight=0.1",
    ],
    "peer": ["ffn.keys=8", "ffn.heads=2", "ffn.top=3", "ffn.query_width=8"],
}
OTHERS = ["ffn.trees=null", "ffn.depth=null"]  # keys that the default experiment sets
TAGS = {"moe": "moe8x4top2", "peer": "peer8x8h2top3"}
LOAD = """
import sys, torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "cramming" not in sys.modules
total = model(input_ids=torch.arange(32)[None] % 80).logits.double().sum().item()
print(type(model.model.blocks[0].ffn).__name__, total)
"""


def root_of(kind: str, folder: Path) -> PretrainRoot:
    """The tiny run with the layer as the command line composes it."""
    return replace(tiny_root(folder), ffn=composed("pretrain", f"ffn={kind}", *OTHERS, *SIZES[kind]).ffn)


def weights(root: PretrainRoot) -> dict[str, torch.Tensor]:
    return load_file(root.run_folder / "model/model.safetensors")


@pytest.mark.parametrize("kind", SIZES)
def test_a_rival_is_trained_measured_stopped_continued_and_loaded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = root_of(kind, tmp_path / "whole"), root_of(kind, tmp_path / "stopped")
    pretrain(whole)
    step = loop.Trainer.step

    def step_or_stop(trainer: loop.Trainer) -> loop.Step:
        if trainer.state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "step", step_or_stop)
        with pytest.raises(Stopped):
            pretrain(stopped)
    pretrain(stopped)
    ours, theirs = weights(stopped), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    (path,) = (tmp_path / "whole/results/runs").glob("*.json")
    record = json.loads(path.read_text())
    assert (record["status"], record["ffn"]) == ("finished", TAGS[kind])
    assert record["resolved"]["ffn"]["neurons_used"] == {"moe": 16, "peer": 6}[kind]
    assert 0 < record["metrics"]["usage_entropy"] <= {"moe": 2, "peer": 6}[kind]
    rows = read_history(whole.run_folder / "metrics.jsonl")
    assert ("train/aux_expert_balance" in rows[0]) == (kind == "moe")
    if kind == "moe":
        biases = torch.stack([value for name, value in theirs.items() if name.endswith("b_balance")])
        moves = biases / 0.01  # of 12 steps, each one up, one down or none
        torch.testing.assert_close(moves, moves.round(), atol=1e-4, rtol=0)
        assert 0 < moves.abs().max() <= 12

    # A copied folder, with the package of layers alone.
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/fff").symlink_to(ROOT / "fff")
    outside = {"PYTHONPATH": f"{tmp_path}/alone", "HF_MODULES_CACHE": f"{tmp_path}/modules", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(whole.run_folder / "model")],
        env={**os.environ, **outside, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    name, total = found.stdout.split()
    model = CrammedForMaskedLM.from_pretrained(whole.run_folder / "model").eval()
    assert name == {"moe": "MoE", "peer": "PEER"}[kind]
    with torch.no_grad():
        expected = model(input_ids=torch.arange(32)[None] % 80).logits.double().sum().item()
    assert float(total) == pytest.approx(expected, abs=1e-2)
