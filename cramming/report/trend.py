"""The page of how effective widths go with size and tokens, and how firm the ground is. Not the measure (width.py)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cramming.report.comparisons import Comparison, Row
from cramming.report.effective import bounded, ratio_text, ratios, worth_text
from cramming.report.markup import MISSING, bullets, csv_text, latex_table, markdown_table, number, spread
from cramming.report.width import Curve

NARROW = 256  # the dense layer that the control without one is held against
LEAST_GAP, MOST_SPREAD = 0.1, 0.01  # nats
GROUND = (
    *("experiment", "scale", "data", "seeds", f"none minus dense {NARROW} [nats]"),
    *("largest range over seeds [nats]", "the same, paired [nats]", "firm"),
)
HEADER = ("experiment", "layer", "scale", "data", "valid loss [nats]", "neurons used", "w_eff", "w_eff / used")
CSV_HEADER = (
    *("experiment", "layer", "scale", "data", "n", "loss_median", "neurons_used", "neurons_trained"),
    *("w_eff", "w_eff_low", "w_eff_high", "per_used", "gap", "spread", "paired_spread", "records"),
)
NOTES = f"""Sets of one experiment that have a dense curve, from small models and budgets to large ones. A ground is
firm where no feedforward layer costs at least {LEAST_GAP:g} nat against dense {NARROW}, and the runs of one layer lie
within {MOST_SPREAD:g} nat of each other; both numbers are printed, and where they are not reached, differences between
layers that are as small as the range over seeds mean nothing. "Paired" is that range after each seed's mean over the
curve is taken off: what differences within a seed, which all intervals here are of, have to fear. `w_eff` as in
effective_width.md; layers that stand in one set alone are left to that page."""


@dataclass(frozen=True)
class Ground:
    """How far apart layers and seeds are [nats]; `gap` is None where a width for it is missing."""

    gap: float | None
    spread: float
    paired: float

    @property
    def firm(self) -> bool:
        """Whether both are as they should be."""
        return self.gap is not None and self.gap >= LEAST_GAP and self.spread <= MOST_SPREAD


def ground_of(curve: Curve) -> Ground:
    """The ground that a curve's losses show."""
    losses, means = np.array(curve.losses), dict(zip(curve.widths, curve.means, strict=True))
    paired = losses - losses.mean(1, keepdims=True)
    gap = means[0] - means[NARROW] if {0, NARROW} <= means.keys() else None
    return Ground(gap, float(np.ptp(losses, 0).max()), float(np.ptp(paired, 0).max()))


def priced(sets: Sequence[Comparison]) -> list[tuple[Comparison, Ground]]:
    """The sets that have a curve, each with its ground."""
    return [(found, ground_of(found.curve)) for found in sets if found.curve]


def followed(sets: Sequence[Comparison]) -> list[tuple[str, Comparison, Row]]:
    """Layers that stand in several priced sets of an experiment, by experiment and layer, then as the sets stand."""
    places: dict[tuple[str, str], list[tuple[Comparison, Row]]] = {}
    for found, _ in priced(sets):
        for row in found.rows:
            places.setdefault((found.experiment, row.label), []).append((found, row))
    kept = [(key, found, row) for key, mine in places.items() if len(mine) > 1 for found, row in mine]
    return [(label, found, row) for (_, label), found, row in kept]


def trend_markdown(sets: Sequence[Comparison]) -> str:
    """The whole Markdown page."""
    blocks = ["# Trend with size and tokens", NOTES, "## The ground"]
    grounds = [ground_cells(found, ground) for found, ground in priced(sets)]
    blocks.append(markdown_table(GROUND, grounds) if grounds else "No set has a dense curve yet.")
    blocks.append("## Layers of several sets")
    rows = [cells(*each) for each in followed(sets)]
    blocks.append(markdown_table(HEADER, rows) if rows else "No layer stands in several sets with a curve yet.")
    lacks = [f"{found.title}: no dense curve" for found in sets if not found.curve]
    blocks.append("Left out:\n\n" + bullets(lacks, "Nothing."))
    return "\n\n".join(blocks) + "\n"


def ground_cells(found: Comparison, ground: Ground) -> list[str]:
    """One set as cells of GROUND."""
    seeds = len(found.curve.seeds) if found.curve else 0
    numbers = (ground.gap, ground.spread, ground.paired)
    place = (found.experiment, found.scale, found.data, str(seeds))
    return [*place, *(number(each, 3) for each in numbers), "yes" if ground.firm else "no"]


def cells(label: str, found: Comparison, row: Row) -> list[str]:
    """One layer in one set as cells of HEADER."""
    return [
        *(found.experiment, label, found.scale, found.data, spread(row.loss, 3), f"{row.neurons_used:,}"),
        *(worth_text(row.worth, found), ratio_text(row.worth, row.neurons_used) if row.worth else MISSING),
    ]


def trend_csv(sets: Sequence[Comparison]) -> str:
    """One line per layer and set, with the ground of the set and the names of the records."""
    grounds = {id(found): ground for found, ground in priced(sets)}
    lines = []
    for label, found, row in followed(sets):
        ground, w, loss = grounds[id(found)], row.worth, row.loss
        lines.append(
            (
                *(found.experiment, label, found.scale, found.data),
                *((loss.n, loss.median) if loss else (0, None)),
                *(row.neurons_used, row.neurons_trained),
                *(bounded(each, found) for each in ((w.value, w.low, w.high) if w else (None, None, None))),
                *(ratios(w, row.neurons_used)[0], ground.gap, ground.spread, ground.paired),
                " ".join(row.records),
            )
        )
    return csv_text(CSV_HEADER, lines)


def trend_tex(sets: Sequence[Comparison]) -> str:
    """Both tables as LaTeX."""
    grounds = [ground_cells(found, ground) for found, ground in priced(sets)]
    rows = [cells(*each) for each in followed(sets)]
    made = [latex_table(header, body) for header, body in ((GROUND, grounds), (HEADER, rows)) if body]
    return "\n\n".join(made or ["% No set has a dense curve yet."]) + "\n"
