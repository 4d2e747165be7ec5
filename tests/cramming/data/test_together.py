"""One preparation by several processes, killed and gone on with: the same bytes, no part twice, nothing half taken."""

import json
import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from cramming.data import corpus, encode, together
from cramming.data.config import DataConfig
from cramming.data.pieces import Pieces
from cramming.data.prepare import place, prepare
from cramming.data.shards import PreparedData
from cramming.data.sources import corpus as text
from cramming.data.sources.corpus import TextSource
from cramming.errors import Passing, UserError
from cramming.locks import DEAD_AFTER_S, Holder
from tests.helpers.children import child, ended
from tests.helpers.data import make_documents, text_config, write_txt

FILES = 6


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpus")
    return [write_txt(folder / f"{number}.txt", make_documents(60, seed=number)) for number in range(FILES)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, files) -> dict[str, bytes]:
    """What one process makes in one part of one piece."""
    data = prepare(text_config(files), tmp_path_factory.mktemp("alone"))
    assert len(TextSource([str(path) for path in files], [], "text").parts(None)) == 1
    return content(data)


@pytest.fixture(autouse=True)
def small(monkeypatch) -> None:
    """A part for each file, several pieces in it, several chunks in a piece."""
    monkeypatch.setattr(text, "PART_BYTES", 1)
    monkeypatch.setattr(encode, "PIECE_BYTES", 5000)
    monkeypatch.setattr(encode, "CHUNK_CHARACTERS", 2000)
    monkeypatch.setattr(together, "POLL_S", 0.02)


def content(data: PreparedData) -> dict[str, bytes]:
    """Every byte of a prepared folder, the manifest's too."""
    return {str(path.relative_to(data.folder)): path.read_bytes() for path in data.folder.rglob("*") if path.is_file()}


def work_of(config: DataConfig, output: Path) -> Path:
    return output / "preparing" / place(config, output).name


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_parts_pieces_and_workers_changes_no_byte(tmp_path, files, alone, workers):
    data = prepare(text_config(files, workers=workers), tmp_path)
    assert content(data) == alone
    assert sorted(path.name for path in (tmp_path / "data").iterdir() if path.is_dir()) == [data.folder.name]
    assert not (tmp_path / "preparing").exists()


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_parts_of_one_manifest(tmp_path, files, alone, monkeypatch, processes):
    context = multiprocessing.get_context("fork")
    start, log = context.Barrier(processes), tmp_path / "log"
    make = corpus.TextCorpus.make

    def logged(self, number: int, pieces: Pieces) -> None:
        if not hasattr(self, "met"):  # so that each has a part before any takes its second
            self.met = start.wait(30)
        with open(log, "a") as file:
            file.write(f"{number} {os.getpid()}\n")
        make(self, number, pieces)

    monkeypatch.setattr(corpus.TextCorpus, "make", logged)
    children = [child(lambda: prepare(text_config(files), tmp_path)) for _ in range(processes)]
    assert [ended(pid) for pid in children] == [0] * processes
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(int(number) for number, _ in lines) == list(range(FILES))
    assert {int(pid) for _, pid in lines} == set(children)
    assert content(prepare(text_config(files), tmp_path)) == alone
    assert not work_of(text_config(files), tmp_path).exists()


def killed_in_piece(number: int, files: list[Path], output: Path, monkeypatch) -> None:
    """A process that is killed while it writes the piece of a number in part 1."""

    def work() -> None:
        fill = corpus.fill

        def deadly(piece, *rest) -> None:
            fill(piece, *rest)
            if re.search(rf"part-00001/\.{number:05d}\.", str(piece.folder)):
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(corpus, "fill", deadly)
        prepare(text_config(files), output)

    assert ended(child(work)) == -signal.SIGKILL


@pytest.mark.parametrize("number", [0, 1, 3])
def test_after_a_kill_finished_parts_and_pieces_are_kept_and_half_ones_are_not_taken(
    tmp_path, files, alone, monkeypatch, number
):
    killed_in_piece(number, files, tmp_path, monkeypatch)
    work = work_of(text_config(files), tmp_path)
    assert [(work / f"part-{part:05d}" / "done").exists() for part in range(2)] == [True, False]
    assert len(Pieces(work / "part-00001").finished()) == number
    assert list((work / "part-00001").glob(".*.tmp"))  # what it was at
    begun: list[str] = []
    new_folder = corpus.Pieces.next_piece

    def logged(self):
        begun.append(f"{self.folder.name}/{len(self.finished())}")
        return new_folder(self)

    monkeypatch.setattr(Pieces, "next_piece", logged)
    monkeypatch.setattr(encode, "train_tokenizer", lambda *_: pytest.fail("the tokenizer was made again"))
    assert content(prepare(text_config(files), tmp_path)) == alone
    assert begun[0] == f"part-00001/{number}"
    assert not [each for each in begun if each.startswith("part-00000")]


