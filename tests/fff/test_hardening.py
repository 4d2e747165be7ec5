"""Soft and straight-through forms against their definitions, region leak, auxiliary losses, schedules."""

import math

import pytest
import torch

from fff import PathFFF
from fff.decisions import bernoulli_entropy, reach
from fff.hardening import (
    Decisions,
    balance_loss,
    entropy_loss,
    scheduled,
    set_hardening,
    soft_evaluation,
)
from fff.kernels import PROVIDERS, PathOperands
from fff.reference import path_fff, soft_path_fff
from fff.topology import nodes_in_tree

SHAPES = [(1, 0), (3, 0), (1, 1), (2, 3), (1, 6)]
double = torch.float64


def operands(trees: int, depth: int, tokens: int = 17, bias: bool = True) -> list[torch.Tensor | None]:
    generator = torch.Generator().manual_seed(10 * trees + depth)
    nodes = nodes_in_tree(depth)
    shapes = [(tokens, 6), (trees, nodes, 6), (trees, nodes), (trees, nodes, 4)]
    tensors: list = [torch.randn(s, generator=generator, dtype=double, requires_grad=True) for s in shapes]
    if not bias:
        tensors[2] = None
    return tensors


def module_of(values: list, **options) -> PathFFF:
    _, w_in, b_in, w_out = values
    trees, nodes, width = w_in.shape
    module = PathFFF(width, w_out.shape[-1], nodes.bit_length() - 1, trees, bias=b_in is not None, **options).double()
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), [v for v in values[1:] if v is not None], strict=True):
            parameter.copy_(value)
    return module


def gradients(y: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    grad = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(1))
    return [y, *torch.autograd.grad(y, inputs, grad)]


@pytest.mark.parametrize("bias", [True, False])
def test_the_soft_form_equals_its_definition(bias: bool) -> None:
    for trees, depth in SHAPES:
        values = operands(trees, depth, bias=bias)
        module = module_of(values)
        set_hardening(module, form="soft", temperature=0.7)
        x = values[0].detach().requires_grad_()
        given = [v for v in values if v is not None]
        expected = gradients(soft_path_fff(*values, "gelu", torch.tensor(0.7, dtype=double)), given)
        for ours, theirs in zip(gradients(module(x), [x, *module.parameters()]), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)  # the layer's temperature is a float32


