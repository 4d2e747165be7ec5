"""Provider `cpu`: its compiler, the cache that it is built into, and who is trusted with it."""

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fff.kernels.cpu import build, cache
from fff.kernels.cpu.cache import BuildError, checksum_of, distrust, whole
from tests.helpers.process import in_a_new_process

if os.name != "posix":
    pytest.skip("compilers and permissions as POSIX has them", allow_module_level=True)


def fresh_answers() -> None:
    for function in (build.compiler, build.load, cache._temporary, cache._owners):
        function.cache_clear()


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    """What is asked once for a process is asked anew in each test."""
    fresh_answers()
    yield
    fresh_answers()


def compiler(path: Path, does: str) -> Path:
    """A program that says its version and else does that; $out is the file that it should write."""
    path.write_text(
        f"""#!/bin/sh
case "$*" in *--version*) echo a compiler of its own; exit;; esac
while [ "$1" != -o ]; do echo "$1" >> {path}.seen; shift; done; out=$2
{does}
"""
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own, and a compiler that writes its files."""
    (tmp_path / "own").mkdir()
    monkeypatch.setenv("FFF_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "c", 'echo library > "$out"')))
    return tmp_path / "own"


def test_the_compilers_command_is_split_as_a_shell_does(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.environ["CXX"]
    wrapper = own.parent / "a wrapper"
    wrapper.write_text('#!/bin/sh\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{wrapper}' {real} -of-the-user")
    monkeypatch.setenv("FFF_CXXFLAGS", "-D'A=b c'")
    assert build.compiler()[0] == [str(wrapper), real, "-of-the-user"]
    build._build(build.library())
    assert whole(build.library())
    seen = Path(f"{real}.seen").read_text().splitlines()
    assert "-of-the-user" in seen
    assert "-DA=b c" in seen
    assert sorted(word for word in seen if word.endswith(".cpp")) == sorted(map(str, build.SOURCES.glob("*.cpp")))


def test_it_is_built_without_ninja(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = own.parent / "tools"
    tools.mkdir()
    (tools / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tools))
    build._build(build.library())
    assert whole(build.library())


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-compiler", "there is no C\\+\\+ compiler 'no-such-compiler'; install one"),
        ("false", "'false' is no C\\+\\+ compiler that works: asked for its version, it ended with status 1"),
        ("env no-such-compiler", "'env no-such-compiler' is no C\\+\\+ compiler that works"),
        ("'c++", 'CXX="\'c\\+\\+" cannot be split into words: No closing quotation'),
        ("true", "the C\\+\\+ did not compile: true ended with status 0 and no word"),
    ],
)
def test_what_is_no_compiler_is_named(own: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(BuildError, match=message):
        build.load()
    assert not list(own.glob("cpu-*-*"))


def test_a_compilers_errors_are_told_whatever_its_bytes(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", str(compiler(own.parent / "c", "printf 'no \\344 here'; exit 3")))
    with pytest.raises(BuildError, match="the C\\+\\+ did not compile: no \ufffd here"):
        build.load()


@pytest.mark.parametrize("stream", ["closed", "missing"])
def test_nobody_need_hear_that_it_compiles(own: Path, monkeypatch: pytest.MonkeyPatch, stream: str) -> None:
    closed = open(os.devnull, "w")  # noqa: SIM115
    closed.close()
    monkeypatch.setattr(sys, "stderr", closed if stream == "closed" else None)
    build._build(build.library())
    assert whole(build.library())


def test_the_command_says_its_folder_in_any_encoding(cache_of_the_library: Path) -> None:
    folder = cache_of_the_library.rename(cache_of_the_library.with_name("ein gr\u00f6\u00dferer \u0416"))
    code = "import runpy; runpy.run_module('fff.kernels', run_name='__main__')"
    assert "the CPU kernels are in" in in_a_new_process(code, FFF_CACHE=str(folder), PYTHONIOENCODING="latin-1")


KILLED = """
import os
from fff.kernels.cpu import build
build.load()
"""


def test_compilers_end_with_a_killed_builder_and_the_next_one_clears_up(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = own.parent / "pipe"
    os.mkfifo(pipe)
    quick = os.environ["CXX"]
    slow = compiler(own.parent / "slow", f"exec 9> {pipe}; echo started >&9; sleep 60; echo survived >&9")
    builder = subprocess.Popen([sys.executable, "-c", KILLED], env={**os.environ, "CXX": str(slow)})
    with pipe.open() as said:  # it ends when nobody holds the other end any more
        sources = len(list(build.SOURCES.glob("*.cpp")))
        assert [said.readline() for _ in range(sources)] == ["started\n"] * sources
        os.kill(builder.pid, signal.SIGKILL)
        builder.wait()
        assert said.read() == ""
    (left,) = own.glob("cpu-*-*")
    theirs = own / "cpu-of-no-builder"
    theirs.mkdir()
    living = own / "cpu-living-x"
    living.mkdir()
    monkeypatch.setenv("CXX", quick)
    with build._locked(own / "cpu-living.lock"):
        build._build(build.library())
    assert not left.exists()
    assert not theirs.exists()
    assert living.exists()
    assert {path.suffix for path in own.iterdir() if path != living} == {".so", ".sha256", ".lock"}


def test_without_a_home_a_folder_of_ones_own_takes_its_place_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "FFF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("pwd.getpwuid", nobody)
    expected = tmp_path / f"fff-{os.getuid()}"
    assert cache.folder() == expected
    assert expected.stat().st_mode & 0o777 == 0o700
    assert cache.folder() == expected
    (record,) = caplog.records
    assert "compiled kernels are kept in" in record.getMessage()
    assert "FFF_CACHE" in record.getMessage()
    fresh_answers()
    monkeypatch.setenv("HOME", "/proc/nowhere")  # a home that cannot be
    assert cache.folder() == expected
    fresh_answers()
    expected.chmod(0o777)
    with pytest.raises(BuildError, match="everybody may write"):
        cache.folder()


@pytest.mark.parametrize("name", ["FFF_CACHE", "XDG_CACHE_HOME"])
def test_a_folder_that_was_asked_for_and_cannot_be_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for each in ("FFF_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "/proc/nowhere")
    with pytest.raises(BuildError, match=f"{name}=/proc/nowhere: .*; set FFF_CACHE to a folder that you can write"):
        build.load()


def test_a_home_of_no_user_is_an_error_with_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FFF_CACHE", "~nobody-of-this-name/cache")
    with pytest.raises(BuildError, match="FFF_CACHE=~nobody-of-this-name/cache: "):
        cache.folder()


def planted(folder: Path) -> Path:
    """A library with its checksum beside it."""
    library = folder / "cpu-0.so"
    library.write_bytes(b"library")
    checksum_of(library).write_text(hashlib.sha256(b"library").hexdigest())
    library.chmod(0o755)
    return library


def test_a_library_that_others_may_write_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = planted(tmp_path)
    assert whole(library)
    library.chmod(0o757)
    assert not whole(library)
    library.chmod(0o755)
    monkeypatch.setattr(cache, "_owners", lambda: frozenset({os.getuid() + 1}))
    assert "belongs to another user" in str(distrust(library))
    assert not whole(library)
    monkeypatch.undo()
    library.rename(tmp_path / "elsewhere.so")
    library.symlink_to(tmp_path / "elsewhere.so")
    assert "is a symbolic link" in str(distrust(library))
    assert not whole(library)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_another_user_owns_is_not_taken(own: Path) -> None:
    library = planted(own)
    os.chown(library, 54321, -1)
    assert not whole(library)
    assert cache.folder() == own
    os.chown(own, 54321, -1)
    with pytest.raises(
        BuildError, match=r"own belongs to another user \(uid 54321\), .* set FFF_CACHE to a folder of yours"
    ):
        cache.folder()


def test_a_folder_that_others_may_write_is_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = own / "a" / "b"
    monkeypatch.setenv("FFF_CACHE", str(inner))
    assert cache.folder() == inner
    for folder in (inner, own):  # itself, and one above
        folder.chmod(0o707)
        with pytest.raises(BuildError, match=f"everybody may write {folder} .chmod go-w would mend it."):
            build.load()
        folder.chmod(0o700)
    own.chmod(0o1777)  # as /tmp
    assert cache.folder() == inner
    (own / "link").symlink_to(inner)
    own.chmod(0o777)
    monkeypatch.setenv("FFF_CACHE", str(own / "link"))
    with pytest.raises(BuildError, match="everybody may write"):
        cache.folder()


def test_a_group_may_write_where_it_is_one_users(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    me = pwd.getpwuid(os.getuid())
    own.chmod(0o770)
    monkeypatch.setattr(pwd, "getpwall", lambda: [me])
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("mine", "", gid, [])))
    assert cache.folder() == own
    monkeypatch.setattr(grp, "getgrgid", lambda gid: grp.struct_group(("ours", "", gid, ["somebody"])))
    with pytest.raises(BuildError, match=f"a group may write {own}"):
        cache.folder()


RUN = """
import logging
logging.basicConfig(level=logging.INFO)
import torch
from fff import LeafFFF, PathFFF
for _ in range(2):
    print(PathFFF(8, 8, 5)(torch.zeros(1, 8)).shape)
"""


def test_without_a_compiler_auto_says_so_once_and_takes_gather(tmp_path: Path) -> None:
    said = in_a_new_process(RUN, CXX="no-such-compiler", FFF_CACHE=str(tmp_path))
    assert said.count("there is no C++ compiler 'no-such-compiler'; install one") == 1
    assert "provider gather" in said
    assert said.count("torch.Size([1, 8])") == 2
    asked = RUN.replace("8, 8, 5", "8, 8, 5, provider='cpu'").replace(
        "for _ in", "import sys; sys.stderr = sys.stdout\nfor _ in"
    )
    with pytest.raises(subprocess.CalledProcessError) as error:
        in_a_new_process(asked, CXX="no-such-compiler", FFF_CACHE=str(tmp_path))
    assert "provider='cpu' is not available: there is no C++ compiler" in error.value.stdout


@pytest.fixture
def cache_of_the_library(tmp_path: Path) -> Path:
    """A cache of its own that holds the compiled library."""
    build.load()
    for path in (build.library(), checksum_of(build.library())):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_the_cache_is_used_and_a_whole_file_is_not_built_again(cache_of_the_library: Path) -> None:
    said = in_a_new_process(RUN, FFF_CACHE=str(cache_of_the_library))
    assert "compiling" not in said
    assert "provider cpu" in said


def test_a_whole_library_in_a_folder_of_everybodys_is_not_loaded(cache_of_the_library: Path) -> None:
    cache_of_the_library.chmod(0o777)
    said = in_a_new_process(RUN, FFF_CACHE=str(cache_of_the_library))
    assert f"everybody may write {cache_of_the_library}" in said
    assert "provider gather" in said


@pytest.mark.slow
def test_a_damaged_cache_is_built_again_once_by_two_processes(cache_of_the_library: Path) -> None:
    cache, name = cache_of_the_library, build.library().name
    library = cache / name
    library.write_bytes(library.read_bytes()[:50_000])  # a process died, or the disk was full
    environment = {**os.environ, "FFF_CACHE": str(cache)}
    both = [
        subprocess.Popen([sys.executable, "-c", RUN], env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=600)[0] for process in both]
    assert all("provider cpu" in text for text in said)
    assert sum("compiling" in text for text in said) == 1
    assert {path.suffix for path in cache.iterdir()} == {".so", ".sha256", ".lock"}