def killed_at(flush: int, work: Callable[[], object]) -> int:
    """A process that is killed when it flushes something to the disk for that time; its status."""

    def deadly() -> None:
        done, fsync = 0, os.fsync

        def counted(handle: int) -> None:
            nonlocal done
            done += 1
            if done == flush:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(handle)

        os.fsync = counted
        work()

    return ended(child(deadly))


@pytest.mark.parametrize("step", [1, 7])
def test_kills_at_every_write_change_no_byte(tmp_path, files, alone, step):
    """Each process is killed later than the one before, and the next one goes on from where it was."""
    config, flush, kills = text_config(files), 1, 0
    while killed_at(flush, lambda: prepare(config, tmp_path)):
        flush += step
        kills += 1
    assert kills > 5
    assert content(prepare(config, tmp_path)) == alone


def test_a_dead_makers_part_is_taken_up_by_a_process_that_waits(tmp_path, files, alone, monkeypatch):
    """Two at work: one is killed in the midst of a part, the other one finishes all."""
    context = multiprocessing.get_context("fork")
    held, go = context.Event(), context.Event()
    make = corpus.TextCorpus.make

    def stuck() -> None:
        def wait(self, number: int, pieces: Pieces) -> None:
            held.set()
            signal.pause()

        monkeypatch.setattr(corpus.TextCorpus, "make", wait)
        prepare(text_config(files), tmp_path)

    def other() -> None:
        def told(self, number: int, pieces: Pieces) -> None:
            make(self, number, pieces)
            if number == FILES - 1:
                go.set()

        monkeypatch.setattr(corpus.TextCorpus, "make", told)
        prepare(text_config(files), tmp_path)

    first = child(stuck)
    assert held.wait(30)
    second = child(other)
    assert go.wait(60)  # all other parts are made
    os.kill(first, signal.SIGKILL)
    assert ended(first) == -signal.SIGKILL
    assert ended(second) == 0
    assert content(prepare(text_config(files), tmp_path)) == alone


def test_the_part_of_a_machine_that_disappeared_is_waited_for_and_then_taken_up(
    tmp_path, files, alone, monkeypatch, capsys
):
    folder = work_of(text_config(files), tmp_path) / "part-00002"
    folder.mkdir(parents=True)
    lock = folder / ".1.lock"
    lock.write_text(json.dumps(asdict(Holder("gpu7", 4242, "gpu7 boot pid:[1]", "1", 1.7e9))))
    waited = []

    def later(_: float) -> None:  # the time in which it gives no sign of life
        assert [part.name for part in sorted(folder.parent.glob("part-*")) if not (part / "done").exists()] == [
            folder.name
        ]
        waited.append(1)
        os.utime(lock, (time.time() - 2 * DEAD_AFTER_S,) * 2)

    monkeypatch.setattr(together.time, "sleep", later)
    assert content(prepare(text_config(files), tmp_path)) == alone
    assert waited == [1]
    told = capsys.readouterr().err
    assert re.search(r"Other processes make the last parts of .*; waiting for them \(gpu7, process 4242, since", told)


def test_a_changed_piece_is_named(tmp_path, files, monkeypatch):
    killed_in_piece(1, files, tmp_path, monkeypatch)
    path = work_of(text_config(files), tmp_path) / "part-00000" / "00000" / "ids.bin"
    path.write_bytes(path.read_bytes()[:-2] + b"\0\0")
    with pytest.raises(UserError, match=r"part-00000/00000/ids\.bin is damaged; remove .*part-00000 and prepare again"):
        prepare(text_config(files), tmp_path)
    assert (path.parents[1] / "done").exists()


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("PART_BYTES", r"parts 6, here 1"),
        ("version", r"datasets [\d.]+, here 1\.2\.3; pyarrow .*, here 1\.2\.3; tokenizers .*, here 1\.2\.3"),
        ("sha256", r"cramming/data \w+, here \w+"),
    ],
)
def test_what_other_code_or_libraries_began_is_not_mixed_with(tmp_path, files, monkeypatch, what, told):
    killed_in_piece(1, files, tmp_path, monkeypatch)
    with monkeypatch.context() as patch:
        if what == "PART_BYTES":
            patch.setattr(text, "PART_BYTES", 1 << 30)
        else:
            patch.setattr(together.metadata if what == "version" else together, what, lambda _: "1.2.3")
        with pytest.raises(
            Passing, match=rf"preparing/tiny-.* was begun by other code or libraries .*\({told}\); finish"
        ):
            prepare(text_config(files), tmp_path)
    assert (work_of(text_config(files), tmp_path) / "part-00000" / "done").exists()
    assert prepare(text_config(files), tmp_path)


