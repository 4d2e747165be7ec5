"""`make glue` as one call: checkpoint, held-out text, W&B, the suite, print-out. Not the suite's runs (suite.py)."""

from pathlib import Path

from cramming.data.prepare import prepare
from cramming.data.shards import find_prepared, open_prepared
from cramming.errors import UserError
from cramming.glue.config import GlueConfig
from cramming.glue.finetune import single_process
from cramming.glue.root import GlueRoot
from cramming.glue.suite import Suite, run_suite
from cramming.glue.summary import summary
from cramming.model.foreign import is_foreign, open_foreign
from cramming.model.saved import Pretrained, open_pretrained
from cramming.record import read_record, record_file, refuse_unfinished
from cramming.train.tracking import check_wandb, close_wandb, open_wandb


def evaluate_run(root: GlueRoot) -> int:
    """Run the configured suite on the configured checkpoint and print the result; returns the number of failed runs.

    Raises:
        UserError: no checkpoint, one of a decoder, data that do not belong to it, or anything wrong with tasks' files.
    """
    config = root.glue
    world = single_process(config.precision)  # of several processes, none does anything
    check_wandb(root.wandb)
    if root.checkpoint is None:
        refuse_causal(root.objective.kind == "causal", root.run_name)
    pretrained = open_given(config, Path(root.checkpoint)) if root.checkpoint else open_own(root)
    refuse_causal(pretrained.causal, str(pretrained.folder))
    suite = "GLUE" if config.suite == "glue" else "mini (not GLUE)"
    print(f"model      {pretrained.folder}")
    print(f"tasks      {suite}, source {config.source}, seeds {' '.join(map(str, config.seeds))}", flush=True)
    documents = held_out_documents(root, pretrained) if config.source == "mini" else []
    mirror = open_wandb(
        root.wandb,
        name=f"glue-{pretrained.run}-{config.suite}",
        folder=Path(root.output_dir) / "runs" / f"glue-{pretrained.run}-{config.suite}",
        settings={"glue": config.settings(), "pretrain": pretrained.run, **pretrained.config},
        group=pretrained.run,
    )
    exit_code = 1
    try:
        log = mirror.log if mirror is not None else None
        kept = Path(root.output_dir) / "runs" / pretrained.run / "glue" if config.save else None
        records = run_suite(Suite(config, pretrained, Path(root.results_dir), documents, log, kept), world)
        failed = [record["name"] for record in records if record["status"] != "finished"]
        exit_code = int(bool(failed))
    finally:
        close_wandb(mirror, exit_code)
    print(f"\n{pretrained.run}: {suite}\n{summary(config, records)}")
    if failed:
        print(f"not finished, and in no number above: {', '.join(failed)}; the same command tries them again")
    print(f"records    {Path(root.results_dir) / 'runs'}\nnext       make tables", flush=True)
    return len(failed)


def refuse_causal(causal: bool, name: str) -> None:
    """Refuse a decoder: its first token, which the classifier reads, sees no other (UserError)."""
    if causal:
        raise UserError(
            f"{name} is of objective.kind=causal: the first token, which GLUE's classifier reads, sees no other; give "
            "a model that was pretrained with objective=masked."
        )


def open_given(config: GlueConfig, path: Path) -> Pretrained:
    """A model's folder: this project's, or any encoder of transformers'; UserError where its tasks are not offered."""
    if not is_foreign(path):
        return open_pretrained(path)
    if config.source == "mini":
        raise UserError(
            f"{path} is of another project, and its held-out text is not known; set glue=local or glue=hub."
        )
    if config.save:
        raise UserError(f"{path} is of another project, and glue.save keeps classifiers of this one's alone; unset it.")
    return open_foreign(path)


def open_own(root: GlueRoot) -> Pretrained:
    """The pretraining run that the configuration names; UserError as `open_pretrained`, or where it diverged."""
    recorded = record_file(Path(root.results_dir), root.run_name)
    if not (root.run_folder / "model").is_dir() and recorded.exists():
        refuse_unfinished(
            read_record(recorded), mend="it left no model. Pretrain with a lower train.lr, or another seed."
        )
    return open_pretrained(root.run_folder)


def held_out_documents(root: GlueRoot, pretrained: Pretrained) -> list[str]:
    """Raw documents that the checkpoint never saw: of the prepared data it was trained on, whatever their sources now.

    Raises:
        UserError: those data are not there, and the configured ones are other.
    """
    wanted = pretrained.data_fingerprint
    # Beside the configured results, or beside the run: <output_dir>/runs/<run>/model.
    for output_dir in (Path(root.output_dir), *pretrained.folder.absolute().parents[2:3]):
        if wanted and (folder := find_prepared(output_dir, wanted)):
            return open_prepared(folder, trusted=not root.data.verify).held_out_documents()
    data = prepare(root.data, Path(root.output_dir))
    if wanted not in ("", data.fingerprint):
        raise UserError(
            f"data: the prepared data of {pretrained.run} (fingerprint {wanted}) are not in {root.output_dir}/data, "
            f"and data.* makes other ones now ({data.fingerprint}), so nothing is known to be held out; put them back, "
            "or give the settings and the text it was trained with."
        )
    return data.held_out_documents()
