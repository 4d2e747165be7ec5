"""Losses of the first 50 steps of a tiny fixed run per form, against committed ones. Not how well a form learns.

Write them anew, where a change is meant to alter training: `python tests/cramming/train/test_reference_losses.py`.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cramming.model.config import FFNConfig
from cramming.train.hardening import HardeningConfig, Ramp, TemperatureRamp
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.tiny import tiny_root

REFERENCE = Path(__file__).with_name("reference_losses.json")
STEPS = 50
PATH = FFNConfig(kind="path", trees=2, depth=3)
FORMS = {
    "path_hard": (PATH, HardeningConfig()),
    "path_anneal": (PATH, HardeningConfig(form="anneal", temperature=TemperatureRamp("linear", 1.0, 0.2))),
    "path_straight_through": (PATH, HardeningConfig(form="straight_through")),
    "path_entropy": (PATH, HardeningConfig(form="entropy", entropy_weight=Ramp("linear", 0.0, 0.05))),
    "leaf": (FFNConfig(kind="leaf", depth=3, leaf_width=4), HardeningConfig()),
    "dense": (FFNConfig(kind="dense", width=48), HardeningConfig()),
}
# Another processor sums in another order, which moves a loss by some 1e-7 of it, and a token whose score is about 0 may
# then take another path: early steps agree to the last digits, later ones have had time to drift apart.
EARLY, LATE = 10, 2e-3


def root_of(form: str, folder: Path) -> PretrainRoot:
    ffn, hardening = FORMS[form]
    return replace(tiny_root(folder, budget_steps=STEPS, validations=1, checkpoints=1), ffn=ffn, hardening=hardening)


def losses_of(form: str, folder: Path) -> list[float]:
    """Training losses (nats) of each step."""
    root = root_of(form, folder)
    pretrain(root)
    lines = (root.run_folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines]


@pytest.mark.parametrize("form", FORMS)
def test_first_losses_are_the_committed_ones(form: str, tmp_path: Path) -> None:
    expected = json.loads(REFERENCE.read_text())[form]
    found = losses_of(form, tmp_path)
    assert found[:EARLY] == pytest.approx(expected[:EARLY], rel=1e-4)
    assert found == pytest.approx(expected, rel=LATE)
    assert len(found) == STEPS


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = {form: losses_of(form, Path(place) / form) for form in FORMS}
    REFERENCE.write_text(json.dumps({f: [round(loss, 7) for loss in row] for f, row in found.items()}) + "\n")
    sys.exit(0)
