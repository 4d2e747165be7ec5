"""Source `readymade`: sequences that somebody else tokenised and packed, with their tokenizer. Not for text."""

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from tqdm import tqdm

from cramming.data.config import DataConfig, HubDataset
from cramming.data.corpus import IDS
from cramming.data.encode import PIECE_BYTES, Built, dtype_for, writers
from cramming.data.pieces import Pieces
from cramming.data.shards import TOKENIZER
from cramming.data.sources.hub import UNKNOWN, Rows, listed, settled, unreachable
from cramming.data.sources.source import MOST_PARTS, fraction
from cramming.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, save_tokenizer, template
from cramming.errors import UserError

ROWS_PER_WRITE = 1024


class Readymade:
    """Sequences of a hub data set as a corpus; see `Recipe`.

    Ids are renumbered where the set's special tokens do not stand at 0 to 6: the authors' order follows a hash seed.
    Sequences are held out by their hash, after renumbering. `counts.bytes` counts packed bytes.
    """

    def __init__(self, config: DataConfig) -> None:
        self.config, self.dataset = config, config.hub[0]
        self.dtype = dtype_for(config.vocab_size)
        self.settled: dict[str, Any] = {}
        self.parts: list[Rows] = []

    def check(self) -> None:
        """See Recipe."""
        next(iter(Rows(self.dataset)))

    def settle(self, known: Any) -> Any:
        """See Recipe."""
        self.settled = settled([self.dataset], known)
        commit = self.settled["commits"][0]
        # The first megabytes of all are one part, for what comes after them is not read.
        count = 1 if self.config.max_megabytes is not None else min(self.settled["files"][0], MOST_PARTS)
        self.parts = [Rows(self.dataset, commit, (number, count)) for number in range(count)]
        self.tokenizer, self.renumbered = renumber(fetch_tokenizer(self.dataset, commit))
        return self.settled

    def make_tokenizer(self, folder: Path) -> None:
        """See Recipe."""
        save_tokenizer(self.tokenizer, folder, self.config.seq_len)

    @contextmanager
    def working(self, tokenizer: Path) -> Iterator[None]:
        """See Recipe."""
        load_tokenizer(tokenizer, self.config.vocab_size)
        with tqdm(desc="copy", unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5) as self.bar:
            yield

    def make(self, number: int, pieces: Pieces) -> None:
        """See Recipe."""
        rows, state = self.parts[number].again(), pieces.state()
        if state is not None:
            rows.go_to(state["rows"])
        blocks = self.blocks(rows, 0 if state is None else state["bytes"])
        ends = False
        while not ends:
            with pieces.next_piece() as piece:
                size = 0
                for block, taken, ends in blocks:
                    piece.add(IDS, block)
                    size += len(block)
                    self.bar.update(len(block))
                    if ends or size >= PIECE_BYTES:
                        piece.state = {"rows": rows.state(), "bytes": taken}
                        break

    def blocks(self, rows: Rows, taken: int) -> Iterator[tuple[bytes, int, bool]]:
        """(sequences, bytes taken so far, whether these are the last) of a part, ROWS_PER_WRITE at a time."""
        megabytes = self.config.max_megabytes
        waiting: list[list[int]] = []
        for row in rows:
            waiting.append(row)
            if len(waiting) == ROWS_PER_WRITE:
                block = checked(waiting, self.config, self.renumbered, self.dtype).tobytes()
                taken += len(block)
                waiting = []
                full = megabytes is not None and taken >= megabytes * 1e6
                yield block, taken, full
                if full:
                    return
        rest = checked(waiting, self.config, self.renumbered, self.dtype).tobytes() if waiting else b""
        yield rest, taken + len(rest), True

    def assemble(self, parts: Iterable[Pieces], folder: Path) -> Built:
        """See Recipe."""
        save_tokenizer(self.tokenizer, folder / TOKENIZER, self.config.seq_len)
        built = writers(self.config, self.tokenizer, folder)
        row_bytes = self.config.seq_len * self.dtype.itemsize
        for part in parts:
            for piece in part.read():
                for block in piece.blocks(IDS, ROWS_PER_WRITE * row_bytes):
                    rows = np.frombuffer(block, self.dtype).reshape(-1, self.config.seq_len)
                    add_rows(self.config, built, self.tokenizer, rows)
        return built

    def provenance(self) -> dict[str, Any]:
        """See Recipe."""
        changed = bool((self.renumbered != np.arange(len(self.renumbered))).any())
        return {"source": "readymade", "datasets": listed([self.dataset], self.settled), "ids_renumbered": changed}


