"""One pretraining run: recognise a finished one, lock its folder, get its data, run it. Not its parts (run.py)."""

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from cramming.data.shards import MANIFEST, PreparedData, find_prepared, open_prepared
from cramming.errors import UserError
from cramming.files import check_writable, read_json
from cramming.locks import locked
from cramming.objectives.base import MASK_TOKEN
from cramming.objectives.config import OBJECTIVES
from cramming.parallel.launch import launched
from cramming.parallel.world import World, open_world
from cramming.provenance import code_hash
from cramming.record import read_record
from cramming.train.assemble import check_layer
from cramming.train.checkpoint import MANIFEST as CHECKPOINT
from cramming.train.compiled import check_compiler
from cramming.train.finished import ended_already, model_is_whole
from cramming.train.root import PretrainRoot
from cramming.train.run import Run, RunFolder
from cramming.train.start import check_start, with_documents
from cramming.train.tracking import check_wandb
from cramming.values import flat


def pretrain(root: PretrainRoot, prepared: Path | None = None) -> Path:
    """Run, continue or recognise as finished the pretraining that the configuration names; returns its folder.

    Args:
        prepared: folder of its prepared data, where they were made elsewhere; without it they are made or found here.

    Raises:
        UserError: bad configuration, data or checkpoint, or the run has ended on other data.
        Diverged: the loss is no number any more.
    """
    folder, cpu = RunFolder(root.run_folder), not torch.cuda.is_available()
    launch = launched(cpu=cpu, patience=timedelta(minutes=root.train.patience_minutes))
    with launch.together():
        launch.same(lambda: facts(root))
        stage = launch.from_main(lambda: stage_of(root, folder, prepared))
        if stage != "done":
            sharded, apart = root.train.sharding == "fsdp", root.train.sync == "outer"
            share = (root.train.worker, root.train.workers) if root.train.lighthouse else None
            world = open_world(
                "train.precision",
                root.train.precision,
                cpu=cpu,
                sharded=sharded,
                apart=apart,
                share=share,
                launch=launch,
            )
            run_in(world, root, folder, prepared, trained=stage == "trained")
            world.end()
    return folder.path


def stage_of(root: PretrainRoot, folder: RunFolder, prepared: Path | None) -> str:
    """Whether a run is "done"; "trained", but without its model, which was lost; or to be trained ("")."""
    if not ended_already(root, prepared):
        return ""
    return "done" if model_is_whole(folder.model, read_record(folder.record)) else "trained"


def facts(root: PretrainRoot) -> dict[str, Any]:
    """What all processes of a run must have alike: code, torch, every key of the configuration."""
    return {"the code": code_hash(), "torch": torch.__version__, **flat(root.as_dict())}


def run_in(world: World, root: PretrainRoot, folder: RunFolder, prepared: Path | None, *, trained: bool) -> None:
    """Check what can be checked, then run; every process takes part."""
    # Before the data, whose preparation may take hours.
    check_workers(root, world)
    check_processes(root, world.size)
    check_layer(root)
    check_examples(root.data.examples, root.objective.kind)
    check_wandb(root.wandb)
    check_compiler(root.train, world.device)
    if world.main:
        check_writable(root.records / "runs", "results_dir")
        check_writable(Path(root.output_dir) / "runs", "output_dir")
    busy = f"{folder.path} is being trained by another process; wait for it, or change the seed or the configuration."
    with locked(folder.lock, wait=False, busy=busy) if world.main else contextlib.nullcontext():
        if not trained and world.tell(folder.record.exists()):  # somebody ended it since we looked
            return
        data = shared_data(root, prepared, world)
        check_lengths(root.data.examples, data)
        check_start(root, data)
        data = with_documents(root, data, world)
        run = Run(root, folder, world, data)
        if trained:
            run.write_model_again(read_record(folder.record))
        else:
            run.train()


