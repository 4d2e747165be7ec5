import dataclasses
import gzip
import json
import lzma
import re

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from cramming.data.prepare import prepare
from cramming.data.sources import readers
from cramming.data.sources.corpus import TextSource
from cramming.data.sources.readers import read_documents
from cramming.data.sources.source import documents
from cramming.errors import UserError
from tests.helpers.data import make_documents, text_config, write_txt

DOCUMENTS = ["First line.\nSecond line.", "Über alles — naïve.", "x" * 50, "The last one."]
COMPRESS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("block", [3, 1 << 20])
def test_txt_documents_between_empty_lines(tmp_path, monkeypatch, ending, block):
    monkeypatch.setattr(readers, "BLOCK_BYTES", block)
    path = tmp_path / f"a.txt{ending}"
    text = "\n\n" + "\n \t\n".join(DOCUMENTS[:2]) + "\n\n\n\n" + "\n\n".join(DOCUMENTS[2:])
    path.write_bytes(COMPRESS[ending](text.encode("utf-8-sig")))
    advanced = []
    assert list(read_documents(path, "text", advanced.append)) == DOCUMENTS
    assert sum(advanced) == path.stat().st_size


def test_txt_with_windows_line_ends(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\r\ntwo\r\n\r\nthree\r\n")
    assert list(read_documents(path, "text")) == ["one\ntwo", "three"]


@pytest.mark.parametrize("ending", COMPRESS)
def test_jsonl_takes_the_field(tmp_path, ending):
    path = tmp_path / f"a.jsonl{ending}"
    lines = "\n".join(json.dumps({"body": text, "id": 1}) for text in DOCUMENTS)
    path.write_bytes(COMPRESS[ending](lines.encode()))
    assert list(read_documents(path, "body")) == DOCUMENTS


@pytest.mark.parametrize("ending", COMPRESS)
def test_parquet_takes_the_column(tmp_path, ending):
    plain, path = tmp_path / "plain.parquet", tmp_path / f"a.parquet{ending}"
    pyarrow.parquet.write_table(pyarrow.table({"text": [*DOCUMENTS, None, ""], "n": list(range(6))}), plain)
    path.write_bytes(COMPRESS[ending](plain.read_bytes()))
    assert list(read_documents(path, "text")) == DOCUMENTS
    with pytest.raises(UserError, match=r"no column 'body' \(data\.text_field\); it has text, n"):
        list(read_documents(path, "body"))
    with pytest.raises(UserError, match=r"column 'n' \(data\.text_field\) holds int64, not text"):
        list(read_documents(path, "n"))


def test_zst_of_several_frames_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.txt.zst"
    path.write_bytes(b"".join(COMPRESS[".zst"](f"{document}\n\n".encode()) for document in DOCUMENTS))
    assert list(read_documents(path, "text")) == DOCUMENTS


def test_a_document_without_end_is_cut_and_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 64)
    monkeypatch.setattr(readers, "MAX_DOCUMENT_CHARACTERS", 100)
    lines = [f"line number {index}" for index in range(200)]
    path = tmp_path / "a.txt"
    path.write_text("\n".join(lines))
    pieces = list(read_documents(path, "text"))
    assert "\n".join(pieces).split("\n") == lines
    assert max(map(len, pieces)) <= 100


