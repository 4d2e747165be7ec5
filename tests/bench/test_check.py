"""The measurement of a machine: without the optional libraries, in small, with parts that fail or take too long."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench.check import parts, run
from bench.check.parts import PARTS, sound_providers
from bench.check.size import DENSE, PATH, full_size, small_size
from bench.check.synthetic import TopicTokens, pretrain_synthetic
from bench.check.table import STEP, lines, table
from fff.kernels import PROVIDERS, Provider, choose
from fff.testing import ParityCase, parity, poisoned

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
RUN = "runpy.run_path('scripts/gpu_check.py', run_name='__main__')"
WITHOUT = "import sys; sys.modules.update(dict.fromkeys(('hydra', 'omegaconf', 'datasets', 'evaluate', 'wandb')))"


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/gpu_check.py where the optional libraries cannot be imported."""
    program = f"{WITHOUT}; import runpy; sys.argv[0] = 'gpu_check'; {RUN}"
    command = [sys.executable, "-c", program, *arguments]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # threads that wait for one another stall beside other tests
    return subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, timeout=100)


def test_in_small_without_optional_libraries_it_answers_every_question(tmp_path: Path) -> None:
    done = script(str(tmp_path), "--small", "--one-process")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / run.FILE).read_text())
    assert list(found["parts"]) == list(PARTS)
    assert {part["status"] for part in found["parts"].values()} == {"done"}
    rows = {name: part["rows"] for name, part in found["parts"].items()}
    assert rows["machine"][0]["peaks"]["gflops"] > 0
    assert {"masked", "gather"} <= {row["provider"] for row in rows["correctness"] if row["ok"]}
    assert {row["mode"] for row in rows["layer"]} == {"inference", "training"}
    for name in ("model_training", "model_inference", "pretraining"):
        assert {row["name"] for row in rows[name]} == {DENSE, PATH}
    for row in rows["pretraining"]:
        assert row["curve"][-1]["loss"] > 0
        # It takes a second, and on a busy machine few steps fit into one.
        assert row["steps"] < 40 or row["profile"]["steps"] == 4
    answers = found["table"]
    assert all(row["ours"] for row in answers if row["unit"] != "model FLOP utilisation")
    assert all(row["times"] > 0 for row in answers if "times" in row)
    assert answers[0]["ours"] == answers[0]["against"]


def test_the_script_asks_for_a_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    done = script("/nowhere")
    assert done.returncode == 2
    assert "There is no GPU" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--parts", "correctness,speed"), "--parts is 'speed'"),
        (("--parts", ","), "--parts is empty"),
        (("--seconds", "nan"), "--seconds is nan"),
        (("--seconds", "0"), "--seconds is 0"),
        ((), "/dev/null/x: Not a directory"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "/dev/null/x", "--small", *options])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / "scripts" / "gpu_check.py"), run_name="__main__")
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.count("\n") == 1


def test_a_part_that_fails_is_recorded_and_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size, known):
        yield {"row": 1}
        raise RuntimeError("an illegal memory access")

    monkeypatch.setitem(PARTS, "machine", (broken, 10.0))
    report = run.check_machine(tmp_path, ["machine", "correctness"], small=True, seconds=60, isolated=False)
    assert report.parts["machine"]["status"] == "failed"
    assert report.parts["machine"]["rows"] == [{"row": 1}]
    assert "an illegal memory access" in report.parts["machine"]["error"]
    assert report.parts["correctness"]["status"] == "done"
    assert json.loads((tmp_path / run.FILE).read_text())["parts"] == report.parts


