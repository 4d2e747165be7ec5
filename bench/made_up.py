"""Tokens and data for timings of training, made from numbers. Not text, and nothing that a result comes of."""

from dataclasses import dataclass

import numpy as np

from cramming.data.loader import Sequences

FIRST_ID, MASK_ID = 7, 6  # of a vocabulary: after the special tokens, and one of these
SEQUENCES = 1 << 20


class MadeUpTokens:
    """Random sequences as `TokenShards` gives them."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self.vocab_size, self.seq_len = vocab_size, seq_len

    def __len__(self) -> int:
        return SEQUENCES

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(n, seq_len) int64 for sequences numbered `indices` (n,)."""
        draw = np.random.default_rng(int(indices.sum()))
        return draw.integers(FIRST_ID, self.vocab_size, (len(indices), self.seq_len))


@dataclass(frozen=True)
class MadeUpData:
    """Data without text, as `cramming.train.assemble` asks for them."""

    train: Sequences
    vocab_size: int
    seq_len: int

    def token_id(self, token: str) -> int:
        """Id of the one special token that there is."""
        return MASK_ID
