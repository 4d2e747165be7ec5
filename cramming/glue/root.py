"""Root configuration of `make glue`. Not how it is read (config.py)."""

from dataclasses import dataclass, field

from cramming.checks import paths
from cramming.glue.config import GlueConfig
from cramming.train.root import PretrainRoot


@dataclass(frozen=True)
class GlueRoot(PretrainRoot):
    """`make glue`: the pretraining run that the same configuration names, or a model folder, and the tasks."""

    glue: GlueConfig = field(default_factory=GlueConfig)
    checkpoint: str | None = None  # a model folder; null takes the pretraining run of this configuration

    def __post_init__(self) -> None:
        paths("", self, ("checkpoint",))
        super().__post_init__()
