"""train.frozen_levels in whole runs: one process, gradients of two, workers apart. And which layers are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cramming.data.prepare import prepare
from cramming.errors import UserError
from cramming.model.config import FFNConfig
from cramming.parallel.world import open_world
from cramming.train.assemble import build_model, check_layer
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from fff.topology import first_node
from tests.helpers.several import several
from tests.helpers.tiny import tiny_root

LEVELS = 2
CASES: dict[str, dict[str, Any]] = {
    "every step": {"microbatch": 4},
    "outer": {"microbatch": 4, "batch_ramp": 0.0, "sync": "outer", "outer_steps": 3},
}


def frozen_root(folder: Path, **settings: Any) -> PretrainRoot:
    return tiny_root(folder, frozen_levels=LEVELS, weight_decay=0.5, **settings)


def train_in(folder: Path) -> None:
    for name, settings in CASES.items():
        pretrain(frozen_root(folder / name, **settings))


def check_rows(folder: Path, root: PretrainRoot) -> None:
    data = prepare(root.data, Path(root.output_dir))
    fresh = build_model(root, data, open_world("train.precision", "fp32", cpu=True).seed).state_dict()
    (path,) = folder.glob("outputs/runs/*/model/model.safetensors")
    trained, nodes, seen = load_file(path), first_node(LEVELS), 0
    for name, weight in trained.items():
        if name.endswith(("w_in", "b_in", "w_out")):
            seen += 1
            assert torch.equal(weight[:, :nodes], fresh[name][:, :nodes]), name
            assert not torch.equal(weight[:, nodes:], fresh[name][:, nodes:]), name
    assert seen == 3 * root.model.layers


def test_one_process_leaves_the_first_levels_as_they_began(tmp_path: Path) -> None:
    root = frozen_root(tmp_path)
    pretrain(root)
    check_rows(tmp_path, root)


def test_several_processes_do_also_apart(tmp_path: Path) -> None:
    for ended in several(train_in, tmp_path, tmp_path):
        assert ended.status == 0, ended.printed
    for name, settings in CASES.items():
        check_rows(tmp_path / name, frozen_root(tmp_path / name, **settings))


@pytest.mark.parametrize(
    ("ffn", "settings", "words"),
    [
        (FFNConfig(kind="leaf", depth=3, leaf_width=4), {}, "ffn=leaf is no tree of neurons"),
        (FFNConfig(kind="dense", width=4), {}, "ffn=dense is no tree"),
        (FFNConfig(kind="moe", experts=4, expert_width=4, top=1), {}, "ffn=moe is no tree"),
        (FFNConfig(kind="fixed", trees=1, depth=3), {}, "ffn=fixed is no tree"),
        (FFNConfig(kind="none"), {}, "ffn=none is no tree"),
        (FFNConfig(trees=1, depth=1), {}, r"ffn\.depth=1; freeze 1 to as many levels, or set it to 0"),
        (FFNConfig(trees=1, depth=3, rebalance_rate=0.01), {}, r"ffn\.rebalance_rate=0\.01 moves the biases"),
        (FFNConfig(trees=1, depth=3), {"sharding": "fsdp"}, r"train\.sharding is fsdp.*set train\.sharding=ddp"),
    ],
    ids=lambda value: getattr(value, "tag", ""),
)
def test_layers_that_cannot_be_frozen_are_refused(
    ffn: FFNConfig, settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    root = replace(tiny_root(tmp_path, frozen_levels=LEVELS, **settings), ffn=ffn)
    with pytest.raises(UserError, match=rf"train\.frozen_levels is {LEVELS}, and .*{words}"):
        check_layer(root)
    check_layer(replace(root, train=replace(root.train, frozen_levels=0)))


def test_dense_neurons_beside_a_tree_are_not_in_its_levels(tmp_path: Path) -> None:
    check_layer(replace(frozen_root(tmp_path), ffn=FFNConfig(trees=1, depth=3, shared=4)))


def test_it_names_a_run_where_it_is_set_alone(tmp_path: Path) -> None:
    assert tiny_root(tmp_path, frozen_levels=0).run_name == tiny_root(tmp_path).run_name
    assert tiny_root(tmp_path, frozen_levels=1).run_name != tiny_root(tmp_path).run_name
    with pytest.raises(UserError, match=r"train\.frozen_levels is -1; set it to 0 or more"):
        tiny_root(tmp_path, frozen_levels=-1)
