"""What transformers' own tests of models ask (tests/test_modeling_common.py, which its wheel lacks), asked of ours.

Of every class and every kind of layer. Not asked: chunked feedforward, pruned heads, torchscript, torch.fx and resized
positions, which our configuration does not offer; caches and generation, which test_causal.py has.
"""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from cramming.model import CrammedConfig
from cramming.model.remote import AUTO_MAP
from fff.feedforward import KINDS
from fff.hardening import set_hardening
from tests.helpers.heads import CLASSES, HEADS, KINDS_OF_LAYER, WORDS, inputs, labels, make, scores

every_class = pytest.mark.parametrize("name", CLASSES)
every_kind = pytest.mark.parametrize("layer", KINDS_OF_LAYER)
# A head sees the encoder's output, whatever layers made it: every class with one kind, and every kind with one class.
CASES = [(name, "path") for name in CLASSES] + [("masked", layer) for layer in KINDS_OF_LAYER if layer != "path"]
every_case = pytest.mark.parametrize(("name", "layer"), CASES)
every_headed_case = pytest.mark.parametrize(("name", "layer"), [case for case in CASES if case[0] in HEADS])
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def test_no_kind_of_layer_is_left_out() -> None:
    assert {layer["kind"] for layer in KINDS_OF_LAYER.values()} == set(KINDS)


@every_class
def test_the_forward_signature(name: str) -> None:
    model = make(name)
    assert next(iter(inspect.signature(model.forward).parameters)) == model.main_input_name == "input_ids"
    named = inspect.signature(model.forward).parameters
    assert {*labels(name), "attention_mask", "inputs_embeds", "return_dict"} <= set(named)


@every_case
@torch.no_grad()
def test_determinism(name: str, layer: str) -> None:
    model = make(name, layer)
    first, second = (scores(model(**inputs(name))) for _ in range(2))
    assert first.isfinite().all()
    assert torch.equal(first, second)
    if name != "encoder":
        assert model(**inputs(name), **labels(name)).loss.isfinite()