def check_processes(root: PretrainRoot, processes: int) -> None:
    """Refuse a batch that as many processes cannot share: another one would be trained.

    Raises:
        UserError: naming the keys.
    """
    if root.train.sharding == "none" and processes > 1:
        raise UserError(
            f"train.sharding is none, and {processes} processes were started together; start one, or set "
            "train.sharding=ddp (a whole model in each) or fsdp (a part in each)."
        )
    processes *= root.train.workers
    batch, unit = root.train.batch, root.train.microbatch * processes
    if batch % unit:
        fitting = [m for m in range(1, batch // processes + 1) if batch % (m * processes) == 0]
        near = min(fitting, key=lambda m: abs(m - root.train.microbatch), default=None)
        mend = f"set train.microbatch={near}, or " if near else "set "
        raise UserError(
            f"train.batch is {batch}, and {processes} processes with train.microbatch={root.train.microbatch} read "
            f"{unit} sequences at once, which does not divide it; {mend}train.batch={max(1, batch // unit) * unit}."
        )


def check_workers(root: PretrainRoot, world: World) -> None:
    """Refuse workers that a launcher would start, and end, together (UserError)."""
    if root.train.lighthouse and world.launch.size > 1:
        raise UserError(
            f"train.lighthouse is set, and {world.launch.size} processes were started together; start each worker by "
            "itself, with its number in train.worker, or leave train.lighthouse=null."
        )


def check_examples(examples: list[str], objective: str = "masked") -> None:
    """Refuse sentences to fill in that have nothing to fill in (UserError), before they would end a finished run."""
    allowed = OBJECTIVES[objective].example_masks
    for number, text in enumerate(examples):
        if text.count(MASK_TOKEN) not in allowed:
            often = "exactly once, for what is guessed" if 0 not in allowed else "once, where it goes on, or not at all"
            raise UserError(f"data.examples[{number}] is {text!r}; give it {MASK_TOKEN} {often}.")


def check_lengths(examples: list[str], data: PreparedData) -> None:
    """Refuse sentences to fill in that are longer than the model can read (UserError), before the training."""
    if not examples:
        return
    tokenizer = data.tokenizer()
    for number, text in enumerate(examples):
        length = len(tokenizer(text)["input_ids"])
        if length > data.seq_len:
            raise UserError(
                f"data.examples[{number}] has {length} tokens, and data.seq_len is {data.seq_len}; shorten it, or set "
                "data.examples=[]."
            )


def shared_data(root: PretrainRoot, prepared: Path | None, world: World) -> PreparedData:
    """The run's data, made or checked by the main process, and trusted by the others where they see the same folder.

    On a machine with a disk of its own its first process makes or checks them there.
    """
    made: list[PreparedData] = []

    def make() -> list[str]:
        made.append(find_data(root, prepared))
        return [str(made[0].folder), made[0].fingerprint]

    told, fingerprint = world.launch.from_main(make)
    folder, found = Path(told), made[0] if made else None
    if found is None and world.main_here and not (folder / MANIFEST).is_file():
        found = find_data(root, prepared)
    world.barrier()
    if found is None:
        found = open_prepared(folder, trusted=True) if (folder / MANIFEST).is_file() else find_data(root, prepared)
    if found.fingerprint != fingerprint:
        raise UserError(f"{found.folder} holds other data than the main process's {folder}; copy those here.")
    return found


def find_data(root: PretrainRoot, prepared: Path | None) -> PreparedData:
    """The data in a prepared folder, those that the run began with, or those that the configuration names."""
    if prepared is None and (began := begun_with(RunFolder(root.run_folder))):
        prepared = find_prepared(Path(root.output_dir), began)
    return open_prepared(prepared, trusted=not root.data.verify) if prepared else prepared_here(root)


def begun_with(folder: RunFolder) -> str | None:
    """Fingerprint of the data that a run was trained on so far; None for one without a checkpoint."""
    for manifest in sorted((folder.path / "checkpoints").glob(f"step-*/{CHECKPOINT}"), key=lambda p: p.stat().st_mtime):
        content = read_json(manifest)
        identity = content.get("identity") if isinstance(content, dict) else None
        if isinstance(identity, dict) and isinstance(identity.get("data"), str):
            return identity["data"]
    return None


def prepared_here(root: PretrainRoot) -> PreparedData:
    """The data that the configuration names."""
    from cramming.data.prepare import prepare  # its sources need libraries that a machine for training alone may lack

    return prepare(root.data, Path(root.output_dir))
