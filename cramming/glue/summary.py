"""What `make glue` prints of its records: a line as each run ends, and the table at the end. Not the records."""

import statistics
from typing import Any

from cramming.glue.averages import averages
from cramming.glue.config import GlueConfig
from cramming.glue.tasks import Task, chosen_tasks


def line_of(record: dict[str, Any], task: Task) -> str:
    """What is printed when a run ends."""
    head = f"{task.name} seed {record['seed']}: "
    if record["status"] != "finished":
        return f"{head}{record['status']} ({record['error']})"
    return head + ", ".join(f"{name} {100 * record['metrics'][name]:.1f}" for name in task.metrics)


def summary(config: GlueConfig, records: list[dict[str, Any]]) -> str:
    """The table printed at the end: per task median (min–max) and n over finished runs, then the averages."""
    lines, medians = [f"{'task':<15}{'metric':<10}median (min–max) in percent, finished runs / all"], {}
    for task in chosen_tasks(config.suite, config.tasks):
        mine = [record for record in records if record["task"] == task.name]
        values = [100 * r["metrics"][task.headline] for r in mine if r["status"] == "finished"]
        cell = "none finished"
        if values:
            middle = statistics.median(values)
            cell = f"{middle:.1f} ({min(values):.1f}–{max(values):.1f})"
            if any(record["partial"] for record in mine):
                cell += f" partial: {mine[0]['partial_reason']}"
            else:
                medians[task.name] = middle
        lines.append(f"{task.name:<15}{task.headline:<10}{cell}, {len(values)} / {len(mine)}")
    for average in averages(config.suite, medians):
        value = (
            f"{average.value:.1f}" if average.value is not None else f"missing or partial: {', '.join(average.missing)}"
        )
        lines.append(f"{average.title}: {value}")
    return "\n".join(lines)
