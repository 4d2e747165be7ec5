"""Checkpoints: what was changed in one is noticed, and a bad step leaves finite weights. Not whole runs."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from bench.made_up import MadeUpData, MadeUpTokens
from cramming.errors import Diverged, UserError
from cramming.parallel.world import open_world
from cramming.train.assemble import assemble
from cramming.train.checkpoint import MANIFEST, Checkpoints
from cramming.train.hooks import FiniteGuard
from cramming.train.loop import Hook, Step, Trainer
from cramming.train.parts import Parts, TrainState
from tests.helpers.tiny import tiny_root


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    root = tiny_root(tmp_path / "run")
    data = MadeUpData(MadeUpTokens(80, 32), 80, 32)
    return assemble(root, data, open_world("train.precision", "fp32", cpu=True))


@pytest.fixture
def written(parts: Parts, tmp_path: Path) -> tuple[Checkpoints, Path]:
    parts.state = TrainState(step=60, sequences=960, tokens=30720, progress=0.5, reached=0.5)
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"configuration": "a", "data": "b"}, keep=1)
    checkpoints.write(parts, {"usage": {}})
    return checkpoints, checkpoints.list()[-1]


def changed(folder: Path, change) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


CHANGES = {
    "another number": lambda m: m["state"].update(sequences=970),
    "a key less": lambda m: m["state"].pop("sequences"),
    "a key more": lambda m: m["state"].update(other=1),
    "no checksum": lambda m: m.pop("checksum"),
    "an unlisted file": lambda m: m["sha256"].pop("optimiser.pt"),
    "another data": lambda m: m["identity"].update(extra="c"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_in_a_manifest_is_refused(written: tuple[Checkpoints, Path], change: str) -> None:
    checkpoints, folder = written
    assert checkpoints.read(folder).sequences == 960
    changed(folder, CHANGES[change])
    with pytest.raises(UserError, match=r"checkpoint\.json is .*delete"):
        checkpoints.read(folder)


def old(manifest: dict) -> None:
    """As the first version wrote it."""
    for key in ("version", "checksum"):
        manifest.pop(key)
    for key in ("uncounted", "reached"):
        manifest["state"].pop(key)
    manifest["state"] |= {"loss_sum": 1.5, "loss_steps": 2}


def test_a_complete_checkpoint_without_a_checksum_is_read(written: tuple[Checkpoints, Path]) -> None:
    checkpoints, folder = written
    changed(folder, old)
    assert checkpoints.read(folder) == TrainState(60, 960, 30720, progress=0.5, reached=0.5)
    changed(folder, lambda manifest: manifest["state"].pop("loss_steps"))
    with pytest.raises(UserError, match="lacks keys"):
        checkpoints.read(folder)


class Poison(Hook):
    """Makes the loss of one step NaN; the guard then may not look before the mark."""

    def on_step(self, trainer: Trainer, step: Step) -> None:
        decoder = trainer.parts.model.decoder
        if trainer.state.step == 3:
            self.handle = decoder.register_forward_hook(lambda *given: given[2] * float("nan"))
        if trainer.state.step == 4:
            self.handle.remove()


def test_a_bad_step_never_reaches_the_weights(parts: Parts) -> None:
    batch, poison, guard = parts.objective.example(parts.data.train, 8), Poison(), FiniteGuard()
    trainer = Trainer(parts, itertools.repeat(batch), [])
    for _ in range(3):
        poison.on_step(trainer, trainer.step())
    before = [p.detach().clone() for p in parts.model.parameters()]
    step = trainer.step()
    assert not step.finite
    assert all(torch.equal(a, b) for a, b in zip(before, parts.model.parameters(), strict=True))
    assert all(
        torch.isfinite(value).all() for s in parts.optimiser.state_dict()["state"].values() for value in s.values()
    )
    guard.good, guard.first_bad = step.finite, torch.tensor(4)  # as a GPU leaves them after a step that is not due
    poison.on_step(trainer, step)
    step = trainer.step()
    assert step.finite
    with pytest.raises(Diverged, match=r"at step 5 \(first at step 4\)"):
        guard.on_step(trainer, step)
