"""The pretraining table from groups of records. Not GLUE's table (suites.py)."""

import math
from collections.abc import Sequence

from cramming.record import Record
from cramming.report.groups import PretrainGroup, left_out, odd_metrics
from cramming.report.markup import bullets, csv_text, markdown_table, number, spread
from cramming.report.stats import Summary, finite

HEADER = (
    "experiment",
    "ffn",
    "group",
    "scale",
    "valid loss [nats]",
    "unigram [nats]",
    "below unigram [nats]",
    "perplexity",
    "accuracy [%]",
    "tokens",
    "tokens/s",
    "parameters",
    "status",
)
NUMBERS = (
    ("metrics", "valid_loss"),
    ("metrics", "unigram_loss"),
    ("metrics", "valid_accuracy"),
    ("metrics", "train_loss"),
    ("metrics", "train_tokens_per_s"),
    ("metrics", "hours"),
    ("samples", "train_tokens"),
    ("samples", "parameters"),
)
NOTES = """Loss and accuracy of masked-token prediction on held-out text, at the end of training. The loss is median
(min–max) over the finished runs of a group, and n, their number; other numbers are medians. Runs of one group
differ in their seed alone. Unigram is the cross-entropy of the training tokens' frequencies on the same validation
tokens; perplexity is exp(median loss). Losses are comparable between rows of equal unigram value only: it tells
data and tokenizer apart. Where the scale says objective causal, every token is predicted from those before it."""


def pretraining_markdown(groups: Sequence[PretrainGroup]) -> str:
    """The whole Markdown page."""
    table = markdown_table(HEADER, [row(group) for group in groups]) if groups else "No pretraining runs yet."
    bad = [record for group in groups for record in (*group.good, *group.bad)]
    return f"# Pretraining\n\n{table}\n\n{NOTES}\n\n## Left out\n\n{bullets(left_out(bad), 'No run failed.')}\n"


def row(group: PretrainGroup) -> list[str]:
    """One group as cells of HEADER."""
    loss, unigram = group.summary("metrics", "valid_loss"), group.summary("metrics", "unigram_loss")
    gain = unigram.median - loss.median if loss and unigram else None
    return [
        group.experiment,
        group.ffn,
        group.group,
        group.scale,
        spread(loss, 3),
        number(middle(unigram), 3),
        number(gain, 3),
        number(perplexity(loss.median) if loss else None, 1),
        number(scaled(middle(group.summary("metrics", "valid_accuracy")), 100), 1),
        number(middle(group.summary("samples", "train_tokens")), 0),
        number(middle(group.summary("metrics", "train_tokens_per_s")), 0),
        number(middle(group.summary("samples", "parameters")), 0),
        status(group),
    ]


def status(group: PretrainGroup) -> str:
    """How many runs finished and how many did not; which of the finished ones are none to rely on."""
    counts = [f"{len(group.good)} finished"] if group.good else ["none finished"]
    if odd := sum(bool(odd_metrics(record)) for record in group.good):
        counts.append(f"{odd} with numbers that are not finite")
    if worse := sum(worse_than_unigram(record) for record in group.good):
        counts.append(f"{worse} worse than unigram")
    for name in sorted({record["status"] for record in group.bad}):
        counts.append(f"{sum(record['status'] == name for record in group.bad)} {name}")
    return ", ".join(counts)


def worse_than_unigram(record: Record) -> bool:
    """Whether a run ended above the loss of guessing by frequency: it learned nothing, or diverged unnoticed."""
    loss, unigram = (finite(record["metrics"].get(name)) for name in ("valid_loss", "unigram_loss"))
    return loss is not None and unigram is not None and loss > unigram


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is beyond a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def pretraining_csv(groups: Sequence[PretrainGroup]) -> str:
    """One line per group and number, in the records' own units."""
    header = (
        "experiment",
        "ffn",
        "group",
        "scale",
        "quantity",
        "median",
        "min",
        "max",
        "mean",
        "mean_low",
        "mean_high",
    )
    lines = []
    for group in groups:
        for part, name in NUMBERS:
            s = group.summary(part, name)
            values = (s.median, s.low, s.high, s.mean, s.mean_low, s.mean_high, s.n) if s else (None,) * 6 + (0,)
            head = (group.experiment, group.ffn, group.group, group.scale, name)
            lines.append((*head, *values, status(group), group.names))
    return csv_text((*header, "n", "status", "records"), lines)


def middle(summary: Summary | None) -> float | None:
    """The median, if there is one."""
    return summary.median if summary else None


def scaled(value: float | None, factor: float) -> float | None:
    """The value times a factor, if there is one."""
    return None if value is None else factor * value
