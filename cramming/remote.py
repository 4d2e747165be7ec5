"""Files by address, such as s3://bucket/a.txt, through fsspec: found, opened, copied. Not what stands in them.

The one door to fsspec. Whatever a store's own library raises leaves here as one UserError that names the address.
"""

import hashlib
import io
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import fsspec
import fsspec.config
from fsspec.core import url_to_fs

from cramming.errors import Passing, UserError, one_line
from cramming.files import sha256

ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
SECRET = re.compile(r"[a-z0-9+.-]+://[^/]*@", re.IGNORECASE)
PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
}
FLAT = (*PACKAGES, "hf")  # have no folders: what a mistyped name would make is a bucket
COPY_BYTES = 8 << 20
# s3fs asks five times and waits 15 s for each answer; botocore beneath it would ask five times for each of those.
ONCE = {"config_kwargs": {"retries": {"max_attempts": 0}}}


def is_remote(place: str) -> bool:
    """Whether a path is an address: it begins with a protocol, as s3:// does."""
    return ADDRESS.match(place) is not None


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address, with as much of a Path's manners as its readers need.

    Attributes:
        address: with protocol.
        key: configuration key that named it, for messages.
    """

    address: str
    key: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        """Its last part."""
        return PurePosixPath(self.address).name

    @property
    def suffix(self) -> str:
        """Ending of the name."""
        return PurePosixPath(self.address).suffix

    @property
    def suffixes(self) -> list[str]:
        """Endings of the name."""
        return PurePosixPath(self.address).suffixes

    def resolve(self) -> str:
        """What two names of one file share."""
        return self.address


AnyFile = Path | RemoteFile


def opened(file: AnyFile) -> IO[bytes]:
    """A file for reading bytes, a context. Raises OSError (local) or UserError (remote), also while it is read."""
    if isinstance(file, Path):
        return open(file, "rb")
    with told(file.address, file.key):
        files, path = store(file.address, file.key)
        return Guarded(files.open(path, "rb"), file)  # type: ignore[return-value]


def size_of(file: AnyFile) -> int:
    """Bytes of a file where it lies."""
    if isinstance(file, Path):
        return file.stat().st_size
    with told(file.address, file.key):
        files, path = store(file.address, file.key)
        return int(files.info(path)["size"])


def mark_of(file: RemoteFile) -> str:
    """What the store says of a file's version (ETag, time, size): another one where it may have been written anew."""
    with told(file.address, file.key):
        files, path = store(file.address, file.key)
        files.invalidate_cache()
        return str(files.ukey(path))


def hash_of(file: AnyFile) -> str:
    """Hexadecimal SHA-256 of a file's content; a remote one is read as a whole."""
    if isinstance(file, Path):
        return sha256(file)
    with opened(file) as content:
        return hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]


def matches(pattern: str, key: str) -> list[RemoteFile]:
    """Files that an address with * and ** matches, in the order in which local ones come."""
    with told(pattern, key):
        files, path = store(pattern, key)
        found = files.glob(path, detail=True)
        names = sorted((name for name, info in found.items() if info["type"] == "file"), key=PurePosixPath)
        return [RemoteFile(str(files.unstrip_protocol(name)), key) for name in names]


def exists(address: str, key: str) -> bool:
    """Whether a file is at an address."""
    with told(address, key):
        files, path = store(address, key)
        files.invalidate_cache()
        try:
            return bool(files.info(path)["type"] == "file")
        except (FileNotFoundError, NotADirectoryError):  # all else is no answer
            return False


def fetch(address: str, to: Path, key: str) -> None:
    """Copy a remote file into a new local one."""
    with opened(RemoteFile(address, key)) as source, open(to, "wb") as copy:
        shutil.copyfileobj(source, copy, COPY_BYTES)


def content(address: str, key: str) -> bytes:
    """All bytes of a small remote file."""
    with opened(RemoteFile(address, key)) as file:
        return file.read()


def put(source: Path, address: str, key: str) -> None:
    """Copy a local file to an address. Stores show it when it is complete, and replace what was there."""
    with told(address, key):
        files, path = with_folder(address, key)
        files.put_file(str(source), path)


def write(data: bytes, address: str, key: str) -> None:
    """Write a small file at an address."""
    with told(address, key):
        files, path = with_folder(address, key)
        files.pipe_file(path, data)


def remove(address: str, key: str) -> None:
    """Remove a file at an address."""
    with told(address, key):
        files, path = store(address, key)
        files.rm_file(path)


def with_folder(address: str, key: str) -> tuple[Any, str]:
    """`store`, with the folder of the file made where the store has such."""
    files, path = store(address, key)
    if address.partition("://")[0].lower() not in FLAT:
        files.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    return files, path


def store(address: str, key: str) -> tuple[Any, str]:
    """(file system, path within it) of an address.

    Raises:
        UserError: the protocol is unknown, its package is missing, or the address holds a secret.
    """
    protocol = address.partition("://")[0].lower()
    if SECRET.match(address):
        raise UserError(f"{key}: an address is written into records, so give no name or password in it; "
                        "set them in the environment, as the store's library reads them.")  # fmt: skip
    logging.getLogger("asyncio").addFilter(_untold)
    try:
        return url_to_fs(address, **_patience(protocol))
    except ImportError as error:
        package = PACKAGES.get(protocol)
        mend = f"pip install {package}" if package else f"install what it asks for ({one_line(error)})"
        raise UserError(f"{key}: {address} needs a package for {protocol}:// that is not here; {mend}.") from None
    except ValueError as error:
        if protocol in fsspec.available_protocols():
            raise UserError(f"{key}: {address} is no address of {protocol}:// ({one_line(error)}).") from None
        raise UserError(f"{key}: {address}: nothing is known of {protocol}://; give a path, s3://, gs://, hf:// or "
                        "another protocol of fsspec.") from None  # fmt: skip


def _untold(record: logging.LogRecord) -> bool:
    """Not the tracebacks of a connection that broke off: what became of it is told as the store's error."""
    return not record.getMessage().startswith("Task exception was never retrieved")


def _patience(protocol: str) -> dict[str, Any]:
    """What makes a store that has fallen silent an error after some minutes, unless the user has said otherwise."""
    own = "AWS_MAX_ATTEMPTS" in os.environ or "config_kwargs" in fsspec.config.conf.get("s3", {})
    return {} if PACKAGES.get(protocol) != "s3fs" or own else ONCE


@contextmanager
def told(address: str, key: str) -> Iterator[None]:
    """Turn what a store's library raises into one clear error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each store has errors of its own, and many are plain ones
        raise Passing(
            f"{key}: {address} cannot be reached ({type(error).__name__}: {one_line(error)}). Check the address, the "
            "network and the store's credentials."
        ) from error


class Guarded(io.RawIOBase):
    """A remote file whose errors are told as the store's."""

    def __init__(self, file: Any, origin: RemoteFile) -> None:
        self.file, self.origin = file, origin

    def read(self, size: int | None = -1) -> bytes:
        """As a file's."""
        with told(self.origin.address, self.origin.key):
            return bytes(self.file.read(-1 if size is None else size))

    def readinto(self, buffer: Any) -> int:
        """As a file's."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """As a file's."""
        with told(self.origin.address, self.origin.key):
            return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        """As a file's."""
        return int(self.file.tell())

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def close(self) -> None:
        """Close the store's file with it."""
        if not self.closed:
            self.file.close()
        super().close()
