"""Mirror of the history at Weights & Biases; the only place that knows wandb. Not the truth (metrics.jsonl is)."""

import os
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.train.config import WandbConfig


def open_wandb(config: WandbConfig, *, name: str, folder: Path, settings: dict[str, Any], group: str) -> Any:
    """Start or continue a W&B run without ever asking for anything; None for mode "off".

    Raises:
        UserError: wandb is not installed, or online without a key.
    """
    if config.mode == "off":
        return None
    try:
        import wandb
    except ImportError:
        raise UserError("wandb.mode is not off and wandb is not installed; choose wandb=off or install it.") from None
    has_key = bool(os.environ.get("WANDB_API_KEY"))
    if config.mode == "online" and not has_key:
        raise UserError("wandb.mode is online and WANDB_API_KEY is not set; set it, or choose wandb=offline.")
    mode: Any = "online" if config.mode == "online" or (config.mode == "auto" and has_key) else "offline"
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
