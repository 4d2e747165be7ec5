"""Where Hydra ends: YAML and overrides -> frozen dataclasses. One page; the rooms never see a DictConfig.

group        dataclass                            read by
data         cramming.data.config.DataConfig      cramming.data.prepare
model, ffn   cramming.model.config.ModelConfig, FFNConfig   cramming.train.pretrain.build_model
train, wandb cramming.train.config.TrainConfig, WandbConfig cramming.train
glue         cramming.glue.config.GlueConfig      cramming.glue.finetune
"""

import errno
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, field, fields, is_dataclass, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cramming.errors import UserError
from cramming.roots import GlueRoot, PretrainRoot, TablesRoot

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROOTS: dict[str, type] = {"pretrain": PretrainRoot, "glue": GlueRoot, "tables": TablesRoot}
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
        kind = _thawed_type(hints[item.name])
        if is_dataclass(kind) and isinstance(kind, type):
            members.append((item.name, kind, field(default_factory=kind)))
        elif item.default_factory is not MISSING:
            members.append((item.name, kind, field(default_factory=item.default_factory)))
        else:
            members.append((item.name, kind, field(default=item.default)))
    return make_dataclass(cls.__name__, members)


def _thawed_type(kind: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        return thawed(kind)
    if typing.get_origin(kind) is list and is_dataclass(typing.get_args(kind)[0]):
        return types.GenericAlias(list, (thawed(typing.get_args(kind)[0]),))
    return kind


def frozen(cls: type[Root], config: DictConfig) -> Root:
    """The frozen dataclass that a composed configuration describes; its checks raise UserError."""
    return _build(cls, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))


def _build(cls: type, values: Any) -> Any:
    hints = typing.get_type_hints(cls)
    built = {}
    for name, value in values.items():
        kind = hints[name]
        if is_dataclass(kind) and isinstance(kind, type):
            value = _build(kind, value)
        elif typing.get_origin(kind) is list and is_dataclass(typing.get_args(kind)[0]):
            value = [_build(typing.get_args(kind)[0], item) for item in value]
        built[name] = value
    return cls(**built)


def entry(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Decorator of a script's main: reads configs/<name>.yaml and the command line, and ends errors in one line.

    A mistake of the user ends with status 2. In a multirun the other jobs still run, and the status says so at the end.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        failed: list[str] = []

        def task(config: DictConfig) -> None:
            try:
                main(frozen(ROOTS[name], config))
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                failed.append(str(error))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                print(
                    f"error: the disk is full ({error.filename}); free some space and run the same command.",
                    file=sys.stderr,
                )
                failed.append("disk full")
            if failed and HydraConfig.get().mode != RunMode.MULTIRUN:
                sys.exit(2)

        def run() -> None:
            register()
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(task)()
            if failed:
                sys.exit(2)

        return run

    return decorate
