"""The tables of GLUE, with the paper beside it, and of `mini`. Not the pretraining table (pretraining.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

from cramming.glue.averages import averages
from cramming.glue.tasks import suite_tasks
from cramming.report.groups import SuiteGroup, left_out, odd_metrics
from cramming.report.markup import MISSING, bullets, csv_text, latex_table, markdown_table, number, spread

# The paper's order of columns.
GLUE_COLUMNS = ("rte", "mrpc", "stsb", "sst2", "mnli", "qnli", "qqp", "avg_no_cola", "cola", "avg", "plain_mean")
MINI_COLUMNS = ("word_order", "same_document", "word_overlap", "plain_mean")
TITLES = {
    "avg_no_cola": "avg without CoLA, paper's rule",
    "avg": "avg, paper's rule",
    "plain_mean": "plain mean",
}
CSV_GROUP = ("block", "row", "experiment", "ffn", "group", "scale", "settings", "source", "column")
CSV_NUMBERS = ("median", "min", "max", "mean", "mean_low", "mean_high", "n", "partial", "status", "records")
CSV_HEADER = CSV_GROUP + CSV_NUMBERS

GLUE_NOTES = """Percent on the dev sets. Ours: median (min–max), n = finished finetuning runs; the paper: median of
5 seeds. With n runs, min–max covers the true median with probability 1 − 2^(1−n). Metrics: MRPC and QQP F1, STS-B
Pearson, CoLA Matthews, otherwise accuracy; MNLI is the mean of its matched and mismatched sets; WNLI is left out.
Averages by the paper's rule: (RTE + MRPC + STS-B + SST-2 + 2·MNLI + QNLI + QQP)/8 without CoLA, (… + CoLA)/9 with
it. The plain mean counts each of the eight tasks once; it stands in no paper, and is computed here for its rows
too. Ours are computed from medians, and only where no task is missing or partial. A row of the paper has "ours"
from the experiment of that name with the paper's model and at least its GPU time, and from nothing else; all other
models stand in the second table and reproduce no row of the paper."""

MINI_NOTES = """This is not GLUE, and no number here can be compared with a GLUE score. Percent; median (min–max), n
= finished runs. Three tasks made from held-out documents, with labels that are true by construction: `word_order`,
do the words stand as they were written (Matthews; guessing: 0); `same_document`, is the second sentence the next
one or from another document (accuracy; guessing: 50); `word_overlap`, overlap of two texts' word sets (Pearson;
guessing: 0)."""


def glue_markdown(groups: Sequence[SuiteGroup], paper: Mapping[str, Any]) -> str:
    """The whole GLUE page: the paper's rows with ours, then our other models, settings, and what was left out."""
    labels = settings_labels(groups)
    others = [group for group in groups if group.paper_row is None]
    blocks = [
        "# GLUE",
        "## The paper's rows (arXiv 2311.10770, Table 1) and ours",
        markdown_table(glue_header(), paper_lines(groups, paper)),
        GLUE_NOTES,
        "## Our other models",
        other_table("glue", others, GLUE_COLUMNS, labels),
        *closing(groups, labels),
    ]
    return "\n\n".join(blocks) + "\n"


def glue_header() -> list[str]:
    """The columns of the paper's rows and ours."""
    return ["model", "source", *column_titles("glue", GLUE_COLUMNS), "status"]


def paper_lines(groups: Sequence[SuiteGroup], paper: Mapping[str, Any]) -> list[list[str]]:
    """The paper's rows, below each what we have of it."""
    labels, lines = settings_labels(groups), []
    for name, facts in paper["rows"].items():
        values = published(facts["values"], paper["columns"])
        lines.append([name, "paper", *[number(values.get(c), 1) for c in GLUE_COLUMNS], "published"])
        ours = [group for group in groups if group.paper_row == name]
        if not ours:
            lines.append([name, "ours", *[MISSING] * len(GLUE_COLUMNS), "not run"])
        lines.extend([name, "ours", *cells("glue", g, GLUE_COLUMNS), paper_status(g, values, labels)] for g in ours)
    return lines


def glue_tex(groups: Sequence[SuiteGroup], paper: Mapping[str, Any]) -> str:
    """The paper's rows and ours as LaTeX, without the status, then our other models."""
    titles = column_titles("glue", GLUE_COLUMNS)
    beside = latex_table(glue_header()[:-1], [line[:-1] for line in paper_lines(groups, paper)])
    others = [
        [f"{g.experiment} {g.ffn}", g.scale, *cells("glue", g, GLUE_COLUMNS)] for g in groups if g.paper_row is None
    ]
    ours = latex_table(["model", "scale", *titles], others) if others else "% None yet."
    return f"% The paper's rows and ours\n{beside}\n\n% Our other models\n{ours}\n"


def mini_markdown(groups: Sequence[SuiteGroup]) -> str:
    """The whole page of `mini`."""
    labels = settings_labels(groups)
    table = other_table("mini", groups, MINI_COLUMNS, labels)
    return "\n\n".join(["# mini", table, MINI_NOTES, *closing(groups, labels)]) + "\n"


def closing(groups: Sequence[SuiteGroup], labels: Mapping[str, str]) -> list[str]:
    """Settings and runs left out, as at the end of each page."""
    bad = [record for group in groups for record in (*group.good, *group.bad)]
    return [
        "## Settings",
        bullets((f"{label}: {text}" for text, label in labels.items()), "None yet."),
        "## Left out of every number",
        bullets(left_out(bad), "No run failed."),
    ]


