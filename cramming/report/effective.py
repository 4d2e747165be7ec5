"""The page of effective widths as Markdown, CSV and LaTeX. Not what is comparable (comparisons.py)."""

import math
from collections.abc import Sequence

from cramming.report.comparisons import Comparison, Row, tells_its_layers
from cramming.report.groups import PretrainGroup, left_out
from cramming.report.markup import MISSING, bullets, csv_text, latex_table, markdown_table, number, spread
from cramming.report.times import Times, times_of
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
)
TIME = "time of dense w_eff / time of the layer"
CSV_HEADER = (
    *("experiment", "scale", "data", "block", "layer", "n", "loss_median", "loss_min", "loss_max"),
    *("neurons_used", "neurons_trained", "w_eff", "w_eff_low", "w_eff_high", "per_used", "per_used_low"),
    *("per_used_high", "per_trained", "claim"),
)
CLAIMS = {1: "above", -1: "below", 0: "not told apart"}
NOTES = """What a layer is worth: `w_eff` is the width of the dense layer that has its loss, with the same model, data,
budget and recipe. Neurons are those of one layer; dense 0 is `none`, attention alone. Between measured widths the curve
is linear in log(1 + width); where it rises it is pooled (isotonic regression) and that is said. `w_eff` is of mean
losses over the seeds that layer and curve share; its interval is a 95 % percentile bootstrap over those seeds, in which
a seed brings its loss of the curve and of the layer together: they have data order and masks in common, and with
`train.equal_start` the initial values around the layer. With three seeds that interval is the range over the seeds, and
holds the truth about three times in four: read it as such. >= and <= stand where the curve does not reach. "Above" and
"below" its neurons used stand where the whole interval says so. Losses are median (min–max) and n. "Time of dense w_eff
/ time of the layer" divides what a dense layer of that width takes in inference, linear between the timed widths (and
nothing at width 0), by what the layer takes, both timed in turn on one machine: above 1 the tree pays. Its interval is
that of w_eff."""


def effective_markdown(sets: Sequence[Comparison], groups: Sequence[PretrainGroup], times: Sequence[Times] = ()) -> str:
    """The whole Markdown page; `groups` are all groups, for the list of runs that failed."""
    blocks = ["# Effective width", NOTES]
    for found in sets:
        mine, rows = times_of(times, found.hidden_size), (*found.dense, *found.rows)
        notes = ["; ".join(row.notes) or MISSING for row in rows]
        body = [[*cells(row, found, mine), note] for row, note in zip(rows, notes, strict=True)]
        blocks.append(f"## {found.title}")
        blocks.append(markdown_table((*header(mine), "notes"), body))
        blocks.append("Missing or odd:\n\n" + bullets(found.missing, "Nothing."))
        timed = [f"timed on {note}" for note in dict.fromkeys(each.note for each in mine)]
        blocks.append("Times:\n\n" + bullets([*timed, *untimed(found, mine)], ""))
    if not sets:
        blocks.append("No finished pretraining runs yet.")
    bad = [record for group in groups for record in (*group.good, *group.bad)]
    silent = [r["name"] for group in groups for r in group.good[:1] if not tells_its_layers(r)]
    lines = [*left_out(bad), *(f"`{name}`: does not say what its layers were" for name in silent)]
    blocks += ["## Left out of every number", bullets(lines, "No run failed.")]
    return "\n\n".join(blocks) + "\n"


def header(times: Sequence[Times]) -> list[str]:
    """The columns, with one for each number of tokens that layers were timed at, or one that stays empty."""
    return [*HEADER, *([f"{TIME}, {each.title}" for each in times] or [TIME])]


def untimed(found: Comparison, times: Sequence[Times]) -> list[str]:
    """What the columns of times lack, in words."""
    if not times:
        return [f"layers of width {found.hidden_size} were not timed (python -m bench.worth)"]
    tags = dict.fromkeys(row.tag for row in found.rows)
    lacks = {each.title: [tag for tag in tags if tag not in each.rows] for each in times}
    return [f"not timed at {title}: {', '.join(missing)}" for title, missing in lacks.items() if missing]


