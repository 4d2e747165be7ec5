"""Mirror of the history at Weights & Biases; the only place that knows wandb. Not the truth (metrics.jsonl is)."""

import importlib.util
import os
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.train.config import WandbConfig


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
