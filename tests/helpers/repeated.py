"""A tiny run stopped and continued beside one that was not, and its model where the pipeline is unknown. Not a test."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cramming.errors import Stopped
from cramming.model import CrammedForMaskedLM
from cramming.train import loop
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot

ROOT = Path(__file__).parents[2]
LOAD = """
import sys, torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert "cramming" not in sys.modules
total = model(input_ids=torch.arange(32)[None] % 80).logits.double().sum().item()
print(type(model.model.blocks[0].ffn).__name__, total)
"""


def weights(root: PretrainRoot) -> dict[str, torch.Tensor]:
    return load_file(root.run_folder / "model/model.safetensors")


def stopped_and_continued(root: PretrainRoot, patches: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights of a run that was stopped in its fifth step and went on."""
    step = loop.Trainer.step

    def step_or_stop(trainer: loop.Trainer) -> loop.Step:
        if trainer.state.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer)

    with patches.context() as patch:
        patch.setattr(loop.Trainer, "step", step_or_stop)
        with pytest.raises(Stopped):
            pretrain(root)
    pretrain(root)
    return weights(root)


def loaded_with_the_layers_alone(root: PretrainRoot, home: Path) -> str:
    """The name of the layers' class in a process that knows `fff` alone, whose logits are those of this one."""
    (home / "alone").mkdir()
    (home / "alone/fff").symlink_to(ROOT / "fff")
    outside = {"PYTHONPATH": f"{home}/alone", "HF_MODULES_CACHE": f"{home}/modules", "HF_HUB_OFFLINE": "1"}
    found = subprocess.run(
        [sys.executable, "-c", LOAD, str(root.run_folder / "model")],
        env={**os.environ, **outside, "OMP_NUM_THREADS": "1"},
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    name, total = found.stdout.split()
    model = CrammedForMaskedLM.from_pretrained(root.run_folder / "model").eval()
    with torch.no_grad():
        expected = model(input_ids=torch.arange(32)[None] % 80).logits.double().sum().item()
    assert float(total) == pytest.approx(expected, abs=1e-2)
    return name
