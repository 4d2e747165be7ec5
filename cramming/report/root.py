"""Root configuration of `make tables`. Not how it is read (config.py)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TablesRoot:
    """`make tables`."""

    results_dir: str = "results"
