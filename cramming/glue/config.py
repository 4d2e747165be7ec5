"""Configuration group `glue`: what is finetuned, on which data and how. Not the tasks' facts (tasks.py)."""

from dataclasses import dataclass, field
from typing import Any

from cramming.checks import number, numbers, one_of, paths
from cramming.errors import UserError
from cramming.glue.tasks import suite_tasks
from cramming.runs import Keys, essence, listed
from fff.optimise import fastest_linears

SOURCES = ("mini", "hub", "local")
WARMUPS = ("per_task", "legacy")
PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMISED = ("auto", "int8", "bfloat16")
MAX_SEED = 2**32 - 1
# What the first results were named by (see cramming.runs); never add to it.
FIXED = listed(
    {
        "": "source epochs batch lr beta1 beta2 eps weight_decay warmup warmup_fraction max_length dropout precision "
        "limit_train"
    }
)
MINI = listed({"": "mini_train mini_dev mini_seed"})
COSMETIC = listed({"": "dir tasks seeds eval_batch save"})


@dataclass(frozen=True)
class GlueConfig:
    """Finetuning as UltraFastBERT did it (arXiv 2311.10770, section 3.2 and its public configuration).

    Raises UserError naming the key for a value that cannot be used.
    """

    source: str = "mini"  # mini: made from held-out documents, not GLUE | hub: nyu-mll/glue | local: official TSV files
    dir: str | None = None  # source=local: folder that holds CoLA/, RTE/, ...
    tasks: list[str] = field(default_factory=list)  # empty: every task of the suite that counts in its mean
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])  # head, data order and dropout follow from it
    epochs: int | None = None  # epochs over the training examples; null: the task's own (5; CoLA 15)
    batch: int = 16  # examples per update
    eval_batch: int = 64  # examples per forward pass in evaluation; no effect on the result
    lr: float = 4e-5  # peak learning rate
    beta1: float = 0.9  # AdamW
    beta2: float = 0.98  # AdamW
    eps: float = 1e-6  # AdamW
    weight_decay: float = 0.0  # AdamW, on every parameter
    warmup: str = "per_task"  # per_task | legacy: all warm up as many steps as the run's first task by name (CoLA)
    warmup_fraction: float = 0.1  # share of the steps in linear warm-up, then cosine to 0
    max_length: int = 128  # tokens per example, special tokens included
    dropout: float = 0.1  # probability
    precision: str = "fp32"  # fp32 | bf16 | fp16 (fp16 on a GPU only)
    # On a CPU: score a copy with int8 linears, and int8 or bfloat16 trees; auto: what is fastest here; null: no copy.
    optimise: str | None = None
    save: bool = False  # keep each finetuned classifier, in output_dir/runs/<run>/glue/<record's name>
    limit_train: int | None = None  # first so many training examples only: for trying, marked partial in the record
    mini_train: int = 3000  # source=mini: training examples per task, at most
    mini_dev: int = 500  # source=mini: dev examples per task, at most
    mini_seed: int = 0  # source=mini: which sentences are chosen and how they are changed

    @property
    def suite(self) -> str:
        """The word for these results: "glue", or "mini" for the tasks that are not GLUE."""
        return "mini" if self.source == "mini" else "glue"

    def __post_init__(self) -> None:
        """Check every key on its own and the two that belong together (source and dir)."""
        for key, allowed in (("source", SOURCES), ("warmup", WARMUPS), ("precision", PRECISIONS)):
            one_of(f"glue.{key}", getattr(self, key), allowed)
        if self.optimise is not None:
            one_of("glue.optimise", self.optimise, OPTIMISED)
            if self.precision != "fp32":
                raise UserError(f"glue.optimise={self.optimise} starts from float32; leave glue.precision=fp32.")
        if self.source == "local" and not self.dir:
            raise UserError("glue.dir is missing: source=local needs the folder that holds CoLA/, RTE/, ...")
        paths("glue", self, ("dir",))
        known = suite_tasks(self.suite)
        for name in self.tasks:
            if name not in known:
                raise UserError(f"glue.tasks names {name!r}; source={self.source} has {', '.join(known)}.")
        for key in ("tasks", "seeds"):
            if len(set(getattr(self, key))) != len(getattr(self, key)):
                raise UserError(f"glue.{key} names something twice: {list(getattr(self, key))}.")
        if not self.seeds:
            raise UserError("glue.seeds is []; give at least one seed.")
        for seed in self.seeds:
            number("glue.seeds", seed, least=0, most=MAX_SEED)
        numbers("glue", self, ("mini_seed",), least=0, most=MAX_SEED)
        numbers("glue", self, ("epochs", "batch", "eval_batch", "limit_train", "mini_train", "mini_dev"), least=1)
        numbers("glue", self, ("max_length",), least=8)
        numbers("glue", self, ("lr", "eps"), above=0)
        numbers("glue", self, ("beta1", "beta2", "dropout"), least=0, below=1)
        numbers("glue", self, ("warmup_fraction",), least=0, most=1)
        numbers("glue", self, ("weight_decay",), least=0)

    def settings(self) -> dict[str, Any]:
        """What a result depends on besides model, examples, task and seed: runs with equal settings are comparable."""
        mini, none = self.source == "mini", frozenset[str]()
        found = essence(self, Keys(FIXED | (MINI if mini else none), COSMETIC | (none if mini else MINI)))
        # Which form that is depends on the processor, and what another form scored is no run of the same settings.
        return found | ({"optimise": f"auto: {fastest_linears()}"} if self.optimise == "auto" else {})
