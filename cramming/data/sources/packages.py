"""Which installed files the embedded corpus is read from: packages of the lock file at its versions. Not their content.

The same files are installed on every machine: no standard library (its text goes with Python's version), no packages
that are made for one system alone, no files that are written when a wheel is built.
"""

import base64
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from cramming.errors import UserError

LOCK = Path(__file__).resolve().parents[3] / "requirements.lock"
# What the project cannot do without and what that brings along, as far as it holds much prose; the corpus' order.
PACKAGES = [
    "accelerate",
    "datasets",
    "fonttools",
    "huggingface_hub",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "pydantic",
    "scikit-learn",
    "scipy",
    "sympy",
    "torch",
    "transformers",
    "wandb",
]
# Tests speak about themselves; vendored copies repeat other packages; distutils is there for some versions of Python.
SKIPPED_FOLDERS = {"test", "tests", "testing", "_vendor", "vendored", "distutils"}
SKIPPED_FILES = {"version.py", "_version.py", "__config__.py", "_distributor_init.py"}


@dataclass(frozen=True)
class CodeFile:
    """A file of an installed package; `sha256` (hexadecimal) is what was installed, whatever stands there now."""

    package: str
    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class Installed:
    """The files in a fixed order, the packages with their versions, and what is left out and why."""

    files: list[CodeFile]
    versions: dict[str, str]
    left_out: list[str]


def locked_packages(names: list[str] = PACKAGES, lock: Path = LOCK, folders: list[str] | None = None) -> Installed:
    """The packages that are installed at the lock's versions (a local part such as +cpu aside), the others left out.

    Args:
        folders: where to look for packages; the interpreter's own path by default.

    Raises:
        UserError: there is no lock file.
    """
    wanted = locked_versions(lock)
    installed = Installed([], {}, [])
    for name in names:
        context = importlib.metadata.DistributionFinder.Context(name=name, **({"path": folders} if folders else {}))
        found = next(iter(importlib.metadata.Distribution.discover(context=context)), None)
        version = found.version.partition("+")[0] if found else None
        if found is None or version is None or version != wanted.get(name):
            installed.left_out.append(f"{name} ({version or 'missing'} instead of {wanted.get(name, 'a locked one')})")
            continue
        installed.versions[name] = version
        installed.files.extend(code_files(name, found))
    return installed


def locked_versions(lock: Path) -> dict[str, str]:
    """Package -> version in a lock file."""
    if not lock.is_file():
        raise UserError(f"data.source=docs needs {lock}, which is missing; use a whole checkout, or data.source=text.")
    lines = (line.partition("#")[0].partition(";")[0] for line in lock.read_text("utf-8").splitlines())
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.strip(): version.strip() for name, version in pairs}


def code_files(package: str, installed: importlib.metadata.Distribution) -> list[CodeFile]:
    """The package's Python files that may hold prose, sorted by name."""
    found = []
    for file in installed.files or []:
        *folders, last = file.parts
        unread = SKIPPED_FOLDERS.intersection(folders) or last in SKIPPED_FILES or last.startswith("test_")
        if file.suffix == ".py" and file.hash is not None and not unread:
            padded = file.hash.value + "=" * (-len(file.hash.value) % 4)
            sha256 = base64.urlsafe_b64decode(padded).hex()
            found.append(CodeFile(package, file.as_posix(), Path(str(file.locate())), sha256))
    return sorted(found, key=lambda file: file.name)
