"""Checkpoints that are complete, checked when read, and never unpickled. Not when they are due (hooks.py)."""

import random
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from cramming.errors import UserError
from cramming.files import commit_folder, read_json, sha256, write_json

MANIFEST = "checkpoint.json"


@dataclass
class TrainState:
    """Where a run stands between two steps. `sequences` is the data position: loader and masks follow from it."""

    step: int = 0
    sequences: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of the training loop, over all resumes
    progress: float = 0.0
    loss_sum: torch.Tensor | float = 0.0  # of the steps since the last row of metrics.jsonl
    loss_steps: int = 0


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
    number generators, what its hooks remember), and the manifest with the training state, the identity of the run and
    every file's SHA-256. It is written as `.step-N` and renamed when complete, so a folder named `step-N` is whole.
    """

    def __init__(self, folder: Path, identity: dict[str, str], *, keep: int) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep

    def list(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))

    def beside(self, state: TrainState) -> Path:
        """Folder in which the checkpoint of this state is being written."""
        return self.folder / f".step-{state.step}"

    def write_process(self, state: TrainState, process: int, memory: dict[str, Any]) -> None:
        """Write what this process alone knows; every process calls it before the main one calls `write`.

        Args:
            memory: what its hooks remember, as tensors and plain values.
        """
        self.beside(state).mkdir(parents=True, exist_ok=True)
        _save({"rng": rng_state(), "memory": memory}, self.beside(state) / f"process-{process}.pt")

    def write(self, state: TrainState, model: nn.Module, optimiser: dict, scaler: dict | None) -> Path:
        """Write the rest, rename into place, and drop the oldest ones beyond `keep`."""
        beside, final = self.beside(state), self.folder / f"step-{state.step}"
        save_model(model, str(beside / "model.safetensors"))
        _save(optimiser, beside / "optimiser.pt")
        if scaler is not None:
            _save(scaler, beside / "scaler.pt")
        hashes = {path.name: sha256(path) for path in sorted(beside.iterdir()) if path.name != MANIFEST}
        write_json(beside / MANIFEST, {"state": asdict(state), "identity": self.identity, "sha256": hashes})
        commit_folder(beside, final)
        for old in self.list()[: -self.keep]:
            shutil.rmtree(old)
        return final

    def clean(self) -> None:
        """Remove what an interrupted write left behind."""
        for path in self.folder.glob(".step-*"):
            shutil.rmtree(path)

    def read(self, folder: Path) -> TrainState:
        """Check a checkpoint's files and identity, and return its state.

        Raises:
            UserError: a file is missing or damaged, or it belongs to another configuration or other data.
        """
        manifest = read_json(folder / MANIFEST)
        mend = f"delete {folder} to go on from the checkpoint before it, or from the start."
        if not isinstance(manifest, dict) or not {"state", "identity", "sha256"} <= manifest.keys():
            raise UserError(f"{folder / MANIFEST} is not a checkpoint's manifest; {mend}")
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
        known = {field.name for field in fields(TrainState)}
        return TrainState(**{key: value for key, value in manifest["state"].items() if key in known})

    def load(
        self, folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, process: int
    ) -> tuple[dict | None, dict[str, Any]]:
        """Load weights, optimiser and generators; returns the gradient scaler's state or None, and hooks' memory."""
        load_model(model, str(folder / "model.safetensors"))
        optimiser.load_state_dict(_load(folder / "optimiser.pt"))
        own, memory = folder / f"process-{process}.pt", {}
        if own.exists():  # a run continued by more processes than before has none for the new ones
            content = _load(own)
            set_rng_state(content["rng"])
            memory = content["memory"]
        scaler = folder / "scaler.pt"
        return (_load(scaler) if scaler.exists() else None), memory


def _save(content: Any, path: Path) -> None:
    with open(path, "wb") as file:  # given a name instead, torch hides why it could not write
        torch.save(content, file)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
