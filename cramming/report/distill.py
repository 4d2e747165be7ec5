"""The table of converted models from records: each beside its controls and the dense model. Not the other tables."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cramming.record import Record
from cramming.report.groups import left_out, split_status, summary_of
from cramming.report.markup import bullets, csv_text, markdown_table, spread

# (model, settings) -> what it became -> finished records
Groups = Mapping[tuple[str, str], Mapping[str, list[Record]]]

COLUMNS = {
    "perplexity": ("perplexity", 2),
    "perplexity_in_use": ("perplexity, in use", 2),
    "spearman": ("STS-B Spearman", 3),
    "spearman_in_use": ("Spearman, in use", 3),
    "neighbours": ("neighbours kept", 3),
    "neighbours_in_use": ("neighbours, in use", 3),
    "cosine": ("cosine", 3),
    "batch_against_float32": ("x dense float32", 2),
    "batch_against_dense": ("x dense in use", 2),
    "single_against_dense": ("single, x dense in use", 2),
    "error_trained": ("error of blocks", 3),
    "minutes": ("minutes", 1),
}
NOTES = """A dense model's feedforward blocks become trees (`make distill`), and the controls stand beside them: no
blocks (`none`), and the best k neurons of each dense block, refitted (`narrow:k`). All are fitted and trained end to
end in the same way on the same text. In use: linears that stay dense, and trees of neurons, in int8, as is timed.
Perplexity: of decoders, on held-out paragraphs. Spearman: STS-B's dev set; neighbours: share of the ten nearest of each
held-out piece of text that stay the dense model's; cosine: to the dense model's embedding. Times: one pass of the whole
model over 32 x 64 tokens (single: 1 x 16), as a ratio in one run. Error of blocks: the share of variance behind the
block's norm that a block alone does not explain. Median (min–max), n seeds. Where a control is as good and as fast, the
trees are worth nothing there."""


def distill_groups(records: Sequence[Record]) -> tuple[Groups, list[Record]]:
    """Finished conversions by model and settings; beside it those that did not finish."""
    good, bad = split_status([record for record in records if record["kind"] == "distill"])
    found: dict[tuple[str, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in good:
        settings = {key: value for key, value in record["config"]["distill"].items() if key != "to"}
        text = ", ".join(f"{key}={_word(settings[key])}" for key in sorted(settings))
        # Seeds take other text, so that what they share is the teacher and its settings.
        found[record["row"]["model"], f"{text}; teacher {record['teacher']}"][record["row"]["to"]].append(record)
    return found, list(bad)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def distill_markdown(records: Sequence[Record]) -> str:
    """The whole page; pure in its argument, which may hold records of other kinds."""
    found, bad = distill_groups(records)
    blocks = ["# Converted models", NOTES]
    for (model, settings), rows in sorted(found.items()):
        keys = [key for key in COLUMNS if any(_has(each, key) for each in rows.values())]
        header = ["model", "neurons used", *(COLUMNS[key][0] for key in keys)]
        blocks += [f"## {model}", f"Settings: {settings}.", markdown_table(header, _lines(rows, keys))]
    if not found:
        blocks.append("None yet.")
    good = [record for rows in found.values() for each in rows.values() for record in each]
    return (
        "\n\n".join([*blocks, "## Left out of every number", bullets(left_out([*good, *bad]), "No run failed.")]) + "\n"
    )


def _has(records: Sequence[Record], key: str) -> bool:
    return any(key in record["metrics"] for record in records)


def _lines(rows: Mapping[str, list[Record]], keys: Sequence[str]) -> list[list[str]]:
    """The dense model, then by used neurons."""
    lines = []
    for name in _ordered(rows):
        numbers = [spread(summary_of(rows[name], "metrics", key), COLUMNS[key][1]) for key in keys]
        lines.append([name, str(rows[name][0]["row"]["neurons_used"]), *numbers])
    return lines


def _ordered(rows: Mapping[str, list[Record]]) -> list[str]:
    return sorted(rows, key=lambda name: (name != "dense", rows[name][0]["row"]["neurons_used"], name))


def distill_csv(records: Sequence[Record]) -> str:
    """Every number in long form."""
    lines: list[Sequence[Any]] = []
    for (model, settings), rows in sorted(distill_groups(records)[0].items()):
        for name in _ordered(rows):
            names = " ".join(record["name"] for record in rows[name])
            for key in sorted({key for record in rows[name] for key in record["metrics"]}):
                s = summary_of(rows[name], "metrics", key)
                numbers = [s.median, s.low, s.high, s.n] if s else [None, None, None, 0]
                lines.append([model, settings, name, key, *numbers, names])
    return csv_text(("model", "settings", "to", "quantity", "median", "min", "max", "n", "records"), lines)
