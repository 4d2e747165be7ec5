"""Every shipped configuration composes; the paper's rows have their neurons; mistakes are named."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from cramming.checks import at_home
from cramming.config import CONFIGS, register
from cramming.data.config import HubDataset
from cramming.data.sources.corpus import match_globs
from cramming.errors import UserError
from cramming.model.config import FFNConfig, ModelConfig
from cramming.train.root import PretrainRoot
from tests.helpers.composed import composed, options

ROOT = Path(__file__).resolve().parents[2]
PAPER = yaml.safe_load((ROOT / "results" / "paper.yaml").read_text())["glue"]["rows"]


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_and_names_itself(name: str) -> None:
    files = ["data.files=[a.txt]"] if name in ("cpu_wiki", "micro") else []
    for script in ("pretrain", "glue"):
        assert composed(script, f"experiment={name}", *files).experiment == name


@pytest.mark.parametrize("group", ["data", "model", "ffn", "train", "objective", "wandb"])
def test_every_option_composes(group: str) -> None:
    for option in options(group):
        cleared = ["ffn.trees=null", "ffn.depth=null"] if group == "ffn" and option not in ("path", "fixed") else []
        cleared = cleared[:1] if option == "leaf" else cleared
        composed("pretrain", f"{group}={option}", *cleared)


def test_the_papers_rows_have_the_papers_neurons() -> None:
    rows = {name: row for name, row in PAPER.items() if name[0].isdigit()}
    assert len(rows) == 13
    for name, row in rows.items():
        ffn = composed("pretrain", f"experiment=crammed_{name.replace('-', '_')}").ffn
        assert ffn.settings.neurons_trained == row["neurons"], name
    for width in (3072, 4095):
        assert composed("pretrain", f"experiment=crammed_dense_{width}").ffn.width == width


def test_the_sweep_keeps_the_neurons_about_equal() -> None:
    for depth in (0, 3, 5, 7, 9):
        ffn = composed("pretrain", "+sweep=family", "ffn.neurons=1023", f"ffn.depth={depth}").ffn
        assert abs(ffn.settings.neurons_trained - 1023) <= 2**depth


def test_unknown_keys_and_values_are_named() -> None:
    with pytest.raises(ConfigCompositionException, match=r"train\.lrr"):
        composed("pretrain", "train.lrr=1")
    with pytest.raises(Exception, match=r"train\.lr\b"):
        composed("pretrain", "train.lr=fast")
    with pytest.raises(UserError, match=r"train\.schedule"):
        composed("pretrain", "train.schedule=zigzag")
    with pytest.raises(UserError, match=r"exactly one of budget_tokens"):
        composed("pretrain", "train.budget_hours=1")
    with pytest.raises(UserError, match=r"ffn\.trees and ffn\.neurons"):
        composed("pretrain", "ffn.neurons=100")


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match=r"model\.heads is 5.*model\.heads=4"):
        ModelConfig(hidden_size=256, heads=5)


def test_names_follow_from_what_matters() -> None:
    base = composed("pretrain")
    assert base.run_name == composed("pretrain", "wandb=off", "data.workers=1", "train.log_steps=3").run_name
    assert base.run_name != composed("pretrain", "train.lr=1e-4").run_name
    other_seed = composed("pretrain", "seed=7")
    assert (base.group, base.identity == other_seed.identity) == (other_seed.group, False)
    assert FFNConfig(kind="dense", width=64).tag == "dense64"
    assert isinstance(base, PretrainRoot)


def test_a_mistake_ends_in_one_line_and_status_2() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/pretrain.py", "model.heads=5"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.strip().startswith("error: model.heads is 5")
    assert "Traceback" not in done.stderr


def test_a_tilde_is_the_home_folder_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_home("~/r", "output_dir") == f"{tmp_path}/r"
    for path in ("outputs", "./~", "a~b", "/x/~"):
        assert at_home(path, "output_dir") == path
    with pytest.raises(UserError, match=r"output_dir is '~no\.body/r', and ~no.body is nobody's home"):
        at_home("~no.body/r", "output_dir")


@pytest.mark.parametrize(
    ("root", "key"),
    [
        ("pretrain", "output_dir"),
        ("pretrain", "results_dir"),
        ("glue", "output_dir"),
        ("glue", "checkpoint"),
        ("glue", "glue.dir"),
        ("images", "results_dir"),
        ("images", "images.id"),
        ("tables", "results_dir"),
    ],
)
def test_a_path_may_begin_at_home(root: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert functools.reduce(getattr, key.split("."), composed(root, f"{key}='~/r'")) == "/home/somebody/r"
    with pytest.raises(UserError, match=rf"{key} is '~no\.body/r', and ~no.body is nobody's home"):
        composed(root, f"{key}='~no.body/r'")


def test_so_may_those_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert HubDataset("~/r").id == f"{tmp_path}/r"
    (tmp_path / "a.txt").write_text("text")
    assert match_globs("data.files", ["~/*.txt"]) == [tmp_path / "a.txt"]
    for refused in (lambda: match_globs("data.files", ["~no.body/*.txt"]), lambda: HubDataset("~no.body/r")):
        with pytest.raises(UserError, match=r"data.* is '~no.body/.*nobody's home"):
            refused()


@pytest.mark.parametrize(
    ("root", "output_dir", "plan"),
    [
        ("pretrain", "outputs", "outputs/sweeps"),
        ("pretrain", "/elsewhere", "/elsewhere/sweeps"),
        ("glue", "~/r", "/home/somebody/r/sweeps"),
        ("images", None, "outputs/sweeps"),
    ],
)
def test_a_sweeps_plan_lies_beside_its_runs(
    root: str, output_dir: str | None, plan: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        config = compose(root, [f"output_dir='{output_dir}'"] if output_dir else [], return_hydra_config=True)
    assert config.hydra.sweep.dir == plan
