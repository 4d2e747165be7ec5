"""Kills pretraining at random moments and flips random bits of its files: `python scripts/torture.py --seconds 120`.

A killed run must go on to the same bits; a flipped bit must be noticed by name, or change nothing. Each trial is a tiny
run on made-up text in a process of its own. Status 1 where a trial found otherwise; the folder of it is kept.
"""

import signal

import cramming  # noqa: F401 (before torch: how its threads wait)

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from cramming.data.config import DataConfig
from cramming.door import door, explained, own_bars, tell
from cramming.errors import UserError
from cramming.files import sha256
from cramming.model.config import FFNConfig, ModelConfig
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot

WORDS = ("the", "a", "river", "stone", "house", "teacher", "letter", "sees", "finds", "follows", "near", "under", "old")
TIMED = ("train/tokens_per_s", "budget/hours", "fff/usage_time")  # what no two runs share
# Which files a bit is flipped in, below outputs/ of a run that stands in the middle, or of one that is finished.
TARGETS = {"data": "data/*/*", "checkpoint": "runs/*/checkpoints/step-*/*", "history": "runs/*/metrics.jsonl"}
FINISHED_TARGETS = {"model": "runs/*/model/model.safetensors", "record": "runs/*/record.json"}


def tiny(folder: Path) -> PretrainRoot:
    """A run of 12 steps and a second or two, on text from a fixed seed."""
    folder.mkdir(parents=True, exist_ok=True)
    text = folder / "text.txt"
    if not text.exists():
        draw = random.Random(0)
        lines = [" ".join(draw.choices(WORDS, k=9)) + "." if number % 9 else "" for number in range(1, 2000)]
        text.write_text("\n".join(lines))
    return PretrainRoot(
        experiment="torture",
        output_dir=str(folder / "outputs"),
        results_dir=str(folder / "results"),
        data=DataConfig(
            name="tiny", source="text", files=[str(text)], valid_share=0.2, vocab_size=80, seq_len=32, workers=1
        ),
        model=ModelConfig(hidden_size=32, layers=2, heads=2),
        ffn=FFNConfig(**{"kind": "path", "trees": 2, "depth": 3}),  # type: ignore[arg-type]
        train=TrainConfig(
            budget_steps=12,
            microbatch=8,
            batch=16,
            lr=3e-3,
            checkpoints=4,
            validations=2,
            valid_sequences=16,
            log_steps=1,
        ),
        wandb=WandbConfig(mode="off"),
    )


@dataclass(frozen=True)
class Outcome:
    """How a process ended: exit status (negative: the signal), and what it printed."""

    status: int
    text: str
    seconds: float


def in_child(folder: Path, kill_after: float | None = None) -> Outcome:
    """Pretrain in a forked process, which finds the libraries loaded; kill it after so many seconds."""
    started, log = time.monotonic(), folder.with_suffix(".log")
    child = os.fork()
    if child == 0:
        _child(folder, log)
    if kill_after is not None:
        deadline = started + kill_after
        while time.monotonic() < deadline:
            if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return Outcome(os.waitstatus_to_exitcode(status), log.read_text(errors="replace"), time.monotonic() - started)


def _child(folder: Path, log: Path) -> None:
    """Never returns. As a script does it: errors of a user's kind are a line and status 2, others a traceback and 1."""
    status = 1
    own_bars()
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                pretrain(tiny(folder))
                status = 0
            except Exception as error:
                if (text := explained(error)) is None:
                    raise
                tell(text)
                status = 2
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def results(folder: Path) -> dict[str, str]:
    """What a finished run must share with every other: its weights' hash, and its history without times."""
    (model,) = folder.glob("outputs/runs/*/model/model.safetensors")
    (history,) = folder.glob("outputs/runs/*/metrics.jsonl")
    rows = [json.loads(line) for line in history.read_text().splitlines()]
    kept = [{key: value for key, value in row.items() if key not in TIMED} for row in rows]
    return {"model": sha256(model), "history": json.dumps(kept)}


