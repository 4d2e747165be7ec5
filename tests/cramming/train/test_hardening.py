"""Hardening in a run: forms, auxiliary losses, leaf usage in the history and at W&B, refusals."""

import json
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from cramming.errors import UserError
from cramming.model import CrammedForMaskedLM
from cramming.model.config import FFNConfig
from cramming.train.config import WandbConfig
from cramming.train.hardening import Hardening, HardeningConfig, Ramp, TemperatureRamp
from cramming.train.history import read_history
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot
from fff.hardening import hardenable, set_hardening
from tests.helpers.model import batch, config
from tests.helpers.tiny import tiny_root

EVERYTHING = HardeningConfig(
    form="entropy",
    temperature=TemperatureRamp("linear", 1.0, 0.5),
    entropy_weight=Ramp("linear", 0.0, 0.1),
    balance_weight=Ramp(start=0.2),
    region_leak=0.1,
    harden_at=0.75,
)


def tiny(folder: Path, hardening: HardeningConfig, **train) -> PretrainRoot:
    return replace(tiny_root(folder, **train), hardening=hardening)


def rows_of(root: PretrainRoot) -> list[dict]:
    pretrain(root)
    return read_history(root.run_folder / "metrics.jsonl")


def test_a_run_goes_from_soft_to_hard(tmp_path: Path) -> None:
    rows = rows_of(tiny(tmp_path, EVERYTHING))
    assert [row["hardening/hard"] for row in rows] == [0.0] * 9 + [1.0] * 3
    assert rows[6]["hardening/temperature"] == pytest.approx(1 - 0.5 * 6 / 12)
    for row in rows[:9]:
        weighted = row["hardening/entropy_weight"] * row["train/aux_entropy"]
        assert row["train/aux"] == pytest.approx(weighted + 0.2 * row["train/aux_balance"], rel=1e-5)
        assert 0 < row["train/aux_entropy"] <= 2 * 7 * 0.6932  # 2 trees of 7 deciding nodes
    assert not any(key.startswith("train/aux") for row in rows[9:] for key in row)


def test_usage_stands_in_history_record_and_picture(tmp_path: Path) -> None:
    root = tiny(tmp_path, HardeningConfig())
    rows = rows_of(root)
    marks = [row for row in rows if "valid/loss" in row]
    assert len(marks) == 2
    assert "fff/churn" not in marks[0]
    assert 0 <= marks[1]["fff/churn"] <= 1
    last = marks[1]
    layers = [last[f"fff/layer_{number:02d}/usage_entropy"] for number in range(2)]
    assert last["fff/usage_entropy"] == pytest.approx(sum(layers) / 2)
    trees = [last[f"fff/layer_00/tree_{tree}/usage_entropy"] for tree in range(2)]
    assert layers[0] == pytest.approx(sum(trees) / 2)
    assert {f"fff/layer_01/level_{level:02d}/imbalance" for level in range(3)} <= last.keys()
    assert last["fff/running_tokens"] > 0
    assert all(0 < mark["fff/usage_time"] < 1 for mark in marks)
    with Image.open(root.run_folder / "usage" / "step-00000012.png") as picture:
        assert picture.size[0] >= 900
    record = json.loads((root.run_folder / "record.json").read_text())
    assert record["metrics"]["usage_entropy"] == last["fff/usage_entropy"]
    assert [point["valid_loss"] for point in record["curve"]] == [mark["valid/loss"] for mark in marks]


def test_every_form_trains(tmp_path: Path) -> None:
    for form in ("anneal", "straight_through"):
        rows = rows_of(tiny(tmp_path / form, HardeningConfig(form=form), budget_steps=60, lr=5e-3, batch_ramp=0.0))
        assert rows[-1]["valid/loss"] < rows[0]["train/loss"] - 0.3


def test_auxiliary_losses_add_up_over_microbatches() -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config("path")).train()
    Hardening(HardeningConfig(form="entropy", entropy_weight=Ramp(start=0.3)), model)
    tokens, positions, chosen = batch()
    whole = model(input_ids=tokens, masked_positions=positions, labels=chosen)
    whole.loss.backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for row in range(3):
        part = model(input_ids=tokens[[row]], masked_positions=positions[[row]], labels=chosen[[row]])
        (part.loss / 3).backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)
    model.eval()
    plain = model(input_ids=tokens, masked_positions=positions, labels=chosen)
    assert plain.aux_loss is None
    entropy = whole.auxiliary_losses["entropy"]
    torch.testing.assert_close(whole.aux_loss, 0.3 * entropy)


def test_losses_are_means_over_layers() -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config("path")).train()
    set_hardening(model, form="soft", losses=("entropy",))
    found: list[torch.Tensor] = []

    def spied(original):
        def call(x: torch.Tensor):
            y, losses = original(x)
            found.append(losses["entropy"])
            return y, losses

        return call

    for layer in hardenable(model):
        layer.forward_with_losses = spied(layer.forward_with_losses)  # type: ignore[method-assign]
    output = model(input_ids=batch()[0])
    assert len(found) == 2
    torch.testing.assert_close(output.auxiliary_losses["entropy"], torch.stack(found).mean())


def wandb_history(path: Path) -> Iterator[dict[str, object]]:
    """History rows of a W&B run file: records of wandb's protocol in LevelDB's log format."""
    from wandb.proto import wandb_internal_pb2

    data, place, content = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        content += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(content)
            content = b""
            if record.WhichOneof("record_type") == "history":
                yield {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in record.history.item}


def test_wandb_offline_holds_scalars_histograms_and_pictures(tmp_path: Path) -> None:
    root = replace(
        tiny(tmp_path, HardeningConfig(), budget_steps=2, checkpoints=1, validations=1), wandb=WandbConfig("offline")
    )
    row = rows_of(root)[-1]
    (log,) = root.run_folder.glob("wandb/offline-run-*/run-*.wandb")
    found: dict[str, object] = {}
    for history in wandb_history(log):
        found |= history
    for key in ("valid/loss", "fff/usage_entropy", "fff/layer_01/level_02/imbalance", "fff/soft_hard_gap"):
        assert found[key] == pytest.approx(row[key])
    flat = json.dumps(found)
    assert "fff/leaf_usage" in flat
    assert '"histogram"' in flat
    assert list(log.parent.glob("files/media/images/fff/leaf_usage*.png"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": TemperatureRamp(start=0.0)}, r"hardening\.temperature\.start is 0.0; set it above 0"),
        ({"temperature": TemperatureRamp(end=-1.0)}, r"hardening\.temperature\.end is -1.0"),
        ({"temperature": TemperatureRamp("cubic")}, r"hardening\.temperature\.schedule is 'cubic'"),
        ({"entropy_weight": Ramp("exponential", 0.0, 1.0)}, r"hardening\.entropy_weight: an exponential"),
        ({"harden_at": 1.5}, r"hardening\.harden_at is 1.5"),
        ({"region_leak": 0.7}, r"hardening\.region_leak is 0.7"),
        ({"form": "softly"}, r"hardening\.form is 'softly'"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        HardeningConfig(**settings)


def test_a_provider_that_cannot_be_soft_is_refused_before_training(tmp_path: Path) -> None:
    root = tiny(tmp_path, EVERYTHING)
    with pytest.raises(UserError, match="hardening: form='soft' cannot be taken"):
        pretrain(replace(root, ffn=FFNConfig(kind="path", trees=2, depth=3, provider="gather")))
    assert not list(tmp_path.glob("results/runs/*.json"))
