"""Source `docs`: prose of the installed packages' docstrings, read with `ast`. Not for cleaning one docstring."""

import ast
import hashlib
import importlib.metadata
import os
import platform
import re
import site
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cramming.data.sources.prose import paragraphs
from cramming.data.sources.source import Advance, digest, fraction, no_progress
from cramming.data.workers import in_order, worker_count, worker_pool
from cramming.errors import UserError

# Tests speak about themselves; vendored copies and installers repeat other packages.
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendored", "__pycache__", "site-packages", "dist-packages"}
OWN_PACKAGES = {"fff", "cramming"}
TRIPLE_QUOTED = re.compile(rb'"""(.{40,}?)"""|\'\'\'(.{40,}?)\'\'\'', re.DOTALL)
MAX_FILE_BYTES = 4_000_000
FILES_PER_TASK = 16
MIN_DOCUMENT_CHARACTERS = 600
LOWER_WORD = re.compile(r"\b[a-z]+\b")

Roots = list[tuple[str, Path]]


def default_roots() -> Roots:
    """Folders with Python code as (name, folder): the standard library, then every site-packages of the interpreter."""
    paths = sysconfig.get_paths()
    packages = [paths["purelib"], paths["platlib"], *site.getsitepackages()]
    roots = {Path(paths["stdlib"]).resolve(): "stdlib"}
    for folder in packages:
        roots.setdefault(Path(folder).resolve(), "packages")
    return [(name, folder) for folder, name in roots.items() if folder.is_dir()]


class DocsSource:
    """One document per module: its docstrings' prose in source order; short modules join the next one's.

    Paragraphs that occur before in the corpus (names and numbers aside) are left out.
    """

    def __init__(self, workers: int, roots: Roots | None = None) -> None:
        self.workers = worker_count(workers)
        self.roots = default_roots() if roots is None else roots
        self.texts: list[str] = []

    def identity(self) -> Any:
        """The interpreter's version and the installed packages with theirs."""
        packages = {(item.metadata["Name"], item.version) for item in importlib.metadata.distributions()}
        names = sorted(f"{name}=={version}" for name, version in packages)
        return {"python": platform.python_version(), "packages": names, "roots": [name for name, _ in self.roots]}

    def check(self) -> None:
        """Extract everything: it fits into memory. UserError when there is no prose."""
        self.texts = self.extract()
        if not self.texts:
            folders = ", ".join(str(folder) for _, folder in self.roots)
            raise UserError(f"data.source=docs found no docstrings under {folders}; use data.source=text.")

    def total(self) -> int | None:
        """UTF-8 bytes of the documents."""
        return sum(len(text.encode()) for text in self.texts)

    def documents(self, megabytes: float | None, advance: Advance = no_progress) -> Iterator[str]:
        """All documents, or those whose hash falls into a share of `megabytes`."""
        share = 1.0 if megabytes is None else megabytes * 1e6 / max(1, self.total() or 1)
        for text in self.texts:
            # From the high end of the hash: the held-out share takes its low end.
            if 1 - fraction(digest(text)) <= share:
                advance(len(text.encode()))
                yield text

    def held_out(self) -> None:
        """Held out by hash."""

    def provenance(self) -> dict[str, Any]:
        """Hash of the extracted documents and the environment they came from."""
        whole = hashlib.sha256()
        for text in self.texts:
            whole.update(text.encode() + b"\0")
        return {"source": "docs", "documents_sha256": whole.hexdigest(), "environment": self.identity()}

    def extract(self) -> list[str]:
        """Parse and clean every file in the worker processes, then drop repetitions in the files' order."""
        files = python_files(self.roots)
        tasks = [files[start : start + FILES_PER_TASK] for start in range(0, len(files), FILES_PER_TASK)]
        total = sum(path.stat().st_size for _, path in files)
        joined = DocumentJoiner()
        with (
            tqdm(desc="docstrings", total=total, unit="B", unit_scale=True, file=sys.stderr, mininterval=0.5) as bar,
            worker_pool(self.workers) as pool,
        ):
            for modules, size in in_order(pool, read_modules, tasks, 4 * self.workers):
                for package, found in modules:
                    joined.add(package, found)
                bar.update(size)
        return joined.finish()


def python_files(roots: Roots) -> list[tuple[str, Path]]:
    """(name below its root, path) of every Python file that may hold prose, sorted by name within each root."""
    found: list[tuple[str, Path]] = []
    for label, root in roots:
        inside = []
        for folder, folders, names in os.walk(root):
            folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.endswith(".dist-info")]
            if folder == str(root):
                folders[:] = [name for name in folders if name not in OWN_PACKAGES]
            for name in names:
                if name.endswith(".py") and not name.startswith(("test_", "__editable__")):
                    path = Path(folder, name)
                    inside.append((f"{label}/{path.relative_to(root).as_posix()}", path))
        found += sorted(inside)
    return found


def read_modules(files: list[tuple[str, Path]]) -> tuple[list[tuple[str, list[str]]], int]:
    """((package, paragraphs) of each file that has prose, bytes read)."""
    modules, size = [], 0
    for name, path in files:
        try:
            code = path.read_bytes()
        except OSError:
            continue
        size += len(code)
        if found := module_paragraphs(code):
            modules.append(("/".join(name.split("/")[:2]), found))
    return modules, size


def module_paragraphs(code: bytes) -> list[str]:
    """Prose of a module's docstrings in source order; empty for code that does not parse."""
    if len(code) > MAX_FILE_BYTES or not TRIPLE_QUOTED.search(code):
        return []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return [paragraph for docstring in docstrings(tree) for paragraph in paragraphs(docstring)]


def docstrings(node: ast.AST) -> Iterator[str]:
    """Docstrings of a module, its classes and functions at any depth of definitions, in source order."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if docstring := ast.get_docstring(node, clean=False):
            yield docstring
        for child in node.body:
            yield from docstrings(child)
    elif isinstance(node, ast.If | ast.Try):
        for child in node.body:
            yield from docstrings(child)


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
