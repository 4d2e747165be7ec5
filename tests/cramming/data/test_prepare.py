import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from cramming.data import encode, writer
from cramming.data import prepare as prepare_module
from cramming.data.prepare import prepare
from cramming.data.shards import PreparedData, find_prepared
from cramming.data.sources.source import digest, fraction
from cramming.data.tokenizer import SEP, letters_per_token
from tests.helpers.data import make_documents, text_config, write_txt


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return make_documents(300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, documents) -> Path:
    return write_txt(tmp_path_factory.mktemp("corpus") / "corpus.txt", documents)


@pytest.fixture(scope="module")
def data(tmp_path_factory, corpus) -> PreparedData:
    return prepare(text_config([corpus]), tmp_path_factory.mktemp("out"))


def all_tokens(shards) -> np.ndarray:
    return shards.take(np.arange(len(shards))).ravel()


def own_encoding(data: PreparedData, documents: list[str]) -> list[int]:
    tokenizer = Tokenizer.from_file(str(data.folder / "tokenizer" / "tokenizer.json"))
    return [number for text in documents for number in [*tokenizer.encode(text, add_special_tokens=False).ids, SEP]]


def test_train_tokens_are_the_documents_each_ended_by_sep_without_the_remainder(data, documents):
    train = [text for text in documents if fraction(digest(text)) >= 0.1]
    expected = own_encoding(data, train)
    whole = len(expected) // 16 * 16
    assert whole < len(expected)
    assert all_tokens(data.train).tolist() == expected[:whole]
    assert data.manifest["counts"]["documents"] == len(train)
    assert data.manifest["counts"]["bytes"] == sum(len(text.encode()) for text in train)


def test_held_out_documents_are_the_share_by_hash_and_not_in_training(data, documents):
    held_out = [text for text in documents if fraction(digest(text)) < 0.1]
    assert 10 < len(held_out) < 60
    assert data.held_out_documents() == held_out
    text = data.tokenizer().decode(all_tokens(data.train))
    for document in held_out:
        number = document.split(".")[0].lower().replace("-", " - ")
        assert f"{number}." not in text
    expected = own_encoding(data, held_out)
    assert all_tokens(data.valid).tolist() == expected[: len(expected) // 16 * 16]


def test_unigram_counts_equal_a_recount(data):
    recount = np.bincount(all_tokens(data.train), minlength=200)
    counts = data.unigram_counts()
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, recount)


def test_take_any_order_across_shards_and_after_pickling(tmp_path, corpus, data, monkeypatch):
    monkeypatch.setattr(writer, "SHARD_BYTES", 7 * 16 * 2)
    sharded = prepare(text_config([corpus]), tmp_path)
    assert len(sharded.manifest["shards"]["train"]) > 10
    indices = np.random.default_rng(0).permutation(len(data.train))
    taken = sharded.train.take(indices)
    assert taken.dtype == np.int64
    np.testing.assert_array_equal(taken, data.train.take(indices))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(sharded.train)).take(indices), taken)
    with pytest.raises(IndexError):
        data.train.take(np.array([len(data.train)]))


@pytest.mark.parametrize("rows_per_shard", [7, 10**6])
def test_length_order_is_a_stable_sort_by_letters(tmp_path, corpus, data, monkeypatch, rows_per_shard):
    monkeypatch.setattr(writer, "SHARD_BYTES", rows_per_shard * 16 * 2)
    monkeypatch.setattr(writer, "SORT_BLOCK_TOKENS", 16 * 50)
    by_length = prepare(text_config([corpus], order="length"), tmp_path)
    tokenizer = Tokenizer.from_file(str(data.folder / "tokenizer" / "tokenizer.json"))
    rows = data.train.take(np.arange(len(data.train)))
    letters = letters_per_token(tokenizer)[rows].sum(axis=1)
    expected = rows[np.argsort(letters, kind="stable")]
    np.testing.assert_array_equal(by_length.train.take(np.arange(len(rows))), expected)
    assert letters.min() < letters.max()
    first = tokenizer.decode(expected[0].tolist()).replace(" ", "")
    assert letters.min() == len(first)
    np.testing.assert_array_equal(by_length.unigram_counts(), data.unigram_counts())
    assert by_length.fingerprint != data.fingerprint
    assert not list(by_length.folder.glob("*.unsorted"))


def test_same_configuration_does_no_work(tmp_path, corpus, monkeypatch):
    first = prepare(text_config([corpus]), tmp_path)
    monkeypatch.setattr(prepare_module, "make", lambda *_: pytest.fail("prepared again"))
    second = prepare(text_config([corpus], examples=["A <mask>."], workers=2), tmp_path)
    assert (second.folder, second.fingerprint) == (first.folder, first.fingerprint)


def test_a_changed_file_or_setting_is_prepared_anew(tmp_path, documents):
    path = write_txt(tmp_path / "a.txt", documents)
    first = prepare(text_config([path]), tmp_path)
    write_txt(path, [*documents, "One more document about the harbour and the storm."])
    second = prepare(text_config([path]), tmp_path)
    third = prepare(text_config([path], seq_len=32), tmp_path)
    assert len({item.folder for item in (first, second, third)}) == 3
    assert len({item.fingerprint for item in (first, second, third)}) == 3


