"""The table of tasks: the nine of GLUE and the three of `mini`. Facts alone, no reading or training."""

from dataclasses import dataclass

from cramming.errors import UserError

CLASSES_01 = ("0", "1")


@dataclass(frozen=True)
class Task:
    """One task: where its texts and labels stand, how it is scored, what it weighs.

    Attributes:
        name: our name, which is also the hub's configuration name.
        folder: folder name in the official download.
        hub_columns: one or two text columns in nyu-mll/glue.
        local_columns: the same in the header of the TSV files.
        local_label: label column of the TSV files.
        labels: label names; the position is the class index, as on the hub. Empty for regression.
        local_labels: what stands in the TSV files for each class, in the same order.
        metrics: names in `metrics.METRICS`; the first is the headline.
        epochs: epochs of the paper (arXiv 2311.10770): 5; CoLA 15.
        weight: weight in the paper's average; 0 is left out of it, and of the default tasks.
        dev: our name -> (hub split, TSV file) of each dev set; the headline is their mean.
        local_header: header of TSV files that come without one.
        label_range: smallest and largest label of a regression.
        broken_rows: rows with a wrong number of columns that the official training file is known to hold.
    """

    name: str
    folder: str
    hub_columns: tuple[str, ...]
    local_columns: tuple[str, ...]
    local_label: str
    labels: tuple[str, ...]
    local_labels: tuple[str, ...]
    metrics: tuple[str, ...]
    epochs: int = 5
    weight: int = 1
    dev: tuple[tuple[str, str, str], ...] = (("dev", "validation", "dev.tsv"),)
    local_header: tuple[str, ...] | None = None
    label_range: tuple[float, float] = (0.0, 5.0)
    broken_rows: int = 0

    @property
    def regression(self) -> bool:
        """Whether the label is a number rather than a class."""
        return not self.labels

    @property
    def pairs(self) -> bool:
        """Whether an example has two texts."""
        return len(self.hub_columns) == 2

    @property
    def headline(self) -> str:
        """Name of the metric that stands in the tables."""
        return self.metrics[0]


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
ACCURACY = ("accuracy",)

GLUE_TASKS = (
    Task("rte", "RTE", PAIR, PAIR, "label", ENTAILMENT, ENTAILMENT, ACCURACY),
    Task(
        "mrpc",
        "MRPC",
        PAIR,
        ("#1 String", "#2 String"),
        "Quality",
        ("not_equivalent", "equivalent"),
        CLASSES_01,
        ("f1", "accuracy"),
    ),
    Task("stsb", "STS-B", PAIR, PAIR, "score", (), (), ("pearson", "spearman")),
    Task("sst2", "SST-2", ("sentence",), ("sentence",), "label", ("negative", "positive"), CLASSES_01, ACCURACY),
    Task(
        "mnli",
        "MNLI",
        ("premise", "hypothesis"),
        PAIR,
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        ("entailment", "neutral", "contradiction"),
        ACCURACY,
        weight=2,
        dev=(
            ("matched", "validation_matched", "dev_matched.tsv"),
            ("mismatched", "validation_mismatched", "dev_mismatched.tsv"),
        ),
    ),
    Task("qnli", "QNLI", ("question", "sentence"), ("question", "sentence"), "label", ENTAILMENT, ENTAILMENT, ACCURACY),
    Task(
        "qqp",
        "QQP",
        ("question1", "question2"),
        ("question1", "question2"),
        "is_duplicate",
        ("not_duplicate", "duplicate"),
        CLASSES_01,
        ("f1", "accuracy"),
        broken_rows=64,
    ),
    Task(
        "cola",
        "CoLA",
        ("sentence",),
        ("sentence",),
        "label",
        ("unacceptable", "acceptable"),
        CLASSES_01,
        ("matthews",),
        epochs=15,
        local_header=("source", "label", "mark", "sentence"),
    ),
    Task("wnli", "WNLI", PAIR, PAIR, "label", ("not_entailment", "entailment"), CLASSES_01, ACCURACY, weight=0),
)

# Not GLUE: made by `mini` from held-out documents, so they have no columns.
MINI_TASKS = (
    Task("word_order", "", ("text",), (), "", ("reordered", "original"), (), ("matthews", "accuracy")),
    Task("same_document", "", ("first", "second"), (), "", ("other_document", "next_sentence"), (), ACCURACY),
    Task("word_overlap", "", ("first", "second"), (), "", (), (), ("pearson", "spearman")),
)

SUITES = {"glue": GLUE_TASKS, "mini": MINI_TASKS}


def suite_tasks(suite: str) -> dict[str, Task]:
    """Name -> task of one suite, in the order of the tables. UserError for an unknown suite."""
    if suite not in SUITES:
        raise UserError(f"There is no suite {suite!r}; use one of {', '.join(SUITES)}.")
    return {task.name: task for task in SUITES[suite]}


def chosen_tasks(suite: str, names: list[str]) -> list[Task]:
    """The tasks of a run in the order asked for; no names: every task that counts in the suite's mean."""
    known = suite_tasks(suite)
    return [known[name] for name in names] if names else [task for task in known.values() if task.weight]
