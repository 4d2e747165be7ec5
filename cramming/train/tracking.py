"""Mirror of a run at Weights & Biases; the only place that knows wandb. Not the truth (metrics.jsonl is)."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.train.config import WandbConfig
from cramming.train.usage import Show
from fff.usage import Usage


def has_key() -> bool:
    """Whether the environment has a key of W&B."""
    return bool(os.environ.get("WANDB_API_KEY"))


def check_wandb(config: WandbConfig) -> None:
    """Find in advance what `open_wandb` would refuse.

    Raises:
        UserError: wandb is not installed, or online without a key.
    """
    if config.mode != "off" and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb.mode is not off and wandb is not installed; choose wandb=off or install it.")
    if config.mode == "online" and not has_key():
        raise UserError("wandb.mode is online and WANDB_API_KEY is not set; set it, or choose wandb=offline.")


def open_wandb(config: WandbConfig, *, name: str, folder: Path, settings: dict[str, Any], group: str) -> Any:
    """Start or continue a W&B run without ever asking for anything; None for mode "off".

    Raises:
        UserError: as `check_wandb`.
    """
    check_wandb(config)
    if config.mode == "off":
        return None
    import wandb

    mode: Any = "online" if config.mode == "online" or (config.mode == "auto" and has_key()) else "offline"
    folder.mkdir(parents=True, exist_ok=True)
    return wandb.init(
        project=config.project,
        entity=config.entity,
        name=name,
        id=name,
        group=group,
        resume="allow",
        mode=mode,
        dir=str(folder),
        config=settings,
        settings=wandb.Settings(silent=True, console="off"),
    )


def close_wandb(run: Any) -> None:
    """Finish a run and stop W&B's service thread; None is no run.

    Left to itself that daemon thread is cut off while the interpreter ends, which can abort a finished process.
    """
    if run is None:
        return
    import wandb

    run.finish()
    wandb.teardown()


def wandb_usage(run: Any) -> Show:
    """A show that logs the picture and a histogram of leaf usage per layer to a W&B run; comes after `heatmap`."""
    import wandb

    def show(step: int, usages: list[Usage], file: Path) -> None:
        row: dict[str, Any] = {"fff/leaf_usage": wandb.Image(str(file))} if file.exists() else {}
        for number, usage in enumerate(usages):
            share = (usage.counts / usage.counts.sum(-1, keepdim=True)).flatten()
            row[f"fff/layer_{number:02d}/leaf_share"] = wandb.Histogram(share.tolist())
        run.log(row, step=step)

    return show


def wandb_mirror(run: Any) -> Callable[[int, dict[str, Any]], None]:
    """A mirror for History that logs rows to a W&B run."""
    return lambda step, row: run.log({key: value for key, value in row.items() if key != "step"}, step=step)
