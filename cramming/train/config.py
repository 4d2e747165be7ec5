"""Configuration groups `train` and `wandb`. Not the schedules themselves (budget.py)."""

from dataclasses import dataclass

from cramming.errors import UserError

BUDGETS = ("budget_tokens", "budget_steps", "budget_hours")
LR_SCHEDULES = ("triangle2", "linear", "cosine", "constant")
COMPILE_MODES = ("default", "reduce-overhead")
PRECISIONS = ("fp32", "bf16", "fp16")
WANDB_MODES = ("auto", "offline", "online", "off")


@dataclass(frozen=True)
class TrainConfig:
    """The pretraining recipe; the defaults are UltraFastBERT's `bert-o4` (arXiv 2311.10770 and 2212.14034).

    Exactly one budget is given. Progress t in [0, 1] is the share of it that is used; the learning rate and the batch
    are functions of t alone.
    """

    budget_tokens: int | None = None  # tokens read
    budget_steps: int | None = None  # updates
    budget_hours: float | None = None  # wall clock of the training loop; makes the run depend on the machine's speed
    microbatch: int = 128  # sequences in one forward and backward of one process
    batch: int = 8192  # sequences per update over all processes, reached at t = batch_ramp
    batch_ramp: float = 0.60  # progress until which the batch grows linearly from one microbatch; 0 for no ramp
    lr: float = 1e-3  # peak
    schedule: str = "triangle2"  # triangle2, linear, cosine, constant
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-12
    weight_decay: float = 0.01  # not on biases, norms and the position scale
    clip: float = 0.5  # global gradient norm
    mask_rate: float = 0.25  # share of a sequence's positions that is predicted
    precision: str = "fp32"  # fp32, bf16, fp16
    compile: bool = False  # torch.compile, never max-autotune: it is known to spoil convergence
    validations: int = 10  # marks of progress at which the validation loss is taken, the end included
    valid_sequences: int = 512  # at most, evenly spread over the validation text
    usage_sequences: int = 64  # probe set of the leaf-usage figures, taken at the validation marks
    usage_steps: int = 100  # steps between two counts of training leaves
    checkpoints: int = 10  # marks of progress at which a checkpoint is written, the end included
    keep_checkpoints: int = 2  # the newest ones that stay on the disk
    log_steps: int = 10  # steps per row of metrics.jsonl; a GPU is waited for as often
    compile_mode: str = "default"  # reduce-overhead: CUDA graphs, for passes shorter than their launches
    profile_steps: int = 0  # steps that a profile is taken of, into profile.json; fewer than log_steps - 1

    def __post_init__(self) -> None:
        self._check_budget()
        for key in ("microbatch", "batch", "validations", "valid_sequences", "checkpoints", "keep_checkpoints"):
            _at_least_one("train", key, getattr(self, key))
        for key in ("log_steps", "usage_sequences", "usage_steps"):
            _at_least_one("train", key, getattr(self, key))
        _one_of("train.schedule", self.schedule, LR_SCHEDULES)
        _one_of("train.precision", self.precision, PRECISIONS)
        _one_of("train.compile_mode", self.compile_mode, COMPILE_MODES)
        if not 0 <= self.profile_steps <= max(0, self.log_steps - 2):
            raise UserError(
                f"train.profile_steps is {self.profile_steps}; a profile lies between two rows of the history: set it "
                f"from 0 to train.log_steps - 2 = {self.log_steps - 2}, or raise train.log_steps."
            )
        for key in ("lr", "clip", "eps"):
            if not getattr(self, key) > 0:
                raise UserError(f"train.{key} is {getattr(self, key)}; set it above 0.")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise UserError(f"train.{key} is {getattr(self, key)}; set it from 0 to below 1.")
        if self.weight_decay < 0:
            raise UserError(f"train.weight_decay is {self.weight_decay}; set it to 0 or more.")
        if not 0 <= self.batch_ramp <= 1:
            raise UserError(f"train.batch_ramp is {self.batch_ramp}; it is a share of the budget, from 0 to 1.")
        if not 0 < self.mask_rate < 1:
            raise UserError(f"train.mask_rate is {self.mask_rate}; set it between 0 and 1.")
        if self.batch % self.microbatch:
            raise UserError(
                f"train.batch is {self.batch}, which is no multiple of train.microbatch={self.microbatch}; "
                f"try train.batch={max(1, round(self.batch / self.microbatch)) * self.microbatch}."
            )

    def _check_budget(self) -> None:
        given = {key: getattr(self, key) for key in BUDGETS if getattr(self, key) is not None}
        if len(given) != 1:
            found = ", ".join(f"train.{key}={value}" for key, value in given.items()) or "none"
            raise UserError(
                f"train: give exactly one of {', '.join(BUDGETS)} (found: {found}); set the others to null, "
                "for example train.budget_tokens=null train.budget_steps=1000."
            )
        ((key, value),) = given.items()
        if not value > 0:
            raise UserError(f"train.{key} is {value}; set it above 0.")


@dataclass(frozen=True)
class WandbConfig:
    """Mirror of metrics.jsonl at Weights & Biases. "auto" is online when WANDB_API_KEY is set, else offline."""

    mode: str = "auto"
    project: str = "fff-cramming"
    entity: str | None = None

    def __post_init__(self) -> None:
        _one_of("wandb.mode", self.mode, WANDB_MODES)


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key} is {value!r}; choose one of {', '.join(allowed)}.")


def _at_least_one(group: str, key: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{group}.{key} is {value}; set it to 1 or more.")
