"""Tables of workers whose documents a first model dealt, from records alone (`python -m bench.dealt`). Runs nothing.

Beside each other stand runs that began with the same weights (`train.start`): with documents in turn or sorted by
subtree, levels frozen or not, and gradients of every step.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cramming.door import door, path_argument
from cramming.files import read_json

HOME = Path(__file__).parents[1] / "results" / "workers"
FIGURES = ("exchange_bytes_per_token", "exchange_rows", "exchange_touched", "exchange_overlap")
NAMES = {"part": "articles", "paragraphs": "paragraphs"}


def arm(record: dict[str, Any]) -> tuple[Any, ...]:
    """What differs between such runs, in the order of the table's rows."""
    train, data = record["config"]["train"], record["config"]["data"]["name"]
    apart = train["outer_steps"] if train["sync"] == "outer" else 0
    return NAMES.get(data, data), apart, "documents" in record, train["frozen_levels"]


def comparison(folder: Path) -> list[str]:
    """Rows in Markdown, a value for each seed."""
    arms = defaultdict(list)
    for path in sorted((folder / "runs").glob("*.json")):
        record = read_json(path)
        if "start" in record and record["status"] == "finished":
            arms[arm(record)].append(record)
    lines = [
        "| text of | meeting every | documents | frozen levels | validation loss, by seed | bytes per token | "
        "rows that differ | touched | of these by both |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (data, steps, sorted_, frozen), records in sorted(arms.items()):
        records.sort(key=lambda record: record["seed"])
        metrics = [record["metrics"] for record in records]
        losses = ", ".join(f"{each['valid_loss']:.3f}" for each in metrics)
        cells = [data, f"{steps} steps" if steps else "step", "sorted" if sorted_ else "in turn", str(frozen), losses]
        for name in FIGURES:
            form = ",.0f" if name == FIGURES[0] else ".1%"
            found = [format(each[name], form) for each in metrics if name in each]
            cells.append("; ".join(found if len(set(found)) > 1 else found[:1]) or "—")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def separation(folder: Path, levels: Sequence[int] = (1, 2, 4, 6)) -> list[str]:
    """Rows in Markdown of how documents part, by who dealt and tree."""
    lines = [
        "| dealt | tree | level | a document's tokens in its fullest node | all text's | workers apart | by chance |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(folder.glob("*-s*.json")):
        told = read_json(path)
        what, _, seed = path.stem.rpartition("-s")
        for name, rows in told["figures"]["trees"].items():
            layer = f"{name.split('.')[1]}{', which decided' if name == told['tree'] else ''}"
            for row in rows:
                if row["level"] in levels:
                    cells = " | ".join(f"{row[key]:.1%}" for key in ("document", "all", "apart", "by_chance"))
                    of = "articles" if what == "dealt" else what
                    lines.append(f"| {of}, seed {seed} | {layer} | {row['level']} | {cells} |")
    return lines


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=path_argument, default=HOME, help="of the records (default results/workers)")
    asked = parser.parse_args()
    with door():
        print("\n".join([*comparison(asked.folder), "", *separation(asked.folder)]))


if __name__ == "__main__":
    main()
