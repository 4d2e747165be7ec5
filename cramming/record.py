"""One JSON record per run and seed: what ran, on what, with which result. Not for tables, which only read records."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from cramming.errors import UserError
from cramming.files import checked_name, read_json, remove_leftovers, short_hash, write_json
from cramming.provenance import git_state, library_versions, machine

Record = dict[str, Any]

SCHEMA_VERSION = 1
MAX_RECORD = 220  # bytes of a record's name: a run's, with a task, seeds and hashes around it
# Fields that every record has, and those that one may have.
FIELDS: dict[str, type] = {"kind": str, "name": str, "status": str, "seed": int, "config": dict, "metrics": dict}
FIELDS |= {"samples": dict, "data_fingerprint": str, "experiment": str, "ffn": str, "group": str, "curve": list}
OPTIONAL = ("samples", "data_fingerprint", "experiment", "ffn", "group", "curve")
NOUNS = {str: "text", int: "a whole number", dict: "a table", list: "a list"}
# What a run reads beside its data, by kind: a record with another one is of another run.
OF_CONTENT = {"glue": ("weights_sha256",), "distill": ("teacher",)}


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
    processes: int = 1,
    provider: str | None = None,
    extra: dict[str, Any] | None = None,
) -> Record:
    """Write `results_dir/runs/<name>.json` atomically and return what it holds.

    Nothing finished is written over by another result: where the name belongs to one, the record gets a longer name.
    A metric that is no finite number is written in words, and the run is then not finished but diverged.

    Args:
        kind: "pretrain", "glue", "images" or "distill".
        name: unique name of the run; its own record is replaced.
        status: "finished", "diverged" or "failed"; only finished records enter a table's statistics.
        config: the full configuration as JSON-able values, without paths of this machine (see `private`).
        seed: the run's seed.
        data_fingerprint: fingerprint of the prepared tokens (pretraining) or of the task's examples (GLUE).
        samples: counts, e.g. {"train_tokens": 8388608, "valid_sequences": 512}.
        metrics: results; unit in the name where there is one (`valid_loss` in nats).
        processes: how many trained together.
        provider: who computed the FFF layers (see fff.kernels); None where there are none.
        extra: further JSON-able fields, e.g. {"task": "rte", "pretrain": "quickstart-..."} or {"error": "..."}.

    Raises:
        UserError: the name cannot name a file, or a record that is there is damaged.
    """
    status, extra = settled(status, metrics, extra or {})
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
        "machine": machine() | {"processes": processes},
        "libraries": library_versions(),
        **({"provider": provider} if provider else {}),
        **extra,
    }
    record = in_words(record | {"name": free_name(results_dir, record)})
    write_json(record_file(results_dir, record["name"]), record)
    remove_leftovers(results_dir / "runs")
    return record


def free_name(results_dir: Path, record: Record) -> str:
    """A record's name, made longer where a finished one of another result has it, or one that this has not reached."""
    content = {key: record[key] for key in ("data_fingerprint", *OF_CONTENT.get(record["kind"], ())) if key in record}
    name, finished = recognised(results_dir, record["name"], content)
    return name if finished is None or record["status"] == "finished" else f"{name}-{record['status']}"


def settled(status: str, metrics: Mapping[str, float], extra: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Status and further fields as they may be recorded: diverged where a number is none, no folders in an error."""
    extra = dict(extra)
    odd = [f"{key} is {value}" for key, value in metrics.items() if not math.isfinite(value)]
    if odd and status == "finished":
        status = "diverged"
        extra.setdefault("error", ", ".join(odd))
    if "error" in extra:
        extra["error"] = without_folders(extra["error"])
    return status, extra


def refuse_unfinished(record: Record, *, mend: str) -> None:
    """UserError where a run has ended without results: how, why, and the mend."""
    if record["status"] != "finished":
        reason = record.get("error")
        raise UserError(f"{record['name']} is {record['status']}{f' ({reason})' if reason else ''}; {mend}")


def computed_by(model: nn.Module) -> frozenset[str]:
    """Names of the providers that a model's layers have computed with (see fff.kernels); of those that can tell."""
    found = (getattr(layer, "computed_by", ()) for layer in model.modules())
    return frozenset(name for names in found for name in names)


def in_one_word(providers: Iterable[str]) -> str | None:
    """Providers as `write_record` takes them; None where no layer asked one."""
    return " + ".join(sorted(providers)) or None


def in_words(value: Any) -> Any:
    """JSON-able values with "nan", "inf" and "-inf" for the floats that JSON has no word for."""
    if isinstance(value, dict):
        return {key: in_words(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [in_words(each) for each in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def private(path: str) -> str:
    """A path as it may be published: as it is within the working folder, else its base name and a digest of it all."""
    pure = PurePath(path)
    if not (pure.is_absolute() or path.startswith(("~", "file:")) or ".." in pure.parts):
        return path
    return f"{pure.name or 'root'}@{short_hash(path)}"


def without_folders(text: str) -> str:
    """A message without the folders of the absolute paths in it."""
    return re.sub(r"(?<![\w.:/])~?/(?:[^\s/'\"]+/)*(?=[^\s/'\"])", "", text)


def record_file(results_dir: Path, name: str) -> Path:
    """Where the record of a run is; UserError for a name that is no plain part of a path."""
    return results_dir / "runs" / f"{checked_name(name, 'a record', MAX_RECORD)}.json"


def recognised(results_dir: Path, name: str, content: Mapping[str, str]) -> tuple[str, Record | None]:
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
            return each, record if record["status"] == "finished" else None
    raise UserError(f"{path} was changed after it was written: its content is not what its name says; move it away.")


def read_record(path: Path) -> Record:
    """One record; UserError names a file that is damaged, of another schema, or lacks what every record has."""
    record = read_json(path)
    if not isinstance(record, dict) or record.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} is not a record of schema version {SCHEMA_VERSION}; move it away or run it again.")
    for key, kind in FIELDS.items():
        if key not in record and key in OPTIONAL:
            continue
        if not isinstance(record.get(key), kind):
            found = f"has {key}={record[key]!r:.60}" if key in record else f"has no {key}"
            raise UserError(f"{path} {found} where a record has {NOUNS[kind]}; move it away or run it again.")
    for part in ("metrics", "samples"):
        for key, value in record.get(part, {}).items():
            if value not in ("nan", "inf", "-inf") and type(value) not in (int, float):
                raise UserError(f"{path} has {part}.{key}={value!r:.60}, which is no number; move it away.")
    return record


def read_records(results_dir: Path) -> list[Record]:
    """All records under `results_dir/runs`, sorted by file name; UserError names a damaged, foreign or doubled one."""
    records: dict[str, Record] = {}
    files: dict[str, Path] = {}
    for path in sorted((results_dir / "runs").glob("[!.]*.json")):
        record = read_record(path)
        name = record["name"]
        if name in records:
            raise UserError(f"{path} and {files[name]} are both named {name}; move one of them away.")
        records[name], files[name] = record, path
    return list(records.values())
