"""Reading GLUE from the hub or from the official TSV files, and checking it. Not tokenising; `mini` makes its own."""

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cramming.errors import UserError
from cramming.glue.tasks import Task

HUB_ID = "nyu-mll/glue"


@dataclass(frozen=True)
class Split:
    """Examples in file order: first texts, second texts (None for single-text tasks), labels (int64 or float32)."""

    first: list[str]
    second: list[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class TaskData:
    """All of one task's examples. `partial` says why training data are incomplete ("" when they are complete)."""

    task: Task
    train: Split
    dev: dict[str, Split]
    partial: str = ""
    skipped_rows: int = 0

    def fingerprint(self) -> str:
        """16 hexadecimal digits over every text and label, in order."""
        digest = hashlib.sha256()
        for name, split in {"train": self.train, **self.dev}.items():
            digest.update(f"{self.task.name}/{name}/{len(split)}\n".encode())
            digest.update(json.dumps([split.first, split.second]).encode())
            digest.update(np.ascontiguousarray(split.labels).tobytes())
        return digest.hexdigest()[:16]


def limited(data: TaskData, examples: int | None) -> TaskData:
    """The same task with its first `examples` training examples only, marked partial; None changes nothing."""
    if examples is None or examples >= len(data.train):
        return data
    train = data.train
    second = None if train.second is None else train.second[:examples]
    short = Split(train.first[:examples], second, train.labels[:examples])
    reasons = [data.partial] if data.partial else []
    return replace(data, train=short, partial=", ".join([*reasons, f"first {examples} of {len(train)} examples"]))


def load_hub(task: Task) -> TaskData:
    """One task from nyu-mll/glue (cached after the first time). UserError when it cannot be had."""
    import datasets

    try:
        loaded = datasets.load_dataset(HUB_ID, task.name)
        train = hub_split(task, loaded["train"])
        return TaskData(task, train, {name: hub_split(task, loaded[split]) for name, split, _ in task.dev})
    except UserError:
        raise
    except Exception as error:  # the hub's client raises a dozen types of four libraries; all mean "not had"
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"{HUB_ID} ({task.name}) cannot be loaded from the hub: {reason[0][:200]}. Check the network, or use "
            "glue=local glue.dir=FOLDER with the official TSV files."
        ) from error


def hub_split(task: Task, rows) -> Split:
    """One split of the hub's table as a Split; UserError for a missing column or a label out of range."""
    missing = [column for column in (*task.hub_columns, "label") if column not in rows.column_names]
    if missing:
        raise UserError(f"{HUB_ID} ({task.name}) has no column {missing[0]!r}; it has {', '.join(rows.column_names)}.")
    labels = np.asarray(rows["label"], dtype=np.float32 if task.regression else np.int64)
    low, high = task.label_range if task.regression else (0, len(task.labels) - 1)
    wrong = np.flatnonzero(~(np.greater_equal(labels, low) & np.less_equal(labels, high)))
    if wrong.size:
        raise UserError(f"{HUB_ID} ({task.name}), row {wrong[0]}: label {labels[wrong[0]]} is not in {low} .. {high}.")
    texts = [list(rows[column]) for column in task.hub_columns]
    for column, found in zip(task.hub_columns, texts, strict=True):
        if (row := next((number for number, text in enumerate(found) if not isinstance(text, str)), None)) is not None:
            raise UserError(f"{HUB_ID} ({task.name}), row {row}: {column} is {found[row]!r}, not a text.")
    return Split(texts[0], texts[1] if len(texts) == 2 else None, labels)


def load_local(task: Task, folder: Path) -> TaskData:
    """One task from the official TSV layout, `folder/<Task>/train.tsv` and its dev files.

    `train.partial.tsv` stands in for a missing `train.tsv` and marks the result as partial. UserError names the missing
    file, folder or column, or the file, line and content of a row that cannot be right.
    """
    home = home_of(task, folder)
    path, partial = home / "train.tsv", ""
    if not path.exists() and (home / "train.partial.tsv").exists():
        path, partial = home / "train.partial.tsv", "train.partial.tsv"
    train, skipped = read_tsv(task, path, task.broken_rows)
    dev = {name: read_tsv(task, home / file, 0)[0] for name, _, file in task.dev}
    return TaskData(task, train, dev, partial, skipped)


def home_of(task: Task, folder: Path) -> Path:
    """The folder of a task's files in the official layout; UserError where it is missing."""
    home = folder / task.folder
    if not home.is_dir():
        raise UserError(f"{home} is missing; the folder of GLUE must hold one per task, such as {task.folder}/.")
    return home


def read_tsv(task: Task, path: Path, tolerated: int) -> tuple[Split, int]:
    """Read one file; returns its examples and how many broken rows were skipped, at most `tolerated`."""
    rows = tsv_rows(path)
    line, header = (0, list(task.local_header)) if task.local_header else next(rows, (1, []))
    wanted = (*task.local_columns, task.local_label)
    for column in wanted:
        if column not in header:
            raise UserError(
                f"{path} has no column {column!r}; its first line has: {', '.join(header)[:200] or 'nothing'}."
            )
    places = [header.index(column) for column in wanted]
    texts: list[list[str]] = [[] for _ in task.local_columns]
    labels: list[float] = []
    skipped = 0
    for line, row in rows:
        if len(row) != len(header):
            skipped += 1
            if skipped > tolerated:
                raise UserError(
                    f"{path}, line {line}: {len(row)} columns where {len(header)} are needed ({', '.join(header)}); "
                    "the file must be tab-separated without quoting. Mend that row or download the file again."
                )
            continue
        for text, place in zip(texts, places[:-1], strict=True):
            text.append(row[place])
        labels.append(parse_label(task, row[places[-1]], f"{path}, line {line}"))
    if not labels:
        raise UserError(f"{path} holds no examples; download it again.")
    dtype = np.float32 if task.regression else np.int64
    return Split(texts[0], texts[1] if len(texts) == 2 else None, np.asarray(labels, dtype=dtype)), skipped


def tsv_rows(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Line numbers (from 1) and fields: split by tabs, no quoting. A BOM, CR LF, a last line without end are fine."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; download the official GLUE files, or leave its task out.") from None
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise UserError(f"{path}, line {line} is not UTF-8 (byte {error.start}); download it again.") from None
    # Not splitlines(): that also breaks at characters that are legal inside a sentence.
    for line, content in enumerate(text.split("\n"), start=1):
        content = content.removesuffix("\r")
        if "\0" in content:
            raise UserError(f"{path}, line {line}: it holds a zero byte, so the file is damaged; download it again.")
        if content:
            yield line, content.split("\t")


def parse_label(task: Task, label: str, place: str) -> float:
    """The class index, or the number of a regression; UserError with `place` for anything else."""
    if not task.regression:
        if label not in task.local_labels:
            raise UserError(f"{place}: label {label[:60]!r} is not one of {', '.join(task.local_labels)}.")
        return task.local_labels.index(label)
    low, high = task.label_range
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise UserError(f"{place}: label {label[:60]!r} is not a number in {low} .. {high}.")
    return value
