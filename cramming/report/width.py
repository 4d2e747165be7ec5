"""Effective width: the width of the dense layer that has a loss, with its interval. Not whose losses (comparisons.py).

Dense layers of several widths give a curve loss(width); width 0 is a model without feedforward layers. A layer of any
kind is worth the width at which that curve has its loss. Between two widths the curve is linear in log(1 + width),
which gives width 0 a place; where noise lets a wider layer lose, the widths concerned are pooled (isotonic regression).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import isotonic_regression

from cramming.report.stats import CONFIDENCE, INTERVAL_FROM

RESAMPLES = 2_000


@dataclass(frozen=True)
class Curve:
    """Losses of dense layers.

    Attributes:
        widths: neurons of one layer, ascending; 0 is the model without feedforward layers.
        seeds: those that every width was trained with.
        losses: [nats], a row for each seed, a column for each width.
    """

    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    losses: tuple[tuple[float, ...], ...]

    @property
    def means(self) -> tuple[float, ...]:
        """Mean over the seeds of each width's loss, as measured [nats]."""
        return tuple(float(mean) for mean in np.mean(self.losses, axis=0))

    @property
    def pooled(self) -> tuple[float, ...]:
        """The same made monotone: what is read from."""
        return tuple(float(mean) for mean in falling(np.array(self.means)))

    @property
    def rises(self) -> tuple[tuple[int, int, float], ...]:
        """Where a wider layer has the higher mean: both widths and by how much [nats]."""
        steps = zip(self.widths, self.widths[1:], np.diff(self.means), strict=False)
        return tuple((narrow, wide, float(step)) for narrow, wide, step in steps if step > 0)


@dataclass(frozen=True)
class Worth:
    """What a layer is worth, in neurons of a dense layer.

    Attributes:
        value: effective width; inf where the loss is below the curve's, -inf where it is above.
        low, high: bootstrap interval over the seeds, of 95 %; the same words. None below three seeds.
        seeds: those that the layer shares with the curve: all that enters.
    """

    value: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]

    @property
    def reached(self) -> bool:
        """Whether the curve has the layer's loss, so that there is a number."""
        return math.isfinite(self.value)

    def against(self, neurons: int) -> int:
        """1 where the whole interval lies above as many neurons, -1 where it lies below, 0 where it says neither."""
        if self.low is None or self.high is None or math.isclose(self.low, neurons) or math.isclose(self.high, neurons):
            return 0
        return 1 if self.low > neurons else -1 if self.high < neurons else 0


def falling(losses: np.ndarray) -> np.ndarray:
    """The nearest losses that fall, or stay, with the width: neighbours that rise have their mean."""
    if (np.diff(losses) <= 0).all():  # as they are, to the last bit: a width of the curve is then worth itself
        return losses
    return isotonic_regression(losses, increasing=False).x


def width_at(widths: Sequence[int], losses: np.ndarray, loss: float) -> float:
    """The width at which the curve of mean losses has a loss.

    Where several widths have it, the middle of their logarithms. -inf and inf where the curve does not reach so far up
    or down.
    """
    curve, logs = falling(losses), np.log1p(widths)
    if loss > curve[0]:
        return -math.inf
    if loss < curve[-1]:
        return math.inf
    widest = np.interp(-loss, -curve, logs)
    narrowest = np.interp(loss, curve[::-1], logs[::-1])
    return float(np.expm1((widest + narrowest) / 2))


def worth(curve: Curve, losses: Mapping[int, float]) -> Worth | None:
    """What the losses by seed [nats] are worth; None where they share no seed with the curve.

    Of means over the shared seeds. The bootstrap draws seeds, and a drawn seed brings its losses of the curve and of
    the layer together: data order and masks are the same in both, and their noise cancels. Its draws are always the
    same ones.
    """
    places = [place for place, seed in enumerate(curve.seeds) if seed in losses]
    if not places:
        return None
    seeds = tuple(curve.seeds[place] for place in places)
    table = np.array([[*curve.losses[place], losses[seed]] for place, seed in zip(places, seeds, strict=True)])

    def value(draw: np.ndarray) -> float:
        means = table[draw].mean(0)
        return width_at(curve.widths, means[:-1], means[-1])

    count = len(seeds)
    if count < INTERVAL_FROM:
        return Worth(value(np.arange(count)), None, None, seeds)
    draws = np.sort(np.random.default_rng(0).integers(count, size=(RESAMPLES, count)))
    different, times = np.unique(draws, axis=0, return_counts=True)
    # No interpolation between draws: those beyond the curve have no number.
    values = np.sort(np.repeat([value(draw) for draw in different], times))
    out = int((1 - CONFIDENCE) / 2 * RESAMPLES)
    return Worth(value(np.arange(count)), float(values[out]), float(values[-1 - out]), seeds)