def other_table(suite: str, groups: Sequence[SuiteGroup], columns: Sequence[str], labels: Mapping[str, str]) -> str:
    """Rows that have no counterpart in the paper."""
    if not groups:
        return "None yet."
    header = ["experiment", "ffn", "group", "scale", *column_titles(suite, columns), "status"]
    lines = [
        [g.experiment, g.ffn, g.group, g.scale, *cells(suite, g, columns), "; ".join(status_parts(suite, g, labels))]
        for g in groups
    ]
    return markdown_table(header, lines)


def column_titles(suite: str, columns: Sequence[str]) -> list[str]:
    """Readable titles of tasks and averages."""
    tasks = suite_tasks(suite)
    return [TITLES.get(c) or f"{tasks[c].folder or c} {tasks[c].headline}" for c in columns]


def cells(suite: str, group: SuiteGroup, columns: Sequence[str]) -> list[str]:
    """One group's cells; an average stands where all of its tasks are complete."""
    means = {average.key: average.value for average in averages(suite, complete(group))}
    shown = []
    for column in columns:
        text = number(means[column], 1) if column in means else spread(group.cells.get(column), 1)
        shown.append(text + (" (partial)" if column in group.partial else ""))
    return shown


def complete(group: SuiteGroup) -> dict[str, float]:
    """Median of each task that was trained on all of its examples."""
    return {task: summary.median for task, summary in group.cells.items() if task not in group.partial}


def status_parts(suite: str, group: SuiteGroup, labels: Mapping[str, str]) -> list[str]:
    """What has to be said about a row: settings, pretraining runs, missing and partial tasks, failed runs."""
    parts = [f"settings {labels[group.settings]}", f"{group.pretrained} pretraining run(s)"]
    wanted = [task.name for task in suite_tasks(suite).values() if task.weight]
    missing = [name for name in wanted if name not in group.cells]
    if missing:
        parts.append(f"not run: {', '.join(missing)}")
    if group.partial:
        parts.append("partial data: " + ", ".join(f"{task} ({why})" for task, why in sorted(group.partial.items())))
    if group.bad:
        parts.append(f"{len(group.bad)} run(s) left out")
    if odd := sum(bool(odd_metrics(record)) for record in group.good):
        parts.append(f"{odd} run(s) with numbers that are not finite")
    return parts


def paper_status(group: SuiteGroup, values: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """Status of "ours" in a row of the paper: the difference of the averages, and where the paper lies in our range."""
    parts = status_parts("glue", group, labels)
    ours = {average.key: average.value for average in averages("glue", complete(group))}["avg"]
    if ours is not None:
        parts.insert(0, f"avg {ours - values['avg']:+.1f} against the paper")
    tasks = [task for task in complete(group) if task in values]
    inside = sum(group.cells[task].low <= values[task] <= group.cells[task].high for task in tasks)
    if group.deviations:
        parts.insert(0, f"finetuned otherwise than the paper: {group.deviations}")
    parts.insert(0, f"paper's value within our min–max in {inside} of {len(tasks)} tasks")
    return "; ".join([group.scale, *parts])


def published(values: Sequence[float], columns: Sequence[str]) -> dict[str, float]:
    """The paper's values by column, and the plain mean that they give."""
    known = dict(zip(columns, values, strict=True))
    plain = next(average for average in averages("glue", known) if average.key == "plain_mean")
    return known if plain.value is None else {**known, "plain_mean": plain.value}


def settings_labels(groups: Sequence[SuiteGroup]) -> dict[str, str]:
    """S1, S2, ... for each different setting, in sorted order."""
    return {text: f"S{place}" for place, text in enumerate(sorted({g.settings for g in groups}), start=1)}


def glue_csv(groups: Sequence[SuiteGroup], paper: Mapping[str, Any]) -> str:
    """One line per row, source and column, in percent; the paper's missing counterparts stand as "not run"."""
    lines: list[tuple] = []
    for name, facts in paper["rows"].items():
        values = published(facts["values"], paper["columns"])
        head = ("paper", name, "", "", "", "", "")
        lines += [(*head, "paper", c, values.get(c), *[None] * 6, "", "published", "") for c in GLUE_COLUMNS]
        if not any(group.paper_row == name for group in groups):
            lines += [(*head, "ours", c, *[None] * 6, 0, "", "not run", "") for c in GLUE_COLUMNS]
    lines += group_lines("glue", groups, GLUE_COLUMNS)
    return csv_text(CSV_HEADER, lines)


def mini_csv(groups: Sequence[SuiteGroup]) -> str:
    """One line per group and column, in percent."""
    return csv_text(CSV_HEADER, group_lines("mini", groups, MINI_COLUMNS))


def group_lines(suite: str, groups: Sequence[SuiteGroup], columns: Sequence[str]) -> list[tuple]:
    """Lines of our own rows; averages have a value alone."""
    labels = settings_labels(groups)
    lines: list[tuple] = []
    for g in groups:
        block = "paper" if g.paper_row else "other"
        head = (block, g.paper_row or "", g.experiment, g.ffn, g.group, g.scale, g.settings, "ours")
        status = "; ".join(status_parts(suite, g, labels))
        means = {average.key: average.value for average in averages(suite, complete(g))}
        for column in columns:
            s = g.cells.get(column)
            numbers: tuple = (
                (s.median, s.low, s.high, s.mean, s.mean_low, s.mean_high, s.n) if s else (None,) * 6 + (0,)
            )
            if column in means:
                numbers = (means[column], *(None,) * 6)
            names = [r["name"] for r in g.good if column in means or r["task"] == column]
            lines.append((*head, column, *numbers, g.partial.get(column, ""), status, " ".join(names)))
    return lines
