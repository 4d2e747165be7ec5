"""Names of runs: those of committed records, of keys added later, and what a record does not tell of a machine."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from cramming.data.config import DataConfig
from cramming.errors import UserError
from cramming.files import read_json, short_hash, write_json
from cramming.glue.config import GlueConfig
from cramming.glue.root import GlueRoot
from cramming.images.config import ImagesConfig, Row
from cramming.images.suite import run_name as images_name
from cramming.model.config import FFNConfig
from cramming.record import private
from cramming.runs import Keys, essence, listed
from cramming.train.config import TrainConfig
from cramming.train.hardening import HardeningConfig, Ramp
from cramming.train.order import read_order, write_order
from cramming.train.root import COSMETIC, PretrainRoot
from cramming.values import build

RECORDS = sorted((Path(__file__).parents[2] / "results" / "runs").glob("*.json"))
OF_TASK = ("task_epochs", "warmup_steps")


def recorded(kind: str) -> list[dict[str, Any]]:
    found = [record for record in map(read_json, RECORDS) if record["kind"] == kind]
    assert found
    return found


def root(**changes: Any) -> PretrainRoot:
    ffn, train = FFNConfig(trees=1, depth=3), TrainConfig(budget_steps=5)
    return replace(PretrainRoot(ffn=ffn, train=train), **changes)


def test_every_committed_pretraining_keeps_its_name() -> None:
    former = 0
    for record in recorded("pretrain"):
        names = [name.run for name in build(PretrainRoot, record["config"]).names]
        assert record["name"] in names
        former += record["name"] != names[0]
    assert former == 1  # recorded before positions and hardening had keys


def test_every_committed_finetuning_keeps_its_name() -> None:
    for record in recorded("glue"):
        told = record["config"]["glue"]
        assert record["name"].endswith(f"-s{record['seed']}-{short_hash(told, 6)}")
        config = build(GlueConfig, {k: v for k, v in told.items() if k not in OF_TASK} | {"dir": "anywhere"})
        assert config.settings() | {key: told[key] for key in OF_TASK} == told


def test_every_committed_image_run_keeps_its_name() -> None:
    for record in recorded("images"):
        row = Row(**{key: record["row"][key] for key in ("width", "leaf_width", "variant")})
        config = build(ImagesConfig, record["config"]["images"])
        assert images_name(config, row, record["seed"]) == record["name"]


@dataclass(frozen=True)
class ToyFFN(FFNConfig):
    experts: int | None = None

    def _refuse_others(self, mine: dict[str, Any]) -> None:
        """The new key is of every kind."""


@dataclass(frozen=True)
class ToyRamp(Ramp):
    delay: float = 0.0


@dataclass(frozen=True)
class ToyHardening(HardeningConfig):
    entropy_weight: ToyRamp = field(default_factory=ToyRamp)


@dataclass(frozen=True)
class ToyObjective:
    kind: str = "masked"
    teacher: str | None = None


@dataclass(frozen=True)
class ToyConfig(PretrainRoot):
    objective: ToyObjective = field(default_factory=ToyObjective)


def test_a_key_added_later_renames_nothing_until_it_is_set() -> None:
    before = root()
    assert root(ffn=ToyFFN(trees=1, depth=3)).names[0] == before.names[0]
    assert root(ffn=ToyFFN(trees=1, depth=3, experts=4)).group != before.group
    assert root(hardening=ToyHardening()).names[0] == before.names[0]
    assert root(hardening=ToyHardening(entropy_weight=ToyRamp(delay=0.5))).group != before.group


def test_a_group_added_later_enters_by_what_differs() -> None:
    keys = Keys(listed({"": "experiment"}), COSMETIC | listed({"": "data model ffn train hardening"}))
    plain = ToyConfig(ffn=FFNConfig(trees=1, depth=3), train=TrainConfig(budget_steps=5))
    assert essence(plain, keys) == {"experiment": "custom"}
    told = replace(plain, objective=ToyObjective(teacher="bert"))
    assert essence(told, keys) == {"experiment": "custom", "objective": {"teacher": "bert"}}


def test_what_another_command_adds_is_no_part_of_the_pretraining() -> None:
    before = root()
    assert GlueRoot(ffn=before.ffn, train=before.train, glue=GlueConfig(epochs=1), checkpoint="x").name == before.name


@pytest.mark.parametrize("changes", [{"provider": "gather"}, {"execution": "masked"}])
def test_who_computes_does_not_matter_and_the_former_name_is_found(tmp_path: Path, changes: dict) -> None:
    auto = root(output_dir=str(tmp_path))
    chosen = replace(auto, ffn=replace(auto.ffn, **changes))
    assert chosen.name == auto.name
    former = chosen.names[1:]
    assert former
    assert auto.name not in former
    (tmp_path / "runs" / former[0].run).mkdir(parents=True)
    found = replace(chosen)  # a new process
    assert (found.run_name, found.identity, found.group) == (former[0].run, former[0].identity, former[0].group)
    assert found.run_folder.is_dir()
    (tmp_path / "runs" / auto.run_name).mkdir()
    assert replace(chosen).run_name == auto.run_name


def test_leaf_layers_are_found_by_the_name_that_they_had(tmp_path: Path) -> None:
    leaf = root(output_dir=str(tmp_path), ffn=FFNConfig(kind="leaf", depth=3, leaf_width=8))
    # As it was hashed when all keys entered, here with today's keys.
    whole = {**leaf._essence(), "ffn": {**leaf._essence()["ffn"], "master_width": 0}}
    assert leaf.group != short_hash(whole, 6)
    (tmp_path / "runs" / f"custom-leaf8x3-s0-{short_hash(whole, 6)}").mkdir(parents=True)
    assert replace(leaf).group == short_hash(whole, 6)


def test_records_name_no_place_outside_the_working_folder() -> None:
    data = DataConfig(
        source="text", files=["text/a-*.txt", "/home/somebody/b.txt", "~/c.txt"], tokenizer="../somebody/tok"
    )
    mine = root(data=data, output_dir="/home/somebody/outputs")
    told = mine.as_recorded()
    assert "somebody" not in str(told)
    assert told["data"]["files"][0] == "text/a-*.txt"
    assert re.fullmatch(r"b\.txt@[0-9a-f]{8}", told["data"]["files"][1])
    again = build(PretrainRoot, told)
    assert again.names[0] == mine.names[0]
    elsewhere = replace(data, files=["text/a-*.txt", "/home/another/b.txt", "~/c.txt"])
    assert replace(mine, data=elsewhere).group != mine.group
    assert private("/") == f"root@{short_hash('/')}"


def test_a_run_on_a_path_that_its_name_told_is_found(tmp_path: Path) -> None:
    mine = root(output_dir=str(tmp_path), data=DataConfig(source="text", files=["/home/somebody/b.txt"]))
    former = mine.names[1]
    (tmp_path / "runs" / former.run).mkdir(parents=True)
    assert replace(mine).run_name == former.run


@pytest.mark.parametrize("changes", [{"experiment": "../../../x"}, {"experiment": "a/b"}, {"experiment": "x" * 200}])
def test_an_experiment_names_no_other_place(changes: dict) -> None:
    with pytest.raises(UserError, match="cannot name files"):
        root(**changes)


@pytest.mark.parametrize("name", ["../x", "..", "", ".hidden", "a b", "x" * 200])
def test_data_name_no_other_place(name: str) -> None:
    with pytest.raises(UserError, match=r"data\.name: .*cannot name files"):
        DataConfig(name=name)


@pytest.mark.parametrize(
    ("group", "key", "value"),
    [
        (None, "experiment", "../../../x"),
        (None, "seed", "../../../x"),
        ("ffn", "trees", "../../../x"),
        ("ffn", "depth", "/x"),
        ("data", "name", "../../../x"),
    ],
)
def test_an_order_from_elsewhere_writes_nowhere_else(tmp_path: Path, group: str | None, key: str, value: str) -> None:
    path = write_order(root(), tmp_path / "data", tmp_path)
    order = read_json(path)
    (order["config"][group] if group else order["config"])[key] = value
    write_json(path, order)
    with pytest.raises(UserError, match=rf"{path.name}|cannot name files|ffn\."):
        read_order(path)
