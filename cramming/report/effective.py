"""The page of effective widths as Markdown, CSV and LaTeX. Not what is comparable (comparisons.py)."""

import math
from collections.abc import Sequence

from cramming.report.comparisons import Comparison, Row, tells_its_layers
from cramming.report.groups import PretrainGroup, left_out
from cramming.report.markup import MISSING, bullets, csv_text, latex_table, markdown_table, number, spread
from cramming.report.width import Worth

HEADER = (
    "layer",
    "valid loss [nats]",
    "neurons used",
    "neurons trained",
    "w_eff",
    "w_eff / used",
    "w_eff / trained",
    "against its neurons used",
    "notes",
)
CSV_HEADER = (
    *("experiment", "scale", "data", "block", "layer", "n", "loss_median", "loss_min", "loss_max"),
    *("neurons_used", "neurons_trained", "w_eff", "w_eff_low", "w_eff_high", "per_used", "per_used_low"),
    *("per_used_high", "per_trained", "claim", "seeds", "notes", "records"),
)
CLAIMS = {1: "above", -1: "below", 0: "not told apart"}
NOTES = """What a layer is worth: `w_eff` is the width of the dense layer that has its loss, with the same model, data,
budget and recipe. Neurons are those of one layer; dense 0 is `none`, attention alone. Between measured widths the curve
is linear in log(1 + width); where it rises it is pooled (isotonic regression) and that is said. `w_eff` is of mean
losses over the seeds that layer and curve share; its interval is a 95 % percentile bootstrap over those seeds, in which
a seed brings its loss of the curve and of the layer together: they have data order and masks in common, and with
`train.equal_start` the initial values around the layer. With three seeds that interval is the range over the seeds, and
holds the truth about three times in four: read it as such. >= and <= stand where the curve does not reach. "Above" and
"below" its neurons used stand where the whole interval says so. Losses are median (min–max) and n."""


def effective_markdown(sets: Sequence[Comparison], groups: Sequence[PretrainGroup]) -> str:
    """The whole Markdown page; `groups` are all groups, for the list of runs that failed."""
    blocks = ["# Effective width", NOTES]
    for found in sets:
        blocks.append(f"## {found.experiment}, {found.scale}, data {found.data}")
        blocks.append(markdown_table(HEADER, [cells(row, found) for row in (*found.dense, *found.rows)]))
        blocks.append("Missing or odd:\n\n" + bullets(found.missing, "Nothing."))
    if not sets:
        blocks.append("No finished pretraining runs yet.")
    bad = [record for group in groups for record in (*group.good, *group.bad)]
    silent = [r["name"] for group in groups for r in group.good[:1] if not tells_its_layers(r)]
    lines = [*left_out(bad), *(f"`{name}`: does not say what its layers were" for name in silent)]
    blocks += ["## Left out of every number", bullets(lines, "No run failed.")]
    return "\n\n".join(blocks) + "\n"


def cells(row: Row, found: Comparison) -> list[str]:
    """One row as cells of HEADER."""
    return [
        row.label,
        spread(row.loss, 3),
        f"{row.neurons_used:,}",
        f"{row.neurons_trained:,}",
        worth_text(row.worth, found),
        ratio_text(row.worth, row.neurons_used),
        ratio_text(row.worth, row.neurons_trained),
        claim(row),
        "; ".join(row.notes) or MISSING,
    ]


def claim(row: Row) -> str:
    """On which side of the neurons used the interval lies; a dash where that says nothing."""
    if row.worth is None or row.worth.low is None or not row.neurons_used:
        return MISSING
    return CLAIMS[row.worth.against(row.neurons_used)]


def worth_text(worth: Worth | None, found: Comparison) -> str:
    """The effective width with its interval; a bound where the curve ends."""
    if worth is None or found.curve is None:
        return MISSING
    ends = found.curve.widths[0], found.curve.widths[-1]
    text = width_text(worth.value, ends)
    if worth.low is None or worth.high is None:
        return text
    return f"{text} ({width_text(worth.low, ends)} to {width_text(worth.high, ends)})"


def width_text(width: float, ends: tuple[int, int]) -> str:
    """A width with three digits at least, or how far the curve reaches."""
    if not math.isfinite(width):
        return f">= {ends[1]}" if width > 0 else f"<= {ends[0]}"
    return number(abs(width), 0 if width >= 99.95 else 1)


def ratio_text(worth: Worth | None, neurons: int) -> str:
    """Effective width by neurons, with its interval where all of it is measured."""
    value, low, high = ratios(worth, neurons)
    if value is None:
        return MISSING
    return number(value, 3) if low is None or high is None else f"{number(value, 3)} ({low:.3f} to {high:.3f})"


def ratios(worth: Worth | None, neurons: int) -> tuple[float | None, float | None, float | None]:
    """Value, low and high by neurons; None for what no number is."""
    if worth is None or not neurons:
        return None, None, None
    value, low, high = (
        each / neurons if each is not None and math.isfinite(each) else None
        for each in (worth.value, worth.low, worth.high)
    )
    return value, low, high


def effective_csv(sets: Sequence[Comparison]) -> str:
    """One line per group, with the names of its records; a bound stands as text."""
    lines = []
    for found in sets:
        for block, rows in (("dense", found.dense), ("row", found.rows)):
            for row in rows:
                loss, w = row.loss, row.worth
                numbers = (loss.n, loss.median, loss.low, loss.high) if loss else (0, None, None, None)
                head = (found.experiment, found.scale, found.data, block, row.label, *numbers)
                widths = (w.value, w.low, w.high) if w else (None, None, None)
                shown = [bounded(each, found) for each in widths]
                per_used, per_trained = ratios(w, row.neurons_used), ratios(w, row.neurons_trained)
                seeds = " ".join(map(str, w.seeds)) if w else ""
                told = "" if claim(row) == MISSING else claim(row)
                tail = (told, seeds, "; ".join(row.notes), " ".join(row.records))
                neurons = (row.neurons_used, row.neurons_trained)
                lines.append((*head, *neurons, *shown, *per_used, per_trained[0], *tail))
        head = (found.experiment, found.scale, found.data, "missing")
        lines += [(*head, *[None] * (len(CSV_HEADER) - 6), text, None) for text in found.missing]
    return csv_text(CSV_HEADER, lines)


def bounded(width: float | None, found: Comparison) -> float | str | None:
    """A number, or how far the curve reaches."""
    if width is None or found.curve is None or math.isfinite(width):
        return width
    return width_text(width, (found.curve.widths[0], found.curve.widths[-1]))


def effective_tex(sets: Sequence[Comparison]) -> str:
    """The tables as LaTeX, a `tabular` with a title in a comment for each set; without notes, with what is missing."""
    blocks = []
    for found in sets:
        lacks = "".join(f"% missing or odd: {text}\n" for text in found.missing)
        body = [cells(row, found)[:-1] for row in (*found.dense, *found.rows)]
        title = f"% {found.experiment}, {found.scale}, data {found.data}\n"
        blocks.append(title + lacks + latex_table(HEADER[:-1], body))
    return "\n\n".join(blocks or ["% No finished pretraining runs yet."]) + "\n"
