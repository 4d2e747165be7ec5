"""Root configuration of `make images`. Not how it is read (config.py)."""

from dataclasses import dataclass, field

from cramming.checks import paths
from cramming.images.config import ImagesConfig


@dataclass(frozen=True)
class ImagesRoot:
    """`make images`: the first paper's experiment."""

    results_dir: str = "results"
    images: ImagesConfig = field(default_factory=ImagesConfig)

    def __post_init__(self) -> None:
        paths("", self, ("results_dir",))
