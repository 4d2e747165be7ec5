"""Folders that are complete or absent, and never anybody else's; names that may be part of a path."""

import os
from pathlib import Path

import pytest

from cramming.errors import UserError
from cramming.files import check_writable, checked_name, commit_folder, new_folder


def test_a_new_folder_is_complete_or_absent_and_touches_nothing_beside_it(tmp_path: Path) -> None:
    for name in (".venv", ".venv.old", ".venv.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("kept")
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "venv") as folder:
        (folder / "half" / "way").write_text("x")
    assert sorted(os.listdir(tmp_path)) == [".venv", ".venv.old", ".venv.tmp"]
    for round_ in ("first", "second"):
        with new_folder(tmp_path / "venv", replace=True) as folder:
            (folder / "content").write_text(round_)
            (folder / "content").chmod(0o600)
    assert sorted(os.listdir(tmp_path)) == [".venv", ".venv.old", ".venv.tmp", "venv"]
    assert (tmp_path / "venv" / "content").read_text() == "second"
    assert all((tmp_path / name / "precious").exists() for name in (".venv", ".venv.old", ".venv.tmp"))


def test_files_of_a_new_folder_obey_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "model") as folder:
            (folder / "weights").touch(mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "model" / "weights").stat().st_mode & 0o777 == 0o640


def test_what_exists_is_not_written_over_unless_told(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "work").write_text("years")
    (tmp_path / "file").write_text("years")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    for name in ("full", "file", "link"):
        with pytest.raises(UserError, match=f"{name} exists"), new_folder(tmp_path / name):
            pytest.fail("the work began")
    with new_folder(tmp_path / "empty") as folder:
        (folder / "a").touch()
    assert (tmp_path / "empty" / "a").exists()
    with pytest.raises(UserError, match="late exists"), new_folder(tmp_path / "late"):
        (tmp_path / "late").write_text("of another process")
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "full", "late", "link"]


def test_a_commit_removes_the_replaced_folder_alone(tmp_path: Path) -> None:
    for name, content in ((".b.old", "a stranger's"), ("a", "new"), ("b", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text(content)
    commit_folder(tmp_path / "a", tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == [".b.old", "b"]
    assert (tmp_path / "b" / "x").read_text() == "new"
    assert (tmp_path / ".b.old" / "x").read_text() == "a stranger's"


@pytest.mark.parametrize("name", ["../../../x", "a/b", "", ".", "..", ".hidden", "a\0b", "-rf", "x" * 161, None, 7])
def test_a_name_that_is_no_plain_part_of_a_path_is_refused(name: object) -> None:
    with pytest.raises(UserError, match=r"record\.json: .* cannot name files"):
        checked_name(name, "record.json: name")


def test_names_of_runs_pass() -> None:
    for name in ("quickstart-1x9-s0-3fa2c1", "glue-a-b_c.d+e=1", "größe-1x9", "x" * 160):
        assert checked_name(name, "here") == name


def test_an_unwritable_folder_is_named_with_its_key(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "results_dir", "c.json")
    assert not any((tmp_path / "a" / "b").iterdir())
    (tmp_path / "file").touch()
    for folder in (Path("/proc/self"), tmp_path / "file" / "in", tmp_path / "file"):
        with pytest.raises(OSError, match="results_dir") as raised:
            check_writable(folder, "results_dir")
        assert raised.value.filename == f"results_dir: {folder}", "not a file of a moment"
    with pytest.raises(OSError, match="name too long"):
        check_writable(tmp_path, "--out", "x" * 300)
