import dataclasses
import errno
import gzip
import json
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hydra.core.global_hydra import GlobalHydra

from cramming.data import corpus as corpora
from cramming.data import encode, workers, writer
from cramming.data.prepare import prepare
from cramming.data.shards import PreparedData, open_prepared
from cramming.errors import UserError
from tests.helpers.commands import ROOT
from tests.helpers.data import make_documents, text_config, write_txt


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_txt(tmp_path_factory.mktemp("corpus") / "corpus.txt", make_documents(300))


@pytest.fixture(scope="module")
def data(tmp_path_factory, corpus) -> PreparedData:
    return prepare(text_config([corpus]), tmp_path_factory.mktemp("out"))


def test_a_damaged_shard_is_named(tmp_path, corpus):
    data = prepare(text_config([corpus]), tmp_path)
    shard = data.folder / "train-00000.bin"
    whole = bytearray(shard.read_bytes())
    whole[100] ^= 1
    shard.write_bytes(whole)
    with pytest.raises(UserError, match=r"train-00000.bin is damaged: its hash"):
        open_prepared(data.folder)
    shard.write_bytes(whole[:-2])
    with pytest.raises(UserError, match=r"train-00000.bin is damaged: \d+ bytes where"):
        prepare(text_config([corpus]), tmp_path)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00000.bin is missing"):
        open_prepared(data.folder)


def test_what_the_disk_made_of_a_shard_is_compared_with_what_was_written(tmp_path, corpus, monkeypatch):
    close = writer.ShardWriter.close

    def damaged(self):
        close(self)
        if self.split == "train" and self.shards:
            shard = self.folder / "train-00000.bin"
            shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")

    monkeypatch.setattr(writer.ShardWriter, "close", damaged)
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: its hash is not the manifest's"):
        prepare(text_config([corpus]), tmp_path)


def test_hashes_are_compared_at_every_start_or_on_demand(tmp_path, corpus):
    data = prepare(text_config([corpus]), tmp_path)
    shard = data.folder / "train-00000.bin"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\xff")
    on_demand = text_config([corpus], verify=False)
    assert prepare(on_demand, tmp_path).folder == data.folder
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: its hash"):
        prepare(text_config([corpus]), tmp_path)
    shard.write_bytes(b"")
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: 0 bytes"):
        prepare(on_demand, tmp_path)
    assert "verify" not in data.manifest["config"]


def test_a_changed_manifest_is_noticed(tmp_path, corpus):
    data = prepare(text_config([corpus]), tmp_path)
    manifest = json.loads((data.folder / "manifest.json").read_text())
    manifest["counts"]["train_tokens"] += 1
    (data.folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="fingerprint"):
        open_prepared(data.folder)


def run_prepare(corpus: Path, output: Path, queue) -> None:
    queue.put(prepare(text_config([corpus]), output).fingerprint)


def test_two_processes_make_it_once(tmp_path, corpus, data):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=run_prepare, args=(corpus, tmp_path, queue)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [data.fingerprint] * 3
    for process in processes:
        process.join()
    assert [path.name for path in (tmp_path / "data").iterdir() if not path.name.startswith(".")] == [data.folder.name]


CHILD = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background of a shell has it ignored
sys.path.insert(0, {tests!r})
from tests.helpers.data import text_config
from cramming.data import corpus, encode
from cramming.data.prepare import prepare
chunks = encode.chunks
def slow(*arguments):
    for number, chunk in enumerate(chunks(*arguments)):
        yield chunk
        if number == 3:
            print("half", flush=True)
            sys.stdin.read()
corpus.chunks = slow
encode.CHUNK_CHARACTERS = 3000
prepare(text_config([{corpus!r}], workers=2), Path({output!r}))
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_leaves_no_result_and_the_next_one_finishes(tmp_path, corpus, data, how):
    code = CHILD.format(tests=str(Path(__file__).parents[3]), corpus=str(corpus), output=str(tmp_path))
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        workers = children_of(child.pid)
        assert len(workers) == 2
        child.send_signal(how)
        child.wait()
    final = tmp_path / "data" / data.folder.name
    assert not final.exists()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() and is_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "workers outlived their parent"
    assert prepare(text_config([corpus]), tmp_path).fingerprint == data.fingerprint
    assert not list((tmp_path / "data").glob(".*.partial"))
    assert not (tmp_path / "preparing").exists()


def children_of(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, corpus, monkeypatch, number):
    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(writer.ShardWriter, "write_rows", full)
    with pytest.raises(UserError, match=r"disk of .* is full"):
        prepare(text_config([corpus]), tmp_path)
    assert not [path for path in (tmp_path / "data").iterdir() if path.is_dir()]


def test_processes_that_cannot_start_are_not_blamed_on_the_output_disk(tmp_path, corpus, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workers, "ProcessPoolExecutor", full)
    with pytest.raises(UserError, match=r"data\.workers: 2 worker processes cannot be started .*set data\.workers=1"):
        prepare(text_config([corpus], workers=2), tmp_path)


def test_a_full_temporary_folder_is_named(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plain = tmp_path / "plain.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": make_documents(300)}), plain)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(plain.read_bytes()))
    monkeypatch.setattr("cramming.data.sources.compressed.shutil.copyfileobj", full)
    with pytest.raises(UserError, match=r"set TMPDIR to another"):
        prepare(text_config([tmp_path / "a.parquet.gz"]), tmp_path)


