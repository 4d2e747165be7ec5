"""Text and prepared data at addresses, through a file system in memory and a local one by its address."""

import json
import lzma
import sys
from pathlib import Path
from unittest import mock

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from cramming import remote
from cramming.convert.pretrained.text import documents as conversion_text
from cramming.data import prepare as preparing
from cramming.data import stored
from cramming.data.prepare import place, prepare
from cramming.data.shards import open_prepared
from cramming.data.sources import corpus
from cramming.data.sources.corpus import TextSource
from cramming.data.stored import verify
from cramming.errors import Passing, UserError
from tests.helpers.commands import inline
from tests.helpers.data import make_documents, text_config, write_txt

DOCUMENTS = make_documents(300)


@pytest.fixture(params=["memory", "file"])
def base(request, tmp_path):
    """A folder's address in a store."""
    if request.param == "file":
        yield f"file://{tmp_path / 'store'}"
        return
    store = fsspec.filesystem("memory")
    assert not store.find("/bucket")
    yield "memory://bucket/folder"
    store.rm("/bucket", recursive=True) if store.exists("/bucket") else None


@pytest.fixture
def texts(tmp_path) -> dict[str, Path]:
    """A text of each kind, compressed and not, on this machine."""
    folder = tmp_path / "here"
    folder.mkdir()
    write_txt(folder / "a.txt", DOCUMENTS[:100])
    (folder / "b.txt.xz").write_bytes(lzma.compress("\n\n".join(DOCUMENTS[100:150]).encode()))
    (folder / "c.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in DOCUMENTS[150:200]))
    pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS[200:]}), folder / "d.parquet", row_group_size=20)
    return {path.name: path for path in sorted(folder.iterdir())}


def put_all(texts: dict[str, Path], base: str) -> None:
    for name, path in texts.items():
        remote.put(path, f"{base}/{name}", "data.files")


def folder_content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_text_at_an_address_gives_what_the_same_text_here_gives(tmp_path, base, texts):
    put_all(texts, base)
    here = prepare(text_config([tmp_path / "here" / "*"]), tmp_path / "one")
    there = prepare(text_config([f"{base}/*"]), tmp_path / "two")
    assert (there.folder.name, there.fingerprint) == (here.folder.name, here.fingerprint)
    config = ("manifest.json",)  # which names data.files as they were given
    one, two = ({k: v for k, v in folder_content(data.folder).items() if k not in config} for data in (here, there))
    assert one == two


def test_addresses_and_paths_may_be_mixed_and_held_out(tmp_path, base, texts):
    put_all(texts, base)
    config = text_config([texts["a.txt"], f"{base}/*.jsonl"], valid_files=[f"{base}/b.txt.xz"])
    data = prepare(config, tmp_path)
    assert data.held_out_documents() == DOCUMENTS[100:150]
    assert data.manifest["counts"]["documents"] == 150
    with pytest.raises(UserError, match=r"data\.valid_files and data\.files both match .*b\.txt\.xz"):
        prepare(text_config([f"{base}/*"], valid_files=[f"{base}/b.txt.xz"]), tmp_path)


def test_the_text_of_a_conversion_may_lie_there_too(base, texts):
    put_all(texts, base)
    train, kept = conversion_text([f"{base}/a.txt"], [f"{base}/*.parquet"], "text")
    assert (train, kept) == (DOCUMENTS[:100], DOCUMENTS[200:])


def test_a_remote_text_is_hashed_once_and_again_when_its_store_calls_it_another(tmp_path, base, texts, monkeypatch):
    put_all(texts, base)
    hashed: list[str] = []
    hash_of = remote.hash_of
    monkeypatch.setattr(remote, "hash_of", lambda file: hashed.append(file.name) or hash_of(file))
    first = place(text_config([f"{base}/*"]), tmp_path)
    assert hashed == sorted(texts)
    assert place(text_config([f"{base}/*"]), tmp_path) == first
    assert hashed == sorted(texts)
    (tmp_path / "data" / ".hashes.json").write_text("damaged")
    assert place(text_config([f"{base}/*"]), tmp_path) == first
    hashed.clear()
    remote.write(b'{"text": "another"}', f"{base}/c.jsonl", "data.files")
    assert place(text_config([f"{base}/*"]), tmp_path) != first
    assert hashed == ["c.jsonl"]


