"""Files that are complete or absent: atomic writes, folder commits, hashes, locks. Not for any format."""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cramming.errors import UserError


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` beside `path`, flush it to the disk, then rename it into place. Makes missing parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys; NaN and infinity are refused (ValueError)."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); it was changed after it was written.") from None


def sync_folder(folder: Path) -> None:
    """Flush every file of `folder`, and the folder itself, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def commit_folder(beside: Path, final: Path) -> None:
    """Rename a finished folder into place; an older folder of that name is replaced, and never lost half-way."""
    sync_folder(beside)
    old = final.with_name(f".{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    beside.rename(final)
    shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def short_hash(value: Any, length: int = 8) -> str:
    """First `length` hexadecimal digits of the SHA-256 of a JSON-able value with sorted keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:length]


def is_full_disk(error: BaseException | None) -> bool:
    """Whether an error comes from a full disk or quota, also where a library made its own error of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(f"os error {number}" in str(error) for number in (errno.ENOSPC, errno.EDQUOT)):  # safetensors, in Rust
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def no_space(folder: Path, key: str) -> Iterator[None]:
    """Turn a full disk of `folder`, which the configuration key `key` set, into a UserError."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise UserError(f"The disk of {folder} is full; free some space, or set {key} to another.") from error


@contextmanager
def locked(path: Path, *, wait: bool, busy: str = "") -> Iterator[None]:
    """Hold an exclusive lock on `path` (made if missing). With wait=False a held lock is a UserError saying `busy`.

    The lock dies with its process, so nothing stays locked after a kill -9.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise UserError(busy or f"{path} is locked by another process.") from None
        yield