def broken_at(documents: int, error: Exception) -> Callable:
    """A reader that fails after so many documents of the second file."""
    read = text.read_documents

    def reader(path, *rest, **named):
        for number, document in enumerate(read(path, *rest, **named)):
            if path.name == "1.txt" and number == documents:
                raise error
            yield document

    return reader


def test_a_network_that_breaks_keeps_what_is_finished_and_a_wrong_text_does_not(tmp_path, files, alone, monkeypatch):
    config = text_config(files, tokenizer_megabytes=0.005)
    with monkeypatch.context() as patch:
        patch.setattr(text, "read_documents", broken_at(40, Passing("the network is gone")))
        with pytest.raises(Passing, match="the network is gone"):
            prepare(config, tmp_path / "kept")
    kept = work_of(config, tmp_path / "kept")
    assert (kept / "part-00000" / "done").is_file()
    assert Pieces(kept / "part-00001").finished()
    with monkeypatch.context() as patch:
        patch.setattr(text, "read_documents", broken_at(40, UserError("line 7: not valid JSON")))
        with pytest.raises(UserError, match="line 7"):
            prepare(config, tmp_path / "gone")
    assert not work_of(config, tmp_path / "gone").exists()
    one = prepare(config, tmp_path / "kept")
    assert content(one) == content(prepare(config, tmp_path / "gone"))


def test_wrong_text_found_by_one_leaves_the_parts_to_others_at_work(tmp_path, files, monkeypatch):
    context = multiprocessing.get_context("fork")
    held = context.Event()

    def stuck() -> None:
        def wait(self, number: int, pieces: Pieces) -> None:
            held.set()
            signal.pause()

        monkeypatch.setattr(corpus.TextCorpus, "make", wait)
        prepare(text_config(files), tmp_path)

    pid = child(stuck)
    try:
        assert held.wait(30)
        monkeypatch.setattr(text, "read_documents", broken_at(40, UserError("line 7: not valid JSON")))
        with pytest.raises(UserError, match="line 7"):
            prepare(text_config(files), tmp_path)
        assert (work_of(text_config(files), tmp_path) / "tokenizer").is_dir()
    finally:
        os.kill(pid, signal.SIGKILL)
        ended(pid)


@pytest.mark.parametrize("limit", [None, 0.05])
def test_a_texts_part_goes_on_after_any_document(files, tmp_path, limit):
    long = tmp_path / "long.jsonl"
    long.write_text('null\n{"text": "one"}\nnull\n{"text": null}\n{"text": "two \\ud800"}\n{"text": "three"}\nnull\n')
    source = TextSource([str(long), *map(str, files[:2])], [], "text")
    text.PART_BYTES, before = 1 << 30, text.PART_BYTES
    (part,) = source.parts(limit)
    text.PART_BYTES = before
    whole = part.read()
    expected = list(whole)
    assert len(expected) > 20
    for taken in range(len(expected) + 1):
        first, mended = part.read(), []
        found = [next(first.documents) for _ in range(taken)]
        state = first.state() if taken else None
        mended.append(first.mended.copy())
        second = part.read(state)
        found += list(second)
        assert found == expected
        counts = [{**vars(each)} for each in (*mended, second.mended)]
        assert {name: sum(each[name] for each in counts) for name in counts[0]} == vars(whole.mended)


def test_more_than_the_room_of_held_out_text_is_in_no_piece(tmp_path, files, monkeypatch):
    kept: list[str] = []
    fill = corpus.fill

    def logged(piece, chunk, encoded) -> None:
        kept.extend(chunk.held_out)
        fill(piece, chunk, encoded)

    monkeypatch.setattr(corpus, "fill", logged)
    data = prepare(text_config(files, valid_share=0.5, valid_max_megabytes=0.001), tmp_path)
    counts = data.manifest["counts"]
    assert counts["documents"] + counts["documents_held_out"] + counts["documents_unused"] == 60 * FILES
    assert len(data.held_out_documents()) == counts["documents_held_out"]
    assert len(kept) < 0.5 * counts["documents_unused"]
