"""Documents to ids: held-out split, tokenizer training, chunks for workers. Not for parts, folders or keys."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from cramming.checks import at_home
from cramming.data.config import DataConfig
from cramming.data.normaliser import Dropped
from cramming.data.sources.source import Mended, Reading, Source, digest, documents, fraction
from cramming.data.tokenizer import (
    SEP,
    Encoder,
    letters_per_token,
    load_tokenizer,
    train_tokenizer,
)
from cramming.data.writer import ShardWriter
from cramming.errors import UserError

CHUNK_CHARACTERS = 400_000
PIECE_BYTES = 64 << 20  # of text: what a killed process loses, at most


@dataclass
class Counts:
    """What became of the documents; numbers for the manifest."""

    documents: int = 0
    documents_filtered: int = 0
    documents_held_out: int = 0
    documents_unused: int = 0  # held out beyond data.valid_max_megabytes, or in training files but also held out
    bytes: int = 0  # UTF-8 bytes of the training documents, filtered ones included


@dataclass
class Built:
    """A finished corpus, before its manifest."""

    train: ShardWriter
    valid: ShardWriter
    counts: Counts = field(default_factory=Counts)
    held_out: list[str] = field(default_factory=list)
    dropped: Dropped = field(default_factory=Dropped)
    mended: Mended = field(default_factory=Mended)


@dataclass
class Chunk:
    """Training documents that one call of a worker encodes, and what was read between them.

    Attributes:
        held_out: held-out documents, as far as they may be kept.
        held_out_more: further ones, by number.
        text_bytes: UTF-8 bytes of the training documents.
        state, mended: of the reading, where a piece ends here.
        ends: nothing, "piece" or "part".
    """

    documents: list[str] = field(default_factory=list)
    characters: int = 0
    held_out: list[str] = field(default_factory=list)
    held_out_more: int = 0
    text_bytes: int = 0
    state: Any = None
    mended: Mended | None = None
    ends: str = ""


@dataclass(frozen=True)
class Encoded:
    """Ids of the kept ones of some documents, each ended by <sep>, as bytes."""

    ids: bytes
    kept: int
    filtered: int
    dropped: Dropped


class Split:
    """Which documents are held out: those of the held-out files, or a share by hash."""

    def __init__(self, source: Source, share: float) -> None:
        self.share = share
        stream = source.held_out()
        self.named = None if stream is None else {digest(document) for document in stream}

    def holds_out(self, document: str) -> bool:
        """Whether a document of the training files is kept away from training."""
        identity = digest(document)
        return fraction(identity) < self.share if self.named is None else identity in self.named


def dtype_for(vocab_size: int) -> np.dtype:
    """The smallest type of ids."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


def make_tokenizer(config: DataConfig, source: Source, split: Split) -> Tokenizer:
    """The given tokenizer, or one trained on a fixed sample of the training documents."""
    if config.tokenizer is not None:
        return load_tokenizer(Path(at_home(config.tokenizer, "data.tokenizer")), config.vocab_size)
    megabytes = min(config.tokenizer_megabytes, config.max_megabytes or config.tokenizer_megabytes)
    sample: Iterator[str] = (text for text in documents(source, megabytes) if not split.holds_out(text))
    first = next(sample, None)
    if first is None:
        raise UserError(
            "data: all documents that are read are held out, perhaps as there are few "
            f"({how_documents_end(config)}); give more text, or lower data.valid_share={config.valid_share:g}."
        )
    sample = itertools.chain([first], sample)
    with tqdm(sample, desc="tokenizer", unit=" documents", file=sys.stderr, mininterval=0.5) as bar:
        return train_tokenizer(Dropped().watch(bar, config.normaliser), config.vocab_size, config.normaliser)


def how_documents_end(config: DataConfig) -> str:
    """Where one document ends and the next begins."""
    if config.source == "text":
        return "an empty line ends a document in .txt (lines end in \\n or \\r\\n), a line in .jsonl"
    return "each row is one"


def writers(config: DataConfig, tokenizer: Tokenizer, folder: Path) -> Built:
    """An empty corpus in a folder."""
    dtype, letters = dtype_for(config.vocab_size), letters_per_token(tokenizer)
    train, valid = (ShardWriter(folder, name, config.seq_len, dtype, letters) for name in ("train", "valid"))
    return Built(train, valid)


def chunks(reading: Reading, split: Split, room: float) -> Iterator[Chunk]:
    """All documents of a part from where its reading stands, the last chunk with its end.

    Args:
        room: bytes of held-out text that may be kept; more is not taken out of any piece.
    """
    chunk, piece_bytes, held_bytes = Chunk(), 0, 0
    for document in reading:
        size = len(document.encode())
        if not split.holds_out(document):
            chunk.documents.append(document)
            chunk.characters += len(document)
            chunk.text_bytes += size
        elif split.named is None:
            if held_bytes and held_bytes + size > room:
                chunk.held_out_more += 1
            else:
                chunk.held_out.append(document)
            held_bytes += size
        piece_bytes += size
        if piece_bytes >= PIECE_BYTES:
            chunk.state, chunk.mended, chunk.ends = reading.state(), reading.mended.copy(), "piece"
        if chunk.ends or chunk.characters >= CHUNK_CHARACTERS:
            if chunk.ends:
                piece_bytes = held_bytes = 0
            yield chunk
            chunk = Chunk()
    chunk.state, chunk.mended, chunk.ends = reading.state(), reading.mended.copy(), "part"
    yield chunk


def by_size(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists that a worker encodes at once."""
    waiting: list[str] = []
    size = 0
    for document in documents:
        waiting.append(document)
        size += len(document)
        if size >= CHUNK_CHARACTERS:
            yield waiting
            waiting, size = [], 0
    if waiting:
        yield waiting


class ChunkEncoder:
    """A worker's encoder and filter."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype, max_tokens_per_char: float | None) -> None:
        self.encode = Encoder(tokenizer, dtype)
        self.itemsize = dtype.itemsize
        self.end = np.array([SEP], dtype=dtype).tobytes()
        self.limit = max_tokens_per_char

    def __call__(self, documents: list[str]) -> Encoded:
        """Encode documents; those with too many tokens per character are left out."""
        parts, filtered = [], 0
        self.encode.dropped = Dropped()
        for document in documents:
            ids = self.encode(document)
            tokens = len(ids) // self.itemsize
            if self.limit is not None and tokens >= self.limit * len(document):
                filtered += 1
            else:
                parts += [ids, self.end]
        return Encoded(b"".join(parts), len(parts) // 2, filtered, self.encode.dropped)


# The state of a worker process: setup_encoder fills it once, encode_documents reads it.
WORKER: dict[str, ChunkEncoder] = {}


def setup_encoder(tokenizer_path: str, dtype: str, max_tokens_per_char: float | None) -> None:
    """Load the tokenizer in a worker."""
    WORKER["encoder"] = ChunkEncoder(Tokenizer.from_file(tokenizer_path), np.dtype(dtype), max_tokens_per_char)


def encode_documents(documents: list[str]) -> Encoded:
    """Encode in a worker."""
    return WORKER["encoder"](documents)
