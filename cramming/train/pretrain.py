"""One pretraining run: recognise a finished one, lock its folder, get its data, run it. Not its parts (run.py)."""

import contextlib
from pathlib import Path

import torch

from cramming.data.shards import PreparedData, open_prepared
from cramming.files import locked, read_json, write_json
from cramming.parallel.world import make_accelerator
from cramming.record import record_file
from cramming.train.build import check_layer
from cramming.train.root import PretrainRoot
from cramming.train.run import Run, RunFolder
from cramming.train.tracking import check_wandb


def pretrain(root: PretrainRoot, prepared: Path | None = None) -> Path:
    """Run, continue or recognise as finished the pretraining that the configuration names; returns its folder.

    Args:
        prepared: folder of its prepared data, where they were made elsewhere; without it they are made or found here.

    Raises:
        UserError: bad configuration, data or checkpoint; Diverged when the loss is no number any more.
    """
    folder = RunFolder(root.run_folder)
    if folder.record.exists():
        print(f"{root.run_name} is finished already: {folder.path}")
        kept = record_file(Path(root.results_dir), root.run_name)
        if not kept.exists():
            write_json(kept, read_json(folder.record))
            print(f"written    {kept}, which was missing, from {folder.record}")
        return folder.path
    accelerator = make_accelerator("train.precision", root.train.precision, cpu=not torch.cuda.is_available())
    # Before the data, whose preparation may take hours.
    check_layer(root)
    check_wandb(root.wandb)
    main = accelerator.is_main_process
    busy = f"{folder.path} is being trained by another process; wait for it, or change the seed or the configuration."
    with locked(folder.path / ".lock", wait=False, busy=busy) if main else contextlib.nullcontext():
        with accelerator.main_process_first():
            data = open_prepared(prepared) if prepared else prepared_here(root)
        run = Run(root, folder, accelerator, data)
        run.train()
    accelerator.end_training()
    return folder.path


def prepared_here(root: PretrainRoot) -> PreparedData:
    """The data that the configuration names."""
    from cramming.data.prepare import prepare  # its sources need libraries that a machine for training alone may lack

    return prepare(root.data, Path(root.output_dir))
