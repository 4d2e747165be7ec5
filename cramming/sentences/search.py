"""Semantic search over local text files: vectors of a file are computed once, and kept by its content. No server."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from cramming.errors import UserError
from cramming.files import check_writable, sha256, short_hash, write_atomic
from cramming.sentences.encoder import SentenceEncoder
from cramming.sentences.texts import WORDS, passages


@dataclass(frozen=True)
class Hit:
    """A passage that was found: cosine to the query, its file, its number in it from 1, and the passage."""

    score: float
    file: Path
    number: int
    text: str


@dataclass(frozen=True)
class Index:
    """Passages of all files, with their vectors (N, H) float32 of length 1."""

    files: list[Path]
    numbers: list[int]
    texts: list[str]
    vectors: np.ndarray

    def search(self, queries: np.ndarray, top: int = 5) -> list[list[Hit]]:
        """The passages that are nearest to each query (Q, H) of length 1, best first; ties in the files' order."""
        scores = queries @ self.vectors.T
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
        return [
            [Hit(float(row[at]), self.files[at], self.numbers[at], self.texts[at]) for at in places]
            for row, places in zip(scores, best, strict=True)
        ]


def build_index(encoder: SentenceEncoder, files: Sequence[Path], folder: Path, batch: int = 32) -> tuple[Index, int]:
    """The index of these files, and how many of them were new: others are read from `folder`, where each is kept.

    A kept file is named by the content of the text and by what its vectors depend on, and is complete or absent:
    whatever is stopped goes on after the last whole file.

    Raises:
        UserError: a text is damaged or has nothing in it, or a kept file is damaged.
    """
    check_writable(folder, "--index")
    key = short_hash({**encoder.identity, "max_length": encoder.max_length, "words": WORDS}, 12)
    kept, new = [], 0
    with tqdm(files, desc="indexing", unit=" files", leave=False) as bar:
        for file in bar:
            place = folder / f"{sha256(file)[:24]}-{key}.safetensors"
            if not place.exists():
                new += 1
                write_part(encoder, file, place, batch)
            kept.append(read_part(place))
    places: list[Path] = []
    numbers: list[int] = []
    texts: list[str] = []
    for file, (found, _) in zip(files, kept, strict=True):
        places += [file] * len(found)
        numbers += range(1, len(found) + 1)
        texts += found
    return Index(places, numbers, texts, np.concatenate([vectors for _, vectors in kept])), new


def write_part(encoder: SentenceEncoder, file: Path, place: Path, batch: int) -> None:
    """Embed the passages of one file, and keep them: texts as UTF-8 with line ends between, vectors float32."""
    texts = list(passages(file))
    if not texts:
        raise UserError(f"{file} is empty; leave it out.")
    content = np.frombuffer("\n".join(texts).encode(), np.uint8)
    write_atomic(place, save({"texts": content, "vectors": encoder.encode(texts, batch, progress=file.name)}))


def read_part(place: Path) -> tuple[list[str], np.ndarray]:
    """What `write_part` kept."""
    try:
        with safe_open(place, "numpy") as part:
            texts, vectors = bytes(part.get_tensor("texts")).decode().split("\n"), part.get_tensor("vectors")
        if len(texts) != len(vectors):
            raise ValueError(f"{len(texts)} texts, {len(vectors)} vectors")
    except (SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{place} is damaged ({error}); remove it, and it is made again.") from None
    return texts, vectors
