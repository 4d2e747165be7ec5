"""Configurations as the command line composes them. Not a test."""

from hydra import compose, initialize_config_dir

from cramming.config import CONFIGS, ROOTS, frozen, register


def composed(name: str, *overrides: str):
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return frozen(ROOTS[name], compose(name, overrides=list(overrides)))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