def cells(row: Row, found: Comparison, times: Sequence[Times]) -> list[str]:
    """One row as cells of `header`."""
    ends = (found.curve.widths[0], found.curve.widths[-1]) if found.curve else (0, 0)
    return [
        row.label,
        spread(row.loss, 3),
        f"{row.neurons_used:,}",
        f"{row.neurons_trained:,}",
        worth_text(row.worth, found),
        ratio_text(row.worth, row.neurons_used),
        ratio_text(row.worth, row.neurons_trained),
        claim(row),
        *([each.text(row.worth, row.tag, ends) for each in times] or [MISSING]),
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


def effective_csv(sets: Sequence[Comparison], times: Sequence[Times] = ()) -> str:
    """One line per group, with the names of its records; a bound stands as text."""
    keys = list(dict.fromkeys(each.key for each in times))
    timed = [f"time_ratio_{key}{end}" for key in keys for end in ("", "_low", "_high")]
    tail = ("seeds", "notes", "records")
    lines = []
    for found in sets:
        by_key = {each.key: each for each in times_of(times, found.hidden_size)}
        for block, rows in (("dense", found.dense), ("row", found.rows)):
            for row in rows:
                seeds = " ".join(map(str, row.worth.seeds)) if row.worth else ""
                ratios_of_time = [value for key in keys for value in time_columns(row, found, by_key.get(key))]
                end = (seeds, "; ".join(row.notes), " ".join(row.records))
                lines.append((*csv_columns(block, row, found), *ratios_of_time, *end))
        for text in (*found.missing, *untimed(found, list(by_key.values()))):
            head = (found.experiment, found.scale, found.data, "missing")
            lines.append((*head, *[None] * (len(CSV_HEADER) + len(timed) - 3), text, None))
    return csv_text((*CSV_HEADER, *timed, *tail), lines)


def csv_columns(block: str, row: Row, found: Comparison) -> tuple:
    """One row's columns of CSV_HEADER."""
    loss, w = row.loss, row.worth
    return (
        *(found.experiment, found.scale, found.data, block, row.label),
        *((loss.n, loss.median, loss.low, loss.high) if loss else (0, None, None, None)),
        *(row.neurons_used, row.neurons_trained),
        *(bounded(each, found) for each in ((w.value, w.low, w.high) if w else (None, None, None))),
        *ratios(w, row.neurons_used),
        ratios(w, row.neurons_trained)[0],
        "" if claim(row) == MISSING else claim(row),
    )


def time_columns(row: Row, found: Comparison, times: Times | None) -> list[float | str | None]:
    """Ratio of times with its interval."""
    if times is None or found.curve is None:
        return [None] * 3
    ends = found.curve.widths[0], found.curve.widths[-1]
    return [times.bounded(each, row.tag, ends) for each in times.ratio(row.worth, row.tag)]


def bounded(width: float | None, found: Comparison) -> float | str | None:
    """A number, or how far the curve reaches."""
    if width is None or found.curve is None or math.isfinite(width):
        return width
    return width_text(width, (found.curve.widths[0], found.curve.widths[-1]))


def effective_tex(sets: Sequence[Comparison], times: Sequence[Times] = ()) -> str:
    """The tables as LaTeX, a `tabular` with a title in a comment for each set; without notes, with what is missing."""
    blocks = []
    for found in sets:
        mine = times_of(times, found.hidden_size)
        lacks = "".join(f"% missing or odd: {text}\n" for text in (*found.missing, *untimed(found, mine)))
        columns = len(HEADER) + len(mine)  # none for times that there are not
        body = [cells(row, found, mine)[:columns] for row in (*found.dense, *found.rows)]
        blocks.append(f"% {found.title}\n{lacks}" + latex_table(header(mine)[:columns], body))
    return "\n\n".join(blocks or ["% No finished pretraining runs yet."]) + "\n"
