"""From a task's texts to padded batches of token ids. Tokenises once per task; not for pretraining's shards."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from cramming.glue.sources import Split

PAD_MULTIPLE = 8  # lengths are rounded up to it: whole vector registers, few shapes
CHUNK = 4096  # texts tokenised at a time, which bounds the memory of Python lists


@dataclass(frozen=True)
class Encoded:
    """Token ids of all examples end to end (int32), their borders (int64, examples + 1), and the labels."""

    tokens: np.ndarray
    borders: np.ndarray
    labels: np.ndarray
    pad_id: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(examples,) tokens of each."""
        return np.diff(self.borders)

    def alike(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """input_ids (B, S) int64 and labels (B,) of examples of one length: nothing is padded, and there is no mask."""
        ids = np.stack([self.tokens[self.borders[i] : self.borders[i + 1]] for i in indices])
        return {"input_ids": torch.from_numpy(ids.astype(np.int64)), "labels": torch.from_numpy(self.labels[indices])}

    def batch(self, indices: np.ndarray) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask (B, S) int64 and labels (B,); S is the longest example, rounded up to 8."""
        lengths = self.lengths[indices]
        width = -(-int(lengths.max()) // PAD_MULTIPLE) * PAD_MULTIPLE
        ids = np.full((len(indices), width), self.pad_id, dtype=np.int64)
        for row, index in enumerate(indices):
            ids[row, : lengths[row]] = self.tokens[self.borders[index] : self.borders[index + 1]]
        mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
        return {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(self.labels[indices]),
        }


def encode(tokenizer: PreTrainedTokenizerBase, split: Split, max_length: int) -> Encoded:
    """Tokenise a split: pairs as "<cls> A <sep> B <sep>", single texts as a pair with an empty second text.

    That is how the authors' single-sentence tasks get their `<cls>` (the tokenizer's single form has none). Too long
    examples lose tokens of the longer text first.
    """
    pieces: list[np.ndarray] = []
    lengths: list[int] = []
    for start in range(0, len(split), CHUNK):
        first = split.first[start : start + CHUNK]
        second = [""] * len(first) if split.second is None else split.second[start : start + CHUNK]
        ids = tokenizer(first, second, truncation="longest_first", max_length=max_length, padding=False)["input_ids"]
        lengths.extend(len(row) for row in ids)
        pieces.append(np.fromiter((token for row in ids for token in row), dtype=np.int32))
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    assert tokenizer.pad_token_id is not None
    return Encoded(np.concatenate(pieces), borders, split.labels, int(tokenizer.pad_token_id))


def training_batches(count: int, batch: int, seed: int, epoch: int) -> Iterator[np.ndarray]:
    """Example numbers of each batch of one epoch, in an order by seed and epoch; the last batch may be short."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    for start in range(0, count, batch):
        yield order[start : start + batch]


def evaluation_batches(data: Encoded, batch: int) -> Iterator[np.ndarray]:
    """Example numbers by length, so that little is padded; the order changes no metric."""
    order = np.argsort(data.lengths, kind="stable")
    for start in range(0, len(data), batch):
        yield order[start : start + batch]
