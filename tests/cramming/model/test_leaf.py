"""LeafFFF under the pipeline: configuration, initialisation, round trip, hard evaluation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cramming.errors import UserError
from cramming.glue.classifier import load_classifier
from cramming.glue.tasks import suite_tasks
from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.model.config import FFNConfig
from cramming.model.saved import open_pretrained
from fff import LeafFFF
from fff.hardening import hardenable, set_hardening
from tests.helpers.tiny import tiny_root


def settings(**changes) -> FFNConfig:
    return FFNConfig(**{"kind": "leaf", "depth": 3, "leaf_width": 4, **changes})


def model(**changes) -> CrammedForMaskedLM:
    torch.manual_seed(0)
    config = CrammedConfig(
        vocab_size=80,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=16,
        ffn=settings(**changes).specification(),
    )
    return CrammedForMaskedLM(config)


def test_the_configuration_builds_what_it_says() -> None:
    layer = settings(master_width=2, activation="relu").settings.build(32, 32)
    assert isinstance(layer, LeafFFF)
    sizes = (layer.depth, layer.leaf_width, layer.master_width, layer.activation, layer.d_in, layer.d_out)
    assert sizes == (3, 4, 2, "relu", 32, 32)
    assert (settings().tag, settings(master_width=2).tag) == ("leaf4x3", "leaf4x3+m2")


def test_initialisation_is_the_projects_and_decisions_learn() -> None:
    lm = model(depth=5, leaf_width=8, master_width=4)
    (layer, _) = hardenable(lm)
    assert isinstance(layer, LeafFFF)
    assert 0.015 < layer.w_node.std() < 0.025
    assert 0.015 < layer.master_w_in.std() < 0.025
    biases = [parameter for name, parameter in layer.named_parameters() if "b_" in name]
    assert len(biases) == 5
    assert not any(bias.any() for bias in biases)
    assert (layer.mix.item(), layer.temperature.item()) == (0.5, 1)
    tokens = torch.randint(7, 80, (3, 16))
    set_hardening(lm, form="soft", losses=("entropy", "balance"))
    output = lm(tokens, labels=tokens)
    output.loss.backward()
    assert set(output.auxiliary_losses) == {"entropy", "balance"}
    assert layer.w_node.grad.any()


def test_evaluation_is_hard_and_survives_a_round_trip(tmp_path: Path) -> None:
    lm = model(master_width=2).eval()
    tokens = torch.randint(7, 80, (3, 16))
    logits = lm(tokens).logits
    set_hardening(lm, form="soft", temperature=0.1)
    assert torch.equal(lm(tokens).logits, logits)
    lm.save_pretrained(tmp_path)
    again = CrammedForMaskedLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(tokens).logits, logits)
    assert all(layer.temperature == 1 for layer in hardenable(again))


def test_finetuning_is_hard_as_evaluation_is(tmp_path: Path) -> None:
    model().save_pretrained(tmp_path)
    classifier = load_classifier(open_pretrained(tmp_path), suite_tasks("mini")["word_order"], dropout=0.0)
    assert [layer.form for layer in hardenable(classifier)] == ["hard", "hard"]


def test_the_new_fields_leave_other_layers_names_alone(tmp_path: Path) -> None:
    root = tiny_root(tmp_path)
    assert "leaf_width" not in root._essence()["ffn"]
    assert replace(root, ffn=settings()).group != replace(root, ffn=settings(leaf_width=5)).group


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": None}, "ffn.depth is None"),
        ({"leaf_width": None}, "ffn.leaf_width is None"),
        ({"leaf_width": 0}, "ffn.leaf_width is 0"),
        ({"master_width": -1}, "ffn.master_width is -1"),
        ({"activation": "gated_gelu"}, "ffn.activation is 'gated_gelu'; leaf takes one of gelu"),
        ({"trees": 2}, "ffn.trees does not belong to ffn=leaf; set ffn.trees=null"),
        ({"bias": False}, "ffn.bias belongs to ffn=fixed and ffn=path"),
        ({"kind": "path", "trees": 1}, "ffn.leaf_width does not belong to ffn=path; set ffn.leaf_width=null"),
    ],
)
def test_bad_settings_are_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)
