"""Checkpoints that are complete, checked when read, and never unpickled. Not when they are due (hooks.py)."""

import random
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, load_model, save_model

from cramming.errors import UserError
from cramming.files import commit_folder, read_json, sha256, short_hash, write_json
from cramming.parallel.shards import read_shards, spread_state, write_shards, written
from cramming.parallel.world import World
from cramming.train.parts import Parts, TrainState

MANIFEST = "checkpoint.json"
SHARDS = "shards"  # folder of a spread model's weights and moments
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

    A checkpoint `step-N/` holds model.safetensors, optimiser.pt (and scaler), or of a spread model a folder of shards;
    one process-R.pt per process (its random number generators, what its hooks remember), and the manifest with the
    training state, the identity of the run, every file's SHA-256 and a checksum of all that. It is written as `.step-N`
    and renamed when complete, so a folder named `step-N` is whole. Shards are written beside the training: from a copy
    of the step's state, until `finish` or the next checkpoint.

    Any number of processes, spread or not, goes on from any checkpoint. The data's position, masks, schedules, weights
    and moments do not depend on that number. What does: with another one than before, generators are seeded anew (for
    region leak and dropout), and of what hooks remember only the main process's is kept.
    """

    def __init__(self, folder: Path, identity: dict[str, str], *, keep: int) -> None:
        self.folder, self.identity, self.keep = folder, identity, keep
        self._beside: Future[Any] | None = None  # what is being written

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
        world, beside, state = parts.world, self.beside(parts.state), asdict(parts.state)
        self.finish(world)
        beside.mkdir(parents=True, exist_ok=True)
        _save({"rng": rng_state(), "memory": memory}, beside / f"process-{world.rank}.pt")
        world.barrier()
        if world.sharded:
            self._beside = write_shards(beside / SHARDS, parts.model, parts.optimiser, world.group_for_files)
            if world.main:
                self._beside = _in_a_thread(self._complete_after, self._beside, beside, state)
            return
        if world.main:
            save_model(parts.model, str(beside / "model.safetensors"))
            _save(parts.optimiser.state_dict(), beside / "optimiser.pt")
            if (scaler := world.scaler_state()) is not None:
                _save(scaler, beside / "scaler.pt")
            self._complete(beside, state)
        world.barrier()

    def finish(self, world: World) -> None:
        """Wait until what is being written beside the training is complete; every process takes part."""
        if self._beside is not None:
            pending, self._beside = self._beside, None
            written(pending)
            world.barrier()

    def _complete_after(self, shards: Future[Any], beside: Path, state: dict[str, Any]) -> None:
        shards.result()
        self._complete(beside, state)

    def _complete(self, beside: Path, state: dict[str, Any]) -> None:
        """Give a checkpoint whose files are there its manifest and its name, and drop the oldest."""
        files = sorted(path for path in beside.rglob("*") if path.is_file() and path.name != MANIFEST)
        hashes = {path.relative_to(beside).as_posix(): sha256(path) for path in files}
        content = {"version": VERSION, "state": state, "identity": self.identity, "sha256": hashes}
        write_json(beside / MANIFEST, content | {"checksum": short_hash(content, 64)})
        commit_folder(beside, self.folder / f"step-{state['step']}")
        for old in self.list()[: -self.keep]:
            shutil.rmtree(old)

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
        """Load weights, optimiser, generators and loss scale; returns what the hooks of this process remember.

        Every process takes part.
        """
        world = parts.world
        if (folder / SHARDS).is_dir():
            read_shards(folder / SHARDS, parts.model, getattr(parts.optimiser, "optimizer", parts.optimiser))
        elif world.sharded:
            weights, kept = load_file(folder / "model.safetensors"), _load(folder / "optimiser.pt")
            spread_state(parts.model, parts.optimiser, weights, kept)
        else:
            load_model(parts.model, str(folder / "model.safetensors"))
            parts.optimiser.load_state_dict(_load(folder / "optimiser.pt"))
        scaler = folder / "scaler.pt"
        world.restore_scaler(_load(scaler) if scaler.exists() else None)
        own = folder / f"process-{world.rank}.pt"
        content = _load(own) if own.exists() else {"memory": {}}
        if len(list(folder.glob("process-*.pt"))) == world.size:
            set_rng_state(content["rng"])
        else:  # those of some would be missing, or left over
            anew = short_hash([parts.root.seed, parts.state.step, world.size], 7)
            world.seed(int(anew, 16), each_its_own=True)
        return content["memory"]


def _mend(folder: Path) -> str:
    return f"delete {folder} to go on from the checkpoint before it, or from the start."


def _in_a_thread(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    pool = ThreadPoolExecutor(max_workers=1)
    done = pool.submit(work, *arguments)
    pool.shutdown(wait=False)
    return done


def _save(content: Any, path: Path) -> None:
    with open(path, "wb") as file:  # given a name instead, torch hides why it could not write
        torch.save(content, file)


def _load(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