def test_files_come_in_the_globs_order(tmp_path):
    for name in ("b", "a", "c"):
        write_txt(tmp_path / f"{name}.txt", [name])
    source = TextSource([str(tmp_path / "c.txt"), str(tmp_path / "*.txt")], [], "text")
    assert list(documents(source, None)) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"a\.txt \(data\.files\) is empty"),
        ("a.txt", b" \n\n \n", r"a\.txt .*holds no text"),
        ("a.txt", b"caf\xe9 au lait\n", r"a\.txt is not UTF-8 \(near byte 3"),
        ("a.txt", b"good\n\xe2\x82", r"a\.txt is not UTF-8"),
        ("a.txt", b"\x7fELF\0\0\0", r"a\.txt is binary"),
        ("a.txt.xz", b"no xz at all", r"a\.txt\.xz is damaged"),
        ("a.txt.xz", lzma.compress(b"word " * 10_000)[:-40], r"a\.txt\.xz is damaged"),
        ("a.txt.gz", gzip.compress(b"word " * 1000, mtime=0)[:-9], r"a\.txt\.gz is damaged"),
        ("a.txt.zst", b"no zst at all", r"a\.txt\.zst is damaged"),
        ("a.txt.zst", zstandard.compress(b"word " * 10_000)[:-9], r"a\.txt\.zst is damaged .*ends too early"),
        ("a.parquet.gz", gzip.compress(b"PAR1 no parquet", mtime=0), r"a\.parquet\.gz is damaged"),
        ("a.parquet", b"PAR1 no parquet", r"a\.parquet is damaged"),
        ("a.jsonl", b'{"text": "x"}\nbroken\n', r"a\.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"body": "x"}\n', r"a\.jsonl, line 1: no text under data\.text_field='text' \(found: body"),
        ("a.jsonl", b'{"text": ' + b"9" * 5000 + b"}\n", r"a\.jsonl, line 1: not valid JSON .*digits"),
        (
            "a.jsonl",
            b'{"text": "x"}\n' + b"[" * 200_000 + b"\n",
            r"a\.jsonl, line 2: not valid JSON \(nested too deeply",
        ),
        ("a.jsonl", b'["x"]\n', r"a\.jsonl, line 1: no text under data\.text_field='text' \(found: list"),
        ("a.csv", b"a,b\n", r"a\.csv is of unknown kind"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        prepare(text_config([tmp_path / name]), tmp_path / "out")


@pytest.mark.parametrize("key", ["files", "valid_files"])
def test_a_glob_without_a_match_is_named(tmp_path, key):
    write_txt(tmp_path / "a.txt", make_documents(5))
    globs = {"files": [str(tmp_path / "*.txt")], key: [str(tmp_path / "*.text")]}
    config = dataclasses.replace(text_config([]), **globs)
    with pytest.raises(UserError, match=rf"data\.{key}: '.*\*\.text' matches no file"):
        prepare(config, tmp_path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match=r"data\.files: '.*' is a folder; say which of its files, e\.g\. .*/\*\.txt"):
        prepare(text_config([tmp_path]), tmp_path)


def test_one_file_on_both_sides_is_refused(tmp_path):
    path = write_txt(tmp_path / "a.txt", make_documents(5))
    with pytest.raises(UserError, match=r"both match .*a\.txt"):
        prepare(text_config([path], valid_files=[str(path)]), tmp_path)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path, monkeypatch):
    path = write_txt(tmp_path / "a.txt", make_documents(100))
    check = TextSource.check

    def change(self):
        check(self)
        write_txt(path, make_documents(101))

    monkeypatch.setattr(TextSource, "check", change)
    with pytest.raises(UserError, match=r"a\.txt changed while it was read"):
        prepare(text_config([path]), tmp_path)


def test_rows_without_text_and_halves_of_letters_are_alike_in_all_files(tmp_path, capsys):
    documents = [f"{text} It ends with a whole 😀." for text in make_documents(60)]
    rows = [{"text": text} for text in documents[:20]]
    lines = [*map(json.dumps, rows), "null", '{"text": null}', json.dumps({"text": documents[20] + "\ud83d"})]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    table = pyarrow.table({"text": [*documents[20:40], None, None]})
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    write_txt(tmp_path / "c.txt", documents[40:])
    data = prepare(text_config([tmp_path / name for name in ("a.jsonl", "b.parquet", "c.txt")]), tmp_path)
    counts, lost = data.manifest["counts"], data.manifest["lost"]
    assert counts["documents"] + counts["documents_held_out"] == 61
    assert (lost["rows_without_text"], lost["half_letters"]) == (4, 1)
    told = capsys.readouterr().err
    assert "note: 4 rows without text (null) were left out" in told
    assert "note: 1 documents held halves of letters (lone surrogates), which became U+FFFD" in told


def test_a_damaged_row_group_is_named(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"text": make_documents(400)}), path, row_group_size=100, compression="zstd", use_dictionary=False
    )
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(2).column(0)
    whole = bytearray(path.read_bytes())
    middle = group.data_page_offset + group.total_compressed_size // 2
    whole[middle : middle + 40] = bytes(40)
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"a\.parquet, row group 2 of 4: damaged"):
        list(read_documents(path, "text"))


def test_one_long_line_of_json_is_read_in_linear_time(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "BLOCK_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "word " * 200_000}) + "\n" + json.dumps({"text": "end"}))
    *pieces, last = read_documents(path, "text")
    assert sum(map(len, pieces)) == len("word " * 200_000) - 1
    assert last == "end"


@pytest.mark.parametrize("separator", [" ", "\r\r"])
@pytest.mark.parametrize("count", range(200, 230, 3))
def test_text_that_is_one_document_is_told(tmp_path, separator, count):
    (tmp_path / "a.txt").write_text(separator.join(make_documents(count)), newline="")
    with pytest.raises(UserError, match=r"all .* one document: an empty line|as there are few \(an empty line ends"):
        prepare(text_config([tmp_path / "a.txt"], valid_share=0.5), tmp_path)


def test_cuts_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(readers, "MAX_DOCUMENT_CHARACTERS", 2000)
    (tmp_path / "a.txt").write_text("\n".join(make_documents(200)))
    data = prepare(text_config([tmp_path / "a.txt"]), tmp_path)
    assert data.manifest["lost"]["cuts"] > 10
    assert re.search(r"note: longer documents were cut, \d+ times; an empty line ends", capsys.readouterr().err)
