"""`make glue` as one call: checkpoint, held-out text, W&B, the suite, print-out. Not the suite's runs (suite.py)."""

from pathlib import Path

from cramming.data.prepare import prepare
from cramming.errors import UserError
from cramming.glue.finetune import single_process_accelerator
from cramming.glue.root import GlueRoot
from cramming.glue.suite import Suite, run_suite
from cramming.glue.summary import summary
from cramming.model.saved import Pretrained, open_pretrained
from cramming.train.tracking import check_wandb, close_wandb, open_wandb


def evaluate_run(root: GlueRoot) -> int:
    """Run the configured suite on the configured checkpoint and print the result; returns the number of failed runs.

    Raises:
        UserError: no checkpoint, data that do not belong to it, or anything wrong with the tasks' files.
    """
    config = root.glue
    accelerator = single_process_accelerator(config.precision)  # of several processes, none does anything
    check_wandb(root.wandb)
    folder = Path(root.checkpoint) if root.checkpoint else root.run_folder
    pretrained = open_pretrained(folder)
    suite = "GLUE" if config.suite == "glue" else "mini (not GLUE)"
    print(f"model      {pretrained.folder}")
    print(f"tasks      {suite}, source {config.source}, seeds {' '.join(map(str, config.seeds))}", flush=True)
    documents = held_out_documents(root, pretrained) if config.source == "mini" else []
    wandb_run = open_wandb(
        root.wandb,
        name=f"glue-{pretrained.run}-{config.suite}",
        folder=Path(root.output_dir) / "runs" / f"glue-{pretrained.run}-{config.suite}",
        settings={"glue": config.settings(), "pretrain": pretrained.run, **pretrained.config},
        group=pretrained.run,
    )
    try:
        log = wandb_run.log if wandb_run is not None else None
        kept = Path(root.output_dir) / "runs" / pretrained.run / "glue" if config.save else None
        records = run_suite(Suite(config, pretrained, Path(root.results_dir), documents, log, kept), accelerator)
    finally:
        close_wandb(wandb_run)
    print(f"\n{pretrained.run}: {suite}\n{summary(config, records)}")
    failed = [record["name"] for record in records if record["status"] != "finished"]
    if failed:
        print(f"not finished, and in no number above: {', '.join(failed)}; the same command tries them again")
    print(f"records    {Path(root.results_dir) / 'runs'}\nnext       make tables", flush=True)
    return len(failed)


def held_out_documents(root: GlueRoot, pretrained: Pretrained) -> list[str]:
    """Raw documents that the checkpoint never saw. UserError when the configured data are not its own."""
    data = prepare(root.data, Path(root.output_dir))
    if pretrained.data_fingerprint not in ("", data.fingerprint):
        raise UserError(
            f"data: {data.folder} is not what {pretrained.run} was trained on (fingerprint {data.fingerprint}, trained "
            f"on {pretrained.data_fingerprint}), so nothing is known to be held out; give the same data.* settings."
        )
    return data.held_out_documents()
