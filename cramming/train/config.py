"""Configuration groups `train` and `wandb`. Not the schedules themselves (budget.py)."""

import math
from dataclasses import dataclass, field, fields

from cramming.checks import number, numbers, one_of, paths
from cramming.errors import UserError

BUDGETS = ("budget_tokens", "budget_steps", "budget_hours")
LR_SCHEDULES = ("triangle2", "linear", "cosine", "constant")
COMPILE_MODES = ("default", "reduce-overhead")
PRECISIONS = ("fp32", "bf16", "fp16")
ATTENTIONS = ("auto", "sdpa", "eager")
SHARDINGS = ("none", "ddp", "fsdp")
SYNCS = ("every_step", "outer")
EXCHANGES = ("rows", "dense")
OF_OUTER = ("outer_steps", "outer_lr", "outer_momentum", "exchange", "documents", "lighthouse", "workers", "worker")
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
    clip: float | None = 0.5  # global gradient norm; null or inf for no clipping
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
    # sdpa: torch's fused attention; eager: written out. auto: sdpa, but eager on a CPU in half types: the fused
    # backward pass took 18 ms for 32 x 64 tokens of 4 heads, and the products take 2 (torch 2.13, AMX).
    attention: str = "auto"
    # Initial values outside the feedforward layers follow from seed and name alone: equal for every kind and size of
    # layer. Without it, whatever is drawn before them shifts them.
    equal_start: bool = False
    # Neurons used by a token beyond which output weights begin smaller and learn slower (width.py); 0: no such rule.
    width_base: int = 0
    # A finished run's folder, or the model's in it: its weights are what this run begins with, at step 0 of its own.
    start: str | None = None
    frozen_levels: int = 0  # first levels of every tree (ffn=path) that stay as they begin: 1 is the root alone
    initial_split: int = 0  # training sequences whose tokens set the trees' biases at the start: half go right
    # At the end, of dense layers: the validation loss with each token's k most active neurons alone, for each k.
    oracle: list[int] = field(default_factory=list)
    # Several processes (docs/scale.md). none: refuse them; ddp: a whole model in each; fsdp: a part of it in each.
    sharding: str = "ddp"
    # every_step: gradients are means over all processes; outer: each trains alone for outer_steps and then they meet
    # (DiLoCo, arXiv 2311.08105), also for what is due at a mark of progress: it waits for the next meeting.
    sync: str = "every_step"
    outer_steps: int = 50
    outer_lr: float = 0.7  # of the step from the last meeting's weights towards the workers' mean; 1: to the mean
    outer_momentum: float = 0.9  # Nesterov's
    # What travels at a meeting. rows: of feedforward layers those that differ between workers; dense: all. Same result.
    exchange: str = "rows"
    # Folder of scripts/deal.py: worker k reads what was dealt to it. Without it all read from all documents in turn.
    documents: str | None = None
    # Workers that come and go, each started by itself: address of their lighthouse, how many share the data, which this
    # one is. Without it all processes that a launcher started together are the workers.
    lighthouse: str | None = None  # http://HOST:PORT
    workers: int = 1
    worker: int = 0  # from 0; number 0 writes the record
    recompute: bool = False  # what blocks compute on the way forward once more on the way back: slower, less memory
    patience_minutes: float = 30.0  # that one process waits for another before the run ends
    profile_steps: int = 0  # steps that a profile is taken of, into profile.json; fewer than log_steps - 1

    def __post_init__(self) -> None:
        self._check_budget()
        counts = ("microbatch", "batch", "validations", "valid_sequences", "checkpoints", "keep_checkpoints")
        numbers("train", self, (*counts, "log_steps", "usage_sequences", "usage_steps"), least=1)
        numbers("train", self, ("initial_split", "width_base", "frozen_levels"), least=0)
        paths("train", self, ("start", "documents"))
        self._check_split()
        one_of("train.schedule", self.schedule, LR_SCHEDULES)
        one_of("train.precision", self.precision, PRECISIONS)
        one_of("train.compile_mode", self.compile_mode, COMPILE_MODES)
        one_of("train.attention", self.attention, ATTENTIONS)
        one_of("train.sharding", self.sharding, SHARDINGS)
        self._check_sharding()
        self._check_sync()
        if not 0 <= self.profile_steps <= max(0, self.log_steps - 2):
            raise UserError(
                f"train.profile_steps is {self.profile_steps}; a profile lies between two rows of the history: set it "
                f"from 0 to train.log_steps - 2 = {self.log_steps - 2}, or raise train.log_steps."
            )
        numbers("train", self, ("lr", "eps", "patience_minutes"), above=0)
        number("train.clip", self.clip, above=0, infinite=True)
        if self.clip == math.inf:  # no clipping, in the word that JSON has for it
            object.__setattr__(self, "clip", None)
        numbers("train", self, ("beta1", "beta2"), least=0, below=1)
        number("train.weight_decay", self.weight_decay, least=0)
        number("train.batch_ramp", self.batch_ramp, least=0, most=1, hint="it is a share of the budget")
        number("train.mask_rate", self.mask_rate, above=0, below=1)
        if self.batch % self.microbatch:
            raise UserError(
                f"train.batch is {self.batch}, which is no multiple of train.microbatch={self.microbatch}; "
                f"try train.batch={max(1, round(self.batch / self.microbatch)) * self.microbatch}."
            )

    def _check_split(self) -> None:
        """The split is by sequences of all, before anything is learnt."""
        for name in ("start", "documents"):
            if self.initial_split and getattr(self, name) is not None:
                raise UserError(
                    f"train.initial_split is {self.initial_split}, and is for fresh trees that all workers' text goes "
                    f"through; train.{name} is given: set train.initial_split=0, or train.{name}=null."
                )

    def _check_sharding(self) -> None:
        if self.sharding != "fsdp":
            return
        if self.precision == "fp16":
            raise UserError("train.precision is fp16, whose scaled losses train.sharding=fsdp does not know; use bf16.")
        if self.compile and self.compile_mode != "default":
            raise UserError(
                f"train.compile_mode is {self.compile_mode}, and train.sharding is fsdp, whose weights come and go "
                "while a graph would be replayed; set train.compile_mode=default."
            )

    def _check_sync(self) -> None:
        one_of("train.sync", self.sync, SYNCS)
        one_of("train.exchange", self.exchange, EXCHANGES)
        number("train.outer_steps", self.outer_steps, least=1)
        number("train.outer_lr", self.outer_lr, above=0)
        number("train.outer_momentum", self.outer_momentum, least=0, below=1)
        self._check_workers()
        if self.sync != "outer":
            defaults = {field.name: field.default for field in fields(self)}
            for name in (name for name in OF_OUTER if getattr(self, name) != defaults[name]):
                raise UserError(
                    f"train.{name} is {getattr(self, name)}, and belongs to train.sync=outer; train.sync is "
                    f"{self.sync}, so leave it at {defaults[name]}."
                )
        elif self.sharding == "fsdp":
            raise UserError("train.sharding is fsdp, and workers of train.sync=outer have whole models; set ddp.")
        elif self.precision == "fp16":
            raise UserError("train.precision is fp16, whose loss scales workers of train.sync=outer lack; use bf16.")

    def _check_workers(self) -> None:
        number("train.workers", self.workers, least=1)
        if not 0 <= self.worker < self.workers:
            raise UserError(
                f"train.worker is {self.worker} and train.workers is {self.workers}; number the workers from 0 to "
                "train.workers - 1."
            )
        if self.sync != "outer":
            return
        if self.lighthouse is None and self.workers > 1:
            raise UserError(
                f"train.workers is {self.workers}, and belongs to workers that meet by train.lighthouse; set that, "
                "or start them together with torchrun and leave it at 1."
            )
        if self.lighthouse is not None and not self.lighthouse.startswith("http://"):
            raise UserError(f"train.lighthouse is {self.lighthouse!r}; give it as http://HOST:PORT.")
        if self.lighthouse is not None and self.budget_hours is not None:
            raise UserError(
                "train.budget_hours has a clock in each worker, and workers of train.lighthouse have to end together; "
                "set train.budget_steps or train.budget_tokens."
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
        number(f"train.{key}", value, above=0)


@dataclass(frozen=True)
class WandbConfig:
    """Mirror of metrics.jsonl at Weights & Biases. "auto" is online when WANDB_API_KEY is set, else offline.

    The environment is obeyed: WANDB_MODE stands above any mode but "off".
    """

    mode: str = "auto"
    project: str = "fff-cramming"
    entity: str | None = None

    def __post_init__(self) -> None:
        one_of("wandb.mode", self.mode, WANDB_MODES)
