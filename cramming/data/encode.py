"""Documents to packed ids: held-out split, tokenizer training, encoding in workers. Not for folders or keys."""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from cramming.checks import at_home
from cramming.data.config import DataConfig
from cramming.data.normaliser import Dropped
from cramming.data.sources.source import Mended, Source, digest, fraction
from cramming.data.tokenizer import (
    SEP,
    Encoder,
    letters_per_token,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from cramming.data.workers import in_order, worker_count, worker_pool
from cramming.data.writer import ShardWriter
from cramming.errors import UserError

CHUNK_CHARACTERS = 400_000


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
    counts: Counts
    held_out: list[str] = field(default_factory=list)
    dropped: Dropped = field(default_factory=Dropped)


@dataclass(frozen=True)
class Chunk:
    """Documents that one call of a worker encodes."""

    held_out: bool
    documents: list[str]


@dataclass(frozen=True)
class EncodedChunk:
    """Ids of the kept documents, each ended by <sep>, as bytes."""

    held_out: bool
    ids: bytes
    kept: int
    filtered: int
    text_bytes: int
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
    sample: Iterator[str] = (text for text in source.documents(megabytes) if not split.holds_out(text))
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


def encode_corpus(config: DataConfig, source: Source, folder: Path, tokenizer_folder: Path) -> Built:
    """Write tokenizer and shards of a source of text into `folder`."""
    split = Split(source, config.valid_share)
    tokenizer = make_tokenizer(config, source, split)
    save_tokenizer(tokenizer, tokenizer_folder, config.seq_len)
    dtype = dtype_for(config.vocab_size)
    letters = letters_per_token(tokenizer)
    train, valid = (ShardWriter(folder, name, config.seq_len, dtype, letters) for name in ("train", "valid"))
    built = Built(train, valid, Counts())
    source.mended = Mended()  # of this reading alone
    workers = worker_count(config.workers)
    arguments = (str(tokenizer_folder / "tokenizer.json"), dtype.name, config.max_tokens_per_char)
    with progress(source.total()) as bar, worker_pool(workers, setup_encoder, arguments) as pool:
        text_bytes = 0
        for encoded in in_order(pool, encode_chunk, chunks(config, source, split, built, bar), 3 * workers):
            (valid if encoded.held_out else train).write(encoded.ids)
            built.counts.documents_filtered += encoded.filtered
            built.dropped.letters += encoded.dropped.letters
            built.dropped.letters_dropped += encoded.dropped.letters_dropped
            built.counts.documents += 0 if encoded.held_out else encoded.kept
            text_bytes += encoded.text_bytes
            elapsed = max(1e-9, bar.format_dict["elapsed"])
            bar.set_postfix_str(
                f"{text_bytes / 1e6:.0f} MB of text, {text_bytes / 1e6 / elapsed:.1f} MB/s", refresh=False
            )
    return built


def progress(total: int | None) -> tqdm:
    """A bar over the bytes of the files."""
    return tqdm(desc="encode", total=total, unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5)


def chunks(config: DataConfig, source: Source, split: Split, built: Built, bar: tqdm) -> Iterator[Chunk]:
    """All documents in order, the held-out ones in chunks of their own; counts them on the way."""
    room = config.valid_max_megabytes * 1e6
    waiting: dict[bool, list[str]] = {False: [], True: []}
    size = {False: 0, True: 0}
    for held_out, document in documents(config, source, split, bar):
        length = len(document.encode())
        if held_out:
            if (room := room - length) < 0 and built.held_out:
                built.counts.documents_unused += 1
                continue
            built.counts.documents_held_out += 1
            built.held_out.append(document)
        else:
            built.counts.bytes += length
        waiting[held_out].append(document)
        size[held_out] += len(document)
        if size[held_out] >= CHUNK_CHARACTERS:
            yield Chunk(held_out, waiting[held_out])
            waiting[held_out], size[held_out] = [], 0
    for held_out, rest in waiting.items():
        if rest:
            yield Chunk(held_out, rest)


def documents(config: DataConfig, source: Source, split: Split, bar: tqdm) -> Iterator[tuple[bool, str]]:
    """(held out, document) in a fixed order: the held-out files first, where there are some."""
    for document in source.held_out() or ():
        yield True, document
    for document in source.documents(config.max_megabytes, bar.update):
        held_out = split.holds_out(document)
        if not (held_out and split.named is not None):
            yield held_out, document


class ChunkEncoder:
    """A worker's encoder and filter."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype, max_tokens_per_char: float | None) -> None:
        self.encode = Encoder(tokenizer, dtype)
        self.itemsize = dtype.itemsize
        self.end = np.array([SEP], dtype=dtype).tobytes()
        self.limit = max_tokens_per_char

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """Encode a chunk; documents with too many tokens per character are left out."""
        parts, filtered = [], 0
        self.encode.dropped = Dropped()
        for document in chunk.documents:
            ids = self.encode(document)
            tokens = len(ids) // self.itemsize
            if self.limit is not None and tokens >= self.limit * len(document):
                filtered += 1
            else:
                parts += [ids, self.end]
        text_bytes = sum(len(document.encode()) for document in chunk.documents)
        kept = len(parts) // 2
        return EncodedChunk(chunk.held_out, b"".join(parts), kept, filtered, text_bytes, self.encode.dropped)


# The state of a worker process: setup_encoder fills it once, encode_chunk reads it.
WORKER: dict[str, ChunkEncoder] = {}


def setup_encoder(tokenizer_path: str, dtype: str, max_tokens_per_char: float | None) -> None:
    """Load the tokenizer in a worker."""
    WORKER["encoder"] = ChunkEncoder(Tokenizer.from_file(tokenizer_path), np.dtype(dtype), max_tokens_per_char)


def encode_chunk(chunk: Chunk) -> EncodedChunk:
    """Encode in a worker."""
    return WORKER["encoder"](chunk)
