"""Initial values: with train.equal_start they are the same around every kind of layer, and elsewhere as they were."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cramming.model.config import FFNConfig
from cramming.train.assemble import build_model
from tests.helpers.tiny import tiny_root

DATA = SimpleNamespace(vocab_size=80, seq_len=32)
LAYERS = (FFNConfig(kind="none"), FFNConfig(kind="dense", width=24), FFNConfig(kind="path", trees=2, depth=3))


def initial(folder: Path, ffn: FFNConfig, seed: int = 0, **train) -> dict[str, torch.Tensor]:
    root = replace(tiny_root(folder, **train), ffn=ffn, seed=seed)
    return dict(build_model(root, DATA, torch.manual_seed).named_parameters())


@pytest.mark.parametrize("ffn", LAYERS[1:], ids=lambda ffn: ffn.tag)
def test_everything_but_the_layer_starts_equal(ffn: FFNConfig, tmp_path: Path) -> None:
    none, ours = (initial(tmp_path, each, equal_start=True) for each in (LAYERS[0], ffn))
    assert none.keys() < ours.keys()
    assert all(torch.equal(none[name], ours[name]) for name in none)
    shifted = initial(tmp_path, ffn)
    assert not torch.equal(shifted["model.embedding.words.weight"], ours["model.embedding.words.weight"])
    rest = ours.keys() - none.keys() - {name for name in ours if "ffn_norm" in name}
    assert all(torch.equal(shifted[name], ours[name]) for name in rest)


def test_it_follows_from_seed_and_name_with_the_spread_of_the_model(tmp_path: Path) -> None:
    one, again, other = (initial(tmp_path, LAYERS[0], seed, equal_start=True) for seed in (0, 0, 1))
    matrices = [name for name in one if one[name].dim() > 1]
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in matrices)
    first, second = (f"model.blocks.{place}.attention.qkv.weight" for place in (0, 1))
    assert not torch.equal(one[first], one[second])
    std = tiny_root(tmp_path).model.init_std
    for name in matrices:
        assert one[name].std().item() == pytest.approx(std, rel=0.1), name
        assert one[name].mean().item() == pytest.approx(0, abs=std / 10), name


def test_a_key_that_is_left_alone_renames_no_run(tmp_path: Path) -> None:
    named = tiny_root(tmp_path, equal_start=False).run_name
    assert named == tiny_root(tmp_path).run_name != tiny_root(tmp_path, equal_start=True).run_name
