"""A model made fast in one call: what becomes of linears and trees, what is refused and why."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fff.feedforward import settings_from
from fff.hardening import set_hardening, soft_evaluation
from fff.kernels import int8_linear
from fff.kernels.int8_linear import unusable
from fff.layers.int8_linear import Int8Linear
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.layers.quantised import QuantisedPath
from fff.optimise import LEAST, optimise_for_cpu
from fff.successors import InBfloat16
from fff.surgery import replace_feedforward

if reason := unusable():
    pytest.skip(reason, allow_module_level=True)


class Small(nn.Module):
    """A linear, a tree of each kind, a layer that is tied to an embedding, a small head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(300, 128)
        self.mix = nn.Linear(128, 128)
        self.path, self.leaf = PathFFF(128, 128, 5), LeafFFF(128, 128, 3, 8)
        self.decoder = nn.Linear(128, 300, bias=False)
        self.decoder.weight = self.words.weight
        self.head = nn.Linear(128, 2)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.mix(self.words(ids))
        x = x + self.path(x) + self.leaf(x)
        return self.decoder(x), self.head(x)


@pytest.fixture
def model() -> Small:
    torch.manual_seed(0)
    return Small().eval()


def test_products_that_are_not_exact_are_refused(model: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = int8_linear.products
    monkeypatch.setattr(int8_linear, "products", lambda *given: exact(*given).clamp(max=2.0**15))  # as without VNNI
    unusable.cache_clear()
    try:
        with pytest.raises(RuntimeError, match="not exact on this processor; leave the linears"):
            optimise_for_cpu(model, linears="int8")
        assert isinstance(model.mix, nn.Linear)
        assert optimise_for_cpu(model, linears="keep").changed
    finally:
        unusable.cache_clear()


def test_what_became_of_what_is_told(model: Small) -> None:
    ids = torch.randint(0, 300, (4, 9))
    expected = model(ids)
    report = optimise_for_cpu(model, linears="int8")
    assert [(each.path, each.was, each.now) for each in report.changed] == [
        ("mix", "Linear float32", "Int8Linear int8"),
        ("path", "PathFFF float32", "QuantisedPath int8"),
        ("leaf", "LeafFFF float32", "QuantisedLeaf int8"),
        ("decoder", "Linear float32", "Int8Linear int8"),
    ]
    assert report.left == (("head", "it is small"),)
    mix, tree, leaf = report.changed[:3]
    assert (mix.bytes_before, mix.bytes_after) == (4 * (128 * 128 + 128), model.mix.nbytes)
    assert 128 * 128 + 8 * 128 <= mix.bytes_after <= 128 * 128 + 12 * 128  # with what oneDNN packs beside the rows
    assert (tree.bytes_before, tree.bytes_after) == (4 * 63 * 257, 63 * (2 * 128 + 3 * 4))
    assert leaf.bytes_before == 4 * (7 * 129 + 8 * (2 * 8 * 128 + 8 + 128))
    assert leaf.bytes_after == 7 * (2 * 128 + 8) + 8 * (2 * 16 * 128 + 8 * (16 + 128))  # 8 neurons take 16 places
    gone = mix.bytes_before + tree.bytes_before + leaf.bytes_before
    come = (
        mix.bytes_after + tree.bytes_after + leaf.bytes_after + model.decoder.nbytes
    )  # it has its own, the embedding stays
    assert report.bytes_after - report.bytes_before == come - gone
    assert "1 x PathFFF float32 -> QuantisedPath int8" in str(report)
    assert "left head: it is small" in str(report)
    for found, wanted in zip(model(ids), expected, strict=True):  # frozen, so that it needs no no_grad
        assert torch.nn.functional.cosine_similarity(found.flatten(), wanted.flatten(), dim=0) > 0.999
    assert type(model.words) is nn.Embedding


def test_trees_may_be_bfloat16_or_stay(model: Small) -> None:
    ids, kept = torch.randint(0, 300, (4, 9)), copy.deepcopy(model)
    report = optimise_for_cpu(model, linears="keep", trees="bfloat16")
    assert [(each.path, each.now) for each in report.changed] == [
        ("path", "PathFFF bfloat16"),
        ("leaf", "LeafFFF bfloat16"),
    ]
    assert isinstance(model.path, InBfloat16)
    x = model.mix(model.words(ids)).detach()
    assert model.path(x).dtype == torch.float32
    half = copy.deepcopy(kept.path).bfloat16()
    assert torch.equal(model.path(x), half(x.bfloat16()).float())
    assert kept.path.w_in.dtype == torch.float32
    assert {each.path for each in optimise_for_cpu(kept, linears="int8", trees="keep", keep="dec*").changed} == {"mix"}


def test_a_bfloat16_model_stays_one(model: Small) -> None:
    ids = torch.randint(0, 300, (4, 9))
    report = optimise_for_cpu(model.bfloat16(), linears="int8")
    assert {each.path for each in report.changed} == {"mix", "path", "leaf", "decoder"}
    assert model(ids)[0].dtype == torch.bfloat16
    for layer in (model.mix, model.path):
        assert isinstance(layer, Int8Linear | QuantisedPath)


def test_layers_that_are_shared_stay_shared() -> None:
    shared = nn.Linear(128, 128)
    model = nn.Sequential(shared, nn.GELU(), shared, PathFFF(128, 128, 3)).eval()
    report = optimise_for_cpu(model, linears="int8")
    assert len(report.changed) == 2
    assert model[0] is model[2]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.train(), r"the model itself \(Small\) is in training mode; call model.eval"),
        (lambda m: m.leaf.train(), r"leaf \(LeafFFF\) is in training mode"),
        (lambda m: m(torch.zeros(1, 1, dtype=torch.int64))[1].sum().backward(), "has a gradient; call model.zero_grad"),
        (lambda m: m.half(), "is torch.float16; give a model of plain float32 or bfloat16"),
        (lambda m: m.mix.double(), "mix .*is torch.float64"),
        (lambda m: m.to("meta"), "is on meta; move the model to the CPU"),
        (lambda m: optimise_for_cpu(m, linears="int8"), "mix .Int8Linear. is quantised already"),
        (lambda m: optimise_for_cpu(m, linears="keep"), "path .QuantisedPath. is quantised already"),
        (lambda m: optimise_for_cpu(m, linears="keep", trees="bfloat16"), "InBfloat16. is quantised already"),
        (lambda m: m.path.w_out.data[0, 3, 7].fill_(torch.inf), "path: w_out holds values that are not finite"),
        (lambda m: m.mix.weight.data[3, 7].fill_(torch.nan), "mix: the weights hold values that are not finite"),
    ],
)
def test_what_cannot_be_optimised_is_refused_as_a_whole(
    model: Small, change: Callable[[Small], object], words: str
) -> None:
    change(model)
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=words):
        optimise_for_cpu(model, linears="int8")
    assert dict(model.named_modules()) == before


