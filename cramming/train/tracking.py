"""Mirror of a run at Weights & Biases; the only place that knows wandb. Not the truth (metrics.jsonl is)."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from cramming.checks import one_of
from cramming.errors import UserError
from cramming.train.config import WandbConfig
from cramming.train.usage import Show
from fff.usage import Usage

PATIENCE_S = 10.0  # that W&B may hold a run up, at its beginning and at its end
OFF = ("disabled", "off")


def has_key() -> bool:
    """Whether the environment has a key of W&B."""
    return bool(os.environ.get("WANDB_API_KEY"))


def chosen_mode(config: WandbConfig) -> str:
    """ "off", "offline" or "online": what the environment says, else the configuration, else by whether there is a key.

    Raises:
        UserError: WANDB_MODE is none of W&B's words.
    """
    if config.mode == "off" or os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes"):
        return "off"
    said = os.environ.get("WANDB_MODE", "").lower()
    if said:
        one_of("WANDB_MODE in the environment", said, ("online", "offline", "dryrun", "run", "shared", *OFF))
        return "off" if said in OFF else "offline" if said in ("offline", "dryrun") else "online"
    if config.mode == "auto":
        return "online" if has_key() else "offline"
    return config.mode


def check_wandb(config: WandbConfig) -> None:
    """Find in advance what `open_wandb` would refuse.

    Raises:
        UserError: wandb is not installed, or online without a key.
    """
    mode = chosen_mode(config)
    if mode != "off" and importlib.util.find_spec("wandb") is None:
        raise UserError("wandb.mode is not off and wandb is not installed; choose wandb=off or install it.")
    if mode == "online" and not has_key():
        raise UserError("wandb.mode is online and WANDB_API_KEY is not set; set it, or choose wandb=offline.")


def open_wandb(
    config: WandbConfig,
    *,
    name: str,
    folder: Path,
    settings: dict[str, Any],
    group: str,
    rows: Iterable[dict[str, Any]] = (),
) -> Any:
    """Start or continue a W&B run without ever asking for anything; None for mode "off".

    An offline run is one folder, which cannot be gone on with: a resumed one starts with `rows`, the history so far,
    and what was there before is set aside, so that `wandb sync` finds one run of this id. Without a network an online
    run becomes an offline one after PATIENCE_S.

    Raises:
        UserError: as `check_wandb`.
    """
    check_wandb(config)
    mode = chosen_mode(config)
    if mode == "off":
        return None
    try:
        run = _init(mode, config, name, folder, settings, group) if mode == "online" else None
    except Exception as error:  # a network has many ways to fail; none is a reason not to train
        print(f"W&B cannot be reached ({type(error).__name__}); the run is written offline, for `wandb sync`.")
        run = None
    if run is None:
        for old in sorted(folder.glob("wandb/offline-run-*")):
            old.rename(old.with_name(f"superseded-{old.name}"))
        run = _init("offline", config, name, folder, settings, group)
        mirror = wandb_mirror(run)
        for row in rows:
            mirror(row["step"], row)
    return run


def _init(mode: Any, config: WandbConfig, name: str, folder: Path, settings: dict[str, Any], group: str) -> Any:
    import wandb

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
        settings=wandb.Settings(
            silent=True, console="off", init_timeout=PATIENCE_S, login_timeout=PATIENCE_S, finish_timeout=PATIENCE_S
        ),
    )


def close_wandb(run: Any, exit_code: int = 0) -> None:
    """Finish a run and stop W&B's service thread; None is no run.

    Left to itself that daemon thread is cut off while the interpreter ends, which can abort a finished process.

    Args:
        exit_code: other than 0 for a run that was stopped or failed.
    """
    if run is None:
        return
    import wandb

    try:
        run.finish(exit_code=exit_code)
        wandb.teardown()
    except Exception as error:
        warnings.warn(f"W&B did not end well ({error}); the truth is in metrics.jsonl.", stacklevel=2)


def wandb_usage(run: Any) -> Show:
    """A show that logs the picture and a histogram of leaf usage per layer to a W&B run; comes after `heatmap`."""
    import wandb

    def show(step: int, usages: list[Usage], file: Path) -> None:
        run.log({}, step=step)  # a picture is named by the step that W&B knows of already
        row: dict[str, Any] = {"fff/leaf_usage": wandb.Image(str(file))} if file.exists() else {}
        for number, usage in enumerate(usages):
            share = (usage.counts / usage.counts.sum(-1, keepdim=True)).flatten()
            row[f"fff/layer_{number:02d}/leaf_share"] = wandb.Histogram(share.tolist())
        run.log(row, step=step)

    return show


def wandb_mirror(run: Any) -> Callable[[int, dict[str, Any]], None]:
    """A mirror for History that logs rows to a W&B run."""
    return lambda step, row: run.log({key: value for key, value in row.items() if key != "step"}, step=step)
