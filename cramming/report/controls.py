"""The page of the main tree against its controls, repairs and rivals. Not what they are to it (versus.py)."""

from collections.abc import Sequence

from cramming.report.comparisons import Comparison, Row
from cramming.report.effective import bounded, worth_text
from cramming.report.leaves import scaled
from cramming.report.markup import MISSING, bullets, csv_text, latex_table, markdown_table, number, spread
from cramming.report.stats import Summary
from cramming.report.versus import Line, lacking, lines_of, main_tree, usage_of

HEADER = (
    *("role", "layer", "valid loss [nats]", "minus the tree's [nats]", "against the tree", "w_eff"),
    *("neurons used", "neurons trained", "dead leaves", "usage entropy [% of most]", "notes"),
)
CSV_HEADER = (
    *("experiment", "scale", "data", "role", "layer", "n", "loss_median", "loss_min", "loss_max"),
    *("difference", "difference_low", "difference_high", "difference_seeds", "against_the_tree"),
    *("w_eff", "w_eff_low", "w_eff_high", "neurons_used", "neurons_trained", "dead_leaves", "leaves"),
    *("usage_entropy_relative", "notes", "records", "main_records"),
)
NOTES = """The main tree of a set is the plain PathFFF (trained hard, nothing beside it) of which most other rows are
variants, with equal trees and depth; of several the one with most seeds, then with fewest trees, then the deepest. A
difference is the row's loss minus the tree's, paired by seed: its mean, and in brackets its 95 % interval (Student's t
over the seeds; none below three). "Better" and "worse" stand where the whole interval lies on one side of zero.
Controls have neurons as the tree has them and no learned decisions: no feedforward layer, a dense layer of the neurons
used, paths that were never learned (random hyperplanes, or a hash of the token), and trained dense layers of which each
token keeps its most active neurons alone, as many as the tree uses (an oracle: all of them are computed to choose).
Repairs are the tree with something beside it; rivals are other kinds of layer. `w_eff` as in effective_width.md. Dead
leaves (experts, keys) are of all layers, at the end of training, and usage entropy is the mean over layers."""


def controls_markdown(sets: Sequence[Comparison]) -> str:
    """The whole Markdown page."""
    blocks = ["# Controls, repairs and rivals", NOTES]
    for found in sets:
        blocks.append(f"## {found.title}")
        if (tree := main_tree(found)) is None:
            blocks.append("No plain tree in this set.")
            continue
        lines = lines_of(found, tree)
        blocks.append(markdown_table(HEADER, [cells(each, found) for each in lines]))
        blocks.append("Missing or odd:\n\n" + bullets([*lacking(lines, tree), *found.missing], "Nothing."))
    if not sets:
        blocks.append("No finished pretraining runs yet.")
    return "\n\n".join(blocks) + "\n"


def cells(each: Line, found: Comparison) -> list[str]:
    """One line as cells of HEADER."""
    row = each.row
    return [
        each.role,
        row.label,
        spread(row.loss, 3),
        difference_text(each.difference),
        each.told,
        worth_text(row.worth, found),
        f"{row.neurons_used:,}",
        f"{row.neurons_trained:,}",
        *usage_cells(row),
        "; ".join(row.notes) or MISSING,
    ]


def difference_text(difference: Summary | None) -> str:
    """A mean with its sign and its interval."""
    if difference is None:
        return MISSING
    text = f"{difference.mean:+.3f}"
    if difference.mean_low is None:
        return f"{text}, n={difference.n}"
    return f"{text} ({difference.mean_low:+.3f} to {difference.mean_high:+.3f}), n={difference.n}"


def usage_cells(row: Row) -> list[str]:
    """Dead leaves of how many, and usage entropy in percent of the most; dashes where nothing chooses."""
    dead, entropy = usage_of(row)
    return [
        f"{number(dead.median, 0)} of {row.units:,}" if dead else MISSING,
        number(scaled(entropy, 100).median, 1) if entropy else MISSING,  # type: ignore[union-attr]
    ]


def controls_csv(sets: Sequence[Comparison]) -> str:
    """One line per row, with the names of its records and of the main tree's."""
    rows = []
    for found in sets:
        head = (found.experiment, found.scale, found.data)
        tree = main_tree(found)
        lines = lines_of(found, tree) if tree else []
        rows += [(*head, *csv_line(each, found, tree)) for each in lines if tree]
        for text in lacking(lines, tree) if tree else ["no plain tree"]:
            rows.append((*head, "missing", *[None] * (len(CSV_HEADER) - 7), text, None, None))
    return csv_text(CSV_HEADER, rows)


def csv_line(each: Line, found: Comparison, tree: Row) -> tuple:
    """One line's columns after those of its set."""
    row, loss, apart, w = each.row, each.row.loss, each.difference, each.row.worth
    dead, entropy = usage_of(row)
    return (
        *(each.role, row.label),
        *((loss.n, loss.median, loss.low, loss.high) if loss else (0, None, None, None)),
        *((apart.mean, apart.mean_low, apart.mean_high) if apart else (None, None, None)),
        *(" ".join(map(str, each.seeds)), "" if each.told == MISSING else each.told),
        *(bounded(value, found) for value in ((w.value, w.low, w.high) if w else (None, None, None))),
        *(row.neurons_used, row.neurons_trained),
        *((dead.median, row.units) if dead else (None, None)),
        entropy.median if entropy else None,
        *("; ".join(row.notes), " ".join(row.records), " ".join(tree.records)),
    )


def controls_tex(sets: Sequence[Comparison]) -> str:
    """A `tabular` for each set with a main tree; without notes, with what is missing in comments."""
    blocks = []
    for found in sets:
        if tree := main_tree(found):
            lines = lines_of(found, tree)
            lacks = "".join(f"% {text}\n" for text in lacking(lines, tree))
            body = [cells(each, found)[:-1] for each in lines]
            blocks.append(f"% {found.title}\n{lacks}" + latex_table(HEADER[:-1], body))
    return "\n\n".join(blocks or ["% No plain tree yet."]) + "\n"
