"""State that no load sets, dtypes that differ, and sizes that no model can have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init

from cramming.model import CrammedConfig, CrammedForMaskedLM
from cramming.model.config import ModelConfig
from fff import LeafFFF, PathFFF
from fff.hardening import LOSSES, Hardenable, set_hardening
from tests.helpers.model import FFNS, batch, config

LEAF = {"kind": "leaf", "depth": 3, "leaf_width": 4}


class ForeignConfig(PreTrainedConfig):
    model_type = "foreign"


class Foreign(PreTrainedModel):
    """Somebody's model with our layer in it, who knows nothing of its state."""

    config_class = ForeignConfig

    def __init__(self, config: ForeignConfig) -> None:
        super().__init__(config)
        self.layer = LeafFFF(16, 16, 3, 4)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        pass

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def test_a_foreign_model_loads_the_layer_with_its_temperature(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Foreign(ForeignConfig()).train(), torch.randn(200, 16)
    model.save_pretrained(tmp_path)
    # What a pass in training takes at temperature 1 must not depend on what memory held before.
    for _ in range(3):
        torch.full((4096,), float("nan"))
        again = Foreign.from_pretrained(tmp_path).train()
        assert again.layer.temperature.item() == 1
        assert torch.equal(again(x), model(x))
    assert not dict(again.named_buffers())


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("ffn", [FFNS["path"], LEAF])
def test_a_model_built_on_meta_and_loaded_is_the_model(ffn: dict, positions: str) -> None:
    torch.manual_seed(0)
    settings = config(positions=positions, ffn=ffn)
    model = CrammedForMaskedLM(settings).train()
    with torch.device("meta"):
        loaded = CrammedForMaskedLM(settings).train()
    loaded.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*loaded.parameters(), *loaded.buffers()):
            tensor.fill_(float("nan"))
    loaded.load_state_dict(model.state_dict())
    tokens, positions_, labels = batch()
    outputs = []
    for each in (model, loaded):
        set_hardening(each, form="soft", losses=LOSSES)
        outputs.append(each(tokens, masked_positions=positions_, labels=labels))
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert outputs[0].loss == outputs[1].loss
    assert outputs[0].aux_loss == outputs[1].aux_loss == 0


@pytest.mark.parametrize("positions", ["sinusoidal", "rotary"])
@pytest.mark.parametrize("ffn", [*FFNS.values(), LEAF])
def test_parameters_alone_may_be_in_bfloat16(ffn: dict, positions: str) -> None:
    torch.manual_seed(0)
    model = CrammedForMaskedLM(config(positions=positions, ffn=ffn)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    tokens, places, labels = batch()
    set_hardening(model, form="soft", losses=LOSSES)
    model.set_auxiliary_weights({"entropy": 0.1, "balance": 0.1})
    output = model(tokens, masked_positions=places, labels=labels)
    output.loss.backward()
    assert output.logits.dtype == torch.bfloat16
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_the_code_of_earlier_saved_models_asks_for_is_there() -> None:
    layer = PathFFF(4, 4, 2)
    assert isinstance(layer, Hardenable)
    assert LOSSES == ("entropy", "balance")
    init.ones_(layer.temperature)
    assert layer.forward_with_losses(torch.randn(2, 4))[1] == {}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"ffn": {"kind": "path", "depth": 3}}, "ffn.trees and ffn.neurons: give exactly one"),
    ({"ffn": {"kind": "path", "trees": 1, "depth": 3, "dpeth": 4}}, "ffn.dpeth is no key of kind path"),
    ({"ffn": {"kind": "dense", "width": 8, "activation": "relu"}}, "ffn.activation is 'relu'; dense takes one of"),
    ({"hidden_size": 33, "num_attention_heads": 3}, "hidden_size is 33; positions need an even width"),
    ({"hidden_size": 30, "num_attention_heads": 2, "positions": "rotary"}, "rotary positions pair the columns"),
    ({"num_attention_heads": 5}, "num_attention_heads is 5, which does not divide hidden_size=32"),
    ({"num_attention_heads": 0}, "num_attention_heads is 0; set it to 1 or more"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0; set it to 1 or more"),
    ({"hidden_size": "32"}, "hidden_size is '32'"),
    ({"layer_norm_eps": 0.0}, "layer_norm_eps is 0.0; set it above 0"),
    ({"initializer_range": float("nan")}, "initializer_range is nan; set it above 0"),
    ({"rotary_base": -1.0}, "rotary_base is -1.0; set it above 0"),
    ({"vocab_size": 0}, "vocab_size is 0; set it to 1 or more"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0; set it to 1 or more"),
    ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5; set it from 0 to below 1"),
    ({"classifier_dropout": -0.1}, "classifier_dropout is -0.1; set it from 0 to below 1"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_a_model_that_cannot_be_is_refused_by_its_configuration(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_both_configurations_are_checked_alike() -> None:
    assert set(ModelConfig().encoder()) <= set(vars(CrammedConfig()))
