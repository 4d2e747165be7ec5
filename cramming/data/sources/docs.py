"""Source `docs`: prose of installed packages' docstrings, the same on every machine. Not for cleaning one docstring."""

import hashlib
import re
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from cramming.data.sources.docstrings import docstrings
from cramming.data.sources.packages import CodeFile, Installed, locked_packages
from cramming.data.sources.prose import paragraphs
from cramming.data.sources.source import Given, Mended, Part, digest, fraction
from cramming.data.workers import in_order, worker_count, worker_pool
from cramming.errors import UserError
from cramming.files import short_hash

# Of the documents that the lock file's packages give; renewed with the lock file.
STANDARD_SHA256 = "4326df9373789d794a4ad22c60989edc61fe3c778d74168c40b56ee0a80a8b8d"
FILES_PER_TASK = 16
MIN_DOCUMENT_CHARACTERS = 600
LOWER_WORD = re.compile(r"\b[a-z]+\b")


class DocsSource:
    """One document per module: its docstrings' prose in source order; short modules join the next one's.

    Paragraphs that occur before in the corpus (names and numbers aside) are left out.
    """

    def __init__(self, workers: int, installed: Installed | None = None) -> None:
        self.workers = worker_count(workers)
        self.installed = locked_packages() if installed is None else installed
        self.texts: list[str] = []

    def identity(self) -> Any:
        """The packages' versions and the hashes of their files as they were installed."""
        files = short_hash([[file.name, file.sha256] for file in self.installed.files])
        return {"packages": self.installed.versions, "files": files}

    def check(self) -> None:
        """Extract everything: it fits into memory. UserError when there is no prose; tells what is not standard."""
        self.texts = self.extract()
        left_out = ", ".join(self.installed.left_out)
        if not self.texts:
            raise UserError(
                f"data.source=docs found no docstrings (left out: {left_out or 'nothing'}); "
                "run `make setup`, or use data.source=text."
            )
        if left_out:
            print(f"not the standard corpus: without {left_out}; `make setup` installs them", file=sys.stderr)
        elif self.documents_sha256() != STANDARD_SHA256:
            print("not the standard corpus: the packages hold other text than it was made of", file=sys.stderr)

    def settle(self, known: None) -> None:
        """The lock file leaves nothing open."""

    def total(self) -> int | None:
        """UTF-8 bytes of the documents."""
        return sum(len(text.encode()) for text in self.texts)

    def parts(self, megabytes: float | None) -> Sequence[Part]:
        """All documents, or those whose hash falls into a share of `megabytes`, as one part: it is read in seconds."""
        share = 1.0 if megabytes is None else megabytes * 1e6 / max(1, self.total() or 1)
        # Not the digest that decides what is held out: the sample has its share of both.
        return [Given([text for text in self.texts if fraction(digest(f"sample {text}")) < share])]

    def held_out(self, mended: Mended | None = None) -> None:
        """Held out by hash."""

    def documents_sha256(self) -> str:
        """Hash of the extracted documents."""
        whole = hashlib.sha256()
        for text in self.texts:
            whole.update(text.encode() + b"\0")
        return whole.hexdigest()

    def provenance(self) -> dict[str, Any]:
        """Hash of the extracted documents and the environment they came from."""
        return {"source": "docs", "documents_sha256": self.documents_sha256(), "environment": self.identity()}

    def extract(self) -> list[str]:
        """Read and clean every file in the worker processes, then drop repetitions in the files' order."""
        files = self.installed.files
        tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
        joined = DocumentJoiner()
        with (
            tqdm(desc="docstrings", total=len(files), unit=" files", file=sys.stderr, mininterval=0.5) as bar,
            worker_pool(self.workers) as pool,
        ):
            for modules in in_order(pool, read_modules, tasks, 4 * self.workers):
                for package, found in modules:
                    joined.add(package, found)
                bar.update(min(FILES_PER_TASK, len(files) - bar.n))
        return joined.finish()


def read_modules(files: list[CodeFile]) -> list[tuple[str, list[str]]]:
    """(package, paragraphs) of each file that has prose; UserError for a file that is not what was installed."""
    modules = []
    for file in files:
        code = file.path.read_bytes() if file.path.is_file() else b""
        if hashlib.sha256(code).hexdigest() != file.sha256:
            raise UserError(
                f"{file.path} was changed after it was installed, and data.source=docs reads it; "
                f"install {file.package} again (pip install --force-reinstall --no-deps), or use data.source=text."
            )
        if found := module_paragraphs(code):
            modules.append((file.package, found))
    return modules


def module_paragraphs(code: bytes) -> list[str]:
    """Prose of a module's docstrings in source order; empty for code that is not UTF-8."""
    try:
        text = code.decode().replace("\r\n", "\n")
    except UnicodeDecodeError:
        return []
    return [paragraph for docstring in docstrings(text) for paragraph in paragraphs(docstring)]


class DocumentJoiner:
    """Joins the paragraphs of modules to documents, each paragraph once."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.documents: list[str] = []
        self.package = ""
        self.waiting: list[str] = []

    def add(self, package: str, found: list[str]) -> None:
        """Take a module's paragraphs; what is too short for a document waits for the package's next module."""
        if package != self.package:
            self.close()
            self.package = package
        for paragraph in found:
            key = digest(" ".join(LOWER_WORD.findall(paragraph)))
            if key not in self.seen:
                self.seen.add(key)
                self.waiting.append(paragraph)
        if sum(map(len, self.waiting)) >= MIN_DOCUMENT_CHARACTERS:
            self.close()

    def close(self) -> None:
        """End the current document."""
        if sum(map(len, self.waiting)) >= MIN_DOCUMENT_CHARACTERS // 4:
            self.documents.append("\n".join(self.waiting))
        self.waiting = []

    def finish(self) -> list[str]:
        """All documents."""
        self.close()
        return self.documents
