"""Source `readymade`: sequences that somebody else tokenised and packed, with their tokenizer. Not for text."""

import json
import sys
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from tqdm import tqdm

from cramming.data.config import DataConfig, HubDataset
from cramming.data.encode import Built, Counts, dtype_for
from cramming.data.sources.hub import hub_version, rows, unreachable
from cramming.data.sources.source import fraction
from cramming.data.tokenizer import SPECIAL_TOKENS, letters_per_token, load_tokenizer, save_tokenizer, template
from cramming.data.writer import ShardWriter
from cramming.errors import UserError

ROWS_PER_WRITE = 1024


def copy_readymade(config: DataConfig, folder: Path, tokenizer_folder: Path) -> tuple[Built, dict[str, Any]]:
    """Write a hub data set's sequences as shards; (corpus, provenance).

    Ids are renumbered where the set's special tokens do not stand at 0 to 6: the authors' order follows a hash seed.
    Sequences are held out by their hash, after renumbering. `counts.bytes` counts packed bytes.
    """
    dataset = config.hub[0]
    tokenizer, renumbered = renumber(fetch_tokenizer(dataset))
    save_tokenizer(tokenizer, tokenizer_folder, config.seq_len)
    load_tokenizer(tokenizer_folder, config.vocab_size)
    dtype = dtype_for(config.vocab_size)
    letters = letters_per_token(tokenizer)
    train, valid = (ShardWriter(folder, name, config.seq_len, dtype, letters) for name in ("train", "valid"))
    built = Built(train, valid, Counts())
    limit = None if config.max_megabytes is None else config.max_megabytes * 1e6
    waiting: list[list[int]] = []
    with tqdm(desc="copy", unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5) as bar:
        for row in rows(dataset):
            waiting.append(row)
            if len(waiting) == ROWS_PER_WRITE:
                bar.update(add_rows(config, built, tokenizer, checked(waiting, config, renumbered, dtype)))
                waiting = []
                if limit is not None and built.counts.bytes >= limit:
                    break
        if waiting:
            add_rows(config, built, tokenizer, checked(waiting, config, renumbered, dtype))
    listed = {"id": dataset.id, "config": dataset.config, "split": dataset.split, "commit": hub_version(dataset)}
    changed = bool((renumbered != np.arange(len(renumbered))).any())
    return built, {"source": "readymade", "datasets": [listed], "ids_renumbered": changed}


def add_rows(config: DataConfig, built: Built, tokenizer: Tokenizer, block: np.ndarray) -> int:
    """Write sequences (n, seq_len) to their split; bytes taken."""
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
    return block.nbytes


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


def fetch_tokenizer(dataset: HubDataset) -> Path:
    """Path of tokenizer/tokenizer.json of the data set on the hub, or in its local folder."""
    name = "tokenizer/tokenizer.json"
    if Path(dataset.id).is_dir():
        if not (Path(dataset.id) / name).is_file():
            raise UserError(f"data.hub: {dataset.id}/{name} is missing.")
        return Path(dataset.id) / name
    try:
        return Path(hf_hub_download(dataset.id, name, repo_type="dataset", revision=dataset.revision))
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