def test_a_file_in_the_place_of_the_result_stays(tmp_path, corpus, data):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / data.folder.name).write_text("mine")
    with pytest.raises(UserError, match="exists, and nothing is written over it"):
        prepare(text_config([corpus]), tmp_path)
    assert (tmp_path / "data" / data.folder.name).read_text() == "mine"


def interrupted(after: str, waits: int, arguments: list[str]) -> None:
    """scripts/prepare.py, which tells by a pipe when it is there, and then waits for Ctrl-C."""

    def waiting(name: str, function):
        def call(*arguments):
            for number, item in enumerate(function(*arguments)):
                yield item
                if number == 3:
                    os.write(waits, name.encode())
                    time.sleep(60)

        return call

    encode.CHUNK_CHARACTERS = 3000
    if after == "half":
        corpora.chunks = waiting("half", encode.chunks)
    else:
        encode.train_tokenizer = lambda texts, *_: list(waiting("tokenizer", iter)(texts))
    os.dup2(os.open(arguments[0], os.O_WRONLY | os.O_CREAT), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    sys.argv = ["scripts/prepare.py", *arguments[1:]]
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the script leaves it
    GlobalHydra.instance().clear()
    runpy.run_path(str(ROOT / "scripts" / "prepare.py"), run_name="__main__")


@pytest.mark.parametrize(("after", "workers"), [("tokenizer", 1), ("half", 1), ("half", 2)])
def test_ctrl_c_ends_the_command_in_one_line(tmp_path, corpus, after, workers):
    """The real command, interrupted while it reads for the tokenizer and while it encodes."""
    arguments = [
        str(tmp_path / "told"),
        "data=text",
        f"data.files=[{corpus}]",
        "data.vocab_size=200",
        "data.seq_len=16",
        "data.valid_share=0.1",
    ]
    arguments += [f"data.workers={workers}", f"output_dir={tmp_path / 'out'}", "wandb=off"]
    read, write = os.pipe()
    child = multiprocessing.get_context("fork").Process(target=interrupted, args=(after, write, arguments))
    child.start()
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read(len(after)) == after.encode()
        processes = children_of(child.pid)
        os.kill(child.pid, signal.SIGINT)
        assert not pipe.read()  # to the end of all who hold it: of the workers too
    child.join(60)
    told = (tmp_path / "told").read_text()
    assert child.exitcode == 130
    assert "Traceback" not in told
    assert told.splitlines()[-1] == "stopped by Ctrl-C"
    assert not any(is_alive(pid) for pid in processes)
    assert not list((tmp_path / "out" / "data").glob("text-*"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_megabytes": 0.02, "seq_len": 2000}, r"less than one sequence.*raise data\.max_megabytes=0\.02"),
        ({"max_tokens_per_char": 0.001}, r"data\.max_tokens_per_char=0\.001 left out \d+ of \d+ documents"),
        ({"seq_len": 100_000}, r"less than one sequence of data\.seq_len=100000"),
        ({"valid_share": 1e-9}, r"held-out text \(0 documents\).*raise data\.valid_share"),
        ({"vocab_size": 30_000}, r"data\.vocab_size is 30000, but the text gives \d+ tokens"),
        ({"tokenizer": "/nowhere"}, r"data\.tokenizer: /nowhere/tokenizer\.json is missing"),
    ],
)
def test_what_cannot_work_is_said(tmp_path, corpus, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(text_config([corpus], **changes), tmp_path)
    assert not list((tmp_path / "data").glob("tiny-*"))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"source": "web"}, r"data\.source"),
        ({"order": "sorted"}, r"data\.order"),
        ({"seq_len": 0}, r"data\.seq_len"),
        ({"vocab_size": 10}, r"data\.vocab_size"),
        ({"valid_share": 1.0}, r"data\.valid_share"),
        ({"valid_share": 0.0}, r"data\.valid_share"),
        ({"max_megabytes": -1.0}, r"data\.max_megabytes"),
        ({"max_tokens_per_char": float("nan")}, r"data\.max_tokens_per_char"),
        *(
            ({key: float(value)}, rf"data\.{key} is {value}")
            for key in (
                *("max_tokens_per_char", "max_megabytes", "valid_max_megabytes", "tokenizer_megabytes", "valid_share"),
            )
            for value in ("inf", "nan")
        ),
        ({"seq_len": 10**12}, r"data\.seq_len"),
        ({"vocab_size": 2**31}, r"data\.vocab_size"),
        ({"workers": -1}, r"data\.workers"),
        ({"workers": 10**6}, r"data\.workers"),
        ({"normaliser": "none"}, r"data\.normaliser"),
        *(({"name": name}, r"data\.name") for name in ("..", ".", "", "a b", "é/é", "n" * 250)),
        ({"name": "a/b"}, r"data\.name"),
        ({"source": "hub", "files": []}, r"data\.hub"),
        ({"source": "docs"}, r"data\.files"),
    ],
)
def test_bad_settings_name_their_key(changes, key):
    with pytest.raises(UserError, match=key):
        dataclasses.replace(text_config(["a.txt"]), **changes)