def kill_trial(folder: Path, expected: dict[str, str], whole: float, draw: random.Random) -> str:
    """Kill a run up to three times, then let it end; returns what came of it."""
    for _ in range(draw.randint(1, 3)):
        in_child(folder, draw.uniform(0, 1.1 * whole))
    last = in_child(folder)
    if last.status != 0:
        return f"BROKEN: status {last.status}: {last.text[-300:]}"
    return "equal bits" if results(folder) == expected else "BROKEN: other bits"


def flip_trial(folder: Path, pattern: str, expected: dict[str, str], draw: random.Random) -> str:
    """Flip one bit of one file, run, and see whether it was noticed; returns what came of it."""
    files = sorted(path for path in (folder / "outputs").glob(pattern) if path.is_file() and path.stat().st_size)
    if not files:
        return "no such file"
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)
    done = in_child(folder)
    if done.status == 2 and done.text.count("error: ") == 1:
        named = str(folder / "outputs") in done.text or path.name in done.text
        return "noticed" if named else f"BROKEN: names nothing: {done.text[-300:]}"
    if done.status == 0 and results(folder) == expected:
        return "mended, or of no effect"
    return f"BROKEN: {path.relative_to(folder)}: status {done.status}: {done.text[-300:]}"


def standing(work: Path, whole: float, draw: random.Random) -> None:
    """Leave a run in `work` that was killed after its first checkpoint and before its end."""
    for _ in range(30):
        in_child(work, draw.uniform(0.3, 1.0) * whole)
        if list(work.glob("outputs/runs/*/record.json")):
            shutil.rmtree(work)
        elif list(work.glob("outputs/runs/*/checkpoints/step-*")):
            return
    raise UserError("no run could be killed between its first checkpoint and its end; is the machine very busy?")


def torture(home: Path, seconds: float, seed: int) -> Counter[str]:
    """Trials in turn until the time is used; returns how each kind ended.

    All of them happen in one folder, because a run's name follows from the paths of its text.
    """
    draw, found, work = random.Random(seed), Counter[str](), home / "work"
    first = in_child(work)
    if first.status != 0:
        raise UserError(f"the undisturbed run failed: {first.text[-500:]}")
    expected = results(work)
    shutil.move(work, home / "whole")
    whole = in_child(work).seconds  # without what only a first run does
    shutil.rmtree(work)
    standing(work, whole, draw)
    shutil.move(work, home / "middle")
    flips = [("middle", name, pattern) for name, pattern in TARGETS.items()]
    flips += [("whole", name, pattern) for name, pattern in FINISHED_TARGETS.items()]

    def trial(number: int) -> tuple[str, str]:
        which = number % (1 + len(flips))
        if which == 0:
            return "kill", kill_trial(work, expected, whole, draw)
        source, name, pattern = flips[which - 1]
        shutil.copytree(home / source, work)
        return f"flip {name}", flip_trial(work, pattern, expected, draw)

    started, number = time.monotonic(), 0
    with tqdm(total=round(seconds), unit="s", bar_format="{desc} {percentage:3.0f}%|{bar}| {elapsed}") as bar:
        while time.monotonic() - started < seconds:
            name, outcome = trial(number)
            found[f"{name}: {outcome}"] += 1
            if "BROKEN" in outcome:
                bar.write(f"{name}: {outcome}")
                shutil.move(work, home / f"broken-{number}")
            else:
                shutil.rmtree(work)
            number += 1
            bar.set_description(f"{number} trials")
            bar.update(min(round(time.monotonic() - started), bar.total) - bar.n)
    return found


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=120.0, help="for all trials (default 120)")
    options.add_argument("--seed", type=int, default=0, help="of moments and bits")
    chosen = options.parse_args()
    torch.set_num_threads(1)  # forked processes share no team of threads
    with door():
        home = Path(tempfile.mkdtemp(prefix="torture-"))
        found = torture(home, chosen.seconds, chosen.seed)
        for outcome, count in sorted(found.items()):
            print(f"{count:5}  {outcome}")
        if any("BROKEN" in outcome for outcome in found):
            print(f"kept       {home}")
            sys.exit(1)
        shutil.rmtree(home)


if __name__ == "__main__":
    main()
