"""Where Hydra ends: YAML and overrides -> frozen dataclasses. One page; the rooms never see a DictConfig.

group        dataclass                            read by
data         cramming.data.config.DataConfig      cramming.data.prepare
model, ffn   cramming.model.config.ModelConfig, FFNConfig   cramming.train.build.build_model
train, wandb cramming.train.config.TrainConfig, WandbConfig cramming.train
hardening    cramming.train.hardening.HardeningConfig       cramming.train.hardening.Hardening
glue         cramming.glue.config.GlueConfig      cramming.glue.finetune
images       cramming.images.config.ImagesConfig  cramming.images.suite
"""

import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, field, fields, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cramming.errors import Stopped, UserError
from cramming.files import is_full_disk
from cramming.glue.root import GlueRoot
from cramming.images.root import ImagesRoot
from cramming.record import git_state
from cramming.report.root import TablesRoot
from cramming.train.root import PretrainRoot
from cramming.values import build, inner

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROOTS: dict[str, type] = {"pretrain": PretrainRoot, "glue": GlueRoot, "images": ImagesRoot, "tables": TablesRoot}
Root = TypeVar("Root")


def register() -> None:
    """Give Hydra the schema of every root, so that an unknown key or a wrong type is refused with its name."""
    store = ConfigStore.instance()
    for name, root in ROOTS.items():
        store.store(name=f"{name}_schema", node=thawed(root))


def thawed(cls: type) -> type:
    """A copy of a frozen dataclass that Hydra may fill in; without its checks, which need all values."""
    hints = typing.get_type_hints(cls)
    members: list[Any] = []
    for item in fields(cls):
        kind: Any = hints[item.name]
        found, many = inner(kind)
        default = field(default=item.default)
        if found is not None:
            kind = types.GenericAlias(list, (thawed(found),)) if many else thawed(found)
        if found is not None and not many:
            default = field(default_factory=kind)
        elif item.default_factory is not MISSING:
            default = field(default_factory=item.default_factory)
        members.append((item.name, kind, default))
    return make_dataclass(cls.__name__, members)


def frozen(cls: type[Root], config: DictConfig) -> Root:
    """The frozen dataclass that a composed configuration describes; its checks raise UserError."""
    values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    return build(cls, values)


def entry(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Decorator of a script's main: reads configs/<name>.yaml and the command line, and ends errors in one line.

    A mistake of the user ends with status 2. In a multirun the other jobs still run, and the status says so at the end;
    only a signal ends them all.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        failed: list[str] = []

        def task(config: DictConfig) -> None:
            try:
                main(frozen(ROOTS[name], config))
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                failed.append(str(error))
                if isinstance(error, Stopped):  # meant for the whole command, also in a multirun
                    sys.exit(2)
            except Exception as error:
                if not is_full_disk(error):
                    raise
                print(
                    f"error: a disk is full ({error}); free some space (output_dir={config.get('output_dir')}, "
                    f"results_dir={config.results_dir}) and run the same command.",
                    file=sys.stderr,
                )
                failed.append("disk full")
            if failed and HydraConfig.get().mode != RunMode.MULTIRUN:
                sys.exit(2)

        def run() -> None:
            git_state()  # now, not when a record is written: the checkout may have moved on by then
            register()
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(task)()
            if failed:
                sys.exit(2)

        return run

    return decorate
