"""Where Hydra ends: YAML and overrides -> frozen dataclasses. One page; the rooms never see a DictConfig.

group        dataclass                            read by
data         cramming.data.config.DataConfig      cramming.data.prepare
model, ffn   cramming.model.config.ModelConfig, FFNConfig   cramming.train.build.build_model
train, wandb cramming.train.config.TrainConfig, WandbConfig cramming.train
hardening    cramming.train.hardening.HardeningConfig       cramming.train.hardening.Hardening
glue         cramming.glue.config.GlueConfig      cramming.glue.finetune
images       cramming.images.config.ImagesConfig  cramming.images.suite
distill      cramming.convert.pretrained.config.DistillConfig   cramming.convert.pretrained.convert
"""

import difflib
import itertools
import os
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import MISSING, field, fields, make_dataclass
from pathlib import Path
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming.checks import at_home
from cramming.convert.pretrained.config import DistillRoot
from cramming.door import door, explained, status_of, tell
from cramming.errors import Stopped, UserError
from cramming.glue.root import GlueRoot
from cramming.images.root import ImagesRoot
from cramming.provenance import git_state
from cramming.report.root import TablesRoot
from cramming.train.root import PretrainRoot
from cramming.values import build, inner

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
ROOTS: dict[str, type] = {
    "pretrain": PretrainRoot,
    "glue": GlueRoot,
    "images": ImagesRoot,
    "distill": DistillRoot,
    "tables": TablesRoot,
}
Root = TypeVar("Root")


def register() -> None:
    """Give Hydra the schema of every root, so that an unknown key or a wrong type is refused with its name."""
    store = ConfigStore.instance()
    OmegaConf.register_new_resolver("at_home", lambda path: at_home(path, "output_dir"), replace=True)
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


class Told(Exception):
    """A job's error whose line was printed already; a multirun goes on with its other jobs, here or elsewhere."""


def entry(name: str) -> Callable[[Callable[[Any], None]], Callable[[], None]]:
    """Decorator of a script's main: reads configs/<name>.yaml and the command line, and ends errors in one line.

    A mistake of the user ends with status 2. In a multirun the other jobs still run, whatever launcher runs them, and
    the status says so at the end; only a signal ends them all.
    """

    def decorate(main: Callable[[Any], None]) -> Callable[[], None]:
        composed = False

        def task(config: DictConfig) -> None:
            nonlocal composed
            composed = True
            try:
                main(frozen(ROOTS[name], config))
            except Exception as error:
                text = explained(error)
                if text is None or os.environ.get("FFF_TRACEBACK"):
                    raise
                tell(text)
                # A signal is meant for the whole command; other errors of a multirun's job let the next one run.
                if isinstance(error, Stopped) or HydraConfig.get().mode != RunMode.MULTIRUN:
                    sys.exit(status_of(error))
                raise Told(text) from None

        def run() -> None:
            with door():
                check_configs()
                git_state()  # now, not when a record is written: the checkout may have moved on by then
                register()
                os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here whole, instead of being printed there
                try:
                    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=name)(task)()
                except Told:
                    sys.exit(2)
                except Exception as error:
                    own = composed or isinstance(error, OSError)  # a sweep's folder is made before its first job
                    if own and not isinstance(error, HydraException | OmegaConfBaseException):
                        raise
                    raise UserError(composition_error(error)) from None

        return run

    return decorate


def composed(name: str, overrides: Sequence[str]) -> Any:
    """The frozen dataclass that such a command line of a script describes; UserError names what is wrong in it."""
    check_configs()
    register()
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            return frozen(ROOTS[name], hydra.compose(name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composition_error(error)) from None


def expanded(overrides: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """The command lines that one with choices stands for, as `--multirun` takes them: "a=1,2 b=3" -> a=1 b=3, a=2 b=3.

    Returns:
        of each, all of its overrides, and those of them that were a choice. UserError for what is no override.
    """
    register()
    try:
        found = OverridesParser.create().parse_overrides(list(overrides))
        lists = [
            [f"{each.get_key_element()}={value}" for value in each.sweep_string_iterator()]
            if each.is_sweep_override()
            else [str(each.input_line)]
            for each in found
        ]
    except HydraException as error:
        raise UserError(composition_error(error)) from None
    chosen = [each.is_sweep_override() for each in found]
    return [(list(line), list(itertools.compress(line, chosen))) for line in itertools.product(*lists)]


def check_configs() -> None:
    """UserError where the configurations are missing, as beside an installed wheel."""
    if not CONFIGS.is_dir():
        raise UserError(
            f"{CONFIGS} is missing: commands need a checkout of the project (git clone, then make); what is installed "
            "here is the library alone (import fff, import cramming.model)."
        )


def composition_error(error: BaseException) -> str:
    """What Hydra or OmegaConf refused, as one line that names the key or the group's options."""
    while isinstance(error.__cause__, OmegaConfBaseException) and error.__cause__.full_key:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        if error.parent_node is not None and error.key is not None and error.key not in error.parent_node:
            near = difflib.get_close_matches(str(error.key), [str(key) for key in error.parent_node], n=1)
            group = error.full_key.rpartition(".")[0]
            known = (
                f"did you mean {'.'.join(filter(None, (group, near[0])))}?" if near else "see configs/ for the keys."
            )
            return f"{error.full_key} is no key of this command; {known}"
        return f"{error.full_key}: {lines[0].rstrip('.')}."
    text = " ".join(line for line in lines if not line.startswith(("To append to", "Set the environment")))
    text = text.partition(" Config search path")[0].partition(" See https://")[0]
    return f"{text} (given: {' '.join(sys.argv[1:])})"
