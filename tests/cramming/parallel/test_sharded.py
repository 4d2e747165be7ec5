"""Models spread over two processes train as in one: kinds, losses, figures, the finished model. Not checkpoints."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cramming.errors import UserError
from cramming.model.config import FFNConfig
from cramming.objectives.config import ObjectiveConfig
from cramming.parallel.sharded import dimension
from cramming.train.config import TrainConfig, WandbConfig
from cramming.train.hardening import HardeningConfig, Ramp
from cramming.train.loop import Trainer
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from tests.helpers.process import history_of
from tests.helpers.several import several
from tests.helpers.tiny import tiny_root

HARD, MASKED = HardeningConfig(), ObjectiveConfig()
SOFT = HardeningConfig(form="entropy", entropy_weight=Ramp(start=0.1), balance_weight=Ramp(start=0.1))
# Everything that a step can be made of; one pair of processes trains them all.
CASES: dict[str, dict[str, Any]] = {
    "one tree, clipped": {"ffn": FFNConfig(trees=1, depth=4), "clip": 0.05},
    "trees that balance": {"ffn": FFNConfig(trees=2, depth=3, rebalance_rate=0.01), "initial_split": 16},
    "soft trees": {"ffn": FFNConfig(trees=2, depth=3), "hardening": SOFT},
    "leaves, recomputed": {"ffn": FFNConfig(kind="leaf", depth=2, leaf_width=4), "recompute": True},
    "dense": {"ffn": FFNConfig(kind="dense", width=24)},
    "none": {"ffn": FFNConfig(kind="none")},
    "decoder": {"ffn": FFNConfig(trees=1, depth=3), "objective": ObjectiveConfig("causal")},
    "experts": {"ffn": FFNConfig(kind="moe", experts=4, expert_width=4, top=1)},
    "product keys": {"ffn": FFNConfig(kind="peer", keys=8, heads=2, top=2, query_width=8)},
}


def root_of(
    folder: Path,
    *,
    ffn: FFNConfig,
    hardening: HardeningConfig = HARD,
    objective: ObjectiveConfig = MASKED,
    **train: Any,
) -> PretrainRoot:
    settings = {"budget_steps": 4, "checkpoints": 1, "usage_steps": 1, "batch_ramp": 0.0, **train}
    return replace(tiny_root(folder, **settings), ffn=ffn, hardening=hardening, objective=objective)


def train_all(folder: Path) -> None:
    for name, case in CASES.items():
        pretrain(root_of(folder / name, **{"microbatch": 4, "sharding": "fsdp", **case}))


@pytest.fixture(scope="module")
def spread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spread")
    for ended in several(train_all, folder, folder):
        assert ended.status == 0, ended.printed
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_processes_with_half_a_model_each_follow_one(spread: Path, tmp_path: Path, name: str) -> None:
    pretrain(root_of(tmp_path, **{"microbatch": 8, **CASES[name]}))
    ones, twos = history_of(tmp_path), history_of(spread / name)
    assert [row.keys() for row in twos] == [row.keys() for row in ones]
    for one, two in zip(ones, twos, strict=True):
        for key in one:
            assert two[key] == pytest.approx(one[key], rel=1e-3, abs=2e-4), (key, one["step"])
    assert twos[-1]["valid/loss"] == pytest.approx(ones[-1]["valid/loss"], abs=2e-5)
    ours, theirs = weights(spread / name), weights(tmp_path)
    assert ours.keys() == theirs.keys()
    for weight in ours:
        assert torch.allclose(ours[weight], theirs[weight], atol=5e-4), weight
    assert record(spread / name).keys() == record(tmp_path).keys()
    assert record(spread / name)["machine"]["processes"] == 2


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (path,) = folder.glob("outputs/runs/*/model/model.safetensors")
    return load_file(path)


def record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("results/runs/*.json")
    return json.loads(path.read_text())


def test_the_finished_folder_is_that_of_one_process(spread: Path, tmp_path: Path) -> None:
    pretrain(root_of(tmp_path, **{"microbatch": 8, **CASES["dense"]}))
    (ours,), (theirs,) = (folder.glob("outputs/runs/*/model") for folder in (spread / "dense", tmp_path))
    files = [path.name for path in sorted(theirs.iterdir())]
    assert [path.name for path in sorted(ours.iterdir())] == files
    different = [name for name in files if (ours / name).read_bytes() != (theirs / name).read_bytes()]
    assert set(different) <= {"model.safetensors", "README.md"}, "which hold what was learnt, to rounding"


@pytest.mark.parametrize(
    ("shape", "cut"),
    [((1, 4095, 768), 2), ((4, 15, 32), 0), ((3, 8), 1), ((1, 7), 0), ((7,), 0), ((2, 8, 64), 0), ((1, 8, 64), 2)],
)
def test_a_weight_is_cut_where_it_can_be_cut_evenly(shape: tuple[int, ...], cut: int) -> None:
    assert dimension(torch.Size(shape), 2) == cut


def train_in_halves(folder: Path) -> None:
    pretrain(root_of(folder, microbatch=4, sharding="fsdp", precision="bf16", **CASES["one tree, clipped"]))


def test_in_bfloat16_they_follow_one_as_far_as_it_goes(tmp_path: Path) -> None:
    for ended in several(train_in_halves, tmp_path, tmp_path / "two"):
        assert ended.status == 0, ended.printed
    pretrain(root_of(tmp_path / "one", microbatch=8, precision="bf16", **CASES["one tree, clipped"]))
    for one, two in zip(history_of(tmp_path / "one"), history_of(tmp_path / "two"), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], abs=0.01)  # of 4.4, at 8 bits
    assert {value.dtype for value in weights(tmp_path / "two").values()} == {torch.float32}


def train_compiled(folder: Path) -> None:
    pretrain(root_of(folder, microbatch=4, sharding="fsdp", compile=True, **CASES["one tree, clipped"]))


def test_compiled_blocks_train_alike_and_let_hooks_look_in(tmp_path: Path) -> None:
    for ended in several(train_compiled, tmp_path, tmp_path / "two"):
        assert ended.status == 0, ended.printed
    pretrain(root_of(tmp_path / "one", microbatch=8, **CASES["one tree, clipped"]))
    for one, two in zip(history_of(tmp_path / "one"), history_of(tmp_path / "two"), strict=True):
        assert two["train/loss"] == pytest.approx(one["train/loss"], abs=2e-4)
        assert two.get("fff/usage_entropy") == pytest.approx(one.get("fff/usage_entropy"), abs=1e-2)


def diverge(folder: Path) -> None:
    step = Trainer.step

    def poisoned(self: Trainer) -> Any:
        if self.state.step == 2 and self.world.rank == 1:  # the other one sees it in the sums
            decoder = self.parts.model.decoder
            decoder.register_forward_hook(lambda *given: given[2] * float("nan"))
        return step(self)

    Trainer.step = poisoned  # type: ignore[method-assign]
    pretrain(root_of(folder, microbatch=4, sharding="fsdp", **{**CASES["dense"], "checkpoints": 4}))


def test_what_is_no_number_in_one_ends_both_and_spoils_no_checkpoint(tmp_path: Path) -> None:
    ended = several(diverge, tmp_path, tmp_path)
    assert [one.status for one in ended] == [2, 2], [one.printed for one in ended]
    lines = [line for one in ended for line in one.printed.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "at step 3 (train.lr now" in lines[0]
    assert "gradients not finite in model.embedding." in lines[0]
    assert sorted(path.name for path in tmp_path.glob("outputs/runs/*/checkpoints/*")) == ["step-1", "step-2"]
    assert record(tmp_path)["status"] == "diverged"


def train_with_wandb(folder: Path) -> None:
    root = root_of(folder, microbatch=4, sharding="fsdp", **CASES["one tree, clipped"])
    pretrain(replace(root, wandb=WandbConfig(mode="offline")))


def test_wandb_shows_a_spread_run_once(tmp_path: Path) -> None:
    for ended in several(train_with_wandb, tmp_path, tmp_path):
        assert ended.status == 0, ended.printed
    assert len(list(tmp_path.glob("outputs/runs/*/wandb/offline-run-*"))) == 1


def test_a_lost_model_is_written_again_by_as_many(spread: Path) -> None:
    (model,) = (spread / "dense").glob("outputs/runs/*/model")
    before = weights(spread / "dense")
    shutil.rmtree(model)
    root = root_of(spread / "dense", microbatch=4, sharding="fsdp", **CASES["dense"])
    ended = several(pretrain, spread, root)
    assert [one.status for one in ended] == [0, 0], [one.printed for one in ended]
    assert "which was lost or damaged, from the last checkpoint" in ended[0].printed
    assert all(torch.equal(value, before[name]) for name, value in weights(spread / "dense").items())
    ended = several(pretrain, spread, root)
    assert "is finished already" in ended[0].printed
    assert not ended[1].printed


def train_apart(folder: Path) -> None:
    if os.environ["RANK"] == "1":
        before = Path.is_file
        Path.is_file = lambda self, **options: self.name != "config.json" and before(self, **options)  # type: ignore
    pretrain(root_of(folder, microbatch=4, sharding="fsdp", **CASES["dense"]))


def test_a_folder_that_one_machine_does_not_see_is_refused(tmp_path: Path) -> None:
    ended = several(train_apart, tmp_path, tmp_path)
    assert [one.status for one in ended] == [2, 2]
    assert "is not seen by all processes; set output_dir to a folder that all machines share" in ended[0].printed


def test_who_holds_the_model_renames_no_run(tmp_path: Path) -> None:
    names = {root_of(tmp_path, ffn=CASES["dense"]["ffn"], sharding=each).run_name for each in ("none", "ddp", "fsdp")}
    changed = root_of(tmp_path, ffn=CASES["dense"]["ffn"], recompute=True, patience_minutes=1.0)
    assert names == {changed.run_name, root_of(tmp_path, ffn=CASES["dense"]["ffn"]).run_name}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "fp16"}, r"train\.precision is fp16"),
        ({"compile": True, "compile_mode": "reduce-overhead"}, r"set train\.compile_mode=default"),
    ],
)
def test_what_a_spread_model_cannot_do_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainConfig(budget_steps=1, sharding="fsdp", **settings)
