"""The runs of a suite: what stays, what is kept, and what must show before any training."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from cramming.errors import Diverged, UserError
from cramming.files import read_json, write_json
from cramming.glue import suite as suite_module
from cramming.glue.classifier import singles_as_pairs
from cramming.glue.config import GlueConfig
from cramming.glue.suite import Suite, run_suite
from cramming.model.saved import open_pretrained
from tests.helpers.glue import sentiment_rows, tiny_run, tiny_tokenizer, write_sst2

ROOT = Path(__file__).resolve().parents[3]
RUN = "tiny-1x2-s0-abc123"


def settings(home: Path, **changes: object) -> GlueConfig:
    values = {"source": "local", "dir": str(home / "glue"), "tasks": ["sst2"], "seeds": [0], "max_length": 16}
    return GlueConfig(**{**values, "epochs": 1, "lr": 3e-3, **changes})


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    tiny_run(tmp_path / "runs" / RUN)
    write_sst2(tmp_path / "glue")
    return Suite(settings(tmp_path), open_pretrained(tmp_path / "runs" / RUN), tmp_path / "results")


def rows(home: Path, count: int, seed: int) -> None:
    """Other training examples of the same task, at the same place."""
    lines = ["sentence\tlabel", *sentiment_rows(count, seed)]
    (home / "glue" / "SST-2" / "train.tsv").write_text("\n".join(lines) + "\n")


def test_a_finished_record_stays_when_the_examples_change(suite: Suite, tmp_path: Path, capsys) -> None:
    (first,) = run_suite(suite)
    path = tmp_path / "results" / "runs" / f"{first['name']}.json"
    before = path.read_bytes()
    rows(tmp_path, 64, 9)
    (second,) = run_suite(suite)
    assert path.read_bytes() == before
    assert second["name"].startswith(f"{first['name']}-")
    assert second["samples"]["train"] == 64
    assert "that record is of other examples or weights, and stays" in capsys.readouterr().out
    assert run_suite(suite) == [second]
    rows(tmp_path, 96, 1)
    assert run_suite(suite) == [first]
    assert len(list(path.parent.iterdir())) == 2


def test_a_record_says_who_computed(suite: Suite, monkeypatch) -> None:
    (finished,) = run_suite(suite)
    assert finished["provider"] in {"masked", "gather", "cpu", "triton"}
    real = suite_module.finetune

    def diverge(config, world, encoded, make_model, seed, log) -> None:
        real(config, world, encoded, make_model, seed, log)
        raise Diverged("the training loss is nan at step 3")

    monkeypatch.setattr(suite_module, "finetune", diverge)
    (diverged,) = run_suite(replace(suite, config=replace(suite.config, seeds=[1])))
    assert (diverged["status"], diverged["provider"]) == ("diverged", finished["provider"])


def test_a_failing_run_overwrites_no_finished_one(suite: Suite, tmp_path: Path, monkeypatch) -> None:
    (first,) = run_suite(suite)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(suite_module, "finetune", fail)
    rows(tmp_path, 64, 9)
    (second,) = run_suite(suite)
    assert second["status"] == "failed"
    assert read_json(tmp_path / "results" / "runs" / f"{first['name']}.json") == first


def test_a_record_whose_content_is_not_its_names_is_never_replaced(suite: Suite, tmp_path: Path) -> None:
    run_suite(suite)
    rows(tmp_path, 64, 9)
    (second,) = run_suite(suite)
    path = tmp_path / "results" / "runs" / f"{second['name']}.json"
    write_json(path, {**second, "data_fingerprint": "other"})
    with pytest.raises(UserError, match="was changed after it was written"):
        run_suite(suite)
    path.write_text("[]")
    with pytest.raises(UserError, match=rf"{path.name} is not a record"):
        run_suite(suite)


def test_kept_classifiers_load_with_the_tokenizer_that_they_were_trained_with(suite: Suite, tmp_path: Path) -> None:
    kept = replace(suite, config=settings(tmp_path, save=True, epochs=8), kept=tmp_path / "runs" / RUN / "glue")
    (record,) = run_suite(kept)
    folder = tmp_path / "runs" / RUN / "glue" / record["name"]
    assert record["name"] == run_suite(replace(suite, config=settings(tmp_path, epochs=8)))[0]["name"]
    assert [path.name for path in folder.parent.iterdir()] == [record["name"]]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("the film is good")["input_ids"] == [4, 10, 9, 13, 7, 5, 5]
    lines = [line.split("\t") for line in (tmp_path / "glue" / "SST-2" / "dev.tsv").read_text().splitlines()[1:]]
    answers = pipeline("text-classification", model=model, tokenizer=tokenizer)([text for text, _ in lines])
    right = [
        answer["label"] == ["negative", "positive"][int(label)]
        for answer, (_, label) in zip(answers, lines, strict=True)
    ]
    assert sum(right) / len(right) == record["metrics"]["accuracy"]


def test_a_classifier_that_is_missing_is_made_again_and_its_record_stays(suite: Suite, tmp_path: Path) -> None:
    (record,) = run_suite(suite)
    path = tmp_path / "results" / "runs" / f"{record['name']}.json"
    before = path.stat().st_mtime_ns
    kept = replace(suite, kept=tmp_path / "kept")
    assert run_suite(kept) == [record]
    weights = tmp_path / "kept" / record["name"] / "model.safetensors"
    written = weights.stat().st_mtime_ns
    assert run_suite(kept) == [record]
    assert (path.stat().st_mtime_ns, weights.stat().st_mtime_ns) == (before, written)


def test_what_a_killed_save_left_is_removed_by_the_next(suite: Suite, tmp_path: Path, monkeypatch) -> None:
    kept = replace(suite, kept=tmp_path / "kept")

    def killed(*_: object) -> None:
        code = (
            "import os, pathlib; from cramming.files import new_folder\n"
            f"with new_folder(pathlib.Path({str(tmp_path / 'kept' / 'sst2')!r})) as folder:\n"
            "    (folder / 'half').touch(); os.kill(os.getpid(), 9)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cramming.glue.classifier.write_model", killed)
        with pytest.raises(KeyboardInterrupt):
            run_suite(kept)
    assert [path.name[:6] for path in kept.kept.iterdir()] == [".sst2."]
    (record,) = run_suite(kept)
    assert [path.name for path in kept.kept.iterdir()] == [record["name"]]


def test_single_texts_get_their_cls_and_pairs_stay() -> None:
    plain, kept = tiny_tokenizer(), singles_as_pairs(tiny_tokenizer())
    assert plain("the film")["input_ids"] == [10, 9, 5]
    assert kept("the film")["input_ids"] == plain(["the film"], [""])["input_ids"][0] == [4, 10, 9, 5, 5]
    assert kept("the film", "bad")["input_ids"] == plain("the film", "bad")["input_ids"]


@pytest.mark.parametrize("what", ["results", "kept"])
def test_a_folder_that_cannot_be_written_shows_before_any_training(suite: Suite, tmp_path: Path, monkeypatch, what):
    monkeypatch.setattr(suite_module, "finetune", lambda *_: pytest.fail("trained before the folders were tried"))
    (tmp_path / "file").touch()
    changes = {"results": {"results_dir": tmp_path / "file"}, "kept": {"kept": tmp_path / "file" / "x"}}[what]
    with pytest.raises(NotADirectoryError):
        run_suite(replace(suite, **changes))


def test_metrics_that_do_not_work_here_show_before_any_training(suite: Suite, monkeypatch) -> None:
    monkeypatch.setattr(suite_module, "finetune", lambda *_: pytest.fail("trained before the metrics were tried"))

    def fail(*_: object) -> float:
        raise OSError(13, "Permission denied", "/cache")

    monkeypatch.setattr("cramming.glue.metrics.Accuracy.score", fail)
    with pytest.raises(PermissionError, match="/cache"):
        run_suite(suite)


def test_a_cache_that_cannot_be_written_fails_no_run(tmp_path: Path) -> None:
    """In a process of its own: the libraries read these variables as they are imported."""
    tiny_run(tmp_path / "runs" / RUN)
    write_sst2(tmp_path / "glue")
    (tmp_path / "file").touch()
    nowhere = str(tmp_path / "file" / "cache")
    variables = ("HF_HOME", "HF_METRICS_CACHE", "HF_EVALUATE_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE")
    values = [f"glue.dir={tmp_path}/glue", "glue.seeds=[0]", "glue.tasks=[sst2]", "glue.epochs=1", "glue.max_length=16"]
    command = [sys.executable, "scripts/glue.py", "glue=local", f"checkpoint={tmp_path / 'runs' / RUN}", *values]
    done = subprocess.run(
        [*command, f"output_dir={tmp_path}", f"results_dir={tmp_path}/results", "wandb=off"],
        cwd=ROOT,
        env=os.environ | dict.fromkeys(variables, nowhere) | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "results" / "runs").iterdir()
    assert json.loads(path.read_text())["status"] == "finished"


def test_results_on_other_examples_are_no_repetitions(suite: Suite, tmp_path: Path) -> None:
    from cramming.report.groups import suite_groups

    records = run_suite(replace(suite, config=settings(tmp_path, seeds=[0, 1])))
    (group,) = suite_groups(records, "glue")
    assert group.cells["sst2"].n == 2
    rows(tmp_path, 64, 9)
    records += run_suite(suite)
    groups = suite_groups(records, "glue")
    assert sorted(group.cells["sst2"].n for group in groups) == [1, 2]
    assert len({group.settings for group in groups}) == 2


def test_several_processes_do_nothing_at_all(tmp_path: Path, monkeypatch) -> None:
    from cramming.glue import evaluate
    from tests.helpers.composed import composed

    class Several:
        size = 2

    monkeypatch.setattr("cramming.glue.finetune.open_world", lambda *_: Several())
    monkeypatch.setattr(evaluate, "open_pretrained", lambda *_: pytest.fail("opened by each of several processes"))
    with pytest.raises(UserError, match="one process, not 2"):
        evaluate.evaluate_run(composed("glue", f"output_dir={tmp_path}"))


def test_an_error_of_the_system_is_no_failed_run(suite: Suite, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/x")

    monkeypatch.setattr(suite_module, "finetune", full)
    with pytest.raises(OSError, match="No space left"):
        run_suite(suite)
    assert not list((tmp_path / "results" / "runs").iterdir())


def test_saving_renames_nothing() -> None:
    assert GlueConfig(save=True).settings() == GlueConfig().settings()
