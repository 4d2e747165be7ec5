"""Derivatives of every order and mode, under every provider: computed, and equal to those of provider masked."""

import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.autograd import forward_ad

from fff import LeafFFF, PathFFF
from fff.kernels import LEAF, PATH, PathOperands
from fff.kernels.triton import operators as triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WITH_DERIVATIVES = "hard", "straight_through"


def layer(kind: str, provider: str, form: str = "hard") -> PathFFF | LeafFFF:
    """The same weights under each provider. Of a LeafFFF of depth 6 the decisions are computed along the path."""
    torch.manual_seed(1)
    module: PathFFF | LeafFFF
    if kind == "path":
        module = PathFFF(10, 8, 3, 2, provider=provider)
    else:
        gated = kind.startswith("gated ")
        module = LeafFFF(10, 8, int(kind.rpartition("leaf")[2]), 3, gated=gated, provider=provider)
    module.form = form
    return module.to(DEVICE)


def providers() -> list:
    """Kind of layer and provider."""
    reason = triton.available(DEVICE, torch.float32)
    absent = pytest.mark.skipif(reason is not None, reason=f"provider triton: {reason}")
    path = [pytest.param("path", name, marks=absent if name == "triton" else ()) for name in PATH.providers]
    return [*path, *((kind, name) for kind in ("leaf3", "leaf6", "gated leaf3") for name in LEAF.providers)]


def jvp(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    return list(torch.func.jvp(module, (x,), (v,)))


@torch.no_grad()
def jvp_without_gradients(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    return jvp(module, x, v)


@torch.no_grad()
def dual_numbers(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    module(x)  # an ordinary call first, which may leave a short way behind
    with forward_ad.dual_level():
        return list(forward_ad.unpack_dual(module(forward_ad.make_dual(x, v))))[:2]


def double_backward_jvp(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    return [torch.autograd.functional.jvp(module, (x,), (v,))[1]]


def energy(module: nn.Module, x: Tensor) -> Tensor:
    return module(x).square().sum()


def hessian(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    return [torch.autograd.functional.hessian(partial(energy, module), x)]


def func_hessian(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    return [torch.func.hessian(partial(energy, module))(x)]


def gradient_penalty(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    (g,) = torch.autograd.grad(energy(module, x), x, create_graph=True)
    loss = g.square().sum() + module(x).sum()
    return list(torch.autograd.grad(loss, [x, *module.parameters()], materialize_grads=True))


def third_order(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = energy(module, x)
    for _ in range(2):
        (g,) = torch.autograd.grad(y, x, create_graph=True)
        y = (g * v).sum()
    return list(torch.autograd.grad(y, [x, *module.parameters()], materialize_grads=True))


def functional_gradient(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, weights, (x,)).square().sum()

    weights = dict(module.named_parameters())
    found = torch.func.grad(loss)(weights, x)
    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    return [*found.values(), *each.values()]


def jacobians(module: nn.Module, x: Tensor, v: Tensor) -> list[Tensor]:
    return [torch.func.jacrev(module)(x), torch.func.jacfwd(module)(x), torch.func.vmap(module)(x)]


WAYS: list[Callable[[nn.Module, Tensor, Tensor], list[Tensor]]] = [
    jvp, jvp_without_gradients, dual_numbers, double_backward_jvp, hessian, func_hessian, gradient_penalty, third_order,
    functional_gradient, jacobians,
]  # fmt: skip


@pytest.mark.parametrize("form", WITH_DERIVATIVES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize(("kind", "provider"), providers())
def test_derivatives_are_those_of_masked(kind: str, provider: str, way, form: str) -> None:
    module, masked = layer(kind, provider, form), layer(kind, "masked", form)
    torch.manual_seed(2)
    x, v = torch.randn(4, 10, device=DEVICE), torch.randn(4, 10, device=DEVICE)
    for training in (True, False):
        found, expected = (way(m.train(training), x, v) for m in (module, masked))
        assert any(part.any() for part in expected)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("way", [jvp, functional_gradient], ids=lambda way: way.__name__)
@pytest.mark.parametrize(
    ("kind", "provider"),
    [("path", "gather"), ("path", "cpu"), ("leaf6", "gather"), ("leaf3", "cpu"), ("gated leaf3", "cpu")],
)
def test_compiled_derivatives_are_those_of_masked(kind: str, provider: str, way) -> None:
    torch._dynamo.reset()
    module, masked = layer(kind, provider), layer(kind, "masked")
    x, v = torch.randn(4, 10, device=DEVICE), torch.randn(4, 10, device=DEVICE)
    found = torch.compile(way, backend="aot_eager")(module, x, v)
    for ours, theirs in zip(found, way(masked, x, v), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("provider", ["gather", "cpu"])
def test_exported_layers_keep_the_operator(provider: str, strict: bool) -> None:
    module = layer("path", provider)
    exported = torch.export.export(module, (torch.randn(4, 10),), strict=strict)
    assert f"fff.{provider}_forward.default" in [str(node.target) for node in exported.graph.nodes]


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"])
@pytest.mark.parametrize(("kind", "provider"), [("path", "gather"), ("path", "masked"), ("leaf3", "gather")])
def test_second_order_gradients_by_finite_differences(kind: str, provider: str, activation: str) -> None:
    module = layer(kind, provider).double()
    module.activation = activation
    names = [name for name, _ in module.named_parameters()]

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), x)

    # One token: numerical second derivatives of few numbers.
    x = torch.randn(1, 10, dtype=torch.float64, device=DEVICE, requires_grad=True)
    weights = [parameter.detach().requires_grad_() for parameter in module.parameters()]
    assert torch.autograd.gradgradcheck(call, (x, *weights), fast_mode=True)


@pytest.mark.parametrize(
    ("kind", "provider"), [("path", "gather"), ("path", "cpu"), ("leaf3", "cpu"), ("gated leaf3", "cpu")]
)
def test_half_types_have_second_order_gradients_too(kind: str, provider: str) -> None:
    module, wide = layer(kind, provider).bfloat16(), layer(kind, "masked").bfloat16().double()
    x, v = torch.randn(4, 10).bfloat16(), torch.randn(4, 10)
    for ours, theirs in zip(gradient_penalty(module, x, v), gradient_penalty(wide, x.double(), v), strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).abs().max() <= 0.05 * theirs.abs().max()


@pytest.mark.parametrize("provider", ["gather", "cpu"])
def test_first_order_gradients_stay_with_the_operator(provider: str) -> None:
    module, x = layer("path", provider), torch.randn(4, 10, requires_grad=True)
    with torch.profiler.profile() as profile:
        module(x).sum().backward()
    assert f"fff::{provider}_backward" in {event.name for event in profile.events()}
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> Callable:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    compiled = torch.compile(copy.deepcopy(module), backend=aot_autograd(fw_compiler=backend))
    compiled(x).sum().backward()
    assert f"fff.{provider}_backward.default" in seen


def test_the_providers_own_functions_know_it_too() -> None:
    module = layer("path", "masked")
    x, v = torch.randn(4, 10), torch.randn(4, 10)
    for name in ("gather", "cpu"):
        function = PATH.providers[name].function
        _, found = torch.func.jvp(lambda x: function(PathOperands(x, *module.parameters(), "gelu")).y, (x,), (v,))  # noqa: B023
        torch.testing.assert_close(found, jvp(module, x, v)[1])
