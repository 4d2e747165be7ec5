"""Errors leave every command as one line with a status; bugs leave with their traceback."""

import argparse
import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from cramming.door import door, explained, path_argument
from cramming.errors import UserError
from tests.helpers.commands import command, inline

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (UserError("train.lr is -1; set it above 0."), "train.lr is -1"),
        (
            OSError(errno.EROFS, "Read-only file system", "/x/y"),
            "/x/y: Read-only file system; choose a folder on a disk",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "/x: Permission denied; choose another folder"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/x"), "a part of the path is a file"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "/x"), "choose shorter names"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "a disk is full (/x: No space left"),
        (MemoryError(), "there is not enough memory (MemoryError)"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "not enough memory"),
    ],
)
def test_what_a_user_can_mend_is_one_line(error: Exception, words: str) -> None:
    text = explained(error)
    assert text is not None
    assert words in text
    assert "\n" not in text


def test_the_cause_counts_where_a_library_made_its_own_error_of_it() -> None:
    error = RuntimeError("could not save")
    error.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/x")
    assert "/x: Permission denied" in str(explained(error))


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("x"), ConnectionError("peer"), AssertionError()])
def test_a_bug_keeps_its_traceback(error: Exception) -> None:
    assert explained(error) is None
    with pytest.raises(type(error)), door():
        raise error


def test_a_size_that_no_machine_has_is_explained() -> None:
    with pytest.raises(SystemExit) as left, door():
        torch.empty(2**58, dtype=torch.float64)
    assert left.value.code == 2


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.lrr=1"], "train.lrr is no key of this command; did you mean train.lr?"),
        (["+foo=1"], "foo is no key of PretrainRoot"),
        (["+train.foo=1"], "foo is no key of TrainConfig"),
        (["train.lr=fast"], "train.lr: Value 'fast'"),
        (["train.lr=["], "(given: train.lr=[)"),
        (["experiment=nope"], "Could not find 'experiment/nope'"),
        (["data=null"], "Config group override must be a string or a list"),
        (["output_dir=/dev/null/x"], ": Not a directory; a part of the path is a file"),
    ],
)
def test_a_wrong_command_line_is_one_line_with_status_two(overrides: list[str], words: str) -> None:
    done = inline("pretrain", *overrides)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")


def test_a_multirun_runs_its_other_jobs_and_says_so_at_the_end(tmp_path: Path) -> None:
    overrides = ["model.heads=5,7", f"output_dir={tmp_path}", f"hydra.sweep.dir={tmp_path}/sweep"]
    done = command("pretrain", "--multirun", *overrides)
    assert done.returncode == 2
    assert "model.heads is 5" in done.stderr
    assert "model.heads is 7" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_is_no_traceback() -> None:
    code = "from cramming.door import door\nwith door():\n    raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + signal.SIGINT
    assert done.stderr == "\nstopped by Ctrl-C\n"


def test_a_terminal_that_cannot_show_a_character_ends_no_run() -> None:
    code = "from cramming.door import door\nwith door():\n    print('1 \\u2013 2')"
    environment = {"PYTHONIOENCODING": "latin-1", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"1 \\u2013 2\n"


def test_a_path_of_the_command_line_may_begin_at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    options = argparse.ArgumentParser(exit_on_error=False)
    options.add_argument("--out", type=path_argument)
    assert options.parse_args(["--out=~/page.html"]).out == Path("/home/somebody/page.html")
    with pytest.raises(argparse.ArgumentError, match="nobody's home"):
        options.parse_args(["--out=~no.body/page.html"])


def test_files_of_the_project_are_utf8_whatever_the_locale(tmp_path: Path) -> None:
    for name, content in (("a.json", '"\u00e9"'), ("lock", "# \u00e9\na==1"), ("paper.yaml", "glue: \u00e9")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    code = f"""if True:
        from pathlib import Path
        from types import SimpleNamespace
        from cramming.data.sources.packages import locked_versions
        from cramming.files import read_json
        from cramming.regions import page
        from cramming.report.tables import read_paper
        assert read_json(Path({str(tmp_path / "a.json")!r})) == chr(0xe9)
        assert locked_versions(Path({str(tmp_path / "lock")!r})) == dict(a="1")
        assert read_paper(Path({str(tmp_path / "paper.yaml")!r})) == dict(glue=chr(0xe9))
        page.contents = lambda regions: dict()
        assert "<script" in page.page(SimpleNamespace(run="a"))
        """
    ascii_alone = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ascii_alone, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_process_that_is_killed_while_it_draws_holds_up_no_other() -> None:
    def drawing() -> None:
        with door(), tqdm.get_lock():
            os.kill(os.getpid(), signal.SIGKILL)

    def drawing_later() -> None:
        signal.alarm(30)  # instead of waiting for ever
        with door(), tqdm(total=1, file=io.StringIO()) as bar:
            bar.update()

    tqdm(total=1, file=io.StringIO()).close()  # its lock is made with the first bar
    before = tqdm.get_lock()
    try:
        assert [ended(drawing), ended(drawing_later)] == [-signal.SIGKILL, 0]
    finally:
        tqdm.set_lock(before)


def ended(work: Callable[[], None]) -> int:
    """The work in a child, and how that ended."""
    if (pid := os.fork()) == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
