"""Root configuration of `make tables` and `make figures`. Not how it is read (config.py)."""

from dataclasses import dataclass

from cramming.checks import paths


@dataclass(frozen=True)
class TablesRoot:
    """`make tables` and `make figures`."""

    results_dir: str = "results"

    def __post_init__(self) -> None:
        paths("", self, ("results_dir",))
