"""Effective width of made-up losses whose answer is known exactly."""

import math

import numpy as np
import pytest

from cramming.report.width import Curve, width_at, worth

WIDTHS = (0, 4, 16, 64, 256, 1024)
SEEDS = (0, 1, 2)


def loss_of(width: float) -> float:
    """A curve that is a line over log(1 + width): interpolation is exact everywhere."""
    return 6.0 - 0.2 * math.log1p(width)


def curve(*, noise: float = 0.0, shared: float = 0.0, widths=WIDTHS, seeds=SEEDS, changes=None) -> Curve:
    """`shared` [nats] is a seed's own, the same for all widths; `noise` is of each run."""
    draw = np.random.default_rng(1)
    rows = [
        tuple(
            loss_of(width) + (changes or {}).get(width, 0.0) + shared * (seed - 1) + noise * draw.standard_normal()
            for width in widths
        )
        for seed in seeds
    ]
    return Curve(widths, seeds, tuple(rows))


def losses(width: float, shared: float = 0.0, seeds=SEEDS) -> dict[int, float]:
    return {seed: loss_of(width) + shared * (seed - 1) for seed in seeds}


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("place", range(len(WIDTHS)))
def test_a_dense_row_is_worth_its_own_width(place, noise):
    found = curve(noise=noise, shared=0.05)
    assert not found.rises
    own = {seed: row[place] for seed, row in zip(found.seeds, found.losses, strict=True)}
    answer = worth(found, own)
    assert [answer.value, answer.low, answer.high] == pytest.approx([WIDTHS[place]] * 3, abs=1e-9)


@pytest.mark.parametrize("width", [0.5, 10, 40, 300, 1000])
def test_a_row_between_two_widths_is_found_exactly(width):
    answer = worth(curve(shared=0.1), losses(width, shared=0.1))
    assert [answer.value, answer.low, answer.high] == pytest.approx([width] * 3)


def test_beyond_the_curve_there_is_no_number():
    low, high = worth(curve(), losses(2000)), worth(curve(widths=WIDTHS[1:]), losses(1))
    assert (low.value, low.low, low.reached) == (math.inf, math.inf, False)
    assert (high.value, high.high, high.reached) == (-math.inf, -math.inf, False)
    assert (low.against(512), high.against(4), high.against(512)) == (1, -1, -1)


def test_an_interval_may_leave_the_curve_where_its_value_does_not():
    answer = worth(curve(), {0: loss_of(300), 1: loss_of(600), 2: loss_of(4000)})
    assert answer.value == pytest.approx((301 * 601 * 4001) ** (1 / 3) - 1)
    assert (answer.low, answer.high) == (pytest.approx(300), math.inf)


def test_of_widths_with_one_loss_the_middle_of_their_logarithms_is_taken():
    tied = np.array([6.0, 5.0, 4.0, 4.0, 4.0, 3.0])
    assert width_at(WIDTHS, tied, 4.0) == pytest.approx(math.sqrt(17 * 257) - 1)
    assert width_at(WIDTHS, tied, 4.0 + 1e-9) == pytest.approx(16, abs=1e-6)
    assert width_at(WIDTHS, tied, 4.0 - 1e-9) == pytest.approx(256, abs=1e-4)
    assert width_at(WIDTHS, tied, 4.5) == pytest.approx(math.sqrt(5 * 17) - 1)


def test_a_curve_that_rises_is_pooled_and_says_so():
    # 64 and 256 change places by the same amount: both have their mean, everything else stays as it is.
    risen = curve(changes={64: -0.3, 256: 0.3})
    ((narrow, wide, step),) = risen.rises
    assert (narrow, wide) == (64, 256)
    assert step == pytest.approx(0.6 - (loss_of(64) - loss_of(256)))
    middle = (loss_of(64) + loss_of(256)) / 2
    assert risen.pooled[3:5] == pytest.approx([middle, middle])
    assert risen.pooled[:3] == risen.means[:3]
    assert worth(risen, dict.fromkeys(SEEDS, middle)).value == pytest.approx(math.sqrt(65 * 257) - 1)
    assert worth(risen, losses(10)).value == pytest.approx(10)


def test_noise_that_the_seeds_share_cancels():
    noisy, row = curve(shared=0.2), losses(40, shared=0.2)
    paired = worth(noisy, row)
    assert (paired.low, paired.high) == pytest.approx((40, 40))
    swapped = worth(noisy, {0: row[1], 1: row[2], 2: row[0]})  # the same losses, under other seeds
    assert swapped.value == pytest.approx(40)
    assert swapped.low < 30
    assert swapped.high > 60


def test_an_interval_holds_the_truth_as_often_as_it_says():
    """Of six seeds with independent noise; a percentile bootstrap of so few is known to be somewhat too narrow."""
    seeds, draw, inside = tuple(range(6)), np.random.default_rng(3), 0
    for _ in range(50):
        noise = 0.02 * draw.standard_normal((len(seeds), len(WIDTHS) + 1))
        found = Curve(WIDTHS, seeds, tuple(tuple(row) for row in noise[:, :-1] + [loss_of(w) for w in WIDTHS]))
        answer = worth(found, {seed: loss_of(40) + noise[seed, -1] for seed in seeds})
        inside += answer.low <= 40 <= answer.high
    assert 40 <= inside <= 50


def test_only_shared_seeds_enter_and_few_of_them_give_no_interval():
    own = losses(40) | {7: 100.0}
    del own[1]
    answer = worth(curve(), own)
    assert (answer.seeds, answer.low, answer.high) == ((0, 2), None, None)
    assert answer.value == pytest.approx(40)
    assert answer.against(1) == 0
    assert worth(curve(), {7: 4.0}) is None


def test_the_same_losses_give_the_same_interval():
    noisy, row = curve(noise=0.03), {0: 5.2, 1: 5.25, 2: 5.3}
    first = worth(noisy, row)
    assert first == worth(noisy, dict(reversed(row.items())))
    assert first.low < first.value < first.high


def test_no_claim_where_the_interval_holds_the_neurons():
    answer = worth(curve(), {0: loss_of(20), 1: loss_of(40), 2: loss_of(80)})
    assert [answer.against(neurons) for neurons in (10, 30, 50, 100)] == [1, 0, 0, -1]
