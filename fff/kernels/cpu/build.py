"""Compiles the C++ of provider `cpu` on first use and loads it. Not where it is kept (cache), nor what it computes.

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
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fff.kernels.cpu import cache
from fff.kernels.cpu.cache import BuildError

SOURCES = Path(__file__).parent / "cpp"
NATIVE = "-mcpu=native" if platform.machine() in ("aarch64", "arm64", "ppc64le") else "-march=native"
# Bits may not depend on the code around: multiply-adds are written out (cpp/vectors.h), not left to the compiler.
FLAGS = ("-O3", NATIVE, "-std=c++20", "-fno-math-errno", "-ffp-contract=off", "-fopenmp")
MOST_SAID = 4000  # characters of a compiler's errors


def flags() -> list[str]:
    """Flags of compiler and linker: ours, then $FFF_CXXFLAGS, which may overrule them (-march=x86-64-v3, say)."""
    return [*FLAGS, *_words("FFF_CXXFLAGS")]


def _words(variable: str) -> list[str]:
    """What the environment's variable holds, split as a shell does."""
    text = os.environ.get(variable, "")
    try:
        return shlex.split(text)
    except ValueError as error:
        raise BuildError(f"{variable}={text!r} cannot be split into words: {error}") from error


@functools.cache
def compiler() -> tuple[list[str], str]:
    """The C++ compiler's command, $CXX ("ccache g++", say) or c++, and what it says of its version.

    Raises:
        BuildError: there is none, or it does not run.
    """
    words = _words("CXX") or ["c++"]
    if shutil.which(words[0]) is None:
        raise BuildError(f"there is no C++ compiler {words[0]!r}; install one (Debian: apt install g++) or set CXX")
    asked = subprocess.run([*words, "--version"], **_plain(), check=False)
    if asked.returncode:
        raise BuildError(
            f"{shlex.join(words)!r} is no C++ compiler that works: asked for its version, it ended with status "
            f"{asked.returncode}; install one (Debian: apt install g++) or set CXX"
        )
    return words, asked.stdout


def _plain(**environment: str) -> dict[str, Any]:
    """Arguments of a process without input whose one output is English, whatever bytes it writes."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return {**streams, "encoding": "utf-8", "errors": "replace", "env": {**os.environ, "LC_ALL": "C", **environment}}


def key() -> str:
    """What a compiled library depends on, as a hash."""
    words, version = compiler()
    parts = [*words, version, *flags(), torch.__version__, sys.implementation.cache_tag, _processor()]
    parts += [path.name + path.read_text(encoding="utf-8") for path in sorted(SOURCES.iterdir())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """What "native" means on this machine: the processor's features, where the system tells them."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    features = [line for line in lines if line.lower().startswith(("flags", "features"))]
    return features[0] if features else f"{platform.machine()} {platform.processor()}"


@functools.cache
def load() -> ctypes.PyDLL:
    """Load the library, so that torch.ops.fff has its operators; builds it if the cache has none that is whole.

    Raises:
        BuildError: no compiler, an error of the compiler, a cache that cannot be written or that others may write.
    """
    try:
        target = library()
        if not cache.whole(target):
            with _locked(target.with_suffix(".lock")):
                if not cache.whole(target):  # another process may have built it meanwhile
                    _build(target)
        torch.ops.load_library(str(target))
        return ctypes.PyDLL(str(target))
    except OSError as error:
        raise BuildError(f"{error}; set FFF_CACHE to another folder if it cannot be written") from error


def library() -> Path:
    """The file that the library is in, or will be."""
    return cache.folder() / f"cpu-{key()}.so"


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One builder at a time. The system frees the lock when its holder ends, however it ends.

    Raises:
        OSError: it cannot be had, or is another's and `wait` is false.
    """
    try:
        import fcntl
    except ImportError:  # no such locks here: two builders do double work, and the last one's file stays
        if not wait:
            raise OSError("locks cannot be asked here") from None
        yield
        return
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _build(target: Path) -> None:
    """Compile and keep. The caller holds the target's lock."""
    if sys.stderr is not None:  # as where a process has no terminal
        with contextlib.suppress(OSError, ValueError):  # or it was closed; the news is not worth a failure
            print("fff: compiling the CPU kernels, once for this machine (up to a minute)", file=sys.stderr, flush=True)
    _clear(target)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f"{target.stem}-", ignore_cleanup_errors=True) as folder:
        built, checksum = _compile(Path(folder)), Path(folder) / "checksum"
        checksum.write_text(hashlib.sha256(built.read_bytes()).hexdigest())
        built.chmod(0o755)  # whatever the umask: a library that others may write is not trusted
        checksum.chmod(0o644)
        checksum.replace(cache.checksum_of(target))
        built.replace(target)


def _clear(target: Path) -> None:
    """Remove the folders of builders that were killed: their locks are free. The caller holds the target's."""
    for left in target.parent.glob("cpu-*-*"):
        stem = left.name.rpartition("-")[0]
        lock = target.with_name(f"{stem}.lock")
        held = contextlib.nullcontext() if stem == target.stem else _locked(lock, wait=False)
        with contextlib.suppress(OSError), held:
            if cache.distrust(left) is None:
                shutil.rmtree(left, ignore_errors=True)


def _compile(folder: Path) -> Path:
    """The library, compiled in the folder."""
    from torch.utils import cpp_extension  # slow to import, and needed only here

    command = [*compiler()[0], *flags()]
    options = ["-fPIC", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}", f"-I{SOURCES}"]
    for path in (*cpp_extension.include_paths(), sysconfig.get_path("include")):
        options += ["-isystem", path]
    sources = sorted(SOURCES.glob("*.cpp"))
    objects = [folder / f"{source.stem}.o" for source in sources]
    pairs = zip(sources, objects, strict=True)
    _run([[*command, *options, "-c", str(source), "-o", str(made)] for source, made in pairs], folder, objects)
    built = folder / "fff_cpu.so"
    link = [*command, "-shared", *map(str, objects)]
    link += ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    link += [f"-L{path}" for path in cpp_extension.library_paths()]
    link += ["-lc10", "-ltorch_cpu", "-ltorch", "-ltorch_python", "-o", str(built)]
    _run([link], folder, [built])
    return built


def _run(commands: list[list[str]], folder: Path, written: list[Path]) -> None:
    """Run the commands at the same time, their own files in the folder, and see that they wrote what they should.

    Raises:
        BuildError: one failed; with what it said.
    """
    plain = _plain(TMPDIR=str(folder))
    with _ending_with_this_process() as group:
        running = [subprocess.Popen(command, **plain, **group) for command in commands]
        said = [process.communicate()[0] for process in running]
    for command, process, text, path in zip(commands, running, said, written, strict=True):
        if process.returncode or not path.exists():
            why = text.strip()[:MOST_SAID] or f"{command[0]} ended with status {process.returncode} and no word"
            raise BuildError(f"the C++ did not compile: {why}")


@contextlib.contextmanager
def _ending_with_this_process() -> Iterator[dict[str, Any]]:
    """Arguments of processes that are killed with all of theirs when this one ends, however it ends.

    A shell waits for the end of a pipe that this process alone holds, and then kills its own process group.
    """
    if os.name != "posix":
        yield {}
        return
    wait = ["sh", "-c", "read _; kill -9 0"]
    watcher = subprocess.Popen(wait, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0)
    try:
        yield {"process_group": watcher.pid}
    finally:
        watcher.communicate()
