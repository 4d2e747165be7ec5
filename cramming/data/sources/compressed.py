"""Content of .xz, .gz and .zst files as a stream, or unpacked as a whole. Not what the content means (corpus.py)."""

import contextlib
import gzip
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from cramming.files import no_space
from cramming.remote import AnyFile, opened

COMPRESSIONS = (".xz", ".gz", ".zst")
DAMAGE = (lzma.LZMAError, gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError)
COPY_BYTES = 1 << 20
ZSTD_BYTES = 16 << 10  # taken at a time: however well it is compressed, the content of so much fits into memory


def decompressed(path: AnyFile, raw: IO[bytes]) -> Any:
    """A context with a reader of the file's content; the reader raises one of DAMAGE for a damaged file."""
    match path.suffix:
        case ".xz":
            return lzma.LZMAFile(raw)
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".zst":
            return contextlib.nullcontext(ZstdReader(raw))
        case _:
            return raw


@contextlib.contextmanager
def unpacked(path: AnyFile) -> Iterator[IO[bytes]]:
    """The content of a file that is not read from front to back, as Parquet: a compressed one as a temporary file."""
    with opened(path) as raw, decompressed(path, raw) as file:
        if path.suffix not in COMPRESSIONS:
            yield file
            return
        with no_space(Path(tempfile.gettempdir()), "TMPDIR"), tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(file, copy, COPY_BYTES)
            copy.seek(0)
            yield copy


class ZstdReader:
    """Content of .zst, frame after frame. zstandard's own reader takes a file that was cut off for a whole one."""

    def __init__(self, raw: IO[bytes]) -> None:
        self.raw, self.rest = raw, b""
        self.frame: zstandard.ZstdDecompressionObj | None = None

    def read(self, size: int) -> bytes:
        """At least `size` bytes, fewer at the end of the file; EOFError when it ends inside of a frame."""
        parts: list[bytes] = []
        while sum(map(len, parts)) < size:
            if not (data := self.rest or self.raw.read(ZSTD_BYTES)):
                if self.frame is not None:
                    raise EOFError("it ends too early")
                break
            frame = self.frame or zstandard.ZstdDecompressor().decompressobj()
            parts.append(frame.decompress(data))
            self.frame, self.rest = (None, frame.unused_data) if frame.eof else (frame, b"")
        return b"".join(parts)