def test_another_text_of_equal_size_and_time_is_prepared_anew(tmp_path, documents):
    path = write_txt(tmp_path / "a.txt", documents)
    stat = path.stat()
    first = prepare(text_config([path]), tmp_path)
    write_txt(path, [documents[0].replace("Number", "Nummer"), *documents[1:]])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    second = prepare(text_config([path]), tmp_path)
    assert second.folder != first.folder
    assert second.fingerprint != first.fingerprint


def test_fingerprint_depends_on_content_not_on_place_time_or_workers(tmp_path, corpus, data, documents):
    (tmp_path / "elsewhere").mkdir()
    copy = write_txt(tmp_path / "elsewhere" / "corpus.txt", documents)
    os.utime(copy, (1, 1))
    with_workers = prepare(text_config([copy], workers=2), tmp_path)
    assert with_workers.folder.name == data.folder.name
    assert with_workers.fingerprint == data.fingerprint


def test_two_workers_give_the_same_as_one(tmp_path, corpus, data, monkeypatch):
    monkeypatch.setattr(encode, "CHUNK_CHARACTERS", 3000)
    parallel = prepare(text_config([corpus], workers=2), tmp_path)
    np.testing.assert_array_equal(all_tokens(parallel.train), all_tokens(data.train))


def test_tokenizer_can_be_reused_and_enters_the_key(tmp_path, corpus, data):
    reused = prepare(text_config([corpus], tokenizer=str(data.folder / "tokenizer")), tmp_path)
    assert reused.manifest["tokenizer_sha256"] == data.manifest["tokenizer_sha256"]
    assert reused.folder.name != data.folder.name
    assert reused.fingerprint == data.fingerprint


def test_named_held_out_files_stay_out_of_training(tmp_path, documents):
    train = write_txt(tmp_path / "train.txt", documents)
    valid = write_txt(tmp_path / "valid.txt", [*documents[:20], *make_documents(10, seed=5)])
    data = prepare(text_config([train], valid_files=[str(valid)]), tmp_path)
    assert data.held_out_documents() == [*documents[:20], *make_documents(10, seed=5)]
    assert data.manifest["counts"]["documents"] == 280
    expected = own_encoding(data, documents[20:])
    assert all_tokens(data.train).tolist() == expected[: len(expected) // 16 * 16]


def test_held_out_text_is_bounded_and_the_rest_unused(tmp_path, corpus, documents):
    data = prepare(text_config([corpus], valid_max_megabytes=0.002), tmp_path)
    counts = data.manifest["counts"]
    assert sum(len(text.encode()) for text in data.held_out_documents()) <= 2000
    assert counts["documents_unused"] > 0
    assert counts["documents"] + counts["documents_held_out"] + counts["documents_unused"] == len(documents)


def test_max_megabytes_takes_the_beginning_of_every_file(tmp_path, documents):
    paths = [write_txt(tmp_path / f"{part}.txt", documents[part::2]) for part in range(2)]
    data = prepare(text_config(paths, max_megabytes=0.02), tmp_path)
    counts = data.manifest["counts"]
    assert 15_000 < counts["bytes"] < 22_000
    decoded = data.tokenizer().decode(all_tokens(data.train))
    assert "number 0 - 2." in decoded
    assert "number 0 - 3." in decoded


def test_filter_keeps_documents_with_few_tokens_per_character(tmp_path, documents):
    tokenizer = str(prepare(text_config([write_txt(tmp_path / "b.txt", documents)]), tmp_path).folder / "tokenizer")
    noise = [" ".join("a-b" for _ in range(40)) + f" {index}" for index in range(30)]
    path = write_txt(tmp_path / "a.txt", documents + noise)
    data = prepare(text_config([path], tokenizer=tokenizer, max_tokens_per_char=0.5), tmp_path)
    filtered = data.manifest["counts"]["documents_filtered"]
    assert 20 <= filtered <= 30
    assert "a - b" not in data.tokenizer().decode(all_tokens(data.train))


def test_manifest_lists_every_file(data):
    listed = set(data.manifest["files"]) | {"manifest.json"}
    assert listed == {path.relative_to(data.folder).as_posix() for path in data.folder.rglob("*") if path.is_file()}


def test_prepared_data_are_found_by_fingerprint_when_their_source_is_gone(tmp_path, documents):
    path = write_txt(tmp_path / "a.txt", documents)
    kept, other = prepare(text_config([path]), tmp_path), prepare(text_config([path], seq_len=32), tmp_path)
    path.unlink()
    (other.folder / "manifest.json").write_text("{")
    assert find_prepared(tmp_path, kept.fingerprint) == kept.folder
    assert find_prepared(tmp_path, other.fingerprint) is None
    assert find_prepared(tmp_path / "nowhere", kept.fingerprint) is None
