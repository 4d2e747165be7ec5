"""Records: never written over by another result, complete when a number is none, and nobody's paths in them."""

import json
import math
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cramming import provenance as room
from cramming.errors import UserError
from cramming.files import LEFT_AFTER_S, remove_leftovers, write_json
from cramming.provenance import git_state
from cramming.record import read_records, recognised, record_file, without_folders, write_record
from cramming.runs import RecordedRun


def written(results: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"kind": "glue", "name": "glue-a", "status": "finished", "config": {}, "seed": 0}
    values |= {"data_fingerprint": "text", "samples": {"train": 1}, "metrics": {"accuracy": 0.5}}
    values["extra"] = {"weights_sha256": "weights"} | changes.pop("extra", {})
    return write_record(results, **(values | changes))


def on_disk(results: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (results / "runs").glob("*.json")}


def test_the_record_is_what_is_written(tmp_path: Path) -> None:
    record = written(tmp_path, processes=3, provider="cpu")
    assert on_disk(tmp_path) == {"glue-a": record}
    assert (record["machine"]["processes"], record["provider"]) == (3, "cpu")
    assert record["machine"]["threads"] >= 1
    assert "provider" not in written(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        {"data_fingerprint": "other text"},
        {"extra": {"weights_sha256": "other weights"}},
        {"status": "failed", "extra": {"error": "RuntimeError"}},
        {"status": "failed", "data_fingerprint": "other text"},
        {"metrics": {"accuracy": math.nan}},
    ],
)
def test_nothing_finished_is_written_over_by_another_result(tmp_path: Path, other: dict[str, Any]) -> None:
    first = written(tmp_path)
    second = written(tmp_path, **other)
    assert second["name"].startswith("glue-a-")
    assert on_disk(tmp_path) == {"glue-a": first, second["name"]: second}
    assert written(tmp_path, **other)["name"] == second["name"]
    assert len(on_disk(tmp_path)) == 2


def test_a_run_replaces_its_own_record(tmp_path: Path) -> None:
    written(tmp_path, status="failed")
    written(tmp_path, metrics={"accuracy": 0.6})
    assert [record["metrics"] for record in on_disk(tmp_path).values()] == [{"accuracy": 0.6}]
    name, record = recognised(tmp_path, "glue-a", {"data_fingerprint": "text", "weights_sha256": "weights"})
    assert (name, record and record["metrics"]["accuracy"]) == ("glue-a", 0.6)
    assert recognised(tmp_path, "glue-a", {"data_fingerprint": "other"})[1] is None


def test_a_number_that_is_none_makes_a_diverged_record(tmp_path: Path) -> None:
    record = written(
        tmp_path,
        metrics={"valid_loss": math.inf, "train_loss": math.nan, "hours": 1.0},
        extra={"curve": [{"tokens": 1, "valid_loss": -math.inf}]},
    )
    assert record["status"] == "diverged"
    assert record["error"] == "valid_loss is inf, train_loss is nan"
    assert record["metrics"] == {"valid_loss": "inf", "train_loss": "nan", "hours": 1.0}
    assert record["curve"] == [{"tokens": 1, "valid_loss": "-inf"}]
    assert read_records(tmp_path) == [record]


def test_one_skeleton_tells_and_saves_a_run(tmp_path: Path) -> None:
    run = RecordedRun(
        tmp_path, "images", "images-a", 3, {"images": {}}, {"data_fingerprint": "x"}, {"row": {"width": 4}}
    )
    assert run.finished() is None
    assert run.save("diverged", {"train": 1}, {}, "the loss is not finite")["error"] == "the loss is not finite"
    assert run.finished() is None
    record = run.save("finished", {"train": 1}, {"generalisation": 0.5}, processes=2)
    assert run.finished() == record
    assert (record["row"], record["seed"], record["machine"]["processes"]) == ({"width": 4}, 3, 2)
    other = RecordedRun(tmp_path, "images", "images-a", 3, {"images": {}}, {"data_fingerprint": "y"})
    assert other.finished() is None


@pytest.mark.parametrize("name", ["../../../x", "a/b", ".hidden", ""])
def test_no_record_is_written_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot name files"):
        record_file(tmp_path, name)
    with pytest.raises(UserError, match="cannot name files"):
        written(tmp_path, name=name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "no record of schema version|is not a record"),
        ('{"schema_version": 1}', "has no kind where a record has text"),
        ('{"schema_version": 1, "kind": "glue", "name": 7}', "has name=7 where a record has text"),
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"a": ' + "1" * 5000 + "}", "is not valid JSON"),
        ('{"a": "\\ud800"}', "is not a record"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x.json").write_text(content)
    with pytest.raises(UserError, match=rf"x\.json.*({message})"):
        read_records(tmp_path)


def test_messages_keep_the_base_names_of_files_alone() -> None:
    assert without_folders("OSError: /home/somebody/x/y.txt: full") == "OSError: y.txt: full"
    assert without_folders("see https://a.b/c and n/a, 1/2") == "see https://a.b/c and n/a, 1/2"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [f".a.json.{dead.pid}.tmp", f".a.json.{os.getpid()}.tmp", ".note.tmp", f".new.json.{dead.pid}.tmp", "b.tmp"]
    for name in names:
        (tmp_path / name).touch()
        if not name.startswith(".new"):
            os.utime(tmp_path / name, (0, LEFT_AFTER_S))
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])
    remove_leftovers(tmp_path / "missing")


def test_who_holds_the_lock_removes_what_is_unfinished_and_nothing_else(tmp_path: Path) -> None:
    unfinished = [".model.0123abcd.tmp", ".model.fedc9876.old"]
    others = [".venv", ".venv.old", ".model.0123.tmp", ".step-5", "model.0123abcd.tmp", ".cache.ABCDEF12.tmp"]
    for name in (*unfinished, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").touch()
    (tmp_path / ".link.0123abcd.tmp").symlink_to(tmp_path / ".venv")
    for name in (f".record.json.{os.getpid()}.tmp", ".note.tmp"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert all((tmp_path / name).exists() for name in unfinished)
    remove_leftovers(tmp_path, alone=True)
    assert sorted(os.listdir(tmp_path)) == sorted([*others, ".link.0123abcd.tmp", ".note.tmp"])
    assert all((tmp_path / name / "content").exists() for name in others)


def test_reading_does_not_see_what_is_being_written(tmp_path: Path) -> None:
    write_json(tmp_path / "runs" / ".x.json", {})
    (tmp_path / "runs" / ".y.json.1.tmp").write_text("{")
    assert read_records(tmp_path) == []


def test_a_repository_around_unpacked_code_is_not_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "unpacked" / "cramming").mkdir(parents=True)
    monkeypatch.setattr(room, "__file__", str(tmp_path / "unpacked" / "cramming" / "provenance.py"))
    assert git_state.__wrapped__() == {"commit": None, "dirty": None}


def test_a_checkout_of_another_user_is_named_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cramming").mkdir()
    (tmp_path / "cramming" / "record.py").touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(room, "__file__", str(tmp_path / "cramming" / "record.py"))
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # as a container's user finds it
    assert git_state.__wrapped__() == {"commit": head, "dirty": False}


def test_no_committed_result_names_a_place_on_somebodys_machine() -> None:
    results = Path(__file__).parents[2] / "results"
    places = re.compile(r'"(?:/|~/|\.\./|[A-Za-z]:\\)[^"]*"')
    found = {path.name: places.findall(path.read_text()) for path in results.rglob("*.json")}
    assert found
    assert {name: each for name, each in found.items() if each} == {}
