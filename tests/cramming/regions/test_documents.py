"""Documents sorted by a first model's subtrees: equal shares, the right ones, figures, refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cramming.data.dealt import blocks
from cramming.data.prepare import prepare
from cramming.data.shards import PreparedData
from cramming.errors import UserError
from cramming.model.saved import open_pretrained
from cramming.regions.documents import Visits, apart, figures, layers_of, shares, sort_documents, visits_of
from cramming.regions.measure import load_encoder
from fff.regions import recorded_inputs, routed_layers
from tests.helpers.commands import inline
from tests.helpers.data import make_documents, text_config, write_txt
from tests.helpers.saved import save_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    save_model(folder / "model", trees=1, depth=4)
    return folder


@pytest.fixture(scope="module")
def data(home: Path) -> PreparedData:
    config = text_config([write_txt(home / "text.txt", make_documents(120))], tokenizer=str(home / "model"))
    return prepare(replace(config, vocab_size=200), home / "outputs")


def test_shares_are_equal_in_tokens_and_take_those_that_go_most_to_their_side() -> None:
    dice = np.random.default_rng(0)
    counts = dice.integers(0, 50, (400, 2)) * np.array([1, 9])  # nine tenths of all go right
    to = shares(counts)
    tokens = [counts[to == worker].sum() for worker in (0, 1)]
    assert abs(tokens[0] - tokens[1]) <= counts.sum(1).max()
    right = counts[:, 1] / np.maximum(1, counts.sum(1))
    assert right[to == 0].max() <= right[to == 1].min()


def test_documents_of_one_subtree_each_are_told_apart_wholly() -> None:
    owner = np.random.default_rng(1).permutation(np.arange(80) % 4)
    counts = np.zeros((80, 4), np.int64)
    counts[np.arange(80), owner] = 10
    to = shares(counts)
    assert np.array_equal(to, owner)
    assert apart(counts, to) == 1.0
    assert apart(np.tile(np.arange(1, 5), (80, 1)), to) == 0.0


def test_figures_say_how_much_of_a_document_goes_one_way() -> None:
    counts = np.zeros((1, 4, 4), np.int32)
    counts[0, 0] = counts[0, 1] = [6, 2, 0, 0]
    counts[0, 2] = counts[0, 3] = [1, 0, 4, 3]
    found = figures(Visits(["layer/0"], counts, 2), np.array([0, 0, 1, 1]))
    first, second = found["trees"]["layer/0"]
    assert (found["documents"], found["tokens"]) == ([2, 2], [16, 16])
    assert (first["document"], first["all"], first["apart"]) == ((8 + 7) / 16, 9 / 16, 7 / 8)
    assert (second["document"], second["all"]) == ((6 + 4) / 16, 7 / 16)


def test_visits_are_the_models_own(home: Path, data: PreparedData) -> None:
    pretrained = open_pretrained(home / "model")
    model = load_encoder(pretrained)
    found = visits_of(model, layers_of(model, pretrained, data, 3), data, 3)
    ids, numbers = next(blocks(data))
    with recorded_inputs(model) as inputs, torch.inference_mode():
        model(input_ids=torch.from_numpy(ids))
    assert found.counts.sum() == len(found.names) * ids.size
    for tree, (name, layer) in enumerate(routed_layers(model).items()):
        leaves = layer.route(inputs[name][0]).units.flatten().numpy()
        wanted = np.zeros(found.counts[tree].shape, np.int64)
        np.add.at(wanted, (numbers.ravel(), leaves >> 1), 1)
        assert np.array_equal(found.counts[tree], wanted)


def test_the_tree_in_which_workers_part_most_decides_unless_one_is_named(home: Path, data: PreparedData) -> None:
    told = sort_documents(data.folder, home / "model", home / "best", workers=2, levels=2, tree=None)
    names = list(told["figures"]["trees"])
    by_name = {}
    for number, name in enumerate(names):
        one = sort_documents(data.folder, home / "model", home / f"by-{number}", workers=2, levels=2, tree=name)
        assert one["tree"] == name
        by_name[name] = one["figures"]["trees"][name][0]["apart"]
    assert told["tree"] == max(by_name, key=lambda name: by_name[name])
    written = json.loads((home / "best" / "dealt.json").read_text())
    assert written["figures"] == told["figures"]
    assert written["dealt_from"] == data.fingerprint
    chosen = told["figures"]["trees"][told["tree"]][0]
    assert chosen["apart"] > chosen["by_chance"]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"workers": 3}, r"--workers is 3; give a power of two"),
        ({"workers": 1}, r"--workers is 1; give a power of two"),
        ({"workers": 8}, r"--levels is 2, and 8 workers part at level 3"),
        ({"levels": 5}, r"has no trees of depth 5 or more"),
        ({"tree": "nobody/0"}, r"--tree is nobody/0; the model has blocks\.0\.[\w.]+/0, blocks\.1"),
    ],
)
def test_what_cannot_be_sorted_is_refused(home: Path, data: PreparedData, asked: dict[str, Any], words: str) -> None:
    settings: dict[str, Any] = {"workers": 2, "levels": 2, "tree": None} | asked
    with pytest.raises(UserError, match=words):
        sort_documents(data.folder, home / "model", home / "never", **settings)
    assert not (home / "never").exists()


def test_a_model_without_trees_or_of_other_tokens_is_refused(home: Path, data: PreparedData, tmp_path: Path) -> None:
    save_model(tmp_path / "dense", kind="dense", width=8)
    with pytest.raises(UserError, match="has no trees of depth 2"):
        sort_documents(data.folder, tmp_path / "dense", tmp_path / "out", workers=2, levels=2, tree=None)
    save_model(tmp_path / "other", vocab_size=150, trees=1, depth=4)
    with pytest.raises(UserError, match="other tokens, or longer sequences"):
        sort_documents(data.folder, tmp_path / "other", tmp_path / "out", workers=2, levels=2, tree=None)


def test_the_command_tells_how_documents_part_and_refuses_in_one_line(home: Path, data: PreparedData) -> None:
    words = [str(data.folder), str(home / "model"), str(home / "told"), "--levels", "2"]
    done = inline("deal", *words)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    told = json.loads((home / "told" / "dealt.json").read_text())
    assert sum(line.startswith("| blocks.") for line in lines) == 2 * len(told["figures"]["trees"])
    assert f"decided    by {told['tree']} of {told['by']}" in lines
    assert f"worker 1   {told['figures']['documents'][1]:,} documents, {told['figures']['tokens'][1]:,} tokens" in lines
    again = inline("deal", *words)
    assert again.returncode == 2
    assert "exists, and nothing is written over it" in again.stderr.strip().splitlines()[-1]
