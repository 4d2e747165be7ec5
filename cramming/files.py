"""Files that are complete or absent: atomic writes, folder commits, hashes. Not for any format, nor locks."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cramming.errors import UserError

PLAIN_NAME = re.compile(r"[^\W_][\w.+=-]*")
# What `write_atomic`, and what `new_folder` and `commit_folder` call what is not finished.
UNFINISHED_FILE = re.compile(r"\..+\.(\d+)\.tmp")
UNFINISHED_FOLDER = re.compile(r"\..+\.[0-9a-f]{8}\.(tmp|old)")
LEFT_AFTER_S = 600
MAX_NAME = 160  # a file's name holds 255 bytes, and a task, a seed and endings are added to it


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


def remove_leftovers(folder: Path, *, alone: bool = False) -> None:
    """Remove what `write_atomic` left in a folder when its process was killed; nothing of a process that may live.

    Args:
        alone: the caller's lock keeps all others from writing here. Whatever is unfinished is then nobody's, and goes:
            also folders, whose names do not tell their process.
    """
    for path in folder.glob(".*"):
        if alone and UNFINISHED_FOLDER.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif found := UNFINISHED_FILE.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):
                # Another machine's process may write here too: a write takes seconds.
                old = time.time() - path.stat().st_mtime > LEFT_AFTER_S
                if path.is_file() and (alone or (old and not Path("/proc", found[1]).exists())):
                    path.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with sorted keys; NaN and infinity are refused (ValueError)."""
    write_atomic(path, json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file; UserError names the file when it is missing or damaged."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except (ValueError, RecursionError) as error:  # also of numbers that are too long, and lists too deep
        raise UserError(f"{path} is not valid JSON ({error}); it was changed after it was written.") from None


def check_writable(folder: Path, key: str, name: str = "") -> None:
    """Make a folder, and a file in it for a moment: what the system refuses must show before long work.

    Args:
        key: what gave the folder, for the message.
        name: of the file that will be written there; it may be too long.

    Raises:
        OSError: naming folder and key, or the folder above it that cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}."):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{key}: {folder / name}") from None


def sync_folder(folder: Path) -> None:
    """Flush every file of `folder`, and the folder itself, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def new_folder(final: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder of its own beside `final`, to be filled: at the end it is flushed to the disk and renamed to `final`.

    What the block raises leaves no trace. Folders and files get the modes that the umask gives, whatever wrote them.

    Args:
        replace: whether `final` may exist, and is then replaced as a whole. Only for a folder that is the caller's own.

    Raises:
        UserError: something is at `final` already, other than an empty folder.
    """
    if not replace:
        refuse_existing(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    beside = _beside(final, "tmp")
    beside.mkdir()
    try:
        yield beside
        mode = beside.stat().st_mode & 0o666
        for path in beside.rglob("*"):
            if path.is_file():  # some libraries write through temporary files, which are readable to their owner alone
                path.chmod(mode)
        if not replace:
            refuse_existing(final)
        commit_folder(beside, final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def refuse_existing(final: Path) -> None:
    """UserError when something is at `final` already, other than an empty folder."""
    if os.path.lexists(final) and (final.is_symlink() or not final.is_dir() or any(final.iterdir())):
        raise UserError(f"{final} exists, and nothing is written over it; name another folder, or move it away.")


def commit_folder(beside: Path, final: Path) -> None:
    """Rename a finished folder into place; an older folder of that name is replaced, and never lost half-way."""
    sync_folder(beside)
    if not final.exists():
        beside.rename(final)
        return
    old = _beside(final, "old")
    final.rename(old)
    try:
        beside.rename(final)
    except OSError:
        old.rename(final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, what: str) -> Path:
    """A name beside `path` that nobody else has, so that nothing but the caller's own is ever removed under it."""
    return path.with_name(f".{path.name}.{os.urandom(4).hex()}.{what}")


def checked_name(name: Any, where: Any, most: int = MAX_NAME) -> str:
    """A name that was read from a file, fit to be one part of a path.

    Args:
        name: letters, digits and . _ + = -, a letter or digit first.
        where: file and key that it stands in, for the message.
        most: bytes of the name.

    Raises:
        UserError: it is anything else.
    """
    if not isinstance(name, str) or not PLAIN_NAME.fullmatch(name) or len(name.encode()) > most:
        raise UserError(
            f"{where}: {str(name)[:60]!r} cannot name files; give letters, digits and . _ + = - "
            f"alone, {most} bytes at most."
        )
    return name


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
    except UserError:  # somebody inside knows better which disk it is
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise UserError(f"The disk of {folder} is full; free some space, or set {key} to another.") from error
