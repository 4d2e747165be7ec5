"""A model that computes in bfloat16 behind a float32 face: what it gives and takes, and what stays float32 in it."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fff import inside, optimise
from fff.inside import LARGEST, converted, narrowed, widened
from fff.kernels.int8_linear import unusable
from fff.layers.bfloat16_linear import Bfloat16Linear
from fff.layers.int8_linear import Int8Linear
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.layers.quantised import QuantisedPath
from fff.optimise import fastest_linears, optimise_for_cpu
from fff.successors import InBfloat16

FLOAT, HALF = torch.float32, torch.bfloat16


class Small(nn.Module):
    """An embedding with a tied decoder, a norm, a table that is not saved, trees of both kinds, a small head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 128)
        self.register_buffer("table", torch.randn(128), persistent=False)
        self.mix, self.norm = nn.Linear(128, 128), nn.LayerNorm(128)
        self.path, self.leaf = PathFFF(128, 128, 5), LeafFFF(128, 128, 3, 8)
        self.decoder = nn.Linear(128, 300, bias=False)
        self.decoder.weight = self.words.weight
        self.head = nn.Linear(128, 2)

    def forward(self, ids: Tensor, more: Tensor | None = None) -> dict[str, Any]:
        x = self.mix(self.words(ids) if more is None else more)
        self.seen = x.dtype
        x = x + self.leaf(x) + self.path(self.norm(x))
        float32_in_the_midst = self.mix(x.float() * self.table)
        return {"words": self.decoder(x), "both": (self.head(x), [float32_in_the_midst]), "ids": ids}


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 300, (4, 9))


def near(found: Tensor, wanted: Tensor) -> bool:
    return float(nn.functional.cosine_similarity(found.flatten().float(), wanted.flatten(), dim=0)) > 0.999


def test_a_float32_model_computes_in_bfloat16_and_gives_float32(model: Small, ids: Tensor) -> None:
    with torch.no_grad():
        wanted = model(ids)
    report = optimise_for_cpu(model, linears="bfloat16")
    found = model(ids)
    assert model.seen == HALF
    assert found["words"].dtype == found["both"][0].dtype == found["both"][1][0].dtype == FLOAT
    assert torch.equal(found["ids"], ids)
    assert near(found["words"], wanted["words"])
    assert near(found["both"][0], wanted["both"][0])
    assert [(each.path, each.was, each.now) for each in report.changed] == [
        ("mix", "Linear float32", "Bfloat16Linear bfloat16"),
        ("path", "PathFFF float32", "QuantisedPath int8"),
        ("leaf", "LeafFFF float32", "QuantisedLeaf int8"),
        ("decoder", "Linear float32", "Bfloat16Linear bfloat16"),
        ("head", "Linear float32", "Bfloat16Linear bfloat16"),
    ]
    assert (report.changed[0].bytes_before, report.changed[0].bytes_after) == (4 * 128 * 129, 2 * 128 * 129)
    assert model.decoder.weight is model.words.weight
    assert (model.words.weight.dtype, model.norm.weight.dtype, model.table.dtype) == (HALF, FLOAT, FLOAT)
    assert model.path.scale_in.dtype == FLOAT
    assert report.bytes_after < report.bytes_before / 2 + 4 * 1024


def test_it_takes_float32_and_masks_of_the_least_number(model: Small, ids: Tensor) -> None:
    with torch.no_grad():
        vectors = model.words(ids)
        wanted = model(ids, more=vectors)
    optimise_for_cpu(model, linears="bfloat16")
    assert near(model(ids, more=vectors)["words"], wanted["words"])
    least = torch.tensor([torch.finfo(FLOAT).min, -torch.inf, torch.nan, 3.0])
    assert narrowed(least)[0] == -LARGEST
    assert narrowed(least)[1:].isfinite().tolist() == [False, False, True]
    assert narrowed(ids) is ids


def test_copies_and_pickles_keep_their_face_and_a_failure_leaves_none_behind(model: Small, ids: Tensor) -> None:
    optimise_for_cpu(model, linears="bfloat16")
    wanted = model(ids)["words"]
    with pytest.raises(IndexError):
        model(ids + 300)
    with pytest.raises(IndexError):
        nn.Sequential(model)(ids + 300)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model):
        assert torch.equal(other(ids)["words"], wanted)
        assert other(ids)["words"].dtype == FLOAT


@pytest.mark.parametrize("keep", ["head", "decoder", "mix"])
def test_what_is_kept_is_float32_inside(model: Small, ids: Tensor, keep: str) -> None:
    with torch.no_grad():
        wanted = model(ids)
    before = getattr(model, keep)
    report = optimise_for_cpu(model, linears="bfloat16", keep=keep)
    assert getattr(model, keep) is before
    assert (keep, "it was asked to stay") in report.left
    assert before.weight.dtype == FLOAT
    assert near(model(ids)["words"], wanted["words"])
    assert model.seen == HALF


def test_trees_may_stay_or_be_bfloat16(model: Small, ids: Tensor) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        wanted = model(ids)["words"]
    optimise_for_cpu(model, linears="bfloat16", trees="keep")
    optimise_for_cpu(other, linears="bfloat16", trees="bfloat16")
    assert (model.path.w_in.dtype, model.leaf.w_in.dtype) == (FLOAT, FLOAT)
    assert isinstance(other.path, InBfloat16)
    assert near(model(ids)["words"], wanted)
    assert near(other(ids)["words"], wanted)


