"""Checkpoints that are complete, checked when read, and never unpickled. Not when they are due (hooks.py)."""

import random
import shutil
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model

from cramming.errors import UserError
from cramming.files import commit_folder, read_json, sha256, short_hash, write_json
from cramming.train.parts import Parts, TrainState

MANIFEST = "checkpoint.json"
VERSION = 2
KEYS = {"version", "state", "identity", "sha256", "checksum"}
# Of the first version, whose manifest had no checksum of its own: it is read if it holds these, no more and no less.
OLD_KEYS = {"state", "identity", "sha256"}
OLD_STATE = {"step", "sequences", "tokens", "seconds", "progress", "loss_sum", "loss_steps"}


def rng_state() -> dict[str, Any]:
    """State of every random number generator of this process, as tensors and plain numbers."""
    numpy_state = np.random.get_state(legacy=True)
    assert isinstance(numpy_state, tuple)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "python": random.getstate(),
        "numpy": (torch.from_numpy(numpy_state[1].astype(np.int64)), *numpy_state[2:]),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put every generator back to where `rng_state` found it."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))


class Checkpoints:
    """The folder `checkpoints/` of one run.

    A checkpoint `step-N/` holds model.safetensors, optimiser.pt (and scaler), one process-R.pt per process (its random
    number generators, what its hooks remember), and the manifest with the training state, the identity of the run,
    every file's SHA-256 and a checksum of all that. It is written as `.step-N` and renamed when complete, so a folder
    named `step-N` is whole.
    """

    def __init__(self, folder: Path, identity: dict[str, str], *, keep: int) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep

    def list(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def beside(self, state: TrainState) -> Path:
        """Folder in which the checkpoint of this state is being written."""
        return self.folder / f".step-{state.step}"

    def write(self, parts: Parts, memory: dict[str, Any]) -> None:
        """Write a checkpoint of the present state, and drop the oldest ones beyond `keep`; every process takes part.

        Args:
            memory: what this process's hooks remember, by their names, as tensors and plain values.
        """
        world, beside = parts.world, self.folder / f".step-{parts.state.step}"
        beside.mkdir(parents=True, exist_ok=True)
        _save({"rng": rng_state(), "memory": memory}, beside / f"process-{world.rank}.pt")
        world.barrier()
        if world.main:
            save_model(parts.model, str(beside / "model.safetensors"))
            _save(parts.optimiser.state_dict(), beside / "optimiser.pt")
            if (scaler := world.scaler_state()) is not None:
                _save(scaler, beside / "scaler.pt")
            hashes = {path.name: sha256(path) for path in sorted(beside.iterdir()) if path.name != MANIFEST}
            content = {"version": VERSION, "state": asdict(parts.state), "identity": self.identity, "sha256": hashes}
            write_json(beside / MANIFEST, content | {"checksum": short_hash(content, 64)})
            commit_folder(beside, self.folder / f"step-{parts.state.step}")
            for old in self.list()[: -self.keep]:
                shutil.rmtree(old)
        world.barrier()

    def clean(self) -> None:
        """Remove what an interrupted write left behind."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def read(self, folder: Path) -> TrainState:
        """Check a checkpoint's files and identity, and return its state.

        Raises:
            UserError: a file is missing or damaged, or it belongs to another configuration or other data.
        """
        manifest, mend = self._manifest(folder), _mend(folder)
        for key, value in self.identity.items():
            if manifest["identity"].get(key) != value:
                raise UserError(
                    f"{folder} was written with another {key} ({manifest['identity'].get(key)}, now {value}); use "
                    "another output_dir, or move the run's folder away to start anew."
                )
        for name, expected in manifest["sha256"].items():
            path = folder / name
            if not path.is_file():
                raise UserError(f"{path} is missing; {mend}")
            if sha256(path) != expected:
                raise UserError(f"{path} is damaged (its SHA-256 differs from {MANIFEST}); {mend}")
        return TrainState(**manifest["state"])

    def _manifest(self, folder: Path) -> dict[str, Any]:
        """A manifest that says all it must and nothing else, and whose checksum fits."""
        path = folder / MANIFEST
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.keys() not in (KEYS, OLD_KEYS):
            raise UserError(f"{path} is not a checkpoint's manifest; {_mend(folder)}")
        state = manifest["state"]
        if manifest.keys() == OLD_KEYS:
            if state.keys() != OLD_STATE:
                raise UserError(f"{path} is damaged (its state lacks keys or has unknown ones); {_mend(folder)}")
            manifest["state"] = {key: state[key] for key in OLD_STATE if not key.startswith("loss_")}
            manifest["state"] |= {"uncounted": 0.0, "reached": state["progress"]}
            return manifest
        content = {key: value for key, value in manifest.items() if key != "checksum"}
        if short_hash(content, 64) != manifest["checksum"]:
            raise UserError(f"{path} is damaged (its content does not fit its checksum); {_mend(folder)}")
        if manifest["version"] != VERSION or state.keys() != {field.name for field in fields(TrainState)}:
            raise UserError(f"{path} was written by other code; use that, or {_mend(folder)}")
        return manifest

    def load(self, folder: Path, parts: Parts) -> dict[str, Any]:
        """Load weights, optimiser, generators and loss scale; returns what the hooks of this process remember."""
        load_model(parts.model, str(folder / "model.safetensors"))
        parts.optimiser.load_state_dict(_load(folder / "optimiser.pt"))
        own, memory = folder / f"process-{parts.world.rank}.pt", {}
        if own.exists():  # a run continued by more processes than before has none for the new ones
            content = _load(own)
            set_rng_state(content["rng"])
            memory = content["memory"]
        scaler = folder / "scaler.pt"
        parts.world.restore_scaler(_load(scaler) if scaler.exists() else None)
        return memory


def _mend(folder: Path) -> str:
    return f"delete {folder} to go on from the checkpoint before it, or from the start."


def _save(content: Any, path: Path) -> None:
    with open(path, "wb") as file:  # given a name instead, torch hides why it could not write
        torch.save(content, file)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
