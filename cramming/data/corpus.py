"""A corpus out of a source of text: parts encoded into pieces, pieces put together. Not who makes which part."""

import json
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm

from cramming.data.config import DataConfig
from cramming.data.encode import (
    Built,
    Chunk,
    Encoded,
    Split,
    by_size,
    chunks,
    dtype_for,
    encode_documents,
    make_tokenizer,
    setup_encoder,
    writers,
)
from cramming.data.normaliser import Dropped
from cramming.data.pieces import Piece, Pieces
from cramming.data.shards import TOKENIZER
from cramming.data.sources.source import Mended, Part, Source
from cramming.data.tokenizer import load_tokenizer, save_tokenizer
from cramming.data.workers import in_order, worker_count, worker_pool

IDS, HELD_OUT = "ids.bin", "held_out.jsonl"
BLOCK_BYTES = 8 << 20


class TextCorpus:
    """What becomes of a source's documents; see `Recipe`."""

    def __init__(self, config: DataConfig, source: Source) -> None:
        self.config, self.source = config, source
        self.parts: Sequence[Part] = ()
        self.tokenizer: Tokenizer | None = None
        self.workers = worker_count(config.workers)
        self.text_bytes = 0  # encoded by this process

    def check(self) -> None:
        """See Recipe."""
        self.source.check()

    def settle(self, known: Any) -> Any:
        """See Recipe."""
        found = self.source.settle(known)
        self.parts = self.source.parts(self.config.max_megabytes)
        self.split = Split(self.source, self.config.valid_share)
        return found

    def make_tokenizer(self, folder: Path) -> None:
        """See Recipe."""
        save_tokenizer(make_tokenizer(self.config, self.source, self.split), folder, self.config.seq_len)

    @contextmanager
    def working(self, tokenizer: Path) -> Iterator[None]:
        """See Recipe."""
        self.tokenizer = load_tokenizer(tokenizer, self.config.vocab_size)
        dtype = dtype_for(self.config.vocab_size).name
        arguments = (str(tokenizer / "tokenizer.json"), dtype, self.config.max_tokens_per_char)
        with progress(self.source.total()) as self.bar, worker_pool(self.workers, setup_encoder, arguments) as pool:
            self.pool: Executor = pool
            yield

    def make(self, number: int, pieces: Pieces) -> None:
        """See Recipe."""
        reading = self.parts[number].read(pieces.state(), self.bar.update)
        under_way: deque[Chunk] = deque()
        found = chunks(reading, self.split, self.config.valid_max_megabytes * 1e6)
        encoded = self.encoded(self.followed(found, under_way))
        before, ends = Mended(), ""
        while ends != "part":
            with pieces.next_piece() as piece:
                for result in encoded:
                    chunk = under_way.popleft()
                    fill(piece, chunk, result)
                    self.show(chunk.text_bytes)
                    if ends := chunk.ends:
                        assert chunk.mended is not None
                        piece.state = chunk.state
                        piece.counts.update(asdict(chunk.mended))
                        piece.counts.subtract(asdict(before))
                        before = chunk.mended
                        break

    def show(self, text_bytes: int) -> None:
        """Tell in the bar of some more text."""
        self.text_bytes += text_bytes
        text, elapsed = self.text_bytes / 1e6, max(1e-9, self.bar.format_dict["elapsed"])
        self.bar.set_postfix_str(f"{text:.0f} MB of text, {text / elapsed:.1f} MB/s", refresh=False)

    def followed(self, found: Iterable[Chunk], under_way: deque[Chunk]) -> Iterator[list[str]]:
        """The chunks' documents, while the chunks themselves wait for their ids."""
        for chunk in found:
            under_way.append(chunk)
            yield chunk.documents

    def encoded(self, documents: Iterable[list[str]]) -> Iterator[Encoded]:
        """Documents encoded in the workers, in order."""
        return in_order(self.pool, encode_documents, documents, 3 * self.workers)

    def assemble(self, parts: Iterable[Pieces], folder: Path) -> Built:
        """See Recipe."""
        assert self.tokenizer is not None
        save_tokenizer(self.tokenizer, folder / TOKENIZER, self.config.seq_len)
        built = writers(self.config, self.tokenizer, folder)
        kept = Kept(self.config.valid_max_megabytes * 1e6, built)
        kept.take(self.source.held_out(built.mended) or ())
        for part in parts:
            for piece in part.read():
                for block in piece.blocks(IDS, BLOCK_BYTES):
                    built.train.write(block)
                add_counts(built, piece.counts)
                lines = b"".join(piece.blocks(HELD_OUT, BLOCK_BYTES)).splitlines()
                kept.take(json.loads(line) for line in lines)
                built.counts.documents_unused += piece.counts.get("held_out_more", 0)
        for result in self.encoded(by_size(built.held_out)):
            built.valid.write(result.ids)
            built.counts.documents_filtered += result.filtered
            add_dropped(built.dropped, result.dropped)
        return built

    def provenance(self) -> dict[str, Any]:
        """See Recipe."""
        return self.source.provenance()


class Kept:
    """The first held-out documents, as far as there is room, and at least one; the others are counted."""

    def __init__(self, room: float, built: Built) -> None:
        self.room, self.built = room, built

    def take(self, documents: Iterable[str]) -> None:
        """Take the next documents."""
        counts, held_out = self.built.counts, self.built.held_out
        for document in documents:
            self.room -= len(document.encode())
            if self.room < 0 and held_out:
                counts.documents_unused += 1
            else:
                counts.documents_held_out += 1
                held_out.append(document)


def fill(piece: Piece, chunk: Chunk, encoded: Encoded) -> None:
    """Add a chunk and its ids to a piece."""
    if encoded.ids:
        piece.add(IDS, encoded.ids)
    if chunk.held_out:
        piece.add(HELD_OUT, "".join(json.dumps(document) + "\n" for document in chunk.held_out).encode())
    piece.counts.update(
        documents=encoded.kept,
        documents_filtered=encoded.filtered,
        bytes=chunk.text_bytes,
        held_out_more=chunk.held_out_more,
        **asdict(encoded.dropped),
    )


def add_counts(built: Built, counts: Any) -> None:
    """Add a piece's counts to the corpus's."""
    for target in (built.counts, built.dropped, built.mended):
        for name in vars(target):
            setattr(target, name, getattr(target, name) + counts.get(name, 0))


def add_dropped(total: Dropped, more: Dropped) -> None:
    """Add what was dropped."""
    total.letters += more.letters
    total.letters_dropped += more.letters_dropped


def progress(total: int | None) -> tqdm:
    """A bar over the bytes that this process reads."""
    return tqdm(desc="encode", total=total, unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5)