@every_case
@torch.no_grad()
def test_save_and_load(name: str, layer: str, tmp_path: Path) -> None:
    model = make(name, layer)
    model.save_pretrained(tmp_path)
    auto = next(auto for auto, place in AUTO_MAP.items() if place.endswith(type(model).__name__))
    again, told = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(told[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(again) is type(model)
    assert not again.training
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in model.parameters()]
    assert torch.equal(scores(again(**inputs(name))), scores(model(**inputs(name))))


@every_headed_case
def test_the_encoder_goes_from_head_to_head(name: str, layer: str, tmp_path: Path) -> None:
    """test_correct_missing_keys, test_save_load_fast_init_from_base, ..._to_base."""
    model = make(name, layer)
    model.base_model.save_pretrained(tmp_path / "base")
    headed, told = type(model).from_pretrained(tmp_path / "base", output_loading_info=True, num_labels=3)
    assert {key.split(".")[0] for key in told["missing_keys"]} == set(
        () if name in WORDS else dict(model.named_children()).keys() - {"model", "dropout"}
    )
    model.save_pretrained(tmp_path / "head")
    base = CLASSES["encoder"].from_pretrained(tmp_path / "head")
    for found in (headed.base_model, base):
        assert all(torch.equal(tensor, model.model.state_dict()[key]) for key, tensor in found.state_dict().items())


@every_case
@pytest.mark.parametrize("by", ["argument", "configuration"])
@torch.no_grad()
def test_attentions_and_hidden_states(name: str, layer: str, by: str) -> None:
    model, asked = make(name, layer), {"output_attentions": True, "output_hidden_states": True}
    plain = model(**inputs(name))
    assert "attentions" not in plain
    assert "hidden_states" not in plain
    if by == "configuration":
        model.set_attn_implementation("eager")  # transformers allows the key for it alone
        for key, value in asked.items():
            setattr(model.config, key, value)
        asked = {}
    output = model(**inputs(name), **asked)
    rows = 6 if name == "choice" else 3
    assert [tuple(weights.shape) for weights in output.attentions] == [(rows, 4, 16, 16)] * 2
    assert [tuple(states.shape) for states in output.hidden_states] == [(rows, 16, 32)] * 3
    torch.testing.assert_close(scores(output), scores(plain), **CLOSE)


@every_case
def test_a_tuple_holds_what_the_output_object_holds(name: str, layer: str) -> None:
    model = make(name, layer)
    asked = {**inputs(name), **labels(name), "output_hidden_states": True, "output_attentions": True}
    as_object, as_tuple = model(**asked), model(**asked, return_dict=False)
    assert isinstance(as_tuple, tuple)
    for mine, other in zip(flat(as_object.to_tuple()), flat(as_tuple), strict=True):
        assert torch.equal(mine, other)


def flat(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        yield from [value] if torch.is_tensor(value) else flat(value.values() if isinstance(value, dict) else value)


@every_case
def test_gradients_reach_hidden_states_and_attentions(name: str, layer: str) -> None:
    output = make(name, layer)(**inputs(name), output_hidden_states=True, output_attentions=True)
    seen = [output.hidden_states[0], output.attentions[0]]
    for tensor in seen:
        tensor.retain_grad()
    scores(output).square().sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in seen)


@every_class
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings(name: str, tied: bool, tmp_path: Path) -> None:
    model = make(name, tie_word_embeddings=tied)
    before = model.get_input_embeddings().weight.detach().clone()
    expected = scores(model(**inputs(name)))
    for size in (90, 80):  # no token that occurs is lost
        found = model.resize_token_embeddings(size)
        assert found is model.get_input_embeddings()
        assert (found.weight.shape, model.config.vocab_size) == ((size, 32), size)
        assert torch.equal(found.weight[:80], before)
        output = scores(model(**inputs(name)))
        assert torch.equal(output[..., :80] if name in WORDS else output, expected)
        if name in WORDS:
            assert model.decoder.weight.shape == (size, 32)
            assert (model.decoder.weight is found.weight) is tied
    assert model.resize_token_embeddings(85, pad_to_multiple_of=32).weight.shape == (96, 32)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(scores(again(**inputs(name))), scores(model(**inputs(name))))


@every_class
def test_embeddings_are_given_and_taken(name: str) -> None:
    model = make(name)
    model.set_input_embeddings(nn.Embedding(10, 32))
    assert model.get_input_embeddings().weight.shape == (10, 32)
    assert model.base_model.get_input_embeddings() is model.get_input_embeddings()
    output = model.get_output_embeddings()
    assert isinstance(output, nn.Linear) if name in WORDS else output is None


@every_kind
def test_tied_weights_are_one_tensor_before_and_after(layer: str, tmp_path: Path) -> None:
    model = make("masked", layer)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    for found in (model, again):
        assert found.decoder.weight is found.get_input_embeddings().weight
        assert found.all_tied_weights_keys == {"decoder.weight": "model.embedding.words.weight"}
    loose = make("masked", layer, tie_word_embeddings=False)
    loose.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(again.decoder.weight, loose.decoder.weight)
    assert not torch.equal(again.decoder.weight, again.get_input_embeddings().weight)


@every_case
@torch.no_grad()
def test_vectors_instead_of_tokens(name: str, layer: str) -> None:
    model, given = make(name, layer), inputs(name)
    vectors = model.get_input_embeddings()(given["input_ids"])
    rest = {"attention_mask": given["attention_mask"], "inputs_embeds": vectors}
    if layer == "token":  # its paths follow from the ids, which nothing then says
        with pytest.raises(ValueError, match="the path follows from the tokens' ids"):
            model(**rest)
        return
    assert torch.equal(scores(model(**rest)), scores(model(**given)))


@every_headed_case
def test_training_gives_every_weight_a_gradient(name: str, layer: str) -> None:
    model = make(name, layer).train()
    model(**inputs(name), **labels(name)).loss.backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@every_headed_case
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_gradient_checkpointing_changes_no_gradient(name: str, layer: str, reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = make(name, layer, hidden_dropout_prob=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            assert model.is_gradient_checkpointing
        torch.manual_seed(1)
        loss = model(**inputs(name), **labels(name)).loss
        loss.backward()
        found.append({"loss": loss} | {key: p.grad for key, p in model.named_parameters() if p.requires_grad})
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, msg=key)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_auxiliary_losses_reach_the_trees_through_checkpoints(reentrant: bool) -> None:
    found = []
    for checkpointing in (False, True):
        model = make("masked", "leaf").train()
        set_hardening(model, form="soft", losses=("entropy",))
        model.set_auxiliary_weights({"entropy": 10.0})
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        output = model(**inputs("masked"), **labels("masked"))
        output.loss.backward()
        assert output.aux_loss > 0
        found.append({key: parameter.grad for key, parameter in model.named_parameters()})
    for key, tensor in found[0].items():
        torch.testing.assert_close(found[1][key], tensor, msg=key)


@every_kind
@pytest.mark.parametrize(
    ("problem", "number", "target"),
    [
        ("regression", 1, torch.tensor([0.5, -1.0, 2.0])),
        ("single_label_classification", 3, torch.tensor([0, 2, 1])),
        ("multi_label_classification", 3, torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])),
    ],
)
@pytest.mark.filterwarnings("error")
def test_problem_types_of_sequence_classification(layer: str, problem: str, number: int, target: torch.Tensor) -> None:
    model = make("sequence", layer, num_labels=number, problem_type=problem).train()
    output = model(**inputs("sequence"), labels=target)
    given, one = output.logits.float(), target.view(3, -1)
    expected = {
        "regression": lambda: nn.functional.mse_loss(given, one),
        "single_label_classification": lambda: nn.functional.cross_entropy(given, target),
        "multi_label_classification": lambda: nn.functional.binary_cross_entropy_with_logits(given, one),
    }[problem]()
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()


