"""Sweeps at the size of a test: their words, their runs, their tables, and a process elsewhere. Not a test."""

import csv
import json
import os
import time
from dataclasses import asdict
from pathlib import Path

from cramming.locks import Holder
from cramming.plan import Planned, points
from cramming.train.run import RunFolder
from tests.helpers.data import make_documents, write_txt

TINY = (
    "data=text data.name=tiny data.vocab_size=200 data.seq_len=16 data.valid_share=0.2 data.examples=[] data.workers=1 "
    "model.hidden_size=16 model.layers=1 model.heads=2 train.budget_tokens=2000 train.batch=8 train.microbatch=8 "
    "train.valid_sequences=8 train.validations=1 train.checkpoints=1 wandb=off"
)
TIMED = ("train_tokens_per_s", "hours")  # [1/s], [h]: of the machine, not of the run
GPU7 = "gpu7, process 4242, since "


def folders(home: Path, text: Path | None = None) -> list[str]:
    """What a sweep reads and writes, below a folder; a text that is not there yet is written."""
    text = text or home / "text.txt"
    if not text.exists():
        write_txt(text, make_documents(120))
    return [f"data.files=[{text}]", f"output_dir={home}/outputs", f"results_dir={home}/results"]


def planned_of(words: list[str]) -> list[Planned]:
    """The runs of a sweep's words, its options left out."""
    return points([word for word in words if "=" in word and not word.startswith("-")])


def untimed(home: Path) -> list[dict[str, str]]:
    """Pretraining's table without what depends on the machine."""
    with (home / "results/tables/pretraining.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["quantity"] not in TIMED]


def held_elsewhere(run: Planned, *, silent_for: float = 0.0) -> Path:
    """Let a process of another machine have the run, that touched its lock so many seconds ago; returns the file."""
    lock = RunFolder(run.root.run_folder).lock
    lock.parent.mkdir(parents=True, exist_ok=True)
    file = lock.with_name(".1.lock")
    file.write_text(json.dumps(asdict(Holder("gpu7", 4242, "gpu7 boot pid:[1]", "1", 1.7e9))))
    silence(file, silent_for)
    return file


def silence(file: Path, seconds: float) -> None:
    """Nobody has touched the lock's file for so long."""
    then = time.time() - seconds
    os.utime(file, (then, then))
