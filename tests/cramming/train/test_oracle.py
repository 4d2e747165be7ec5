"""The trained dense model with its most active neurons alone: by hand, at its limits, and in the record."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import gelu

from cramming.errors import UserError
from cramming.model.config import FFNConfig
from cramming.train.pretrain import pretrain
from fff.layers.dense import DenseFF, oracle
from tests.helpers.repeated import stopped_and_continued
from tests.helpers.tiny import tiny_root


@pytest.mark.parametrize("activation", ["gelu", "gated_gelu"])
def test_the_neurons_of_largest_activation_are_left(activation: str) -> None:
    torch.manual_seed(0)
    layer = DenseFF(5, 3, 8, activation=activation, dtype=torch.float64).eval()
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    scores = layer.dense_in(x)
    active = gelu(scores) if activation == "gelu" else scores[..., :4] * gelu(scores[..., 4:])
    wanted = torch.zeros(2, 7, 3, dtype=torch.float64)
    for place in torch.cartesian_prod(torch.arange(2), torch.arange(7)).tolist():
        mine = active[tuple(place)]
        for neuron in sorted(range(len(mine)), key=lambda n: -abs(mine[n]))[:2]:
            wanted[tuple(place)] += mine[neuron] * layer.dense_out.weight[:, neuron]
    whole = layer(x)
    with oracle(layer, 2):
        torch.testing.assert_close(layer(x), wanted)
        torch.testing.assert_close(layer.train()(x), whole)
    torch.testing.assert_close(layer.eval()(x), whole)
    with oracle(layer, layer.neurons):
        torch.testing.assert_close(layer(x), whole, rtol=0, atol=0)
    with pytest.raises(ValueError, match=f"has {layer.neurons}"), oracle(layer, layer.neurons + 1):
        pass


def test_the_record_has_the_losses_and_nothing_else_changes(tmp_path: Path) -> None:
    records = []
    for counts in ([], [1, 24]):
        root = tiny_root(tmp_path, budget_steps=6, validations=1, checkpoints=1, oracle=counts)
        folder = str(tmp_path / f"{len(counts)}")
        root = replace(root, ffn=FFNConfig(kind="dense", width=24), output_dir=folder, results_dir=folder)
        pretrain(root)
        records.append(json.loads((Path(folder) / "runs" / f"{root.run_name}.json").read_text()))
    plain, asked = records
    assert plain["name"] == asked["name"]
    assert plain["weights_sha256"] == asked["weights_sha256"]
    assert asked["metrics"].keys() - plain["metrics"].keys() == {"oracle_1", "oracle_24"}
    assert asked["metrics"]["oracle_24"] == asked["metrics"]["valid_loss"] == plain["metrics"]["valid_loss"]
    assert asked["metrics"]["oracle_1"] != asked["metrics"]["valid_loss"]


def test_a_run_that_was_stopped_has_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots = [
        replace(tiny_root(tmp_path / name, oracle=[1, 5]), ffn=FFNConfig(kind="dense", width=24))
        for name in ("whole", "stopped")
    ]
    pretrain(roots[0])
    stopped_and_continued(roots[1], monkeypatch)
    whole, stopped = (json.loads((root.run_folder / "record.json").read_text())["metrics"] for root in roots)
    assert [stopped[name] for name in ("oracle_1", "oracle_5")] == [whole[name] for name in ("oracle_1", "oracle_5")]


def test_losses_that_a_finished_run_lacks_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ffn = FFNConfig(kind="dense", width=24)
    root = replace(tiny_root(tmp_path, budget_steps=4, validations=1, checkpoints=1, oracle=[2]), ffn=ffn)
    pretrain(root)
    capsys.readouterr()
    pretrain(root)
    assert "oracle" not in capsys.readouterr().out
    pretrain(replace(root, train=replace(root.train, oracle=[2, 3, 7])))
    said = capsys.readouterr().out
    assert "lacks oracle_3, oracle_7" in said
    assert f"move {root.run_folder} away" in said


@pytest.mark.parametrize(
    ("ffn", "counts", "message"),
    [
        (FFNConfig(kind="dense", width=24), [9, 25], r"train\.oracle names 25, and ffn=dense24 has 24 neurons"),
        (FFNConfig(kind="dense", width=24), [0], r"train\.oracle names 0"),
        (FFNConfig(kind="path", trees=2, depth=3), [9], r"train\.oracle names 9, and ffn=path is no dense layer"),
        (FFNConfig(kind="none"), [9], r"train\.oracle names 9, and ffn=none is no dense layer"),
    ],
)
def test_neurons_that_the_layers_lack_are_named(
    ffn: FFNConfig, counts: list[int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(replace(tiny_root(tmp_path, oracle=counts), ffn=ffn))
    assert not (tmp_path / "outputs" / "data").exists()
