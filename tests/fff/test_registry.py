"""Who computes a layer: the entries of the registries, the choice, what is told of it, and parity of every entry."""

import copy
import dataclasses
import logging
import pickle

import pytest
import torch
from torch import Tensor

from fff import LeafFFF, PathFFF
from fff.kernels import LEAF, PATH, Operation, Provider, choice, choose
from fff.kernels.cpu import operators as cpu
from fff.reference import PathResult
from fff.testing import ParityCase, parity
from fff.usage import measure

CPU = torch.device("cpu")
LEAF_CASES = [
    ParityCase(1, depth, 24, 17, 60, dtype, leaf_width=3, straight_through=straight)
    for depth, straight in ((0, False), (2, True), (6, False), (6, True))
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
]


def layers() -> list[PathFFF | LeafFFF]:
    torch.manual_seed(0)
    return [PathFFF(24, 16, 6, 2), LeafFFF(24, 16, 3, 4)]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged, as if nothing had been yet."""
    monkeypatch.setattr(choice, "_told", set())
    caplog.set_level(logging.INFO, "fff")
    return caplog


@pytest.mark.parametrize("case", LEAF_CASES, ids=lambda case: f"{case.depth}-{case.dtype}-{case.straight_through}")
@pytest.mark.parametrize("provider", LEAF.providers)
def test_leaf_providers_equal_the_definition_in_training_and_inference(provider: str, case: ParityCase) -> None:
    if LEAF.providers[provider].available(CPU, case.dtype):
        with pytest.raises(RuntimeError, match=f"provider='{provider}' is not available: "):
            parity(provider, case, CPU)
        return
    row = parity(provider, case, CPU)
    assert row["ok"], row
    assert {"y", "inference", "x", "w_node", "b_out"} - ({"w_node"} if case.depth == 0 else set()) <= set(row["errors"])
    assert row["shape"] == f"leaf3x{case.depth}"


def test_a_wrong_inference_or_walk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    case, right = LEAF_CASES[4], LEAF.providers["cpu"]
    assert right.output is not None
    assert right.walk is not None
    output, walk = right.output, right.walk
    assert parity("cpu", case, CPU)["ok"]
    monkeypatch.setitem(LEAF.providers, "cpu", dataclasses.replace(right, output=lambda given: 1.01 * output(given)))
    assert parity("cpu", case, CPU)["errors"]["inference"] > 1e-3
    changed = dataclasses.replace(right, walk=lambda given: (walk(given)[0] + 1, walk(given)[1]))
    monkeypatch.setitem(LEAF.providers, "cpu", changed)
    assert parity("cpu", case, CPU)["nodes_differ"] > 0


def test_a_leaf_layer_takes_a_provider() -> None:
    x = torch.randn(9, 24)
    found = {}
    for name in LEAF.providers:
        torch.manual_seed(0)
        layer = LeafFFF(24, 16, 3, 4, provider=name).eval()
        assert f"provider={name}" in repr(layer)
        with torch.no_grad():
            found[name] = layer(x)
        assert layer.computed_by == {name}
    for y in found.values():
        torch.testing.assert_close(y, found["gather"])
    layer.provider = "gather"
    with torch.no_grad():
        assert torch.equal(layer(x), found["gather"])
    with pytest.raises(ValueError, match="provider='triton' is unknown; allowed: auto, masked, gather, aten, cpu"):
        LeafFFF(24, 16, 3, 4, provider="triton")
    wide = LeafFFF(24, 16, 3, 4, provider="cpu", dtype=torch.float64).eval()
    with pytest.raises(RuntimeError, match="provider='cpu' is not available: it takes float32 and"):
        wide(x.double())


@pytest.mark.parametrize("number", [0, 1])
def test_what_is_missing_is_told_once_with_the_mend(number: int, told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_ready", lambda: "there is no C++ compiler 'c++'; install one (Debian: apt install g++)")
    layer, x = layers()[number].eval(), torch.randn(3, 24)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for module in (layer, other):
            module(x)
    warnings = [record.getMessage() for record in told.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "provider cpu is not available, the slower gather takes its place: there is no C++ compiler" in warnings[0]
    assert "install one" in warnings[0]
    assert layer.computed_by == {"gather"}


def test_no_warning_where_the_device_or_dtype_is_not_the_providers(told) -> None:
    for layer in layers():
        layer.double().eval()(torch.randn(3, 24).double())
    assert [record.levelno for record in told.records] == [logging.INFO] * 2


def test_a_provider_is_one_entry() -> None:
    def doubled(operands) -> PathResult:
        return PATH.providers["masked"].function(operands._replace(x=2 * operands.x))

    fast = Provider(
        "fast",
        "conditional",
        doubled,
        rank=0,
        devices=("cpu",),
        dtypes=(torch.float32,),
        deepest=8,
        pays_from={"cpu": 3},
    )
    operation = Operation("PathFFF", {**PATH.providers, "fast": fast})

    def auto(depth: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> str:
        return choose("auto", "auto", torch.device(device), dtype, 1, depth, operation).name

    assert [auto(8), auto(3)] == ["fast"] * 2
    assert auto(2) != "fast", "M / L is below what it pays from"
    assert auto(9) != "fast"
    assert auto(8, torch.bfloat16) != "fast"
    assert auto(8, device="meta") != "fast"
    assert choose("conditional", "auto", CPU, torch.float32, 1, 0, operation).name == "fast"
    assert choose("auto", "fast", CPU, torch.float32, 1, 0, operation) is fast


def test_the_path_is_that_of_the_provider_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, x = PathFFF(24, 16, 5, provider="gather").eval(), torch.randn(50, 24)
    nodes, _ = layer.path(x)

    def leftmost(operands) -> tuple[Tensor, Tensor]:
        tokens, trees, length = operands.shape
        path = 2 ** torch.arange(length) - 1
        return path.expand(tokens, trees, length), torch.full((tokens, trees, length), -1.0)

    monkeypatch.setitem(PATH.providers, "gather", dataclasses.replace(PATH.providers["gather"], walk=leftmost))
    found, _ = layer.path(x)
    assert not torch.equal(found, nodes)
    assert found[0, 0].tolist() == [0, 1, 3, 7, 15, 31]
    assert measure(layer.route(x)).counts[0].tolist() == [50, *[0] * 31]


@pytest.mark.parametrize("provider", PATH.providers)
def test_each_provider_shows_its_own_walk(provider: str) -> None:
    if PATH.providers[provider].available(CPU, torch.float32):
        pytest.skip("not available here")
    torch.manual_seed(0)
    layer = PathFFF(24, 16, 5, 2, provider=provider).eval()
    x = torch.randn(7, 3, 24)
    nodes, scores = layer.path(x)
    assert nodes.shape == scores.shape == (7, 3, 2, 6)
    assert (nodes[..., 1:] == 2 * nodes[..., :-1] + 1 + (scores[..., :-1] > 0)).all()
    result = PATH.providers[provider].function(layer._operands(x))
    assert torch.equal(result.nodes.view(nodes.shape), nodes)
    assert torch.equal(result.scores.view(nodes.shape), scores)


def test_the_leaf_walk_of_the_cpp_is_the_one_it_infers_by() -> None:
    # One leaf that answers with its own number: the output tells which one was taken.
    for depth in (1, 4, 9):
        torch.manual_seed(depth)
        layer = LeafFFF(16, 1, depth, 1, provider="cpu").bfloat16().eval()
        with torch.no_grad():
            layer.w_out.zero_()
            layer.b_out.copy_(torch.arange(2**depth)[:, None] % 256)
            x = torch.randn(2000, 16).bfloat16()
            leaf = layer.path(x)[0][:, 0, -1] - (2**depth - 1)
            assert torch.equal(layer(x)[:, 0].long(), leaf % 256)


def test_a_choice_does_not_travel() -> None:
    for layer in layers():
        layer.eval()
        with torch.no_grad():
            layer(torch.randn(3, 24))
        assert layer.computed_by
        for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert same.computed_by == frozenset()
            assert same._chooser.operation is layer._chooser.operation
