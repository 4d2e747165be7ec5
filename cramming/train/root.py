"""Root configuration of `make pretrain`, and the names that follow from it. Not how it is read (config.py)."""

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cramming.checks import paths
from cramming.data.config import DataConfig
from cramming.errors import UserError
from cramming.files import checked_name
from cramming.model.config import FFNConfig, ModelConfig
from cramming.model.resolved import resolved
from cramming.objectives.config import ObjectiveConfig
from cramming.runs import Keys, RunName, essence, listed, recorded, run_name
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.hardening import HardeningConfig
from cramming.values import flat

RAMP = "schedule start end"
# What the first results were named by. Never add to it: a key added later enters a name where it is not at its default.
FIXED = listed(
    {
        "": "experiment data model ffn train hardening",
        "data": "name source files valid_files text_field hub max_megabytes valid_share valid_max_megabytes tokenizer "
        "vocab_size tokenizer_megabytes max_tokens_per_char seq_len order",
        "data.hub": "id config split column revision join_rows",
        "model": "hidden_size layers heads positions rotary_base norm_eps init_std sparse_prediction",
        "ffn": "kind width activation depth trees neurons bias execution provider",
        "train": "budget_tokens budget_steps budget_hours microbatch batch batch_ramp lr schedule beta1 beta2 eps "
        "weight_decay clip mask_rate precision compile validations valid_sequences",
        "hardening": "form temperature entropy_weight balance_weight region_leak harden_at",
        **{f"hardening.{name}": RAMP for name in ("temperature", "entropy_weight", "balance_weight")},
    }
)
COSMETIC = listed(
    {
        "": "seed output_dir results_dir wandb",
        "data": "workers examples verify remote",
        "train": "keep_checkpoints checkpoints log_steps usage_sequences usage_steps compile_mode profile_steps oracle "
        "sharding recompute patience_minutes lighthouse worker",
    }
)
# Who computes, and in which order, gives equal results by contract; names had these once.
EQUAL = listed({"ffn": "execution provider", "train": "compile attention exchange"})
PATHS = listed(
    {
        "": "output_dir results_dir",
        "data": "files valid_files tokenizer remote",
        "data.hub": "id",
        "train": "start documents",
    }
)

KEYS = Keys(FIXED, COSMETIC | EQUAL, PATHS)
# How runs were named before, newest first: under such a name too a run is finished, or goes on.
FORMER = (
    Keys(FIXED | listed({"ffn": "leaf_width master_width"}), COSMETIC),  # of leaf layers
    Keys(FIXED, COSMETIC),
    Keys(FIXED - listed({"": "hardening", "model": "positions rotary_base"}), COSMETIC),
)


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
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        paths("", self, ("output_dir", "results_dir"))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; set it from 0 to 2^32 - 1.")
        self._refuse_masking()
        checked_name(self.experiment, "experiment")
        checked_name(self.names[0].run, "the run's name")

    def _refuse_masking(self) -> None:
        """Keys of the masked objective would be ignored by another one, and would still name the run."""
        if self.objective.kind == "masked":
            return
        given = {"train.mask_rate": (self.train, TrainConfig), "model.sparse_prediction": (self.model, ModelConfig)}
        for key, (group, settings) in given.items():
            value, default = (getattr(each, key.rpartition(".")[2]) for each in (group, settings))
            if value != default:
                raise UserError(
                    f"{key} is {value}, and belongs to objective=masked; objective.kind is {self.objective.kind}, so "
                    f"leave it at {default}."
                )

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain values, as `cramming.values.build` reads it."""
        return asdict(self)

    def as_recorded(self) -> dict[str, Any]:
        """The same for a record, which may be published: without this machine's paths and the user's name."""
        values = recorded(self, PATHS)
        values["wandb"]["entity"] = None
        return values

    def resolved(self) -> dict[str, Any]:
        """What the configuration comes to, for a record: see `cramming.model.resolved`."""
        return {"ffn": resolved(self.ffn, self.model.layers)}

    def _essence(self, keys: Keys = KEYS) -> dict[str, Any]:
        """What names the run. What another command adds to this configuration is no part of it."""
        added = frozenset(self.__dataclass_fields__) - frozenset(PretrainRoot.__dataclass_fields__)
        return essence(self, Keys(keys.fixed, keys.cosmetic | added, keys.paths))

    @cached_property
    def names(self) -> tuple[RunName, ...]:
        """The run's name, then its former ones."""
        found = [run_name(self.experiment, self.ffn.tag, self.seed, self._essence(keys)) for keys in (KEYS, *FORMER)]
        return tuple(dict.fromkeys(found))

    @cached_property
    def name(self) -> RunName:
        """The name under which the run has a folder; today's where it has none yet."""
        return next((name for name in self.names if self._folder(name).is_dir()), self.names[0])

    def _folder(self, name: RunName) -> Path:
        return Path(self.output_dir) / "runs" / name.run

    @property
    def group(self) -> str:
        """Hash of all that matters except the seed: runs of one group are repetitions of one another."""
        return self.name.group

    @property
    def identity(self) -> str:
        """Hash of all that matters, the seed included."""
        return self.name.identity

    @property
    def group_name(self) -> str:
        """Experiment, feedforward and group in a readable form."""
        return self.name.repetitions

    @property
    def run_name(self) -> str:
        """Name of the run's folder and record, e.g. "quickstart-1x9-s0-3fa2c1"."""
        return self.name.run

    @property
    def run_folder(self) -> Path:
        """Where the run writes; of workers that come and go, in a folder of its own each beside the first."""
        folder = self._folder(self.name)
        return folder / f"worker-{self.train.worker}" if self.train.worker else folder

    @property
    def records(self) -> Path:
        """Folder of results for its record; that of another worker than the first stays in its own folder."""
        return self.run_folder if self.train.worker else Path(self.results_dir)

    def facts(self) -> dict[str, Any]:
        """What workers that come and go must have alike."""
        return {**flat(self._essence()), "train.exchange": self.train.exchange}
