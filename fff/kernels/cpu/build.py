"""Compiles the C++ of provider `cpu` on first use, keeps it in a cache and loads it. Not what it computes.

The cache holds one file per content of the sources, compiler and its flags, torch version and kind of processor. A file
is complete or absent: it is built in a folder of its own, its checksum is written, and it is moved into place. One that
does not fit its checksum (a full disk, an edited file) is built again.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "cpp"
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64", "ppc64le") else "-march=native"
# Bits may not depend on the code around: multiply-adds are written out (cpp/vectors.h), not left to the compiler.
FLAGS = ("-O3", NATIVE, "-std=c++20", "-fno-math-errno", "-ffp-contract=off", "-fopenmp")


class BuildError(RuntimeError):
    """The C++ cannot be built or loaded here; the message says why and what would help."""


def cache_folder() -> Path:
    """Where compiled libraries are kept: $FFF_CACHE, else fff in the user's cache folder."""
    if folder := os.environ.get("FFF_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fff"


@functools.cache
def compiler() -> str:
    """The C++ compiler: $CXX, else c++.

    Raises:
        BuildError: there is none.
    """
    name = os.environ.get("CXX", "c++")
    if shutil.which(name) is None:
        raise BuildError(f"there is no C++ compiler {name!r}; install one (Debian: apt install g++) or set CXX")
    return name


def flags() -> list[str]:
    """Flags of compiler and linker: ours, then $FFF_CXXFLAGS, which may overrule them (-march=x86-64-v3, say)."""
    return [*FLAGS, *os.environ.get("FFF_CXXFLAGS", "").split()]


def key() -> str:
    """What a compiled library depends on, as a hash."""
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False).stdout
    parts = [version, *flags(), torch.__version__, sys.implementation.cache_tag, _processor()]
    parts += [path.name + path.read_text() for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What "native" means on this machine: the processor's features, where the system tells them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    features = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return features[0] if features else f"{platform.machine()} {platform.processor()}"


@functools.cache
def load() -> ctypes.PyDLL:
    """Load the library, so that torch.ops.fff has its operators; builds it if the cache has none that is whole.

    Raises:
        BuildError: no compiler, no ninja, an error of the compiler, or a cache that cannot be written.
    """
    target = cache_folder() / f"cpu-{key()}.so"
    try:
        if not _whole(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with _locked(target.with_suffix(".lock")):
                if not _whole(target):  # another process may have built it meanwhile
                    _build(target)
        torch.ops.load_library(str(target))
        return ctypes.PyDLL(str(target))
    except OSError as error:
        raise BuildError(f"{target}: {error}; set FFF_CACHE to another folder if it cannot be written") from error


def _checksum(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == _checksum(path).read_text()
    except (OSError, UnicodeDecodeError):
        return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time. The system frees the lock when its holder ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # no such locks here: two builders do double work, and the last one's file stays
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: Path) -> None:
    """Compile, load and keep."""
    from torch.utils import cpp_extension  # slow to import, and needed only here

    print("fff: compiling the CPU kernels, once for this machine (about 20 s)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.stem}-") as folder:
        try:
            cpp_extension.load(
                name="fff_cpu",
                sources=[str(path) for path in sorted(SOURCES.glob("*.cpp"))],
                extra_cflags=flags(),
                extra_ldflags=flags(),
                extra_include_paths=[str(SOURCES)],
                build_directory=folder,
                with_cuda=False,
                is_python_module=False,
            )
        except RuntimeError as error:  # also what torch raises where ninja is missing
            raise BuildError(f"the C++ did not compile: {error}") from error
        built, checksum = Path(folder) / "fff_cpu.so", Path(folder) / "checksum"
        checksum.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        checksum.replace(_checksum(target))
        built.replace(target)
