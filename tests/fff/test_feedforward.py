"""The chooser of feedforward layers: settings and specifications, what each says of itself, routes of any kind."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fff import LeafFFF, PathFFF
from fff.feedforward import KINDS, settings_class, settings_from
from fff.hardening import set_hardening
from fff.layers.base import Feedforward, Route, Routed
from fff.layers.dense import DenseFF
from fff.regions import assign, recorded_inputs, routed_layers, tokens_in
from fff.usage import measure

SPECIFICATIONS = [
    {"kind": "dense", "width": 12},
    {"kind": "dense", "width": 12, "activation": "gated_gelu"},
    {"kind": "leaf", "depth": 3, "leaf_width": 4, "master_width": 2},
    {"kind": "moe", "experts": 4, "expert_width": 8, "top": 2},
    {"kind": "none"},
    {"kind": "path", "trees": 2, "depth": 3},
    {"kind": "path", "neurons": 30, "depth": 3, "bias": False},
    {"kind": "path", "trees": 2, "depth": 3, "shared": 5},
    {"kind": "peer", "keys": 8, "heads": 2, "top": 3, "query_width": 6},
]
MOE, PEER = ({k: v for s in SPECIFICATIONS if s["kind"] == kind for k, v in s.items()} for kind in ("moe", "peer"))
LAYERS = [specification for specification in SPECIFICATIONS if specification["kind"] != "none"]


@pytest.mark.parametrize("specification", SPECIFICATIONS)
def test_settings_and_specification_are_the_same(specification: dict) -> None:
    settings = settings_from(specification)
    assert type(settings) is settings_class(specification["kind"])
    again = settings_from(settings.specification())
    assert again.specification() == settings.specification()
    sizes = ("tag", "neurons_trained", "neurons_used")
    assert [getattr(again, name) for name in sizes] == [getattr(settings, name) for name in sizes]


def test_sizes_are_what_the_names_say() -> None:
    sizes = [
        (found.tag, found.neurons_trained, found.neurons_used, *found.flops(10, 20))
        for found in map(settings_from, SPECIFICATIONS)
    ]
    assert sizes == [
        ("dense12", 12, 12, 720, 720),
        ("gated12", 12, 12, 480, 480),
        ("leaf4x3+m2", 34, 6, 3 * 20 + 6 * 60, 7 * 20 + 34 * 60),
        ("moe8x4top2", 32, 16, 4 * 20 + 16 * 60, 4 * 20 + 32 * 60),
        ("none", 0, 0, 0, 0),
        ("2x3", 30, 8, 480, 1800),
        ("2x3", 30, 8, 480, 1800),
        ("2x3+5", 35, 13, 780, 2100),
        ("peer8x8h2top3", 64, 6, 2 * 6 * 36 + 6 * 60, 2 * 6 * 36 + 64 * 60),
    ]


@pytest.mark.parametrize("specification", LAYERS[:2])
def test_a_dense_layers_flops_are_those_that_are_computed(specification: dict) -> None:
    settings = settings_from(specification)
    layer = settings.build(10, 20)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(7, 10))
    assert counter.get_total_flops() == 7 * settings.flops(10, 20).used


@pytest.mark.parametrize("specification", LAYERS)
def test_layers_are_built_on_the_device_and_in_the_dtype(specification: dict) -> None:
    settings = settings_from(specification)
    for device, dtype in (("cpu", torch.bfloat16), ("cpu", torch.float64), ("meta", torch.float32)):
        layer = settings.build(6, 8, device=device, dtype=dtype)
        assert {(p.device.type, p.dtype) for p in layer.parameters()} == {(device, dtype)}
        if device == "cpu":
            assert layer(torch.randn(5, 6, dtype=dtype)).shape == (5, 8)
            assert all(p.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("specification", LAYERS)
def test_a_layer_built_on_meta_and_loaded_is_the_layer(specification: dict) -> None:
    settings = settings_from(specification)
    torch.manual_seed(0)
    layer, x = settings.build(6, 8), torch.randn(40, 6)
    with torch.device("meta"):
        loaded = settings.build(6, 8)
    poison(loaded.to_empty(device="cpu"))
    loaded.load_state_dict(layer.state_dict())
    for module in (layer, loaded):
        set_hardening(module, form="soft", losses=("entropy", "balance"))
    (expected, losses), (y, found) = (module.forward_with_losses(x) for module in (layer, loaded))
    assert torch.equal(y, expected)
    assert found == losses
    assert not dict(loaded.named_buffers())


def poison(module: nn.Module) -> None:
    """What uninitialised memory may hold."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.fill_(float("nan"))


