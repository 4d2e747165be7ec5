"""One JSON record per run and seed: what ran, on what, with which result. Not for tables, which only read records."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from cramming.errors import UserError
from cramming.files import read_json, short_hash, write_json
from cramming.machine import cpu_name

SCHEMA_VERSION = 1
LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "evaluate", "hydra-core", "numpy")


def write_record(
    results_dir: Path,
    *,
    kind: str,
    name: str,
    status: str,
    config: dict[str, Any],
    seed: int,
    data_fingerprint: str,
    samples: dict[str, int],
    metrics: dict[str, float],
    extra: dict[str, Any] | None = None,
) -> Path:
    """Write `results_dir/runs/<name>.json` atomically and return its path.

    Args:
        kind: "pretrain" or "glue".
        name: unique name of the run; a record of the same name is replaced.
        status: "finished", "diverged" or "failed"; only finished records enter a table's statistics.
        config: the full configuration as plain JSON-able values.
        seed: the run's seed.
        data_fingerprint: fingerprint of the prepared tokens (pretraining) or of the task's examples (GLUE).
        samples: counts, e.g. {"train_tokens": 8388608, "valid_sequences": 512}.
        metrics: results; unit in the name where there is one (`valid_loss` in nats). Never NaN: leave a metric out.
        extra: further plain fields, e.g. {"task": "rte", "pretrain": "quickstart-..."} or {"error": "..."}.
    """
    record = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "name": name,
        "status": status,
        "seed": seed,
        "config": config,
        "data_fingerprint": data_fingerprint,
        "samples": samples,
        "metrics": metrics,
        "git": git_state(),
        "machine": machine(),
        "libraries": library_versions(),
        **(extra or {}),
    }
    path = record_file(results_dir, name)
    write_json(path, record)
    return path


def record_file(results_dir: Path, name: str) -> Path:
    """Where the record of a run is."""
    return results_dir / "runs" / f"{name}.json"


def recognised(results_dir: Path, name: str, content: Mapping[str, str]) -> tuple[str, dict[str, Any] | None]:
    """The name of a run's record, and the record itself where that very run has finished.

    A record of the same name and other content stays as it is: the run then has a name of its own, longer by a hash.

    Args:
        name: what the settings say.
        content: hashes of what the run reads, by the record's keys, e.g. {"data_fingerprint": ...}.

    Raises:
        UserError: a record is damaged, or was changed after it was written.
    """
    for each in (name, f"{name}-{short_hash(dict(content), 6)}"):
        path = record_file(results_dir, each)
        if not path.exists():
            return each, None
        record = read_record(path)
        if all(record.get(key) == value for key, value in content.items()):
            return each, record if record.get("status") == "finished" else None
    raise UserError(f"{path} was changed after it was written: its content is not what its name says; move it away.")


def read_record(path: Path) -> dict[str, Any]:
    """One record; UserError names a damaged or foreign one."""
    record = read_json(path)
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} is not a record of schema version {SCHEMA_VERSION}; move it away or run it again.")
    return record


def read_records(results_dir: Path) -> list[dict[str, Any]]:
    """All records under `results_dir/runs`, sorted by file name; UserError names a damaged or foreign one."""
    return [read_record(path) for path in sorted((results_dir / "runs").glob("*.json"))]


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit hash and whether the tree differs from it, as this process first saw them; None outside a checkout."""
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # Records and tables are written by the runs themselves: they do not make the code that ran another one.
    changes = git("status", "--porcelain", "--", ".", ":!results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def machine() -> dict[str, Any]:
    """Processor, cores, torch threads, memory in GiB, and the accelerator if there is one."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": round(pages / 2**30, 1),
        "gpu": gpu,
        "gpus": torch.cuda.device_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that a result may depend on; missing ones are left out."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
