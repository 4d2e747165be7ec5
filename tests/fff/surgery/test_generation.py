"""Foreign decoders with trees in them: what they generate with a cache is what they generate without, to the token."""

import pytest
import torch
from torch import nn

from fff import PathFFF
from fff.layers.quantised import quantise_trees
from fff.surgery import replace_feedforward
from tests.helpers.foreign import foreign

DECODERS = ("llama", "gpt2", "mistral", "qwen3", "phi3", "opt")
LAYERS = {
    "path": {"kind": "path", "depth": 3, "trees": 2},
    "shared": {"kind": "path", "depth": 3, "trees": 1, "shared": 8},
    "leaf": {"kind": "leaf", "depth": 2, "leaf_width": 4},
    "moe": {"kind": "moe", "experts": 4, "expert_width": 8, "top": 2},
    "peer": {"kind": "peer", "keys": 8, "heads": 2, "top": 2, "query_width": 8},
    "none": {"kind": "none"},
}
IDS = torch.randint(3, 64, (3, 9), generator=torch.Generator().manual_seed(2))


def decoder(name: str, layer: str = "path") -> nn.Module:
    """A decoder whose new layers count: their outputs are as large as what is added to."""
    model = foreign(name)
    report = replace_feedforward(model, LAYERS[layer])
    assert len(report.replaced) == 2
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("w_in", "w_out")):
                parameter.normal_(std=0.5)
    return model.eval()


def generated(model: nn.Module, *, cached: bool, ids: torch.Tensor = IDS, mask: torch.Tensor | None = None):
    """New tokens (B, 12), none of them twice, and the logits that they were chosen by (12, B, V)."""
    mask = torch.ones_like(ids) if mask is None else mask
    # Padding is never chosen: where a text is padded it would stand there already.
    settings = {"do_sample": False, "no_repeat_ngram_size": 1, "suppress_tokens": [0]}
    settings |= {"eos_token_id": None, "pad_token_id": 0}
    found = model.generate(
        ids, attention_mask=mask, max_new_tokens=12, use_cache=cached, return_dict_in_generate=True,
        output_logits=True, **settings,
    )  # fmt: skip
    return found.sequences[:, ids.shape[1] :], torch.stack(found.logits)


@pytest.mark.parametrize(
    ("name", "layer"), [*((name, "path") for name in DECODERS), *(("llama", layer) for layer in LAYERS)]
)
def test_the_cache_changes_nothing(name: str, layer: str) -> None:
    model = decoder(name, layer)
    (found, logits), (expected, whole) = (generated(model, cached=cached) for cached in (True, False))
    assert found.shape == (3, 12)
    assert torch.equal(found, expected)
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_padded_text_goes_on_as_alone(name: str) -> None:
    model, mask = decoder(name), torch.ones_like(IDS)
    mask[1, :4] = 0
    together, _ = generated(model, cached=True, ids=IDS * mask, mask=mask)
    alone, _ = generated(model, cached=True, ids=IDS[1:2, 4:])
    assert torch.equal(together[1:2], alone)


def test_one_token_visits_one_path_of_each_tree() -> None:
    model, visited = decoder("llama"), []
    tree = next(module for module in model.modules() if isinstance(module, PathFFF))
    tree.register_forward_pre_hook(lambda layer, inputs: visited.append(layer.path(inputs[0])[0].shape))
    generated(model, cached=True)
    assert visited == [(3, 9, 2, 4), *[(3, 1, 2, 4)] * 11]


def test_int8_trees_generate_with_a_cache_as_without() -> None:
    model = decoder("llama")
    assert quantise_trees(model).layers == 2
    (found, _), (expected, _) = (generated(model, cached=cached) for cached in (True, False))
    assert torch.equal(found, expected)
