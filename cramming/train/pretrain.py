"""One pretraining run: recognise a finished one, lock its folder, get its data, run it. Not its parts (run.py)."""

import contextlib
from pathlib import Path

import torch

from cramming.data.shards import MANIFEST, PreparedData, open_prepared
from cramming.errors import UserError
from cramming.files import locked
from cramming.parallel.world import World, open_world
from cramming.train.assemble import check_layer
from cramming.train.finished import ended_already
from cramming.train.root import PretrainRoot
from cramming.train.run import Run, RunFolder
from cramming.train.tracking import check_wandb


def pretrain(root: PretrainRoot, prepared: Path | None = None) -> Path:
    """Run, continue or recognise as finished the pretraining that the configuration names; returns its folder.

    Args:
        prepared: folder of its prepared data, where they were made elsewhere; without it they are made or found here.

    Raises:
        UserError: bad configuration, data or checkpoint, or the run has ended on other data.
        Diverged: the loss is no number any more.
    """
    folder = RunFolder(root.run_folder)
    if ended_already(root, prepared):
        return folder.path
    world = open_world("train.precision", root.train.precision, cpu=not torch.cuda.is_available())
    # Before the data, whose preparation may take hours.
    check_layer(root)
    check_wandb(root.wandb)
    busy = f"{folder.path} is being trained by another process; wait for it, or change the seed or the configuration."
    with locked(folder.path / ".lock", wait=False, busy=busy) if world.main else contextlib.nullcontext():
        Run(root, folder, world, shared_data(root, prepared, world)).train()
    world.end()
    return folder.path


def shared_data(root: PretrainRoot, prepared: Path | None, world: World) -> PreparedData:
    """The run's data, made or checked by the main process, and trusted by the others where they see the same folder.

    On a machine with a disk of its own its first process makes or checks them there.
    """
    found = find_data(root, prepared) if world.main else None
    folder, fingerprint = world.tell((found.folder, found.fingerprint) if found else (Path(), ""))
    if found is None and world.main_here and not (folder / MANIFEST).is_file():
        found = find_data(root, prepared)
    world.barrier()
    if found is None:
        found = open_prepared(folder, trusted=True) if (folder / MANIFEST).is_file() else find_data(root, prepared)
    if found.fingerprint != fingerprint:
        raise UserError(f"{found.folder} holds other data than the main process's {folder}; copy those here.")
    return found


def find_data(root: PretrainRoot, prepared: Path | None) -> PreparedData:
    """The data in a prepared folder, or those that the configuration names."""
    return open_prepared(prepared) if prepared else prepared_here(root)


def prepared_here(root: PretrainRoot) -> PreparedData:
    """The data that the configuration names."""
    from cramming.data.prepare import prepare  # its sources need libraries that a machine for training alone may lack

    return prepare(root.data, Path(root.output_dir))
