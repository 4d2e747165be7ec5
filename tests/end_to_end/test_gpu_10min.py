"""scripts/gpu_10min.sh with a Python that only writes down how it was started. Not the training."""

import os
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest

from cramming.config import composed
from cramming.train.root import PretrainRoot
from tests.helpers.commands import ROOT

FAKE = """#!/usr/bin/env bash
echo "$*" >> "$STARTED"
"""


class Script:
    """A copy of the script in a checkout of its own."""

    def __init__(self, home: Path) -> None:
        self.home, self.started = home, home / "started.txt"
        (home / "scripts").mkdir()
        (home / "outputs/orders").mkdir(parents=True)
        (home / "outputs/data/gpu_10min-1").mkdir(parents=True)
        (home / "scripts/gpu_10min.sh").write_bytes((ROOT / "scripts/gpu_10min.sh").read_bytes())
        (home / "python").write_text(FAKE)
        (home / "python").chmod(0o755)

    def __call__(self, *arguments: str, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """What the script did, and the lines of what it started."""
        self.started.unlink(missing_ok=True)
        ours = {"PYTHON": str(self.home / "python"), "STARTED": str(self.started), **environment}
        done = subprocess.run(
            ["bash", "scripts/gpu_10min.sh", *arguments],
            cwd=self.home,
            env={key: value for key, value in os.environ.items() if key not in ("REPAIR", "ARGS")} | ours,
            capture_output=True,
            text=True,
        )
        return done, self.started.read_text().splitlines() if self.started.exists() else []


@pytest.fixture
def script(tmp_path: Path) -> Script:
    return Script(tmp_path)


def roots(lines: list[str]) -> list[PretrainRoot]:
    found = [line.split() for line in lines]
    assert {words[0] for words in found} == {"scripts/prepare.py"}
    return [composed("pretrain", words[1:]) for words in found]


def test_the_rows_differ_from_the_experiment_in_their_layer_alone(script: Script) -> None:
    done, lines = script("prepare", "/text/a.xz", "/text/b.xz", ARGS="train.lr=5e-4")
    assert done.returncode == 0, done.stderr
    found = roots(lines)
    assert [root.ffn.tag for root in found] == ["none", "1x11", "32x6", "1x11+96", "dense3072"]
    given = ["experiment=gpu_10min", "data.files=[/text/a.xz,/text/b.xz]", "train.lr=5e-4"]
    experiment = composed("pretrain", given)
    assert experiment.ffn == found[1].ffn
    for root in found:
        assert asdict(root) | {"ffn": None} == asdict(experiment) | {"ffn": None}


def test_another_repair_takes_its_place(script: Script) -> None:
    found = roots(script("prepare", "/text/a.xz", REPAIR="hardening=straight_through ffn.bias=false")[1])
    assert [root.ffn.tag for root in found] == ["none", "1x11", "32x6", "1x11", "dense3072"]
    assert [root.hardening.form for root in found] == ["hard", "hard", "hard", "straight_through", "hard"]
    assert found[1].run_name != found[3].run_name


def test_all_that_was_prepared_runs_or_what_is_named(script: Script) -> None:
    tags = ["1x11", "1x11+96", "32x6", "dense3072", "none"]
    orders = {tag: f"outputs/orders/gpu_10min-{tag}-s0-abc123.json" for tag in tags}
    for order in orders.values():
        (script.home / order).touch()
    (script.home / "outputs/orders/quickstart-1x9-s0-abc123.json").touch()
    done, lines = script("run", "1000", "out")
    assert (done.returncode, done.stdout) == (0, "all finished\n")
    assert sorted(lines) == sorted(f"scripts/pretrain_plain.py {order}" for order in orders.values())
    for tag in tags:
        assert script("run", "1000", "out", tag)[1] == [f"scripts/pretrain_plain.py {orders[tag]}"]
    assert script("run", "59", "out")[0].stdout == "not finished: run the same command again\n"


def test_without_a_command_it_says_what_it_is_for(script: Script) -> None:
    done, lines = script()
    assert (done.returncode, lines) == (2, [])
    assert done.stdout.startswith("The experiment gpu_10min for five feedforward layers")
    assert done.stdout.endswith("from which the next one continues.\n")
