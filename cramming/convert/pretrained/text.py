"""Text -> pieces of a few sentences -> ids, and batches of equal lengths. Not where models are called.

An encoder of sentences meets short and long inputs, so paragraphs are cut into runs of one to eight sentences.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cramming.data.sources.corpus import match_globs
from cramming.data.sources.readers import read_documents
from cramming.data.sources.source import digest, fraction
from cramming.errors import UserError

HELD_OUT = 0.02  # share of the documents, by hash, where no files are held out
SENTENCES = re.compile(r"(?<=[.!?])\s+(?=[\"'(]?[A-Z0-9])")
LONGEST_RUN = 8
LEAST_CHARACTERS = 24
MOST_UNKNOWN = 0.9  # share of unknown tokens from which a tokenizer is another model's; a tiny vocabulary has many


def documents(files: Sequence[str], held_out: Sequence[str], text_field: str) -> tuple[list[str], list[str]]:
    """Texts of the files, and those held out. UserError where a file cannot be read."""
    train: list[str] = []
    kept: list[str] = []
    for path in match_globs("distill.text", list(files)):
        for document in read_documents(path, text_field):
            apart = not held_out and fraction(digest(document)) < HELD_OUT
            (kept if apart else train).append(document)
    if held_out:
        found = match_globs("distill.held_out", list(held_out))
        kept = [document for path in found for document in read_documents(path, text_field)]
    return train, kept


def split_texts(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Given texts, and those of them that are held out by hash."""
    train: list[str] = []
    kept: list[str] = []
    for text in texts:
        (kept if fraction(digest(text)) < HELD_OUT else train).append(text)
    return train, kept


def pieces(texts: Sequence[str], seed: int, *, whole: bool) -> Iterator[str]:
    """Pieces of text in an order that the seed shuffles: runs of sentences of a paragraph, or whole paragraphs."""
    draw = random.Random(seed)
    order = list(range(len(texts)))
    draw.shuffle(order)
    for number in order:
        for paragraph in filter(None, map(str.strip, texts[number].split("\n"))):
            if whole:
                yield paragraph
                continue
            sentences = SENTENCES.split(paragraph)
            first = 0
            while first < len(sentences):
                run = min(LONGEST_RUN, int(2 ** draw.uniform(0, 4)))  # half of all runs have at most four
                piece = " ".join(sentences[first : first + run])
                first += run
                if len(piece) >= LEAST_CHARACTERS:
                    yield piece


@dataclass(frozen=True)
class Batch:
    """ids and mask (B, S) int64: right padding."""

    ids: Tensor
    mask: Tensor

    @property
    def inputs(self) -> dict[str, Tensor]:
        """As models take it."""
        return {"input_ids": self.ids, "attention_mask": self.mask}

    def to(self, device: torch.device) -> "Batch":
        """The same there."""
        return Batch(self.ids.to(device), self.mask.to(device))


def tokenised(tokenizer: Any, texts: Iterable[str], seq_len: int, tokens: int) -> list[list[int]]:
    """Ids of pieces until there are so many tokens; fewer where the text ends."""
    found: list[list[int]] = []
    count, block = 0, []
    stream = iter(texts)
    while count < tokens:
        block = [text for _, text in zip(range(256), stream, strict=False)]
        if not block:
            break
        for ids in tokenizer(block, truncation=True, max_length=seq_len, padding=False)["input_ids"]:
            if len(ids) > 1 and count < tokens:
                found.append(ids)
                count += len(ids)
    return found


def refuse_unread(tokenizer: Any, texts: Iterable[str]) -> None:
    """UserError where a tokenizer makes nothing of text, or hardly a known token.

    A folder without a tokenizer is given an empty one of the model's kind, which says nothing.
    """
    few = [text for _, text in zip(range(256), texts, strict=False)]
    ids = [token for row in tokenizer(few, add_special_tokens=False)["input_ids"] for token in row] if few else []
    unknown = sum(token == tokenizer.unk_token_id for token in ids)
    if few and unknown >= MOST_UNKNOWN * len(ids):
        what = f"of {unknown} of {len(ids)} tokens it knows nothing" if ids else "it makes no token of it"
        raise UserError(
            f"distill.tokenizer does not fit the text: {what}. Name the model's own tokenizer, which its folder may "
            "lack."
        )


def refuse_short(found: Sequence[Sequence[int]], tokens: int, key: str) -> None:
    """UserError where pieces hold less than the tokens that were asked for."""
    count = sum(map(len, found))
    if count < tokens:
        raise UserError(f"The text is too short: {key} asks for {tokens:,} tokens, and it has {count:,}; give more.")


def batched(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Numbers of sequences, in batches of about equal lengths: sorted among some thousands, order kept else."""
    span = size * 64
    rows: list[list[int]] = []
    for start in range(0, len(sequences), span):
        near = sorted(range(start, min(len(sequences), start + span)), key=lambda n: len(sequences[n]))
        rows += [near[first : first + size] for first in range(0, len(near), size)]
    return rows


def padded(sequences: Sequence[Sequence[int]], pad: int) -> Batch:
    """One batch."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return Batch(ids, mask)