def test_a_remote_text_that_changes_while_it_is_read_is_refused(tmp_path, base, texts, monkeypatch):
    put_all(texts, base)
    check = TextSource.check

    def changed(self):
        check(self)
        remote.write(b"other", f"{base}/a.txt", "data.files")

    monkeypatch.setattr(TextSource, "check", changed)
    with pytest.raises(UserError, match=r"a\.txt changed while it was read"):
        prepare(text_config([f"{base}/*"]), tmp_path)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{base}/*.txt.gz", r"data\.files: '.*\*\.txt\.gz' matches no file there; correct the address"),
        ("{base}/empty.txt", r"empty\.txt \(data\.files\) is empty"),
        ("{base}/a.csv", r"a\.csv is of unknown kind"),
        ("{base}/bad.jsonl", r"bad\.jsonl, line 1: not valid JSON"),
        ("{base}/bad.parquet", r"bad\.parquet is damaged or not what its name says"),
        ("{base}/bad.txt.xz", r"bad\.txt\.xz is damaged or not what its name says"),
        (
            "s4://bucket/*.txt",
            r"data\.files: s4://bucket/\*\.txt: nothing is known of s4://; give a path, s3://, gs://",
        ),
        ("s3://me:secret@bucket/a.txt", r"data\.files: an address is written into records, so give no name or passw"),
    ],
)
def test_what_is_wrong_with_an_address_is_said_before_long_work(tmp_path, base, monkeypatch, pattern, message):
    bad = {"empty.txt": b"", "a.csv": b"a,b", "bad.jsonl": b"broken", "bad.parquet": b"PAR1 not at all"}
    for name, data in {**bad, "bad.txt.xz": b"no xz", "good.txt": b"text"}.items():
        remote.write(data, f"{base}/{name}", "data.files")
    monkeypatch.setattr("cramming.data.encode.train_tokenizer", lambda *_: pytest.fail("began"))
    with pytest.raises(UserError, match=message) as error:
        prepare(text_config([pattern.format(base=base)]), tmp_path)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(("protocol", "package"), [("s3", "s3fs"), ("gs", "gcsfs"), ("abfs", "adlfs")])
def test_a_missing_package_is_named(tmp_path, monkeypatch, protocol, package):
    for module in (package, *(name for name in sys.modules if name.partition(".")[0] == package)):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    for key, asked in (("data.files", {}), ("data.remote", {"remote": f"{protocol}://bucket/prepared"})):
        files = [f"{protocol}://bucket/*.txt"] if key == "data.files" else [write_txt(tmp_path / "a.txt", DOCUMENTS)]
        with pytest.raises(UserError, match=rf"{key}: {protocol}://bucket/.* pip install {package}\."):
            prepare(text_config(files, **asked), tmp_path / "out")
    assert not list((tmp_path / "out").glob("data/tiny*"))


def test_text_and_data_in_s3(tmp_path, s3, texts):
    put_all(texts, s3)
    here = prepare(text_config([tmp_path / "here" / "*"]), tmp_path / "one")
    config = text_config([f"{s3}/*"], remote=f"{s3}/prepared", workers=2)
    there = prepare(config, tmp_path / "two")
    assert (there.folder.name, there.fingerprint) == (here.folder.name, here.fingerprint)
    assert folder_content(prepare(config, tmp_path / "three").folder) == folder_content(there.folder)
    address = f"{s3}/prepared/{here.folder.name}"
    assert verify(address)["fingerprint"] == here.fingerprint
    remote.write(b"short", f"{address}/train-00000.bin", "data.remote")
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged: its hash is not the manifest's"):
        verify(address)
    with pytest.raises(UserError, match=r"data\.files: 's3://nobucket/\*\.txt' matches no file there"):
        prepare(text_config(["s3://nobucket/*.txt"]), tmp_path)
    mistyped = text_config([texts["a.txt"]], remote="s3://nobucket/prepared")
    with pytest.raises(
        Passing, match=r"data\.remote: s3://nobucket/prepared/.* cannot be reached .*bucket does not exist"
    ):
        prepare(mistyped, tmp_path)


def test_a_store_that_fails_while_it_is_read_is_named_and_finished_parts_stay(tmp_path, base, texts, monkeypatch):
    put_all(texts, base)
    monkeypatch.setattr(corpus, "PART_BYTES", 1)
    expected = prepare(text_config([f"{base}/*"]), tmp_path / "whole")
    part, reading = corpus.TextPart.read, []

    def read(self, *arguments):
        reading.append(self)
        return part(self, *arguments)

    guarded = remote.Guarded.read

    def failing(self, size=-1):
        if self.origin.name == "c.jsonl" and len(reading) == 4 + 3:  # the tokenizer read all four parts
            self.file = mock.Mock(read=mock.Mock(side_effect=ConnectionError("reset by peer")))
        return guarded(self, size)

    with monkeypatch.context() as patch:
        patch.setattr(corpus.TextPart, "read", read)
        patch.setattr(remote.Guarded, "read", failing)
        with pytest.raises(Passing, match=r"data\.files: .*c\.jsonl cannot be reached \(ConnectionError: reset by"):
            prepare(text_config([f"{base}/*"]), tmp_path / "out")
    (work,) = (tmp_path / "out" / "preparing").iterdir()
    assert (work / "part-00000" / "done").is_file()
    found = prepare(text_config([f"{base}/*"]), tmp_path / "out")
    assert folder_content(found.folder) == folder_content(expected.folder)


def test_prepared_data_are_put_and_fetched_with_every_byte(tmp_path, base, monkeypatch):
    path = write_txt(tmp_path / "a.txt", DOCUMENTS)
    config = text_config([path], remote=f"{base}/prepared")
    made = prepare(config, tmp_path / "one")
    assert made.folder.name == prepare(text_config([path]), tmp_path / "plain").folder.name
    assert "remote" not in made.manifest["config"]
    monkeypatch.setattr(preparing, "make", lambda *_: pytest.fail("prepared again"))
    found = prepare(config, tmp_path / "two")
    assert folder_content(found.folder) == folder_content(made.folder)
    assert [path.name for path in (tmp_path / "two" / "data").iterdir() if path.is_dir()] == [found.folder.name]


def test_an_interrupted_fetching_goes_on_and_is_never_taken_for_whole(tmp_path, base, monkeypatch):
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    made = prepare(config, tmp_path / "one")
    fetch, fetched = remote.fetch, []

    def broken(address, to, key):
        if len(fetched) == 3:
            to.write_bytes(b"half")
            raise Passing("the network is gone")
        fetched.append(address)
        fetch(address, to, key)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "fetch", broken)
        with pytest.raises(Passing):
            prepare(config, tmp_path / "two")
    assert not place(config, tmp_path / "two").exists()
    monkeypatch.setattr(preparing, "make", lambda *_: pytest.fail("prepared again"))
    before = list(fetched)
    monkeypatch.setattr(remote, "fetch", lambda *rest: fetched.append(rest[0]) or fetch(*rest))
    assert folder_content(prepare(config, tmp_path / "two").folder) == folder_content(made.folder)
    assert len(fetched) == len(set(fetched)) > len(before)


def test_an_interrupted_putting_is_not_there(tmp_path, base, monkeypatch):
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    put = remote.put

    def broken(source, address, key):
        if address.endswith("manifest.json"):
            raise Passing("the network is gone")
        put(source, address, key)

    with monkeypatch.context() as patch:
        patch.setattr(remote, "put", broken)
        with pytest.raises(Passing):
            prepare(config, tmp_path / "one")
    folder = place(config, tmp_path / "one")
    assert open_prepared(folder)  # here it is whole
    assert not stored.fetch_prepared(f"{base}/prepared", tmp_path / "two" / folder.name)
    assert verify(stored.put_prepared(folder, f"{base}/prepared"))["fingerprint"] == open_prepared(folder).fingerprint


@pytest.mark.parametrize("file", ["train-00000.bin", "tokenizer/tokenizer.json", "unigram_counts.npy"])
def test_a_changed_byte_is_found_at_an_address_and_on_the_way(tmp_path, base, file):
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    made = prepare(config, tmp_path / "one")
    address = f"{base}/prepared/{made.folder.name}"
    assert verify(address)["fingerprint"] == made.fingerprint
    whole = bytearray((made.folder / file).read_bytes())
    whole[len(whole) // 2] ^= 1
    remote.write(bytes(whole), f"{address}/{file}", "data.remote")
    message = rf"{file} is damaged: its hash is not the manifest's; remove .*{made.folder.name}, and put it there again"
    with pytest.raises(UserError, match=message):
        verify(address)
    with pytest.raises(UserError, match=message):
        prepare(config, tmp_path / "two")
    assert not place(config, tmp_path / "two").exists()
    remote.remove(f"{address}/{file}", "data.remote")
    with pytest.raises(UserError, match=rf"{file} is missing; remove"):
        verify(address)


@pytest.mark.parametrize("name", ["../outside.bin", "/outside.bin", "tokenizer/../../outside.bin"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(tmp_path, base, name):
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    made = prepare(config, tmp_path / "one")
    manifest = json.loads((made.folder / "manifest.json").read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    manifest["fingerprint"] = preparing.fingerprint(manifest)
    address = f"{base}/prepared/{made.folder.name}"
    remote.write(json.dumps(manifest).encode(), f"{address}/manifest.json", "data.remote")
    with pytest.raises(UserError, match=r"manifest\.json names '.*outside\.bin', which is outside of it"):
        prepare(config, tmp_path / "two")
    assert not list(tmp_path.rglob("outside.bin"))


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"format_version": 1, "files": {}}'])
def test_what_is_no_manifest_is_refused(tmp_path, base, content):
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    folder = place(config, tmp_path)
    remote.write(content, f"{base}/prepared/{folder.name}/manifest.json", "data.remote")
    with pytest.raises(UserError, match=r"manifest\.json (is not valid JSON|is not a manifest|was changed)"):
        prepare(config, tmp_path)


def test_other_data_under_the_same_name_are_not_written_over(tmp_path, base):
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    made = prepare(config, tmp_path / "one")
    other = prepare(text_config([tmp_path / "a.txt"], seq_len=32), tmp_path / "two")
    renamed = other.folder.rename(tmp_path / made.folder.name)
    with pytest.raises(UserError, match=rf"data\.remote: .*{made.folder.name} holds other data \(.*set data\.name"):
        stored.put_prepared(renamed, f"{base}/prepared")


def test_a_store_that_does_not_answer_is_not_taken_for_an_empty_one(tmp_path, base, monkeypatch):
    files, _ = remote.store(base, "data.remote")
    monkeypatch.setattr(type(files), "info", mock.Mock(side_effect=ConnectionError("no route")))
    monkeypatch.setattr(preparing, "make", lambda *_: pytest.fail("began"))
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    with pytest.raises(
        Passing, match=r"data\.remote: .*manifest\.json cannot be reached \(ConnectionError: no route\)"
    ):
        prepare(config, tmp_path)


def test_a_store_that_cannot_be_written_is_told_before_long_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(preparing, "make", lambda *_: pytest.fail("began"))
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"file://{tmp_path}/file/prepared")
    with pytest.raises(UserError, match=r"data\.remote: file://.*/file/prepared/.* cannot be reached \("):
        prepare(config, tmp_path)


def test_the_command_verifies_folders_and_addresses(tmp_path, base, monkeypatch):
    config = text_config([write_txt(tmp_path / "a.txt", DOCUMENTS)], remote=f"{base}/prepared")
    monkeypatch.chdir(tmp_path)
    done = inline("verify")
    assert (done.returncode, done.stderr) == (
        2,
        f"error: nothing is prepared in {tmp_path}/outputs/data; name the folders.\n",
    )
    made = prepare(config, tmp_path / "outputs")
    address = f"{base}/prepared/{made.folder.name}"
    done = inline("verify", str(made.folder), f"{address}/")
    assert done.returncode == 0
    assert [line.split(",")[0] for line in done.stdout.splitlines()] == [
        f"whole      {each}" for each in (made.folder, f"{address}/")
    ]
    shard = made.folder / "train-00000.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    done = inline("verify")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: outputs/data/{made.folder.name}/train-00000.bin is damaged: its hash is not the manifest's; remove "
        f"outputs/data/{made.folder.name} and prepare again."
    )
