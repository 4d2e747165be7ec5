"""BERT's masking as a pure function of (seed, position in the data). Not the loader."""

from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_uniform(seed: int, stream: int, counters: np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, a pure function of (seed, stream, counter): splitmix64's finaliser.

    A counter-based generator needs no state, so that masks are the same for any number of processes and after a resume.
    """
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(seed & (2**64 - 1)) + _GOLDEN * np.uint64(stream + 1))
        bits = _mix(_mix(counters.astype(np.uint64) * _GOLDEN + key) ^ key)
    return np.asarray(bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: Any) -> Any:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def masked_count(rate: float, length: int) -> int:
    """How many positions of a sequence are predicted: the same for all, so that shapes are static."""
    return max(1, round(rate * length))


def mask_tokens(
    sequences: np.ndarray, positions: np.ndarray, *, seed: int, rate: float, vocab_size: int, mask_id: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose exactly round(rate * S) positions of each sequence; 80 % become <mask>, 10 % random, 10 % stay.

    Special tokens are not excluded, as in the recipe (arXiv 2212.14034, section 4.3).

    Args:
        sequences: (n, S) int64 tokens.
        positions: (n,) int64 running numbers of the sequences in the whole run; they decide the mask.

    Returns:
        inputs (n, S), masked positions (n, K) ascending, labels (n, K), all int64.
    """
    length = sequences.shape[1]
    count = masked_count(rate, length)
    counters = positions[:, None] * length + np.arange(length)
    order = np.argpartition(hash_uniform(seed, 0, counters), count - 1, axis=1)
    masked = np.sort(order[:, :count], axis=1)
    chosen = np.take_along_axis(counters, masked, axis=1)
    labels = np.take_along_axis(sequences, masked, axis=1)
    kind = hash_uniform(seed, 1, chosen)
    random_tokens = (hash_uniform(seed, 2, chosen) * vocab_size).astype(np.int64)
    replaced = np.where(kind < 0.8, mask_id, np.where(kind < 0.9, random_tokens, labels))
    inputs = sequences.copy()
    np.put_along_axis(inputs, masked, replaced, axis=1)
    return inputs, masked, labels