def test_the_temperature_follows_the_layer_and_is_its_own() -> None:
    layer = PathFFF(4, 4, 2)
    set_hardening(layer, temperature=0.25)
    other = copy.deepcopy(layer)
    set_hardening(other, temperature=0.5)
    assert (layer.temperature.item(), other.temperature.item()) == (0.25, 0.5)
    assert layer.temperature is layer.temperature
    assert layer.to("meta").temperature.device.type == "meta"
    assert layer.to_empty(device="cpu").temperature.item() == 0.25
    assert layer.bfloat16().temperature.dtype == torch.float32
    assert "temperature" not in layer.state_dict()


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({}, "ffn.kind is None; choose one of dense, fixed, leaf, moe, none, path, peer"),
        ({"kind": "mop"}, "ffn.kind is 'mop'; choose one of dense, fixed, leaf, moe, none, path, peer"),
        ({"kind": ["path"]}, "ffn.kind is"),
        ({"kind": "path", "depth": 3}, "ffn.trees and ffn.neurons: give exactly one"),
        ({"kind": "path", "depth": 3, "trees": 2, "neurons": 9}, "ffn.trees and ffn.neurons: give exactly one"),
        ({"kind": "path", "trees": 1}, "ffn.depth is None; set it from 0 to 20, e.g. ffn.depth=11"),
        ({"kind": "path", "trees": 1, "depth": 3.0}, "ffn.depth is 3.0"),
        ({"kind": "path", "trees": 1, "depth": True}, "ffn.depth is True"),
        ({"kind": "path", "trees": 1, "depth": 21}, "ffn.depth is 21"),
        ({"kind": "path", "trees": 0, "depth": 3}, "ffn.trees is 0; set it to 1 or more"),
        ({"kind": "path", "neurons": 3, "depth": 3}, "ffn.neurons: .* less than half"),
        ({"kind": "path", "trees": 1, "depth": 3, "bias": "no"}, "ffn.bias is 'no'"),
        ({"kind": "path", "trees": 1, "dpeth": 3}, "ffn.dpeth is no key of kind path; did you mean ffn.depth"),
        ({"kind": "path", "trees": 1, "depth": 3, "activation": "gated_gelu"}, "ffn.activation is 'gated_gelu'; path"),
        ({"kind": "path", "trees": 1, "depth": 3, "shared": -1}, "ffn.shared is -1; set it to 0 or more"),
        ({"kind": "path", "trees": 1, "depth": 3, "shared": True}, "ffn.shared is True"),
        ({"kind": "path", "trees": 1, "depth": 3, "provider": "abacus"}, "ffn: provider='abacus'"),
        ({"kind": "leaf", "depth": 3}, "ffn.leaf_width is None"),
        ({"kind": "leaf", "depth": 3, "leaf_width": 4, "trees": 2}, "ffn.trees is no key of kind leaf"),
        ({"kind": "dense"}, "ffn.width is None; set it to 1 or more, e.g. ffn.width=3072"),
        ({"kind": "dense", "width": 9, "activation": "relu"}, "ffn.activation is 'relu'; dense takes one of gelu"),
        ({"kind": "dense", "width": 9, "activation": "gated_gelu"}, "ffn.width is 9; gated_gelu halves it"),
        ({"kind": "none", "width": 9}, "ffn.width is no key of kind none"),
        ({"kind": "moe", "expert_width": 8, "top": 1}, "ffn.experts is None; set it to 2 or more, e.g. ffn.experts=32"),
        ({"kind": "moe", "experts": 4, "expert_width": 8}, "ffn.top is None; set it from 1 to 3, e.g. ffn.top=1"),
        ({"kind": "moe", "experts": 4, "expert_width": 8, "top": 4}, "ffn.top is 4; set it from 1 to 3"),
        ({"kind": "moe", "experts": 4, "expert_width": 0, "top": 1}, "ffn.expert_width is 0"),
        (MOE | {"balance_rate": -0.1}, "ffn.balance_rate is -0.1; set it to a number of 0 or more"),
        (MOE | {"balance_rate": float("nan")}, "ffn.balance_rate is nan"),
        (MOE | {"expert_balance_weight": float("inf")}, "ffn.expert_balance_weight is inf"),
        (MOE | {"expert_balance_weight": True}, "ffn.expert_balance_weight is True"),
        (MOE | {"activation": "gated_gelu"}, "ffn.activation is 'gated_gelu'; moe takes one of gelu"),
        (MOE | {"keys": 4}, "ffn.keys is no key of kind moe"),
        ({"kind": "peer", "keys": 1, "heads": 2, "top": 1}, "ffn.keys is 1; set it from 2 to 4096, e.g. ffn.keys=64"),
        ({"kind": "peer", "keys": 8, "top": 1}, "ffn.heads is None; set it to 1 or more, e.g. ffn.heads=4"),
        ({"kind": "peer", "keys": 8, "heads": 2, "top": 9}, "ffn.top is 9; set it from 1 to 8"),
        (PEER | {"query_width": 7}, "ffn.query_width is 7; it is halved, so it must be even"),
        (PEER | {"query_width": 0}, "ffn.query_width is 0; set it to 2 or more"),
        (PEER | {"activation": "sine"}, "ffn.activation is 'sine'; peer takes one of gelu"),
    ],
)
def test_bad_specifications_are_refused_by_the_key(specification: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_from(specification, "ffn")


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_names_itself(kind: str) -> None:
    assert settings_class(kind).kind == kind


def test_own_initialisation_spares_biases_constants_and_children() -> None:
    torch.manual_seed(0)
    layer, dense = LeafFFF(32, 32, 3, 8, master_width=8), DenseFF(8, 8, 16)
    before = copy.deepcopy(dense.state_dict())
    layer.init_weights(0.02)
    dense.init_weights(0.02)
    assert layer.w_in.std().item() == pytest.approx(0.02, rel=0.1)
    assert (layer.mix.item(), layer.b_node.any().item(), layer.master_b_out.any().item()) == (0.5, False, False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())


class TwoOfFive(Routed):
    """A router: each token uses two of five experts."""

    groups, units = 1, 5  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(3, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.no_grad()
    def route(self, x: Tensor) -> Route:
        best = self.router(x).topk(3)
        margins = best.values[..., :2] - best.values[..., 2:]
        return Route(best.indices[..., None, :2], margins[..., None, :], 5)


def test_usage_and_regions_take_a_router() -> None:
    layer = TwoOfFive()
    with torch.no_grad():
        layer.router.weight.copy_(torch.eye(5, 3))
    # Experts 0 and 1 by 3 and 1 over the third; 0 and 2 by 4 and 2; 1 and 2 by 2 and 1.
    x = torch.tensor([[4.0, 2.0, 1.0], [5.0, 1.0, 3.0], [1.0, 3.0, 2.0], [4.0, 2.0, 1.0]])
    assert isinstance(layer, Feedforward)
    assert list(routed_layers(nn.Sequential(layer))) == ["0"]
    assert assign(layer, x).tolist() == [[[0, 1]], [[0, 2]], [[1, 2]], [[0, 1]]]
    assert tokens_in(layer, x, 1).tolist() == [0, 2, 3]
    with recorded_inputs(nn.Sequential(layer)) as inputs:
        layer(x)
    assert len(inputs["0"]) == 1
    usage = measure(layer.route(x))
    assert usage.counts.tolist() == [[3, 3, 2, 0, 0]]
    assert (usage.dead.tolist(), usage.fullest.tolist(), usage.depth) == ([2], [0.75], 0)
    share = torch.tensor([3 / 8, 3 / 8, 2 / 8], dtype=torch.float64)
    assert usage.entropy.item() == pytest.approx(-(share * share.log2()).sum().item())
    assert usage.relative_entropy.item() == pytest.approx(usage.entropy.item() / torch.tensor(5.0).log2().item())
    assert usage.margins[0].tolist() == [1, 1, 2, 3, 4]
    assert usage.decided.shape == usage.imbalance.shape == (1, 0)
    with torch.no_grad():
        layer.router.weight[0].neg_()  # expert 0 becomes the worst: who used it and 1 or 2 now uses 1 and 2
    assert measure(layer.route(x)).churn(usage.leaves).tolist() == [3 / 8]
    with pytest.raises(ValueError, match="leaf=5 does not exist; the layer has 5"):
        tokens_in(layer, x, 5)