def test_a_part_in_its_own_process_is_ended_when_its_time_is_over(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(run, "POLL_S", 0.1)
    monkeypatch.setitem(PARTS, "machine", (PARTS["machine"][0], 0.3))
    report = run.check_machine(tmp_path, ["machine"], small=True, seconds=60, isolated=True)
    assert report.parts["machine"]["status"] == "out of time"
    report = run.check_machine(tmp_path, ["machine"], small=True, seconds=0.5, isolated=True)
    assert report.parts["machine"]["status"] == "no time left"


def test_a_part_in_its_own_process_comes_back(tmp_path: Path) -> None:
    report = run.check_machine(tmp_path, ["correctness"], small=True, seconds=60, isolated=True)
    assert report.parts["correctness"]["status"] == "done"
    assert all(row.get("ok", True) for row in report.parts["correctness"]["rows"])


def test_a_case_that_fails_is_recorded_and_the_next_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PROVIDERS["gather"].function

    def broken(operands):
        if operands.x.dtype == torch.float32:
            raise RuntimeError("out of resource: shared memory")
        return right(operands)

    monkeypatch.setitem(PROVIDERS, "gather", Provider("gather", "conditional", broken))
    rows = [row for row in parts.correctness(small_size(), {}) if row["provider"] == "gather"]
    assert {row["dtype"]: row["ok"] for row in rows} == {"float32": False, "bfloat16": True}
    assert "out of resource" in rows[0]["error"]
    assert "gather" not in sound_providers(rows, small_size())
    assert table({"correctness": {"rows": rows}})[0]["wrong"] == ["gather 1x4 float32 9"]


def test_a_model_with_a_wrong_provider_is_not_timed() -> None:
    size = small_size()
    assert parts.feedforwards(size, {}) == (DENSE, PATH)
    rows = [parity(name, size.cases[0], CPU) for name in ("masked", "gather")]
    taken = choose("auto", "auto", CPU, size.dtype, 1, 11).name
    wrong = [row for row in rows if row["provider"] != taken] + [rows[0] | {"provider": taken, "ok": False}]
    assert parts.feedforwards(size, {"correctness": wrong}) == (DENSE,)
    found = list(parts.model_inference(size, {"correctness": wrong}))
    assert {row["name"] for row in found} == {DENSE}
    answers = {answer["row"]: answer for answer in table({"model_inference": {"rows": found}})}
    assert answers["inference of one sequence, whole model"]["times"] is None


def test_the_table_has_the_steps_rates_not_those_of_updates_alone() -> None:
    def row(ffn: str, work: str, rate: float) -> dict:
        return {"name": ffn, "what": work, "compiler": "default", "tokens_per_s": rate}

    steps = [row(DENSE, "pretraining step", 100.0), row(PATH, "pretraining step", 250.0)]
    updates = [row(DENSE, "update alone", 4000.0), row(PATH, "update alone", 3000.0)]
    answers = {answer["row"]: answer for answer in table({"model_training": {"rows": steps + updates}})}
    assert answers["pretraining step, whole model"]["times"] == 2.5
    assert {row["what"] for row in parts.model_training(small_size(), {})} == {STEP, "update alone"}


def test_what_was_not_found_is_none() -> None:
    rows = table({"layer": {"status": "failed", "rows": []}})
    assert all(not row["ours"] for row in rows)
    assert "None" in lines(rows)


def test_a_wrong_provider_is_found_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PROVIDERS["gather"].function

    def wrong(operands):
        return right(operands._replace(w_in=operands.w_in * 1.01))

    case = ParityCase(2, 3, 16, 24, 9, torch.float32)
    assert parity("gather", case, CPU)["ok"]
    assert not torch.are_deterministic_algorithms_enabled()
    monkeypatch.setitem(PROVIDERS, "gather", Provider("gather", "conditional", wrong))
    row = parity("gather", case, CPU)
    assert not row["ok"]
    with poisoned():
        assert torch.empty(3).isnan().all()
    assert row["errors"]["y"] > 1e-3
    rows = [parity(name, case, CPU) for name in ("masked", "gather")]
    assert sound_providers(rows, small_size()) == ("masked",)
    # Unchecked, it is found on the timed shape: its own walk differs, or its output does.
    monkeypatch.setattr(parts, "sound_providers", lambda *_: ("masked", "gather"))
    found = list(parts.layer(small_size(), {}))
    assert [row["provider"] for row in found if "error" in row] == ["gather", "gather"]
    dtypes = [row["dtype"] for row in parts.correctness(small_size(), {})]
    assert dtypes == sorted(dtypes, reverse=True), "the timed dtype comes first"
    assert {row["name"] for row in found if "median" in row} >= {"masked", "dense 15 float32"}


def test_made_up_tokens_follow_from_their_number() -> None:
    tokens = TopicTokens(1000, 16)
    whole, part = tokens.take(torch.arange(6).numpy()), tokens.take(torch.arange(4, 6).numpy())
    assert (whole[4:] == part).all()
    assert whole.min() >= 7
    assert whole.max() < 1000


def test_the_full_size_is_the_papers() -> None:
    size = full_size()
    assert (size.trees, size.depth, size.tokens) == (1, 11, 16384)
    assert (size.model.layers, size.model.hidden_size, size.model.microbatch * size.model.length) == (16, 768, 16384)
    assert size.within(1000.0).pretrain_seconds == 60.0
    assert size.within(5.0).pretrain_seconds == 20.0


def test_a_pretraining_that_begins_late_is_shorter(tmp_path: Path) -> None:
    row = pretrain_synthetic(PATH, small_size().model, 1000.0, tmp_path, time.perf_counter())
    assert 0 < row["seconds"] < 60
    assert row["tokens_per_s"] > 0