def test_soft_tends_to_hard_as_the_temperature_falls() -> None:
    values = operands(2, 4)
    hard = path_fff(*values, "gelu").y
    gaps = []
    for temperature in (1.0, 0.1, 0.01, 1e-4, 1e-7):
        soft = soft_path_fff(*values, "gelu", torch.tensor(temperature, dtype=double))
        gaps.append((soft - hard).abs().max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert gaps[-1] < 1e-6


@pytest.mark.parametrize("form", ["soft", "straight_through"])
def test_hard_is_untouched_bit_for_bit(form: str) -> None:
    module = module_of(operands(2, 5))
    x = operands(2, 5)[0].detach()
    before = module(x)
    set_hardening(module, form=form, temperature=0.3, region_leak=0.2, losses=("entropy", "balance"))
    module.eval()
    assert torch.equal(module(x), before)  # evaluation is hard
    module.train()
    set_hardening(module)
    assert torch.equal(module(x), before)


def test_soft_evaluation_ends_where_it_should() -> None:
    module = module_of(operands(1, 4)).eval()
    x = operands(1, 4)[0].detach()
    hard = module(x)
    with soft_evaluation(module):
        soft = module(x)
    assert not torch.allclose(soft, hard)
    assert torch.equal(module(x), hard)


@pytest.mark.parametrize(
    "provider", [name for name in PROVIDERS if name not in ("cpu", "triton")]
)  # they have no float64: test_fff_cpu.py, test_fff_triton.py
@pytest.mark.parametrize("leak", [0.0, 0.3])
def test_straight_through_gradients_of_every_provider(provider: str, leak: float) -> None:
    for trees, depth in SHAPES:
        values = operands(trees, depth)
        temperature = torch.tensor(0.5, dtype=double)
        flips = torch.rand(17, trees, depth, generator=torch.Generator().manual_seed(3)) < leak if leak else None
        expected = gradients(path_fff(*values, "gelu", flips, temperature).y, values)
        plain = path_fff(*values, "gelu", flips)
        assert torch.equal(expected[0], plain.y)
        if depth:
            assert not torch.allclose(expected[1], gradients(plain.y, values)[1])
        result = PROVIDERS[provider].function(PathOperands(*values, "gelu", flips, temperature))
        assert torch.equal(result.nodes, plain.nodes)
        for ours, theirs in zip(gradients(result.y, values), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_a_straight_through_gradient_worked_out_by_hand() -> None:
    # Depth 1, identity: y = s0 * 1 + gate * s1 * 10, gate' = sigmoid'(s0 / t) / t on the right branch.
    x = torch.tensor([[1.0]], dtype=double)
    w_in = torch.tensor([[[2.0], [5.0], [3.0]]], dtype=double, requires_grad=True)
    w_out = torch.tensor([[[1.0], [7.0], [10.0]]], dtype=double)
    y = path_fff(x, w_in, None, w_out, "identity", None, torch.tensor(0.5, dtype=double)).y
    assert y.item() == 2 + 30
    p = 1 / (1 + math.exp(-4))
    (gradient,) = torch.autograd.grad(y.sum(), w_in)
    assert gradient.flatten().tolist() == pytest.approx([1 + 30 * p * (1 - p) / 0.5, 0, 10])


@pytest.mark.parametrize(
    "provider", [name for name in PROVIDERS if name not in ("cpu", "triton")]
)  # they have no float64: test_fff_cpu.py, test_fff_triton.py
def test_gradients_flow_through_the_scores(provider: str) -> None:
    values = operands(2, 3)
    function = PROVIDERS[provider].function

    def loss(result) -> torch.Tensor:
        return result.scores.square().sum() + result.y.sum()

    expected = torch.autograd.grad(loss(path_fff(*values, "gelu")), values)
    for ours, theirs in zip(
        torch.autograd.grad(loss(function(PathOperands(*values, "gelu"))), values), expected, strict=True
    ):
        torch.testing.assert_close(ours, theirs)


class WithEntropy(torch.nn.Module):
    """A layer's output beside its entropy loss, kept in float64."""

    def __init__(self, layer: PathFFF) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, losses = self.layer.forward_with_losses(x)
        return y, losses["entropy"].double()


@pytest.mark.parametrize("form", ["soft", "hard"])
def test_gradcheck_of_layer_and_entropy(form: str) -> None:
    values = operands(2, 2, tokens=5)
    module = WithEntropy(module_of(values))
    set_hardening(module, form=form, temperature=0.5, losses=("entropy",))
    names = [name for name, _ in module.named_parameters()]

    def call(x: torch.Tensor, *weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), x)

    assert torch.autograd.gradcheck(call, tuple(values))


def test_region_leak_flips_as_often_as_it_says() -> None:
    torch.manual_seed(0)
    module = PathFFF(8, 8, 1)
    x = torch.randn(4000, 8)
    set_hardening(module, region_leak=0.25)
    nodes = module._on_path(x)[1].nodes
    assert nodes.shape == (4000, 1, 1)
    usual = module.path(x)[0]
    function = PROVIDERS["masked"].function
    flips = module.leak(4000, 1, 1)
    leaked = function(PathOperands(x, module.w_in, module.b_in, module.w_out, "gelu", flips)).nodes
    share = (leaked[..., 1] != usual[..., 1]).float().mean().item()
    assert share == pytest.approx(0.25, abs=0.03)
    module.eval()
    assert module.leak(4000, 1, 1) is None


def test_reach_sums_to_one_on_every_level() -> None:
    p = torch.rand(3, 2, 31, dtype=double)
    reached = reach(p)
    assert reached.shape == (3, 2, 63)
    for level in range(6):
        torch.testing.assert_close(reached[..., 2**level - 1 : 2 ** (level + 1) - 1].sum(-1), torch.ones(3, 2).double())
    # Node 12 is the right child of 5, the left one of 2, the right one of 0.
    torch.testing.assert_close(reached[..., 12], p[..., 0] * (1 - p[..., 2]) * p[..., 5])
    assert reach(torch.rand(3, 2, 0)).tolist() == torch.ones(3, 2, 1).tolist()


def test_entropy_is_right_where_probabilities_round() -> None:
    t = torch.tensor(0.5)
    scores = torch.tensor([0.0, 1.0, -1.0, 400.0, -400.0])
    p = 1 / (1 + math.exp(-2))
    h = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    assert bernoulli_entropy(scores, t).tolist() == pytest.approx([math.log(2), h, h, 0, 0], abs=1e-6)
    decisions = Decisions(torch.zeros(4, 2, 3), torch.zeros(4, 2, 3).long(), torch.ones(4, 2, 3), 3)
    assert entropy_loss(decisions, t).item() == pytest.approx(6 * math.log(2))


def test_balance_is_zero_when_even_and_one_when_all_go_one_way() -> None:
    t = torch.tensor(1e-3)

    def loss(right: list[list[bool]]) -> float:
        went = torch.tensor(right)  # (N, 2) decisions of a tree of depth 2
        nodes = torch.stack([torch.zeros(len(right)).long(), 1 + went[:, 0].long()], -1)[:, None]
        scores = torch.where(went, 1.0, -1.0)[:, None]
        return balance_loss(Decisions(scores, nodes, torch.ones_like(scores), 3), t).item()

    assert loss([[False, False], [False, True], [True, False], [True, True]]) == pytest.approx(0, abs=1e-6)
    assert loss([[True, True]] * 4) == pytest.approx(1, abs=1e-5)
    # Even at the root, one way below: half of the two levels' sum.
    assert loss([[False, True], [False, True], [True, False], [True, False]]) == pytest.approx(0.5, abs=1e-5)


def test_schedules_at_their_ends_and_in_the_middle() -> None:
    values = {
        name: [scheduled(name, 4.0, 1.0, t) for t in (0, 0.25, 0.5, 1)] for name in ("constant", "linear", "step")
    }
    assert values == {"constant": [4, 4, 4, 4], "linear": [4, 3.25, 2.5, 1], "step": [4, 4, 1, 1]}
    assert [scheduled("cosine", 4.0, 1.0, t) for t in (0, 0.5, 1)] == pytest.approx([4, 2.5, 1])
    assert [scheduled("exponential", 4.0, 1.0, t) for t in (0, 0.5, 1)] == pytest.approx([4, 2, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"region_leak": 0.6}, "region_leak=0.6"),
        ({"form": "mushy"}, "form='mushy' is unknown; allowed: hard, soft"),
        ({"losses": ("entropi",)}, "losses names 'entropi'"),
    ],
)
def test_bad_settings_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        set_hardening(PathFFF(4, 4, 2), **arguments)


def test_a_conditional_provider_refuses_the_soft_form() -> None:
    for options in ({"provider": "gather"}, {"execution": "conditional"}):
        with pytest.raises(ValueError, match="needs all nodes"):
            set_hardening(PathFFF(4, 4, 2, **options), form="soft")
    with pytest.raises(ValueError, match="unknown"):
        scheduled("cubic", 1, 0, 0.5)
    with pytest.raises(ValueError, match="above 0"):
        scheduled("exponential", 1, 0, 0.5)


@pytest.mark.parametrize("form", ["soft", "straight_through", "hard"])
def test_every_form_compiles_once_for_all_temperatures(form: str) -> None:
    module = PathFFF(8, 8, 4)
    set_hardening(module, form=form, losses=("entropy", "balance"))
    x = torch.randn(9, 8)
    count = 0

    def backend(graph, inputs):
        nonlocal count
        count += 1
        return graph.forward

    compiled = torch.compile(module.forward_with_losses, fullgraph=True, backend=backend)
    for temperature in (1.0, 0.5):
        module.temperature.fill_(temperature)
        (y, losses), (expected, plain) = compiled(x), module.forward_with_losses(x)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(losses, plain)
    assert count == 1
