"""Prepared data as training reads it: memory-mapped token sequences behind a checked manifest. Not for making them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from cramming.errors import UserError
from cramming.files import read_json, sha256, short_hash

MANIFEST = "manifest.json"
UNIGRAM_COUNTS = "unigram_counts.npy"
HELD_OUT = "held_out.jsonl"
TOKENIZER = "tokenizer"
FORMAT_VERSION = 1


class TokenShards:
    """Sequences of `seq_len` token ids in memory-mapped files, numbered through all of them."""

    def __init__(self, paths: list[Path], sequences: list[int], seq_len: int, dtype: np.dtype) -> None:
        self.paths, self.seq_len, self.dtype = paths, seq_len, dtype
        self.starts = np.concatenate([[0], np.cumsum(sequences)]).astype(np.int64)
        self._maps: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Number of sequences."""
        return int(self.starts[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": {}}

    def take(self, indices: np.ndarray) -> np.ndarray:
        """(n, seq_len) int64 of the sequences numbered `indices` (n,), in any order; IndexError outside [0, len)."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"sequence numbers must lie in [0, {len(self)}).")
        found = np.empty((len(indices), self.seq_len), dtype=np.int64)
        shards = np.searchsorted(self.starts, indices, side="right") - 1
        for shard in np.unique(shards):
            here = shards == shard
            found[here] = self._map(int(shard))[indices[here] - self.starts[shard]]
        return found

    def _map(self, shard: int) -> np.ndarray:
        if shard not in self._maps:
            self._maps[shard] = np.memmap(self.paths[shard], self.dtype, mode="r").reshape(-1, self.seq_len)
        return self._maps[shard]


class PreparedData:
    """One prepared folder: tokens, tokenizer, counts and held-out text."""

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.fingerprint: str = manifest["fingerprint"]
        self.seq_len: int = manifest["seq_len"]
        self.vocab_size: int = manifest["vocab_size"]
        self.train = self._shards("train")
        self.valid = self._shards("valid")

    def _shards(self, split: str) -> TokenShards:
        listed = self.manifest["shards"][split]
        paths = [self.folder / item["file"] for item in listed]
        sequences = [item["sequences"] for item in listed]
        return TokenShards(paths, sequences, self.seq_len, np.dtype(self.manifest["dtype"]))

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer that made the tokens."""
        return PreTrainedTokenizerFast.from_pretrained(str(self.folder / TOKENIZER), trust_remote_code=False)

    def token_id(self, token: str) -> int:
        """Id of a special token."""
        return int(self.tokenizer().get_vocab()[token])

    def unigram_counts(self) -> np.ndarray:
        """int64 (vocab_size,): how often each id occurs in the training tokens."""
        return np.load(self.folder / UNIGRAM_COUNTS)

    def held_out_documents(self) -> list[str]:
        """Raw text of held-out documents, none of which is in the training tokens; a bounded number."""
        with open(self.folder / HELD_OUT, encoding="utf-8") as file:
            return [json.loads(line) for line in file]


def fingerprint(manifest: dict[str, Any]) -> str:
    """Hash of all that decides a run's tokens: contents and their sources, but no paths, times or library versions."""
    # tokenizer_config.json names the library version that wrote it.
    files = {
        name: entry["sha256"] for name, entry in manifest["files"].items() if not name.endswith("tokenizer_config.json")
    }
    source = {name: value for name, value in manifest["source"].items() if name != "environment"}
    parts = {part: manifest[part] for part in ("format_version", "seq_len", "vocab_size", "order", "shards", "counts")}
    return short_hash({"files": files, "source": source, **parts}, 16)


def find_prepared(output_dir: Path, wanted: str) -> Path | None:
    """The folder of prepared data with the fingerprint `wanted`, whatever its sources are now; None if none has it.

    For what has begun with data and goes on: resuming a run, evaluating it. `open_prepared` then checks the content.
    """
    for manifest in sorted((output_dir / "data").glob(f"*/{MANIFEST}")):
        try:
            found = read_json(manifest)
        except UserError:  # damaged: told where it is asked for by its settings
            continue
        if isinstance(found, dict) and found.get("fingerprint") == wanted:
            return manifest.parent
    return None


def open_prepared(folder: Path, *, trusted: bool = False) -> PreparedData:
    """Open a prepared folder after checking every file's size and hash against the manifest.

    Args:
        trusted: leave out the hashes, which means to read all of the data: another process of the same run has just
            checked them, or the user verifies on demand.

    Raises:
        UserError: naming the file that is missing or damaged.
    """
    mend = f"remove {folder} and prepare again."
    manifest = checked_manifest(read_json(folder / MANIFEST), folder / MANIFEST, mend)
    sizes = {name: entry["bytes"] for name, entry in manifest["files"].items()}
    for name, size in sizes.items():
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            what = "missing" if found is None else f"damaged: {found} bytes where the manifest says {size}"
            raise UserError(f"{path} is {what}; {mend}")
    for name, entry in ({} if trusted else manifest["files"]).items():
        if sha256(folder / name) != entry["sha256"]:
            raise UserError(f"{folder / name} is damaged: its hash is not the manifest's; {mend}")
    return PreparedData(folder, manifest)


def checked_manifest(content: Any, path: Any, mend: str) -> dict[str, Any]:
    """A manifest's content if it is one, as it was written (UserError).

    Args:
        path: where it was read, for the message.
        mend: what helps.
    """
    if not isinstance(content, dict) or content.get("format_version") != FORMAT_VERSION:
        raise UserError(f"{path} is not a manifest of format {FORMAT_VERSION}; {mend}")
    try:
        fits = fingerprint(content) == content["fingerprint"]
    except (KeyError, TypeError, AttributeError):
        fits = False
    if not fits:
        raise UserError(f"{path} was changed: its fingerprint does not fit its content; {mend}")
    return content
