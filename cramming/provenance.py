"""What ran and where, for records: commit, machine, libraries. Not what a machine can do (machine.py)."""

import functools
import hashlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from cramming.machine import cpu_name

LIBRARIES = ("torch", "transformers", "tokenizers", "datasets", "accelerate", "evaluate", "hydra-core", "numpy")


@functools.cache
def git_state() -> dict[str, Any]:
    """Commit hash and whether the tree differs from it, as this process first saw them; None outside a checkout.

    A repository that this code was only unpacked into is not its own.
    """
    root = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str | None:
        try:
            # Of a container's user the checkout is another's. Its code runs already, so that git may trust it, too.
            command = ["git", "-c", f"safe.directory={root}", "--no-optional-locks", *arguments]
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return {"commit": None, "dirty": None}
    # Records and tables are written by the runs themselves: they do not make the code that ran another one.
    changes = git("status", "--porcelain", "--", ".", ":!results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


@functools.cache
def code_hash() -> str:
    """Hash of the packages' own sources, with which processes on several machines find out whether theirs differ."""
    root, digest = Path(__file__).resolve().parents[1], hashlib.sha256()
    for path in sorted(path for name in ("cramming", "fff") for path in (root / name).rglob("*")):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


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
