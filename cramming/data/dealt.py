"""Documents of prepared data dealt to workers, a prepared folder for each: written, checked, read. Not who gets what.

A folder NAME holds worker-0, worker-1, ..., each with the format of `cramming.data.prepare`, its own training tokens
and the validation text of all, and `dealt.json`, which says what they were dealt from, by whom and how.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from cramming.data.shards import MANIFEST, UNIGRAM_COUNTS, PreparedData, fingerprint, open_prepared
from cramming.data.tokenizer import SEP
from cramming.data.writer import ShardWriter
from cramming.errors import UserError
from cramming.files import new_folder, read_json, sha256, short_hash, write_json

DEALT = "dealt.json"
BLOCK_TOKENS = 1 << 20


def blocks(data: PreparedData) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All training sequences (n, S) int64 in order, with the number (n, S) int64 of each token's document.

    A document ends with <sep>, which belongs to it; the last one may be cut.
    """
    step, begun = max(1, BLOCK_TOKENS // data.seq_len), 0
    for first in range(0, len(data.train), step):
        ids = data.train.take(np.arange(first, min(first + step, len(data.train))))
        ends = (ids == SEP).ravel()
        numbers = begun + np.cumsum(ends) - ends
        begun += int(ends.sum())
        yield ids, numbers.reshape(ids.shape)


def check_documents(data: PreparedData) -> None:
    """Refuse tokens in which documents do not follow one another whole (UserError)."""
    if data.manifest["order"] != "random":
        raise UserError(
            f"{data.folder} was prepared with data.order={data.manifest['order']}, which cuts documents apart; prepare "
            "the text with data.order=random."
        )
    if not data.unigram_counts()[SEP]:
        raise UserError(f"{data.folder} has no <sep> where a document ends, as readymade tokens may; prepare text.")


def deal(
    data: PreparedData,
    to: np.ndarray,
    workers: int,
    folder: Path,
    facts: dict[str, Any],
    figures: dict[str, Any] | None = None,
) -> None:
    """Write the folder, complete or absent.

    Args:
        to: (documents,) int, the worker that gets each, from 0 to workers - 1.
        facts: how that was decided, as plain values for `dealt.json` and the manifests.
        figures: what it came to, for `dealt.json` alone.

    Raises:
        UserError: the folder exists, or a worker would get less than one sequence.
    """
    with new_folder(folder) as beside:
        homes = [_home(data, beside / f"worker-{worker}") for worker in range(workers)]
        none = np.zeros(data.vocab_size, np.int64)  # letters are counted for an order that these have not
        writers = [ShardWriter(home, "train", data.seq_len, data.train.dtype, none) for home in homes]
        with tqdm(total=len(data.train) * data.seq_len, desc="deal", unit=" tokens", unit_scale=True) as bar:
            for ids, numbers in blocks(data):
                flat, owner = ids.ravel().astype(data.train.dtype), to[numbers.ravel()]
                for worker, writer in enumerate(writers):
                    writer.write(flat[owner == worker].tobytes())
                bar.update(ids.size)
        prints = []
        for worker, (home, writer) in enumerate(zip(homes, writers, strict=True)):
            writer.close()
            if not writer.sequences:
                raise UserError(f"worker {worker} of {workers} would get less than one sequence; take fewer workers.")
            source = {"dealt_from": data.fingerprint, "worker": worker, "workers": workers, **facts}
            prints.append(_finish(data, home, writer, int((to == worker).sum()), source))
        told = {"dealt_from": data.fingerprint, "fingerprints": prints, **facts, "figures": figures or {}}
        write_json(beside / DEALT, told)


def _home(data: PreparedData, home: Path) -> Path:
    """A worker's folder with all but the training tokens."""
    for name in data.manifest["files"]:
        if not name.startswith("train-") and name != UNIGRAM_COUNTS:
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data.folder / name, home / name)
    return home


def _finish(data: PreparedData, home: Path, writer: ShardWriter, documents: int, source: dict[str, Any]) -> str:
    """Counts and manifest of one worker's folder; returns its fingerprint."""
    np.save(home / UNIGRAM_COUNTS, writer.counts)
    kept = {key: value for key, value in data.manifest["counts"].items() if "valid" in key or "held_out" in key}
    tokens = writer.sequences * data.seq_len
    paths = sorted(path for path in home.rglob("*") if path.is_file())
    manifest = data.manifest | {
        "source": source,
        "shards": data.manifest["shards"] | {"train": writer.shards},
        "counts": kept | {"documents": documents, "train_sequences": writer.sequences, "train_tokens": tokens},
        "files": {
            path.relative_to(home).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths
        },
    }
    found = fingerprint(manifest)
    write_json(home / MANIFEST, manifest | {"fingerprint": found})
    return found


def dealt_fingerprint(folder: Path) -> str:
    """Names what all workers of such a folder read (UserError where it is none)."""
    return short_hash(_facts(folder)["fingerprints"], 16)


def open_dealt(folder: Path, data: PreparedData, worker: int, workers: int, *, trusted: bool = False) -> PreparedData:
    """The data with one worker's training tokens in place of all; validation text and counts stay those of all.

    Args:
        trusted: see `open_prepared`.

    Raises:
        UserError: it is no such folder, is damaged, or was dealt from other data or to another number of workers.
    """
    facts = _facts(folder)
    if facts["dealt_from"] != data.fingerprint:
        raise UserError(
            f"train.documents: {folder} was dealt from data of fingerprint {facts['dealt_from']}, and these are "
            f"{data.fingerprint} ({data.folder}); deal these (scripts/deal.py)."
        )
    if len(facts["fingerprints"]) != workers:
        raise UserError(
            f"train.documents: {folder} was dealt to {len(facts['fingerprints'])} workers, and {workers} are here; "
            "start as many, or deal again (scripts/deal.py --workers)."
        )
    own = open_prepared(folder / f"worker-{worker}", trusted=trusted)
    if own.fingerprint != facts["fingerprints"][worker]:
        raise UserError(f"{own.folder} is not what {folder / DEALT} names; deal again (scripts/deal.py).")
    found = PreparedData(data.folder, data.manifest)
    found.train = own.train
    return found


def _facts(folder: Path) -> dict[str, Any]:
    content = read_json(folder / DEALT) if (folder / DEALT).is_file() else None
    if not isinstance(content, dict) or not {"dealt_from", "fingerprints"} <= content.keys():
        raise UserError(f"train.documents: {folder} is no folder that scripts/deal.py wrote; give one, or null.")
    return content
