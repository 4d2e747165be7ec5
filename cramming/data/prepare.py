"""From a DataConfig to a prepared folder, found again when it exists. Not for how text is read or encoded."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cramming.checks import at_home
from cramming.data.config import DataConfig
from cramming.data.encode import Built, encode_corpus
from cramming.data.outcome import losses, refuse_unusable, remarks
from cramming.data.readymade import copy_readymade
from cramming.data.shards import (
    FORMAT_VERSION,
    HELD_OUT,
    MANIFEST,
    TOKENIZER,
    UNIGRAM_COUNTS,
    PreparedData,
    fingerprint,
    open_prepared,
)
from cramming.data.sources.corpus import TextSource
from cramming.data.sources.docs import DocsSource
from cramming.data.sources.hub import HubSource, local_content
from cramming.data.sources.source import Mended, Source
from cramming.data.tokenizer import load_tokenizer
from cramming.files import commit_folder, no_space, refuse_existing, sha256, short_hash, write_json
from cramming.locks import holder, locked

# Raised when the code makes other tokens from the same text, so that older results are not taken for the same.
PIPELINE_VERSION = 1
COSMETIC = ("examples", "workers")


def prepare(config: DataConfig, output_dir: Path) -> PreparedData:
    """Prepare the data, or find what the same configuration and the same sources made before.

    Several processes may ask for the same: one works, the others wait. An interrupted preparation leaves no result
    and starts anew.

    Raises:
        UserError: sources, tokenizer or disk do not allow it, or an existing result is damaged.
    """
    source = make_source(config)
    final = place(config, output_dir, source)
    if final.is_dir():
        return open_prepared(final)
    with no_space(output_dir, "output_dir"):
        with one_at_a_time(final):
            if not final.is_dir():
                refuse_existing(final)
                make(config, source, final)
        return open_prepared(final)


def place(config: DataConfig, output_dir: Path, source: Source | None = None) -> Path:
    """Where the data of this configuration and of its sources, as they are now, are or will be prepared.

    Args:
        source: the configuration's, where the caller has it already.
    """
    return output_dir / "data" / f"{config.name}-{key(config, source or make_source(config))}"


def make_source(config: DataConfig) -> Source | None:
    """The source that `data.source` names; None for readymade tokens."""
    match config.source:
        case "docs":
            return DocsSource(config.workers)
        case "text":
            return TextSource(config.files, config.valid_files, config.text_field)
        case "hub":
            return HubSource(config.hub)
        case _:
            return None


def key(config: DataConfig, source: Source | None) -> str:
    """Hash of everything that decides the result and can be known without long work."""
    settings = {name: value for name, value in asdict(config).items() if name not in (*COSMETIC, "tokenizer", "name")}
    if source is not None and config.source == "text":
        # The files' names and contents say more than the patterns that found them.
        settings.pop("files")
        settings.pop("valid_files")
    tokenizer = None
    if config.tokenizer is not None:
        folder = Path(at_home(config.tokenizer, "data.tokenizer"))
        load_tokenizer(folder, config.vocab_size)
        tokenizer = sha256(folder / "tokenizer.json")
        settings.pop("normaliser")
    identity = (local_content(config.hub) or None) if source is None else source.identity()
    return short_hash({"version": PIPELINE_VERSION, "settings": settings, "source": identity, "tokenizer": tokenizer})


@contextmanager
def one_at_a_time(final: Path) -> Iterator[None]:
    """Hold the lock of a result; says so when another process has it."""
    lock = final.with_name(f".{final.name}.lock")
    if (other := holder(lock)) is not None:
        print(f"Another process prepares {final}; waiting for it ({other}).", file=sys.stderr)
    with locked(lock, wait=True):
        yield


def make(config: DataConfig, source: Source | None, final: Path) -> None:
    """Write the folder beside its place, check that it is usable, and rename it."""
    beside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        if source is None:
            built, provenance = copy_readymade(config, beside, beside / TOKENIZER)
            mended = Mended()
        else:
            source.check()
            built = encode_corpus(config, source, beside, beside / TOKENIZER)
            provenance, mended = source.provenance(), source.mended
        for writer in (built.train, built.valid):
            writer.close()
        refuse_unusable(config, built)
        if config.order == "length":
            built.train.sort_by_letters()
        finish(config, built, provenance, losses(built, mended), beside)
        commit_folder(beside, final)
        for remark in remarks(config, built, mended):
            print(f"note: {remark}", file=sys.stderr)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def finish(config: DataConfig, built: Built, provenance: dict[str, Any], lost: dict[str, int], folder: Path) -> None:
    """Write counts, held-out text and, last, the manifest of it all."""
    np.save(folder / UNIGRAM_COUNTS, built.train.counts)
    with open(folder / HELD_OUT, "w", encoding="utf-8") as file:
        for document in built.held_out:
            file.write(json.dumps(document, ensure_ascii=False) + "\n")
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    sequences = {"train": built.train.sequences, "valid": built.valid.sequences}
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "pipeline_version": PIPELINE_VERSION,
        "config": {name: value for name, value in asdict(config).items() if name not in COSMETIC},
        "source": provenance,
        "seq_len": config.seq_len,
        "vocab_size": config.vocab_size,
        "dtype": built.train.dtype.name,
        "order": config.order,
        "shards": {"train": built.train.shards, "valid": built.valid.shards},
        "counts": asdict(built.counts)
        | {f"{split}_sequences": number for split, number in sequences.items()}
        | {f"{split}_tokens": number * config.seq_len for split, number in sequences.items()},
        "lost": lost,
        "tokenizer_sha256": sha256(folder / TOKENIZER / "tokenizer.json"),
        "files": {
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
            for path in paths
        },
    }
    write_json(folder / MANIFEST, manifest | {"fingerprint": fingerprint(manifest)})
