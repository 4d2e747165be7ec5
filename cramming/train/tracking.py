"""Mirror of a run at Weights & Biases; the only place that knows wandb. Not the truth (metrics.jsonl is)."""

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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


class Mirror:
    """A W&B run that may fail and never fails the run it shows: its first error is told once, and it is off."""

    def __init__(self, run: Any) -> None:
        self.run, self.off = run, False

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Around everything that asks W&B; whatever it raises ends here."""
        try:
            yield
        except Exception as error:  # its service, its network and its disk have many ways to fail
            if not self.off:
                told = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                warnings.warn(f"W&B failed ({told}) and shows no more of this run, which goes on.", stacklevel=4)
            self.off = True

    def log(self, row: dict[str, Any], step: int | None = None) -> None:
        """Show a row."""
        if not self.off:
            with self.guarded():
                self.run.log(row, step=step)


def open_wandb(
    config: WandbConfig,
    *,
    name: str,
    folder: Path,
    settings: dict[str, Any],
    group: str,
    rows: Iterable[dict[str, Any]] = (),
) -> Mirror | None:
    """Start or continue a W&B run without ever asking for anything; None for mode "off", or where W&B cannot start.

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
        try:
            run = _init("offline", config, name, folder, settings, group)
        except Exception as error:
            print(f"W&B cannot be started ({type(error).__name__}: {error}); the run goes on without it.", flush=True)
            return None
        show = wandb_mirror(mirror := Mirror(run))
        for row in rows:
            show(row["step"], row)
        return mirror
    return Mirror(run)


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


def close_wandb(mirror: Mirror | None, exit_code: int = 0) -> None:
    """Finish a run and stop W&B's service thread; None is no run.

    Left to itself that daemon thread is cut off while the interpreter ends, which can abort a finished process.

    Args:
        exit_code: other than 0 for a run that was stopped or failed.
    """
    if mirror is None:
        return
    import wandb

    with mirror.guarded():
        mirror.run.finish(exit_code=exit_code)
    with mirror.guarded():
        wandb.teardown()


def wandb_usage(mirror: Mirror) -> Show:
    """A show that logs the picture and a histogram of leaf usage per layer to a W&B run; comes after `heatmap`."""
    import wandb

    def show(step: int, usages: list[Usage], file: Path) -> None:
        mirror.log({}, step=step)  # a picture is named by the step that W&B knows of already
        if mirror.off:
            return
        with mirror.guarded():
            row: dict[str, Any] = {"fff/leaf_usage": wandb.Image(str(file))} if file.exists() else {}
            for number, usage in enumerate(usages):
                share = (usage.counts / usage.counts.sum(-1, keepdim=True)).flatten()
                row[f"fff/layer_{number:02d}/leaf_share"] = wandb.Histogram(share.tolist())
            mirror.run.log(row, step=step)

    return show


def wandb_mirror(mirror: Mirror) -> Callable[[int, dict[str, Any]], None]:
    """A mirror for History that logs rows to a W&B run."""
    return lambda step, row: mirror.log({key: value for key, value in row.items() if key != "step"}, step=step)