def add_rows(config: DataConfig, built: Built, tokenizer: Tokenizer, block: np.ndarray) -> None:
    """Write sequences (n, seq_len) to their split."""
    shares = np.array([fraction(blake2b(row.tobytes(), digest_size=8).digest()) for row in block])
    held_out, counts = block[shares < config.valid_share], built.counts
    room = int(config.valid_max_megabytes * 1e6 / max(1, block[0].nbytes)) - counts.documents_held_out
    kept = held_out[: max(0, room)]
    built.valid.write_rows(kept)
    built.held_out += [tokenizer.decode(row.tolist()) for row in kept]
    counts.documents_held_out += len(kept)
    counts.documents_unused += len(held_out) - len(kept)
    built.train.write_rows(block[shares >= config.valid_share])
    counts.documents += len(block) - len(held_out)
    counts.bytes += block.nbytes


def checked(waiting: list[list[int]], config: DataConfig, renumbered: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Rows as (n, seq_len) renumbered ids; UserError for other lengths or ids outside the vocabulary."""
    for row in waiting:
        if not isinstance(row, list) or len(row) != config.seq_len:
            found = len(row) if isinstance(row, list) else type(row).__name__
            raise UserError(f"data.seq_len is {config.seq_len}, but {config.hub[0].id} has a row of {found} ids.")
    block = np.array(waiting, dtype=np.int64)
    if block.min() < 0 or block.max() >= len(renumbered):
        raise UserError(f"{config.hub[0].id} has id {block.max()} outside of its tokenizer's {len(renumbered)} tokens.")
    return renumbered[block].astype(dtype)


def fetch_tokenizer(dataset: HubDataset, commit: str) -> Path:
    """Path of tokenizer/tokenizer.json of the data set on the hub, or in its local folder."""
    name = "tokenizer/tokenizer.json"
    if Path(dataset.id).is_dir():
        if not (Path(dataset.id) / name).is_file():
            raise UserError(f"data.hub: {dataset.id}/{name} is missing.")
        return Path(dataset.id) / name
    revision = dataset.revision if commit == UNKNOWN else commit
    try:
        return Path(hf_hub_download(dataset.id, name, repo_type="dataset", revision=revision))
    except Exception as error:
        raise unreachable(dataset, error) from error


def renumber(path: Path) -> tuple[Tokenizer, np.ndarray]:
    """(tokenizer with the special tokens at 0 to 6 and our templates, int64 (vocab,) new id of each old id)."""
    content = json.loads(path.read_text("utf-8"))
    vocabulary: dict[str, int] = content["model"]["vocab"]
    if missing := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
        raise UserError(f"{path} has no {', '.join(missing)}; data.source=readymade needs all special tokens.")
    others = sorted((token for token in vocabulary if token not in SPECIAL_TOKENS), key=vocabulary.__getitem__)
    renumbered = np.zeros(len(vocabulary), dtype=np.int64)
    fresh = {token: number for number, token in enumerate([*SPECIAL_TOKENS, *others])}
    for token, number in fresh.items():
        renumbered[vocabulary[token]] = number
    content["model"]["vocab"] = fresh
    content["added_tokens"], content["post_processor"] = [], None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = template()
    return tokenizer, renumbered
