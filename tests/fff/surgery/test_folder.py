"""A foreign model with other layers, saved and loaded: the same bits, and one clear error for what is no folder."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fff import PathFFF
from fff.surgery import load, replace_feedforward, save
from tests.helpers.foreign import TRANSFORMERS, foreign, output_of

TREE = {"kind": "path", "depth": 3, "trees": 2}


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_saved_and_loaded_is_the_same_bits(name: str, tmp_path: Path) -> None:
    model = foreign(name)
    replace_feedforward(model, TREE, [0])
    if len(TRANSFORMERS[name].blocks) > 1:  # another kind elsewhere, by a second surgery
        replace_feedforward(model, {"kind": "leaf", "depth": 1, "leaf_width": 4}, [-1])
    model.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    loaded = load(tmp_path)
    torch.set_rng_state(state)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert repr(loaded) == repr(model)
    weights = model.state_dict()
    assert loaded.state_dict().keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(output_of(name, loaded), output_of(name, model))
    assert loaded.config.fff == model.config.fff


def test_the_specification_is_under_one_key_of_the_config(tmp_path: Path) -> None:
    model = foreign("llama")
    replace_feedforward(model, {"kind": "path", "depth": 2, "neurons": 14}, [1])
    model.save_pretrained(tmp_path)
    (entry,) = json.loads((tmp_path / "config.json").read_text())["fff"]
    assert entry["layer"]["kind"] == "path"
    assert entry["layer"]["trees"] == 2
    (module,) = entry["modules"]
    assert module["path"] == "model.layers.1.mlp"
    assert (module["d_in"], module["neurons"], module["d_out"], module["gated"]) == (32, 48, 32, True)


@torch.no_grad()
def test_a_loaded_model_is_saved_loaded_and_operated_on_again(tmp_path: Path) -> None:
    model = foreign("bert")
    replace_feedforward(model, TREE, [0])
    save(model, tmp_path / "one")
    again = load(tmp_path / "one")
    replace_feedforward(again, TREE)
    again.save_pretrained(tmp_path / "two")
    assert "auto_map" not in json.loads((tmp_path / "two" / "config.json").read_text())  # its code is not there
    loaded = load(tmp_path / "two", dtype=torch.bfloat16)
    assert sum(isinstance(module, PathFFF) for module in loaded.modules()) == 2
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(output_of("bert", loaded).float(), output_of("bert", again), rtol=0.1, atol=0.1)


OUTSIDE = """
import sys, torch, transformers
from fff import PathFFF
model = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1], trust_remote_code=True)
assert sum(isinstance(each, PathFFF) for each in model.modules()) == 2, model
ids = torch.arange(3, 10)[None]
with torch.no_grad():
    torch.save(model(input_ids=ids)[0], sys.argv[1] + "/seen.pt")
model.save_pretrained(sys.argv[1] + "/again")
"""


@pytest.mark.parametrize(
    ("name", "auto"),
    [
        ("bert", "AutoModelForSequenceClassification"),
        pytest.param("gpt2", "AutoModelForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_a_plain_auto_class_loads_it_with_trust_remote_code(name: str, auto: str, tmp_path: Path) -> None:
    model = foreign(name)
    replace_feedforward(model, TREE)
    save(model, tmp_path / "saved")
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    outside = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", OUTSIDE, str(tmp_path / "saved"), auto],
        env=os.environ | outside,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        expected = model(input_ids=torch.arange(3, 10)[None])[0]
    assert torch.equal(torch.load(tmp_path / "saved" / "seen.pt", weights_only=True), expected)
    assert (tmp_path / "saved" / "again" / "modeling_fff.py").is_file()  # the code goes along
    assert sum(isinstance(module, PathFFF) for module in load(tmp_path / "saved").modules()) == 2


def test_the_card_has_the_numbers(tmp_path: Path) -> None:
    model = foreign("modernbert")
    replace_feedforward(model, TREE, [0])
    save(model, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "| model.layers.0.mlp | 48 gated | 2x3 | 30 | 8 |" in card
    assert "AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)" in card


def without_key(folder: Path) -> None:
    change(folder, lambda config: config.pop("fff"))


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def cut_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["encoder.layer.1.intermediate.dense.w_in"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_file(folder: Path, share: float) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: int(share * len(whole))])


def module(config: dict[str, Any]) -> dict[str, Any]:
    return config["fff"][0]["modules"][0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no model's folder: it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is no JSON.*save the model again"),
        (without_key, "has no `fff`: nothing was replaced.*from_pretrained"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no .*safetensors; save the model again"),
        (cut_weights, r"weights are not the model's.*missing_keys.*encoder.layer.1.intermediate.dense.w_in"),
        (lambda folder: cut_file(folder, 0.5), r"a \*\.safetensors is cut or damaged .*copy it again"),
        (lambda folder: cut_file(folder, 0.0), r"a \*\.safetensors is cut or damaged"),
        (
            lambda folder: change(folder, lambda c: c.update(hidden_size=64)),
            r"weights are not the model's: \d+ mismatched_keys \(.*embeddings",
        ),
        (
            lambda folder: change(folder, lambda c: c.update(architectures=["OurModel"])),
            r"architectures = \['OurModel'\]",
        ),
        (lambda folder: change(folder, lambda c: c.update(fff=[{}])), r"`fff` of the model's config cannot be read"),
        (lambda folder: change(folder, lambda c: c.update(fff="path")), r"`fff` of the model's config cannot be read"),
        (lambda folder: change(folder, lambda c: module(c).pop("out")), r"`fff` of the model's config cannot be read"),
        (
            lambda folder: change(folder, lambda c: module(c).update(path="layers.9", out="layers.9.fc2")),
            "names layers.9, and a BertModel has no such module.*whole model",
        ),
        (lambda folder: change(folder, lambda c: c["fff"][0]["layer"].update(depth=-1)), "fff.layer.depth is -1"),
    ],
)
def test_what_is_no_such_folder_is_refused_by_name(tmp_path: Path, spoil: Any, message: str) -> None:
    model = foreign("minilm")
    replace_feedforward(model, TREE)
    model.save_pretrained(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_a_model_in_which_nothing_was_replaced_is_not_saved_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"BertModel is no transformers model in which.*replace first"):
        save(foreign("minilm"), tmp_path)
    with pytest.raises(ValueError, match="TransformerEncoder is no transformers model"):
        save(foreign("torch"), tmp_path)
    assert not any(tmp_path.iterdir())


def test_missing_transformers_is_said_clearly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = foreign("minilm")
    replace_feedforward(model, TREE)
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match="transformers saves and loads these folders, and is missing"):
        load(tmp_path)


def test_the_package_is_imported_without_transformers() -> None:
    code = "import sys, fff.surgery; assert not {'transformers', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
