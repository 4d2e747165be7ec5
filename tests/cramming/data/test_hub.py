import dataclasses
import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from cramming.data import corpus, encode
from cramming.data.config import DataConfig, HubDataset
from cramming.data.pieces import Piece, Pieces
from cramming.data.prepare import prepare
from cramming.data.sources import hub
from cramming.data.sources.hub import HubSource
from cramming.data.sources.source import Part, documents
from cramming.data.tokenizer import SPECIAL_TOKENS, train_tokenizer
from cramming.errors import Passing, UserError
from tests.helpers.data import make_documents

TEXTS = make_documents(200)


def local_set(folder: Path, **columns) -> HubDataset:
    (folder / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / "data" / "train-00000-of-00001.parquet")
    return HubDataset(id=str(folder), column=next(iter(columns)))


def hub_config(*hub: HubDataset, **changes) -> DataConfig:
    settings = {"name": "h", "source": "hub", "valid_share": 0.1, "vocab_size": 200, "seq_len": 16, "workers": 1}
    return DataConfig(hub=list(hub), **(settings | changes))


def test_streamed_documents_become_tokens(tmp_path):
    data = prepare(hub_config(local_set(tmp_path / "set", text=TEXTS)), tmp_path)
    counts = data.manifest["counts"]
    assert counts["documents"] + counts["documents_held_out"] == len(TEXTS)
    assert set(data.held_out_documents()) <= set(TEXTS)
    assert data.manifest["source"]["datasets"][0]["id"] == str(tmp_path / "set")
    limited = prepare(hub_config(HubDataset(id=str(tmp_path / "set")), max_megabytes=0.03), tmp_path)
    assert 0 < limited.manifest["counts"]["documents"] < counts["documents"]


def test_a_local_set_with_other_content_is_prepared_anew(tmp_path):
    first = prepare(hub_config(local_set(tmp_path / "set", text=TEXTS)), tmp_path)
    path = next((tmp_path / "set").rglob("*.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS[50:]}), path)
    second = prepare(hub_config(HubDataset(id=str(tmp_path / "set"))), tmp_path)
    assert second.folder != first.folder
    assert second.manifest["counts"]["documents"] < first.manifest["counts"]["documents"]


def test_two_sets_alternate_by_size_and_rows_are_joined(tmp_path):
    long = local_set(tmp_path / "long", text=["a" * 100, "b" * 100, "c" * 100])
    short = local_set(tmp_path / "short", line=[f"row {index}" for index in range(5)])
    joined = HubDataset(id=short.id, column="line", join_rows=2)
    source = HubSource([long, joined])
    expected = ["a" * 100, "row 0\nrow 1", "row 2\nrow 3", "row 4", "b" * 100, "c" * 100]
    assert list(documents(source, None)) == expected
    assert list(documents(source, 0.00011)) == expected[:2]


def test_wrong_column_and_text_type_are_named(tmp_path):
    dataset = local_set(tmp_path / "set", text=TEXTS)
    with pytest.raises(UserError, match=r"no column 'body', but \['text'\]"):
        prepare(hub_config(HubDataset(id=dataset.id, column="body")), tmp_path)
    with pytest.raises(UserError, match="holds no text"):
        list(documents(HubSource([local_set(tmp_path / "numbers", n=[1, 2])]), None))


@pytest.mark.parametrize(
    "error", [ConnectionError("no route"), FileNotFoundError("no such set"), ValueError("bad config")]
)
def test_unreachable_hub_is_one_clear_error(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"data\.hub: no/where .*cannot be read \(.*use data=docs or data=text"):
        prepare(hub_config(HubDataset(id="no/where")), tmp_path)
    assert not list((tmp_path / "data").glob("h-*"))


def readymade(folder: Path) -> tuple[DataConfig, np.ndarray, dict[str, int]]:
    """A set whose special tokens have other ids than ours, as the authors' hash order gives them."""
    vocabulary = train_tokenizer(TEXTS, 200).get_vocab()
    order = [*(token for token in sorted(vocabulary, key=vocabulary.__getitem__)[7:]), *reversed(SPECIAL_TOKENS)]
    content = json.loads(train_tokenizer(TEXTS, 200).to_str())
    content["model"]["vocab"] = {token: number for number, token in enumerate(order)}
    content["added_tokens"] = [{**token, "id": order.index(token["content"])} for token in content["added_tokens"]]
    content["added_tokens"].sort(key=lambda token: token["id"])
    content["post_processor"] = None
    sequences = np.random.default_rng(0).integers(0, 200, (2500, 16))
    local_set(folder, input_ids=[row.tolist() for row in sequences])
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(content))
    hub = HubDataset(id=str(folder), column="input_ids")
    return hub_config(hub, source="readymade"), sequences, content["model"]["vocab"]


def test_readymade_sequences_are_copied_and_renumbered(tmp_path):
    config, sequences, vocabulary = readymade(tmp_path / "set")
    data = prepare(config, tmp_path)
    assert data.manifest["source"]["ids_renumbered"] is True
    tokenizer = data.tokenizer()
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(7))
    renumbered = np.zeros(200, dtype=np.int64)
    for token, number in vocabulary.items():
        renumbered[number] = tokenizer.convert_tokens_to_ids(token)
    assert sorted(renumbered) == list(range(200))
    rows = {tuple(row) for row in renumbered[sequences]}
    train, valid = ({tuple(row) for row in shards.take(range(len(shards)))} for shards in (data.train, data.valid))
    assert train | valid == rows
    assert not train & valid
    assert 150 < len(valid) < 350
    assert len(data.held_out_documents()) == len(valid)


