"""The page of plain trees by shape: equal trained neurons in many or few trees, and one shape by depth. No repairs."""

from collections.abc import Sequence

from cramming.report.comparisons import Comparison, Row
from cramming.report.controls import usage_cells
from cramming.report.effective import bounded, ratio_text, ratios, worth_text
from cramming.report.labels import is_plain_tree
from cramming.report.markup import MISSING, bullets, csv_text, latex_table, markdown_table, number, spread
from cramming.report.versus import main_tree, usage_of

ABOUT_EQUAL = 1 / 8  # of the main tree's trained neurons
BLOCKS = ("about equal trained neurons", "by depth")
HEADER = (
    *("trees", "layer", "valid loss [nats]", "neurons used", "neurons trained", "w_eff", "w_eff / used"),
    *("w_eff / trained", "dead leaves", "usage entropy [% of most]", "notes"),
)
CSV_HEADER = (
    *("experiment", "scale", "data", "block", "layer", "trees", "depth", "n", "loss_median", "loss_min", "loss_max"),
    *("neurons_used", "neurons_trained", "w_eff", "w_eff_low", "w_eff_high", "per_used", "per_trained"),
    *("dead_leaves", "leaves", "usage_entropy_relative", "notes", "records"),
)
NOTES = f"""Plain PathFFF layers, trained hard with nothing beside. "{BLOCKS[0].capitalize()}": those within an eighth
of the main tree's (see controls.md), from few trees to many; "{BLOCKS[1]}": those of as many trees as the main one,
from shallow to deep, so that trained neurons double with each level and used ones grow by one. A row may stand in both.
Losses are median (min–max) and n; `w_eff` and its intervals are those of effective_width.md."""


def families(found: Comparison) -> dict[str, list[Row]]:
    """The rows of each of BLOCKS; none where there is no main tree, or it stands alone."""
    tree = main_tree(found)
    if tree is None:
        return {}
    plain = [row for row in found.rows if is_plain_tree(row.group.good[0])]
    near = ABOUT_EQUAL * tree.neurons_trained
    equal = [row for row in plain if abs(row.neurons_trained - tree.neurons_trained) <= near]
    deep = [row for row in plain if row.layer["trees"] == tree.layer["trees"]]
    blocks = {
        BLOCKS[0]: sorted(equal, key=lambda row: (row.layer["trees"], row.label)),
        BLOCKS[1]: sorted(deep, key=lambda row: (row.layer["depth"], row.label)),
    }
    return {name: rows for name, rows in blocks.items() if len(rows) > 1}


def depth_markdown(sets: Sequence[Comparison]) -> str:
    """The whole Markdown page."""
    blocks = ["# Trees by shape", NOTES]
    for found in sets:
        blocks.append(f"## {found.title}")
        rows = [cells(name, row, found) for name, mine in families(found).items() for row in mine]
        blocks.append(markdown_table(HEADER, rows) if rows else "No two plain trees to compare in this set.")
        blocks.append("Missing or odd:\n\n" + bullets(found.missing, "Nothing."))
    if not sets:
        blocks.append("No finished pretraining runs yet.")
    return "\n\n".join(blocks) + "\n"


def cells(block: str, row: Row, found: Comparison) -> list[str]:
    """One row as cells of HEADER."""
    return [
        block,
        row.label,
        spread(row.loss, 3),
        number(row.neurons_used, 0),
        number(row.neurons_trained, 0),
        worth_text(row.worth, found),
        ratio_text(row.worth, row.neurons_used),
        ratio_text(row.worth, row.neurons_trained),
        *usage_cells(row),
        "; ".join(row.notes) or MISSING,
    ]


def depth_csv(sets: Sequence[Comparison]) -> str:
    """One line per block and row, with the names of its records."""
    lines = []
    for found in sets:
        for name, rows in families(found).items():
            for row in rows:
                loss, w, (dead, entropy) = row.loss, row.worth, usage_of(row)
                lines.append(
                    (
                        *(found.experiment, found.scale, found.data, name, row.label),
                        *(row.layer["trees"], row.layer["depth"]),
                        *((loss.n, loss.median, loss.low, loss.high) if loss else (0, None, None, None)),
                        *(row.neurons_used, row.neurons_trained),
                        *(bounded(each, found) for each in ((w.value, w.low, w.high) if w else (None, None, None))),
                        *(ratios(w, row.neurons_used)[0], ratios(w, row.neurons_trained)[0]),
                        *((dead.median, row.units) if dead else (None, None)),
                        *(entropy.median if entropy else None, "; ".join(row.notes), " ".join(row.records)),
                    )
                )
    return csv_text(CSV_HEADER, lines)


def depth_tex(sets: Sequence[Comparison]) -> str:
    """A `tabular` for each set that has families; without notes, with what is missing in comments."""
    blocks = []
    for found in sets:
        body = [cells(name, row, found)[:-1] for name, mine in families(found).items() for row in mine]
        if body:
            lacks = "".join(f"% missing or odd: {text}\n" for text in found.missing)
            blocks.append(f"% {found.title}\n{lacks}" + latex_table(HEADER[:-1], body))
    return "\n\n".join(blocks or ["% No two plain trees to compare yet."]) + "\n"
