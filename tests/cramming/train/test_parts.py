"""Schedules, batch ramp, marks, masks, order of the data: each a pure function with known values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cramming.data.loader import MicrobatchLoader, SequenceOrder
from cramming.data.masking import mask_tokens
from cramming.objectives.masked import MaskedTokens
from cramming.train.budget import batch_at, crosses_mark, lr_factor, progress
from cramming.train.config import TrainConfig
from fff.decay import decays


@pytest.mark.parametrize(("t", "factor"), [(0, 0.25), (0.25, 0.5), (0.75, 1.0), (0.875, 0.5), (1, 0)])
def test_triangle2_is_the_recipes(t: float, factor: float) -> None:
    assert lr_factor("triangle2", t) == pytest.approx(factor)


def test_batch_ramp_of_the_recipe() -> None:
    config = TrainConfig(budget_steps=1)
    assert [batch_at(config, t, 1) for t in (0, 0.15, 0.6, 1.0)] == [128, 17 * 128, 8192, 8192]
    assert batch_at(config, 0.3, 2) % 256 == 0


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (TrainConfig(budget_tokens=1000), 0.1),
        (TrainConfig(budget_steps=20), 0.25),
        (TrainConfig(budget_hours=0.5), 0.02),
    ],
)
def test_progress(config: TrainConfig, expected: float) -> None:
    assert progress(config, tokens=100, steps=5, seconds=36) == pytest.approx(expected)
    assert progress(config, tokens=10**9, steps=10**9, seconds=10**9) == 1.0


@given(st.lists(st.floats(0.001, 0.2), min_size=1, max_size=60), st.integers(1, 20))
def test_every_mark_is_crossed_once(steps: list[float], marks: int) -> None:
    t, crossings = 0.0, 0
    while t < 1:
        for step in steps:
            after = min(1.0, t + step)
            crossings += crosses_mark(t, after, marks) * (int(after * marks) - int(t * marks))
            t = after
    assert crossings == marks


def test_masking_counts_and_kinds() -> None:
    tokens = np.random.default_rng(0).integers(7, 5000, (2000, 128))
    inputs, masked, labels = mask_tokens(tokens, np.arange(2000), seed=3, rate=0.25, vocab_size=5000, mask_id=6)
    assert masked.shape == (2000, 32)
    assert (np.diff(masked, axis=1) > 0).all()
    assert (np.take_along_axis(tokens, masked, 1) == labels).all()
    changed = np.ones_like(tokens, dtype=bool)
    np.put_along_axis(changed, masked, False, 1)
    assert (inputs == tokens)[changed].all()
    seen = np.take_along_axis(inputs, masked, 1)
    assert (seen == 6).mean() == pytest.approx(0.8, abs=0.005)
    assert (seen == labels).mean() == pytest.approx(0.1, abs=0.005)
    # Each position is as likely as another.
    counts = np.bincount(masked.ravel(), minlength=128)
    assert counts.min() > 400
    assert counts.max() < 600


def test_masks_follow_from_the_position_alone() -> None:
    tokens = np.random.default_rng(1).integers(7, 100, (6, 32))
    whole = mask_tokens(tokens, np.arange(6), seed=1, rate=0.25, vocab_size=100, mask_id=6)
    part = mask_tokens(tokens[2:4], np.arange(2, 4), seed=1, rate=0.25, vocab_size=100, mask_id=6)
    assert all((a[2:4] == b).all() for a, b in zip(whole, part, strict=True))
    other = mask_tokens(tokens, np.arange(6), seed=2, rate=0.25, vocab_size=100, mask_id=6)
    assert (other[1] != whole[1]).any()


@given(st.integers(1, 3000), st.integers(0, 2**31))
def test_an_epoch_is_a_permutation(sequences: int, seed: int) -> None:
    order = SequenceOrder(sequences, seed, shuffled=True)
    first, second = order.indices(np.arange(2 * sequences)).reshape(2, sequences)
    assert (np.sort(first) == np.arange(sequences)).all()
    assert (np.sort(second) == np.arange(sequences)).all()
    if sequences > 20:
        assert (first != second).any()
        assert (first != np.arange(sequences)).any()


def test_the_order_looks_random() -> None:
    found = SequenceOrder(10_000, 0, shuffled=True).indices(np.arange(10_000))
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(found, np.arange(10_000))[0, 1]) < 0.03


class Numbers:
    """Token shards whose sequence n holds the number n."""

    def __len__(self) -> int:
        return 40

    def take(self, indices: np.ndarray) -> np.ndarray:
        return np.repeat(indices[:, None], 8, axis=1)


def read(process: int, processes: int, start: int = 0, microbatches: int = 4) -> list[np.ndarray]:
    loader = MicrobatchLoader(
        Numbers(),  # type: ignore[arg-type]
        SequenceOrder(40, 5, shuffled=True),
        MaskedTokens(5, 0.25, 64, 6).batch,
        start=start,
        microbatch=3,
        process=process,
        processes=processes,
    )
    found = [batch.labels.numpy() for _, batch in zip(range(microbatches), loader, strict=False)]
    loader.close()
    assert not loader._thread.is_alive()
    return found


def test_processes_share_what_one_reads_and_any_position_can_be_the_start() -> None:
    one = read(0, 1, microbatches=8)
    two = [batch for pair in zip(read(0, 2), read(1, 2), strict=True) for batch in pair]
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    later = read(0, 1, start=6)
    assert all((a == b).all() for a, b in zip(one[2:6], later, strict=True))


def test_what_weight_decay_touches() -> None:
    matrix, vector = nn.Parameter(nn.init.zeros_(nn.Linear(2, 2).weight)), nn.Linear(2, 2).bias
    assert decays("ffn.w_in", matrix)
    assert decays("words.weight", matrix)
    assert not decays("ffn.b_in", matrix)
    assert not decays("ffn.b_out", matrix)
    assert not decays("norm.weight", vector)