def test_other_readymade_sequences_are_copied_anew(tmp_path):
    config, sequences, _ = readymade(tmp_path / "set")
    first = prepare(config, tmp_path)
    path = next((tmp_path / "set").rglob("*.parquet"))
    pyarrow.parquet.write_table(pyarrow.table({"input_ids": [row.tolist() for row in sequences[::-1]]}), path)
    assert prepare(config, tmp_path).fingerprint != first.fingerprint


def test_readymade_that_does_not_fit_is_refused(tmp_path):
    config, _, _ = readymade(tmp_path / "set")
    hub = config.hub[0]
    with pytest.raises(UserError, match=r"data\.seq_len is 32, but .* has a row of 16 ids"):
        prepare(hub_config(hub, source="readymade", seq_len=32), tmp_path)
    with pytest.raises(UserError, match=r"set data\.vocab_size=200"):
        prepare(hub_config(hub, source="readymade", vocab_size=300), tmp_path)
    (tmp_path / "set" / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        prepare(hub_config(hub, source="readymade"), tmp_path)


def test_rows_without_text_are_left_out_and_told(tmp_path, capsys):
    data = prepare(hub_config(local_set(tmp_path / "set", text=[*TEXTS, None, None])), tmp_path)
    counts = data.manifest["counts"]
    assert counts["documents"] + counts["documents_held_out"] == len(TEXTS)
    assert "note: 2 rows without text (null) were left out" in capsys.readouterr().err


def set_of_files(folder: Path, kind: str, texts: list[str], files: int, column: str = "text") -> HubDataset:
    """A local set that `datasets` reads with the builder of a kind of file, each file with rows without text."""
    (folder / "data").mkdir(parents=True)
    for number in range(files):
        rows = [*texts[number::files], None]
        path = folder / "data" / f"train-{number:05d}-of-{files:05d}.{kind}"
        if kind == "parquet":
            pyarrow.parquet.write_table(pyarrow.table({column: rows}), path, row_group_size=7)
        else:
            path.write_text("".join(json.dumps({column: row}) + "\n" for row in rows))
    return HubDataset(id=str(folder), column=column)


def resumed(part: Part, taken: int) -> tuple[list[str], dict[str, int]]:
    """The documents of a part that is read in two goes, the second from the first one's state; what was mended."""
    first = part.read()
    found = [next(first.documents) for _ in range(taken)]
    state, mended = json.loads(json.dumps(first.state())), vars(first.mended.copy())
    second = part.read(state)
    found += list(second)
    return found, {name: mended[name] + vars(second.mended)[name] for name in mended}


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
@pytest.mark.parametrize(
    ("sets", "join_rows", "megabytes"), [(1, 1, None), (1, 1, 0.02), (1, 3, None), (2, 1, None), (2, 3, 0.02)]
)
def test_a_stream_goes_on_exactly_where_it_was(tmp_path, kind, sets, join_rows, megabytes):
    hub = [set_of_files(tmp_path / str(number), kind, TEXTS[number::3], 3) for number in range(sets)]
    hub[-1] = dataclasses.replace(hub[-1], join_rows=join_rows)
    source = HubSource(hub)
    source.settle(None)
    parts = source.parts(megabytes)
    assert len(parts) == (3 if (sets, join_rows, megabytes) == (1, 1, None) else 1)
    for part in parts:
        whole = part.read()
        expected = list(whole)
        for taken in (*range(0, len(expected), 5), len(expected)):
            assert resumed(part, taken) == (expected, vars(whole.mended))


def test_files_of_a_set_are_read_apart_in_the_sets_order(tmp_path):
    source = HubSource([set_of_files(tmp_path / "set", "parquet", TEXTS, 5)])
    in_one = list(documents(source, None))
    source.settle(None)
    assert len(source.parts(None)) == 5
    assert list(documents(source, None)) == in_one == [text for number in range(5) for text in TEXTS[number::5]]


def test_a_broken_stream_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    dataset = set_of_files(tmp_path / "set", "parquet", TEXTS, 2)
    config = hub_config(dataset, max_megabytes=0.03, tokenizer_megabytes=0.005)
    expected = prepare(config, tmp_path / "whole")
    monkeypatch.setattr(encode, "PIECE_BYTES", 3000)
    read, given = datasets.IterableDataset.__iter__, []

    def broken(self):
        for row in read(self):
            given.append(row["text"])
            if len(given) == 60:
                raise ConnectionError("no route")
            yield row

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", broken)
    with pytest.raises(Passing, match=r"data\.hub: .* cannot be read \(ConnectionError: no route\)"):
        prepare(config, tmp_path / "broken")
    (work,) = (tmp_path / "broken" / "preparing").iterdir()
    kept = list(Pieces(work / "part-00000").read())
    assert len(kept) > 2
    again: list[str] = []
    fill = corpus.fill

    def logged(piece, chunk, encoded):
        again.extend(chunk.documents)
        fill(piece, chunk, encoded)

    monkeypatch.setattr(corpus, "fill", logged)
    found = prepare(config, tmp_path / "broken")
    assert (found.folder / "manifest.json").read_bytes() == (expected.folder / "manifest.json").read_bytes()
    assert len(again) + sum(piece.counts["documents"] for piece in kept) == found.manifest["counts"]["documents"]


def test_the_newest_commit_is_settled_once_and_streamed_by_all(tmp_path, monkeypatch):
    dataset = set_of_files(tmp_path / "set", "parquet", TEXTS, 3)
    asked: list[str | None] = []
    load = datasets.load_dataset

    def loaded(*arguments, revision=None, **named):
        asked.append(revision)
        return load(*arguments, **named)

    monkeypatch.setattr(datasets, "load_dataset", loaded)
    monkeypatch.setattr(hub, "hub_version", lambda _: "0f1e2d")
    first, second = HubSource([dataset]), HubSource([dataset])
    found = first.settle(None)
    assert found == {"commits": ["0f1e2d"], "files": [3]}
    monkeypatch.setattr(hub, "hub_version", lambda _: "a newer one")
    assert second.settle(json.loads(json.dumps(found))) == found
    asked.clear()
    list(documents(second, None))
    assert asked == ["0f1e2d"] * 3
    assert second.provenance()["datasets"][0]["commit"] == "0f1e2d"
    with pytest.raises(
        UserError, match=r"data\.hub: .*set changed since its preparation began \(files: \[4\], now \[3"
    ):
        HubSource([dataset]).settle({"commits": ["unknown"], "files": [4]})


@pytest.mark.parametrize("megabytes", [None, 0.05])
def test_readymade_sequences_go_on_where_they_were(tmp_path, monkeypatch, megabytes):
    config, _, _ = readymade(tmp_path / "set")
    config = dataclasses.replace(config, max_megabytes=megabytes)
    whole = prepare(config, tmp_path / "whole")
    monkeypatch.setattr("cramming.data.readymade.PIECE_BYTES", 1)
    monkeypatch.setattr("cramming.data.readymade.ROWS_PER_WRITE", 1024)
    add = Piece.add

    def broken(self, name, content):
        if self.folder.name.startswith(".00001"):
            raise Passing("the network is gone")
        add(self, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(Piece, "add", broken)
        with pytest.raises(Passing):
            prepare(config, tmp_path / "broken")
    (work,) = (tmp_path / "broken" / "preparing").iterdir()
    assert len(Pieces(work / "part-00000").finished()) == 1
    found = prepare(config, tmp_path / "broken")
    assert (found.folder / "manifest.json").read_bytes() == (whole.folder / "manifest.json").read_bytes()
