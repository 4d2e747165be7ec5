"""Files are embedded once, by content, and searched; the commands refuse what they cannot use before long work."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cramming.errors import UserError
from cramming.sentences.load import load_encoder
from cramming.sentences.search import build_index
from cramming.sentences.texts import passages, pieces, read_lines, text_files
from tests.helpers.commands import inline
from tests.helpers.sentences import FOLDERS, TEXTS


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FOLDERS["run"](tmp_path_factory.mktemp("encoder"))


def write_texts(home: Path) -> list[Path]:
    home.mkdir()
    (home / "one.txt").write_text("the film is good .\n\na bad plot\nthe plot was bad")
    (home / "two.txt.xz").write_bytes(lzma.compress(b"one two three\n\nfour four four"))
    (home / "picture.png").write_bytes(b"\0\1")
    return text_files([home])


def test_a_query_finds_its_own_passage(model: Path, tmp_path: Path) -> None:
    files = write_texts(tmp_path / "texts")
    assert [file.name for file in files] == ["one.txt", "two.txt.xz"]
    encoder = load_encoder(model)
    index, new = build_index(encoder, files, tmp_path / "index")
    assert new == 2
    assert index.texts == ["the film is good .", "a bad plot", "the plot was bad", "one two three", "four four four"]
    hits = index.search(encoder.encode(index.texts), top=2)
    for at, found in enumerate(hits):
        assert found[0].text == index.texts[at]
        assert found[0].score == pytest.approx(1, abs=1e-5)
        assert found[1].score <= found[0].score
    assert (hits[4][0].file.name, hits[4][0].number) == ("two.txt.xz", 2)


def test_only_new_contents_are_embedded(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, encoder = write_texts(tmp_path / "texts"), load_encoder(model)
    first, _ = build_index(encoder, files, tmp_path / "index")
    made: list[str] = []
    encode = type(encoder).encode
    monkeypatch.setattr(
        type(encoder), "encode", lambda self, texts, *rest, **k: made.extend(texts) or encode(self, texts)
    )
    again, new = build_index(encoder, files, tmp_path / "index")
    assert (new, made) == (0, [])
    assert np.array_equal(again.vectors, first.vectors)
    files[0].rename(tmp_path / "texts" / "moved.txt")  # the same content
    (tmp_path / "texts" / "three.txt").write_text("a very good plot")
    found, new = build_index(encoder, text_files([tmp_path / "texts"]), tmp_path / "index")
    assert (new, made) == (1, ["a very good plot"])
    assert [file.name for file in found.files] == ["moved.txt"] * 3 + ["three.txt"] + ["two.txt.xz"] * 2
    short = load_encoder(model, 8)  # other vectors, which the kept ones are not
    assert build_index(short, files[1:], tmp_path / "index")[1] == 1


def test_a_damaged_part_is_named(model: Path, tmp_path: Path) -> None:
    files, encoder = write_texts(tmp_path / "texts"), load_encoder(model)
    build_index(encoder, files, tmp_path / "index")
    part = min((tmp_path / "index").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match=f"{part.name} is damaged.*remove it"):
        build_index(encoder, files, tmp_path / "index")


def test_a_stopped_indexing_goes_on_after_the_last_whole_file(model: Path, tmp_path: Path) -> None:
    files, encoder = write_texts(tmp_path / "texts"), load_encoder(model)
    (tmp_path / "texts" / "two.txt.xz").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"two.txt.xz is damaged"):
        build_index(encoder, files, tmp_path / "index")
    assert len(list((tmp_path / "index").iterdir())) == 1
    files[1].write_bytes(lzma.compress(b"one two"))
    assert build_index(encoder, files, tmp_path / "index")[1] == 1


def test_long_paragraphs_are_cut_between_sentences(tmp_path: Path) -> None:
    text = "One two three. Four five! Six seven eight nine? Ten."
    assert list(pieces(text, 5)) == ["One two three. Four five!", "Six seven eight nine? Ten."]
    assert list(pieces(text, 3)) == ["One two three.", "Four five!", "Six seven eight", "nine? Ten."]
    assert list(pieces("", 3)) == []
    (tmp_path / "a.jsonl").write_text('{"text": "first\\n\\n second  part"}\n{"text": "third"}\n')
    assert list(passages(tmp_path / "a.jsonl")) == ["first", "second part", "third"]


def test_lines_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("\ufeffone\r\n\n  two\u2028still two \nthree")
    lines = read_lines(tmp_path / "lines.txt")
    assert lines.texts == ["one", "two\u2028still two", "three"]
    assert lines.numbers == [1, 3, 4]


@pytest.mark.parametrize("form", ["npy", "safetensors"])
def test_embed_writes_vectors_and_what_they_are_of(model: Path, tmp_path: Path, form: str) -> None:
    text = tmp_path / "lines.txt"
    text.write_text(f"{TEXTS[0]}\n\n{TEXTS[1]}\n{TEXTS[2]}\n")
    done = inline("embed", str(model), str(text), "--out", str(tmp_path / "out"), "--format", form, "--batch", "2")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["rows"], manifest["width"], manifest["lines"]) == (3, 32, [1, 3, 4])
    assert {"model", "pooling", "normalised", "int8", "text_sha256", "sha256", "max_length"} <= manifest.keys()
    file = tmp_path / "out" / f"embeddings.{form}"
    vectors = np.load(file) if form == "npy" else load_file(file)["embeddings"]
    np.testing.assert_allclose(vectors, load_encoder(model).encode(TEXTS[:3]), atol=2e-6)
    assert inline("embed", str(model), str(text), "--out", str(tmp_path / "out")).returncode == 2


def test_search_answers_each_query(model: Path, tmp_path: Path) -> None:
    write_texts(tmp_path / "texts")
    place = str(tmp_path / "index")
    asked = ["--query", "a bad plot", "--query", "one two three", "--top", "1", "--index", place]
    done = inline("search", str(model), str(tmp_path / "texts"), *asked)
    assert done.returncode == 0, done.stderr
    assert "5 passages of 2 files, 2 of them new" in done.stdout
    blocks = done.stdout.split("\n\n")[1:]
    for query, block in zip(("a bad plot", "one two three"), blocks, strict=True):
        assert block.splitlines()[0] == query
        assert block.splitlines()[2].strip() == query


BAD = {
    "no model": ("embed", "{tmp}/nowhere {tmp}/lines.txt --out {tmp}/out", "nowhere holds no model"),
    "no tokenizer": ("embed", "{tmp}/bare {tmp}/lines.txt --out {tmp}/out", "tokenizer.json is missing"),
    "no text": ("embed", "{model} {tmp}/nothing.txt --out {tmp}/out", "nothing.txt is missing"),
    "empty text": ("embed", "{model} {tmp}/empty.txt --out {tmp}/out", "empty.txt is empty"),
    "binary text": ("embed", "{model} {tmp}/binary.txt --out {tmp}/out", "binary.txt is not UTF-8 text"),
    "in the way": ("embed", "{tmp}/nowhere {tmp}/lines.txt --out {tmp}/full", "full exists"),
    "file in the way": ("embed", "{model} --sentence-transformers {tmp}/lines.txt", "lines.txt exists"),
    "nothing asked": ("embed", "{model} {tmp}/lines.txt", "nothing is asked for"),
    "no text to embed": ("embed", "{model} --out {tmp}/out", "name it after the model"),
    "no batch": ("embed", "{model} {tmp}/lines.txt --out {tmp}/out --batch 0", "--batch is 0; set it to 1 or more"),
    "no GLUE": ("embed", "{model} {tmp}/lines.txt --out {tmp}/out --stsb {tmp}", "STS-B is missing"),
    "int8 in a folder": ("embed", "{model} --int8 --sentence-transformers {tmp}/new", "cannot hold a model in int8"),
    "no files": ("search", "{model} {tmp}/nowhere --query x", "nowhere is missing"),
    "no texts": ("search", "{model} {tmp}/none --query x", "there is no text to search"),
    "unknown kind": ("search", "{model} {tmp}/a.pdf --query x", "a.pdf is of unknown kind"),
    "empty file": ("search", "{model} {tmp}/empty.txt --query x --index {tmp}/i", "empty.txt is empty"),
    "empty query": ("search", "{model} {tmp}/lines.txt --query", "--query is empty"),
    "no top": ("search", "{model} {tmp}/lines.txt --query x --top 0", "--top is 0"),
    "index is a file": ("search", "{model} {tmp}/lines.txt --query x --index {tmp}/lines.txt", "lines.txt"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(case: str, model: Path, tmp_path: Path) -> None:
    script, words, message = BAD[case]
    for folder in ("bare", "full", "none"):
        (tmp_path / folder).mkdir()
    (tmp_path / "full" / "x").write_text("x")
    (tmp_path / "bare" / "config.json").write_text('{"model_type": "bert"}')
    for name, content in {"lines.txt": "good\n", "empty.txt": " \n\n", "binary.txt": "a\0b", "a.pdf": "x"}.items():
        (tmp_path / name).write_text(content)
    before = sorted(tmp_path.rglob("*"))
    arguments = words.format(tmp=tmp_path, model=model).split()
    done = inline(script, *arguments, *([" "] if words.endswith("--query") else []))
    assert done.returncode == 2, done.stdout + done.stderr
    told = [line for line in done.stderr.splitlines() if line.strip()]  # a bar that was closed is before it
    assert told[-1].startswith("error: ")
    assert message in told[-1]
    assert "Traceback" not in done.stderr
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "i"] == before
