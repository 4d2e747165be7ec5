"""bench.busy: neighbours use cores and end, each way of waiting reaches its process, and rows compare with alone."""

import json
import subprocess
from pathlib import Path

import pytest

from bench import busy
from cramming.errors import UserError


def test_neighbours_run_inside_the_block_and_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen] = []
    real = subprocess.Popen

    def kept(*arguments, **named):
        started.append(real(*arguments, **named))
        return started[-1]

    monkeypatch.setattr(busy.subprocess, "Popen", kept)
    with busy.neighbours(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.returncode is not None for process in started)


def test_a_way_of_waiting_is_the_only_one_that_its_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def run(command, env, **named):
        seen.update(env)
        return subprocess.CompletedProcess(command, 0, stdout="2.5\n", stderr="")

    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    monkeypatch.setattr(busy.subprocess, "run", run)
    assert busy.alone_in_process("OMP_WAIT_POLICY=passive", 2, 1.0) == 2.5
    assert (seen["OMP_WAIT_POLICY"], seen["OMP_NUM_THREADS"]) == ("passive", "2")
    assert "GOMP_SPINCOUNT" not in seen


def test_a_process_that_fails_is_told_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy.sys, "executable", "false")
    with pytest.raises(UserError, match="ended with status 1"):
        busy.alone_in_process("libgomp's own", 1, 1.0)


def test_what_is_left_is_compared_with_the_same_way_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"libgomp's own": [8.0, 1.0, 10.0, 2.0, 9.0, 3.0]}  # alone and beside, in turn
    monkeypatch.setattr(busy, "WAYS", {"libgomp's own": {}})
    monkeypatch.setattr(busy, "neighbours", lambda count: pytest.MonkeyPatch().context())
    monkeypatch.setattr(busy, "alone_in_process", lambda way, threads, seconds: rates[way].pop(0))
    busy.main(["--threads", "2", "--out", str(tmp_path / "busy.json")])
    alone, beside = json.loads((tmp_path / "busy.json").read_text())["rows"]
    tokens = 16 * 128
    assert (alone["median"], alone["least"], alone["most"]) == (9 * tokens, 8 * tokens, 10 * tokens)
    assert (beside["median"], beside["ratio"], beside["opponent"]) == (2 * tokens, 2 / 9, "libgomp's own, alone")
    assert "22% of alone" in capsys.readouterr().out


def test_steps_are_counted_without_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, steps = [0.0], []

    class Step:
        def __init__(self, *arguments) -> None:
            pass

        def __call__(self, turn: int) -> None:  # the first takes 100 s, to find memory; the others 2 s
            clock[0] += 2.0 if steps else 100.0
            steps.append(turn)

    monkeypatch.setattr(busy, "PretrainingStep", Step)
    monkeypatch.setattr(busy.time, "perf_counter", lambda: clock[0])
    assert busy.steps_per_second(7.0) == 0.5
    assert len(steps) == 5
