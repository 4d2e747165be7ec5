"""From a DataConfig to a prepared folder, found again when it exists. Not for how text is read or encoded."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cramming.checks import at_home
from cramming.data.config import DataConfig
from cramming.data.corpus import TextCorpus
from cramming.data.encode import Built
from cramming.data.outcome import losses, refuse_unusable, remarks
from cramming.data.pieces import Pieces
from cramming.data.readymade import Readymade
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
from cramming.data.sources.source import Source
from cramming.data.stored import check_remote, fetch_prepared, put_prepared
from cramming.data.together import Recipe, abandon, alone, begin, clear, make_together
from cramming.data.tokenizer import load_tokenizer
from cramming.errors import Passing, Stopped, UserError
from cramming.files import (
    commit_folder,
    is_full_disk,
    no_space,
    refuse_existing,
    sha256,
    short_hash,
    write_json,
)

HASHES = ".hashes.json"  # of remote files
# Raised when the code makes other tokens from the same text, so that older results are not taken for the same.
PIPELINE_VERSION = 1
COSMETIC = ("examples", "workers", "verify", "remote")


def prepare(config: DataConfig, output_dir: Path) -> PreparedData:
    """Prepare the data, or find what the same configuration and the same sources made before.

    Several processes, also of several machines that share `output_dir`, may ask for the same: each makes parts of it.
    An interrupted preparation leaves no result, and the next one goes on with the parts that are finished.

    Raises:
        UserError: sources, tokenizer or disk do not allow it, or an existing result is damaged.
    """
    source = make_source(config, output_dir)
    final = place(config, output_dir, source)
    if final.is_dir():
        return open_prepared(final, trusted=not config.verify)
    with no_space(output_dir, "output_dir"):
        if config.remote is None or not fetched(config.remote, final):
            make(config, source, final)
            if config.remote is not None:
                put_prepared(final, config.remote)
        return open_prepared(final)


def fetched(address: str, final: Path) -> bool:
    """Whether the data are here, perhaps fetched now; if not, whether they can be put there later (UserError)."""
    refuse_existing(final)
    with one_at_a_time(final, "fetches"):
        if final.is_dir() or fetch_prepared(address, final):
            return True
    check_remote(address)
    return False


def place(config: DataConfig, output_dir: Path, source: Source | None = None) -> Path:
    """Where the data of this configuration and of its sources, as they are now, are or will be prepared.

    Args:
        source: the configuration's, where the caller has it already.
    """
    return output_dir / "data" / f"{config.name}-{key(config, source or make_source(config, output_dir))}"


def make_source(config: DataConfig, output_dir: Path) -> Source | None:
    """The source that `data.source` names; None for readymade tokens."""
    match config.source:
        case "docs":
            return DocsSource(config.workers)
        case "text":
            return TextSource(config.files, config.valid_files, config.text_field, output_dir / "data" / HASHES)
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


def make(config: DataConfig, source: Source | None, final: Path) -> None:
    """Make the folder together with all others who are at it, from where those ended who were.

    What is finished of it lies in `preparing` until the whole is there. It stays when the work is interrupted, and goes
    when the text or the settings are wrong, or the disk is full.
    """
    refuse_existing(final)
    work = work_folder(final)
    recipe: Recipe = Readymade(config) if source is None else TextCorpus(config, source)
    try:
        begin(recipe, work, final)
        with recipe.working(work / TOKENIZER):
            parts = [Pieces(work / f"part-{number:05d}") for number in range(len(recipe.parts))]
            make_together(parts, lambda number: recipe.make(number, parts[number]), final.is_dir, final)
            with one_at_a_time(final, "puts together"):
                if not final.is_dir():
                    assemble(config, recipe, parts, final)
    except Exception as error:
        if final.is_dir():  # others finished it, and removed its parts from under this process
            return
        if is_full_disk(error) or (isinstance(error, UserError) and not isinstance(error, Passing | Stopped)):
            abandon(work)
        raise
    finally:
        if final.is_dir():
            clear(work)


def work_folder(final: Path) -> Path:
    """Where those who make a prepared folder keep what is finished of it."""
    return final.parent.with_name("preparing") / final.name


def one_at_a_time(final: Path, does: str) -> AbstractContextManager[None]:
    """Hold the lock of a result."""
    return alone(final.with_name(f".{final.name}.lock"), f"{does} {final}")


def assemble(config: DataConfig, recipe: Recipe, parts: Sequence[Pieces], final: Path) -> None:
    """Write the folder beside its place, check that it is usable, and rename it."""
    beside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        built = recipe.assemble(parts, beside)
        provenance = recipe.provenance()
        for writer in (built.train, built.valid):
            writer.close()
        refuse_unusable(config, built)
        if config.order == "length":
            built.train.sort_by_letters()
        finish(config, built, provenance, losses(built), beside)
        commit_folder(beside, final)
        for remark in remarks(config, built):
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
    written = built.train.hashes | built.valid.hashes
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
        "files": {path.relative_to(folder).as_posix(): entry(path, written) for path in paths},
    }
    write_json(folder / MANIFEST, manifest | {"fingerprint": fingerprint(manifest)})


def entry(path: Path, written: Mapping[str, str]) -> dict[str, Any]:
    """A file in the manifest; its hash as it was taken while the file was written, where it was."""
    return {"bytes": path.stat().st_size, "sha256": written.get(path.name) or sha256(path)}
