"""Root configuration of `make pretrain`, and the names that follow from it. Not how it is read (config.py)."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cramming.data.config import DataConfig
from cramming.errors import UserError
from cramming.files import short_hash
from cramming.model.config import FFNConfig, ModelConfig
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.hardening import HardeningConfig

# What may change without making it another run.
COSMETIC = {
    "data": ("workers", "examples"),
    "train": (
        "keep_checkpoints",
        "checkpoints",
        "log_steps",
        "usage_sequences",
        "usage_steps",
        "compile_mode",
        "profile_steps",
    ),
}


@dataclass(frozen=True)
class PretrainRoot:
    """`make pretrain`. The run's name follows from the configuration, so the same command finds the same run."""

    experiment: str = "custom"
    seed: int = 0  # of initialisation, data order and masks
    output_dir: str = "outputs"
    results_dir: str = "results"  # records and tables
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    ffn: FFNConfig = field(default_factory=FFNConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    hardening: HardeningConfig = field(default_factory=HardeningConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; set it from 0 to 2^32 - 1.")

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for records."""
        return asdict(self)

    def _essence(self) -> dict[str, Any]:
        values = {key: asdict(self)[key] for key in ("experiment", "data", "model", "ffn", "train", "hardening")}
        if self.ffn.kind != "leaf":  # so that runs from before that kind keep their names
            values["ffn"] = {k: v for k, v in values["ffn"].items() if k not in ("leaf_width", "master_width")}
        return {
            key: {k: v for k, v in value.items() if k not in COSMETIC.get(key, ())}
            if isinstance(value, dict)
            else value
            for key, value in values.items()
        }

    @property
    def group(self) -> str:
        """Hash of all that matters except the seed: runs of one group are repetitions of one another."""
        return short_hash(self._essence(), 6)

    @property
    def identity(self) -> str:
        """Hash of all that matters, the seed included."""
        return short_hash({"seed": self.seed, **self._essence()}, 16)

    @property
    def group_name(self) -> str:
        """Experiment, feedforward and group in a readable form."""
        return f"{self.experiment}-{self.ffn.tag}-{self.group}"

    @property
    def run_name(self) -> str:
        """Name of the run's folder and record, e.g. "quickstart-1x9-s0-3fa2c1"."""
        return f"{self.experiment}-{self.ffn.tag}-s{self.seed}-{self.group}"

    @property
    def run_folder(self) -> Path:
        """Where the run writes."""
        return Path(self.output_dir) / "runs" / self.run_name