def test_wrong_choices_and_empty_models_are_named(model: Small) -> None:
    with pytest.raises(ValueError, match="trees='int4' is unknown; allowed: int8, bfloat16, keep"):
        optimise_for_cpu(model, trees="int4")
    with pytest.raises(ValueError, match="linears='float16' is unknown"):
        optimise_for_cpu(model, linears="float16")
    for nothing, words in (
        (nn.Sequential(nn.Linear(4, 4)), r"no linear and no tree to change \(0: it is small\)"),
        (nn.Linear(256, 256), "a Linear cannot be replaced in itself"),
        (PathFFF(256, 256, 2), "a PathFFF cannot be replaced in itself"),
    ):
        with pytest.raises(ValueError, match=words):
            optimise_for_cpu(nothing.eval(), linears="int8")
    set_hardening(model, form="soft")
    with soft_evaluation(model):
        told = optimise_for_cpu(copy.deepcopy(model), linears="int8")
        assert dict(told.left)["path"].startswith("it is in its soft form")
    assert LEAST > 128 * 2


def test_quantised_models_of_others_are_refused() -> None:
    from torch.ao.quantization import quantize_dynamic

    theirs = quantize_dynamic(nn.Sequential(nn.Linear(256, 256)), {nn.Linear}).eval()
    with pytest.raises(ValueError, match="is quantised already"):
        optimise_for_cpu(theirs, linears="int8")


def test_torchs_own_encoder_leaves_the_kernel_that_reads_weights() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, activation="gelu")
    model = nn.TransformerEncoder(layer, 2).eval()
    x, mask = torch.randn(3, 7, 128), torch.arange(7)[None] >= torch.tensor([[7], [5], [2]])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=mask)
        report = optimise_for_cpu(model, linears="int8")
        found = model(x, src_key_padding_mask=mask)
    assert dict(report.left)["layers.0.self_attn.out_proj"].startswith("NonDynamicallyQuantizableLinear")
    assert len(report.changed) == 4
    assert (found - expected)[~mask].abs().max() < 0.1


def test_a_model_after_surgery_is_optimised() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=99, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=256
    )
    model = transformers.BertModel(config).eval()
    replace_feedforward(model, {"kind": "path", "depth": 4, "trees": 2})
    ids = torch.randint(0, 99, (3, 11))
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
        report = optimise_for_cpu(model, linears="int8")
        found = model(input_ids=ids).last_hidden_state
    assert sorted({each.was for each in report.changed}) == ["Linear float32", "PathFFF float32"]
    assert sum(each.was.startswith("Path") for each in report.changed) == 2
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.995


def test_trees_with_neurons_beside_them_are_optimised() -> None:
    torch.manual_seed(0)
    layer = settings_from({"kind": "path", "depth": 4, "trees": 1, "shared": 128}).build(128, 128)
    assert layer is not None
    model = nn.Sequential(layer).eval()
    x = torch.randn(64, 128)
    with torch.no_grad():
        expected, report = model(x), optimise_for_cpu(model, linears="int8")
        assert {each.was for each in report.changed} == {"Linear float32", "PathFFF float32"}
        assert torch.nn.functional.cosine_similarity(model(x).flatten(), expected.flatten(), dim=0) > 0.99