@every_case
def test_initialisation_is_the_configurations(name: str, layer: str) -> None:
    """With a range of almost 0 every weight is 0 or the number that it begins at."""
    model = make(name, layer, initializer_range=1e-10)
    constants = {"position_scale": 32**-0.5}
    for module in model.modules():
        constants |= dict(getattr(module, "constants", {}))
    for key, parameter in model.named_parameters():
        if key.endswith("w_decide"):  # of the control whose decisions stay as drawn, whatever the range
            continue
        wanted = constants.get(key.rpartition(".")[2], 1.0 if "norm.weight" in key else 0.0)
        torch.testing.assert_close(parameter, torch.full_like(parameter, wanted), atol=1e-8, rtol=0, msg=key)


@every_case
def test_weights_that_a_folder_lacks_are_initialised(name: str, layer: str) -> None:
    """test_can_init_all_missing_weights: a model built on the meta device, and then given nothing."""
    torch.full((2**16,), float("nan"))  # memory that the model may get
    model = make(name, layer)
    empty = type(model).from_pretrained(None, config=model.config, state_dict={})
    for (key, made), found in zip(model.named_parameters(), empty.parameters(), strict=True):
        assert made.requires_grad == found.requires_grad, key
        assert found.isfinite().all(), key
        if made.numel() > 500:
            assert found.std().item() == pytest.approx(made.std().item(), rel=0.2), key
        elif made.unique().numel() == 1:
            assert torch.equal(found, made), key


@every_case
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_sdpa_is_eager_and_padding_is_nothing(name: str, layer: str, side: str) -> None:
    """test_eager_matches_sdpa_inference, test_batching_equivalence, test_left_padding_compatibility."""
    if name == "choice":
        pytest.skip("its rows are those of the sequence classifier, two to an example")
    if name == "sequence" and side == "left":
        pytest.skip("its head reads the first token, which must be the text's")
    model, ids = make(name, layer), inputs(name)["input_ids"][:, :10]
    pad = (6, 0) if side == "left" else (0, 6)
    padded, mask = (nn.functional.pad(each, pad) for each in (ids, torch.ones_like(ids)))
    places = nn.functional.pad(torch.arange(10).expand(3, -1), pad)
    here = slice(6, 16) if side == "left" else slice(0, 10)
    alone = torch.cat([scores(model(row[None])) for row in ids])
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        together = scores(model(padded, attention_mask=mask, position_ids=places))
        torch.testing.assert_close(together if name == "sequence" else together[:, here], alone, **CLOSE)


@every_class
@torch.no_grad()
def test_a_head_of_another_size_is_refused_or_made_anew(name: str, tmp_path: Path) -> None:
    if name not in ("sequence", "token"):
        pytest.skip("the number of labels is no size of its weights")
    model = make(name)
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"size mismatch|ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path, num_labels=5)
    other = type(model).from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert scores(other(**inputs(name))).shape[-1] == 5


@every_case
@torch.no_grad()
def test_half_types(name: str, layer: str, tmp_path: Path) -> None:
    model = make(name, layer)
    expected = scores(model(**inputs(name)))
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, dtype=torch.bfloat16)
    found = scores(half(**inputs(name)))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, scores(model.to(torch.bfloat16)(**inputs(name))))
    assert nn.functional.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.9


@pytest.mark.parametrize("name", ["encoder", "masked", "choice"])
@pytest.mark.parametrize("device_map", ["auto", "cpu"])
@torch.no_grad()
def test_device_maps_and_offloading(name: str, device_map: str, tmp_path: Path) -> None:
    model = make(name)
    model.save_pretrained(tmp_path / "model")
    placed = type(model).from_pretrained(tmp_path / "model", device_map=device_map)
    assert torch.equal(scores(placed(**inputs(name))).cpu(), scores(model(**inputs(name))))
    blocks = "blocks" if name == "encoder" else "model.blocks"
    disk = {each: "cpu" for each, _ in placed.named_children() if each != "model"} | {f"{blocks}.1": "disk"}
    if name != "encoder":
        disk |= {f"model.{each}": "cpu" for each, _ in placed.model.named_children() if each != "blocks"}
    disk = {key: place for key, place in disk.items() if key != "blocks"} | {f"{blocks}.0": "cpu"}
    offloaded = type(model).from_pretrained(tmp_path / "model", device_map=disk, offload_folder=tmp_path / "off")
    assert offloaded.get_submodule(f"{blocks}.1").attention.qkv.weight.is_meta
    assert torch.equal(scores(offloaded(**inputs(name))), scores(model(**inputs(name))))


def test_the_configuration_is_itself_after_json(tmp_path: Path) -> None:
    for layer in KINDS_OF_LAYER.values():
        config = CrammedConfig(ffn=layer, num_labels=5, hidden_size=48, num_attention_heads=4)
        config.save_pretrained(tmp_path)
        again = CrammedConfig.from_pretrained(tmp_path)
        assert again.to_dict() == config.to_dict()
        assert CrammedConfig.from_dict(config.to_dict()).to_json_string() == config.to_json_string()
        assert (again.num_labels, again.ffn) == (5, layer)