def test_a_bfloat16_model_has_no_other_face(model: Small, ids: Tensor) -> None:
    report = optimise_for_cpu(model.bfloat16(), linears="bfloat16")
    assert [each.now for each in report.changed] == ["QuantisedPath int8", "QuantisedLeaf int8"]
    assert dict(report.left)["mix"] == "it is bfloat16 already"
    dense = nn.Sequential(nn.Linear(256, 256)).bfloat16().eval()
    assert optimise_for_cpu(dense, linears="bfloat16").changed == ()
    assert dense(torch.zeros(2, 256, dtype=HALF)).dtype == HALF


@pytest.mark.parametrize(
    ("tiles", "reason", "found"),
    [(True, None, "bfloat16"), (True, "none", "bfloat16"), (False, None, "int8"), (False, "none", "keep")],
)
def test_the_default_is_by_the_processor(
    model: Small, monkeypatch: pytest.MonkeyPatch, tiles: bool, reason: str | None, found: str
) -> None:
    monkeypatch.setattr(optimise, "has_tiles", lambda: tiles)
    monkeypatch.setattr(optimise, "unusable", lambda: reason)
    assert fastest_linears() == fastest_linears(optimise.SHORT + 1) == found
    assert fastest_linears(1) == fastest_linears(optimise.SHORT) == ("int8" if reason is None else found)
    if found != "int8":  # which this machine may lack
        assert "path" in {each.path for each in optimise_for_cpu(model).changed}
        assert isinstance(model.path, QuantisedPath)
        assert isinstance(model.mix, Bfloat16Linear) == (found == "bfloat16")


@pytest.mark.skipif(unusable() is not None, reason=str(unusable()))
def test_short_calls_get_int8(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimise, "has_tiles", lambda: True)
    many = copy.deepcopy(model)
    optimise_for_cpu(model, tokens=16)
    optimise_for_cpu(many, tokens=10_000)
    assert isinstance(model.mix, Int8Linear)
    assert isinstance(many.mix, Bfloat16Linear)


@pytest.mark.parametrize("tokens", [0, -1, 1.5, True, "16"])
def test_what_is_no_number_of_tokens_is_named(model: Small, tokens: Any) -> None:
    for linears in ("auto", "int8"):
        with pytest.raises(ValueError, match=f"tokens={tokens!r} is no number of tokens; give about how many a call"):
            optimise_for_cpu(model, linears=linears, tokens=tokens)
    assert type(model.mix) is nn.Linear


def test_structures_keep_their_kind() -> None:
    from collections import OrderedDict, namedtuple

    pair = namedtuple("pair", "one two")
    x, other = torch.ones(2, dtype=HALF), object()
    found = converted(OrderedDict(a=pair(x, [x]), b=other, c=None), widened)
    assert isinstance(found, OrderedDict)
    assert (type(found["a"]), found["a"].one.dtype, found["a"].two[0].dtype) == (pair, FLOAT, FLOAT)
    assert (found["b"], found["c"]) == (other, None)


TINY = {"vocab_size": 99, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}
PICTURE = {**{key: TINY[key] for key in TINY if key != "vocab_size"}, "image_size": 16, "patch_size": 8}
T5 = {"vocab_size": 99, "d_model": 64, "d_kv": 32, "d_ff": 128, "num_layers": 1, "num_heads": 2}


def words(**more: Any) -> dict[str, Any]:
    mask = torch.ones(3, 11, dtype=torch.int64)
    mask[1, 6:] = 0
    return {"input_ids": torch.randint(5, 99, (3, 11)), "attention_mask": mask, **more}


@pytest.mark.parametrize(
    ("name", "config", "settings", "given"),
    [
        ("BertForMaskedLM", "BertConfig", TINY, words),
        ("DebertaV2Model", "DebertaV2Config", {**TINY, "relative_attention": True, "pos_att_type": ["p2c"]}, words),
        ("LlamaForCausalLM", "LlamaConfig", {**TINY, "num_key_value_heads": 1}, words),
        ("MixtralForCausalLM", "MixtralConfig", {**TINY, "num_key_value_heads": 1, "num_local_experts": 2}, words),
        (
            "T5ForConditionalGeneration",
            "T5Config",
            T5,
            lambda: words(decoder_input_ids=torch.randint(5, 99, (3, 4))),
        ),
        ("ViTForImageClassification", "ViTConfig", PICTURE, lambda: {"pixel_values": torch.randn(2, 3, 16, 16)}),
    ],
)
def test_models_of_transformers_go_on_giving_float32(
    name: str, config: str, settings: dict[str, Any], given: Callable[[], dict[str, Any]]
) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, name)(getattr(transformers, config)(**settings)).eval()
    inputs = given()
    with torch.no_grad():
        wanted = model(**inputs)
        optimise_for_cpu(model, linears="bfloat16")
        found = model(**inputs)
        assert type(found) is type(wanted)
        for key, value in wanted.items():
            if isinstance(value, Tensor):
                assert found[key].dtype == value.dtype
                assert near(found[key], value)
        if name == "BertForMaskedLM":
            states = model.bert(**inputs).last_hidden_state  # called from outside, it has a face of its own
            assert (states.dtype, model.bert.encoder.layer[0].output.dense.weight.dtype) == (FLOAT, HALF)
        if name == "LlamaForCausalLM":
            assert model.model.rotary_emb.inv_freq.dtype == FLOAT
            assert model.generate(**inputs, max_new_tokens=3, do_sample=False, pad_token_id=0).shape == (3, 14)
    assert getattr(inside._HERE, "depth", 0) == 0
