"""Documents dealt to workers: each whole and once, in folders of the usual format, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cramming.data.dealt import DEALT, blocks, check_documents, deal, dealt_fingerprint, open_dealt
from cramming.data.loader import MicrobatchLoader, SequenceOrder
from cramming.data.prepare import prepare
from cramming.data.shards import PreparedData, open_prepared
from cramming.data.tokenizer import SEP
from cramming.errors import UserError
from tests.helpers.data import make_documents, text_config, write_txt


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    home = tmp_path_factory.mktemp("data")
    return prepare(text_config([write_txt(home / "text.txt", make_documents(120))]), home / "outputs")


@pytest.fixture
def dealt(data: PreparedData, tmp_path: Path) -> Path:
    to = np.arange(documents_in(stream(data))) % 3
    deal(data, to, 3, tmp_path / "dealt", {"by": "turns"})
    return tmp_path / "dealt"


def stream(data: PreparedData) -> np.ndarray:
    return data.train.take(np.arange(len(data.train))).ravel()


def documents_in(tokens: np.ndarray) -> int:
    return int((tokens == SEP).sum()) + int(tokens[-1] != SEP)


def test_tokens_know_their_documents(data: PreparedData) -> None:
    ids, numbers = (np.concatenate(each).ravel() for each in zip(*blocks(data), strict=True))
    assert np.array_equal(ids, stream(data))
    for document in range(3):
        own = ids[numbers == document]
        assert own[-1] == SEP
        assert (own == SEP).sum() == 1


def test_workers_get_their_documents_whole_and_in_order(data: PreparedData, dealt: Path) -> None:
    tokens = np.split(stream(data), np.flatnonzero(stream(data) == SEP) + 1)
    for worker in range(3):
        own = open_prepared(dealt / f"worker-{worker}")
        wanted = np.concatenate(tokens[worker::3])
        assert np.array_equal(stream(own), wanted[: len(wanted) // data.seq_len * data.seq_len])
        assert own.manifest["counts"]["train_tokens"] == len(stream(own))
        assert np.array_equal(own.unigram_counts(), np.bincount(stream(own), minlength=data.vocab_size))
        assert own.fingerprint != data.fingerprint


def test_a_worker_reads_its_own_and_validates_on_what_all_do(data: PreparedData, dealt: Path) -> None:
    found = [open_dealt(dealt, data, worker, 3) for worker in range(3)]
    assert len({len(each.train) for each in found}) > 1 or not np.array_equal(stream(found[0]), stream(found[1]))
    for each in found:
        assert each.fingerprint == data.fingerprint
        assert each.valid.paths == data.valid.paths
        assert np.array_equal(each.unigram_counts(), data.unigram_counts())


def test_workers_with_sequences_of_their_own_read_each_once(data: PreparedData, dealt: Path) -> None:
    own = open_dealt(dealt, data, 1, 3).train
    order = SequenceOrder(len(own), 0, shuffled=True)
    make: Any = lambda ids, at: (ids, at)  # noqa: E731
    settings: dict[str, Any] = {"start": 0, "microbatch": 4, "process": 1, "processes": 3, "own": True}
    loader: MicrobatchLoader[Any] = MicrobatchLoader(own, order, make, **settings)
    read, positions = [], []
    for number in range(-(-len(own) // 4)):
        ids, at = loader.made(loader.first + number * loader.stride)
        read += [row.tobytes() for row in ids]
        positions += at.tolist()
    wanted = [row.tobytes() for row in own.take(np.arange(len(own)))]
    assert sorted(read[: len(own)]) == sorted(wanted)
    assert positions[:8] == [4, 5, 6, 7, 16, 17, 18, 19], "places in the run, by which masks are drawn"


def test_a_folder_that_does_not_fit_is_refused(data: PreparedData, dealt: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"was dealt to 3 workers, and 2 are here; start as many, or deal again"):
        open_dealt(dealt, data, 0, 2)
    other = prepare(text_config([write_txt(tmp_path / "text.txt", make_documents(90, seed=5))]), tmp_path)
    with pytest.raises(UserError, match=rf"dealt from data of fingerprint {data.fingerprint}, and these are"):
        open_dealt(dealt, other, 0, 3)
    with pytest.raises(UserError, match=r"is no folder that scripts/deal\.py wrote"):
        open_dealt(data.folder, data, 0, 3)
    with pytest.raises(UserError, match=r"train\.documents: .*nowhere is no folder"):
        dealt_fingerprint(tmp_path / "nowhere")
    facts = json.loads((dealt / DEALT).read_text())
    (dealt / DEALT).write_text(json.dumps(facts | {"fingerprints": facts["fingerprints"][::-1]}))
    with pytest.raises(UserError, match=r"worker-0 is not what .*dealt\.json names"):
        open_dealt(dealt, data, 0, 3)


def test_a_changed_token_is_found_unless_it_is_trusted(data: PreparedData, dealt: Path) -> None:
    shard = dealt / "worker-2" / "train-00000.bin"
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.bin is damaged"):
        open_dealt(dealt, data, 2, 3)
    open_dealt(dealt, data, 2, 3, trusted=True)


def refused_parts(data: PreparedData, **manifest: Any) -> PreparedData:
    return PreparedData(data.folder, data.manifest | manifest)


def test_tokens_without_whole_documents_and_empty_shares_are_refused(data: PreparedData, tmp_path: Path) -> None:
    check_documents(data)
    with pytest.raises(UserError, match=r"data\.order=length, which cuts documents apart"):
        check_documents(refused_parts(data, order="length"))
    to = np.zeros(documents_in(stream(data)), np.int64)
    to[0] = 2
    with pytest.raises(UserError, match=r"worker 1 of 3 would get less than one sequence"):
        deal(data, to, 3, tmp_path / "dealt", {})
    assert not (tmp_path / "dealt").exists()
    (tmp_path / "dealt").mkdir()
    (tmp_path / "dealt" / "file").touch()
    with pytest.raises(UserError, match="exists, and nothing is written over it"):
        deal(data, to, 3, tmp_path / "dealt", {})
