"""The rivals against their definitions in outputs and all gradients, their balance, limits and modes."""

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fff.balance import forget, rebalance
from fff.decay import decays
from fff.kernels.rows import dots, weighted
from fff.layers.base import Routed
from fff.reference import moe, peer
from fff.rivals import moe as moe_module
from fff.rivals.moe import EVEN, MoE, MoESettings, expert_balance_loss, library_fits
from fff.rivals.peer import PEER, PEERSettings, retrieve
from fff.usage import measure

double = torch.float64
TOKENS = (0, 1, 3, 300)
# (experts, width, top, d_in, d_out); the last fits torch's grouped product in float32.
MOES = ((2, 1, 1, 7, 5), (5, 3, 2, 7, 5), (9, 4, 8, 3, 2), (8, 16, 2, 16, 32))
# (keys, heads, top, query_width)
PEERS = ((2, 1, 1, 2), (4, 3, 2, 8), (3, 2, 3, 4), (8, 2, 5, 6))


def a_moe(experts: int, width: int, top: int, d_in: int = 7, d_out: int = 5, dtype=double, **options) -> MoE:
    torch.manual_seed(experts)
    layer = MoE(d_in, d_out, MoESettings(experts, width, top, **options), dtype=dtype)
    nn.init.normal_(layer.b_balance, std=0.2)
    return layer


def a_peer(keys: int, heads: int, top: int, query_width: int = 8, dtype=double, d_in: int = 7, d_out: int = 5) -> PEER:
    torch.manual_seed(keys)
    return PEER(d_in, d_out, PEERSettings(keys, heads, top, query_width), dtype=dtype)


def definition(layer: Routed, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output (N, K) and units (N, G, K) as the reference has them."""
    if isinstance(layer, MoE):
        weights = (layer.w_router, layer.b_balance, layer.w_in, layer.w_out)
        y, units = moe(x, *weights, layer.top, layer.activation)
        units = units[:, None]
    else:
        assert isinstance(layer, PEER)
        y, units = peer(x, layer.w_query, layer.w_key, layer.w_in, layer.w_out, layer.top, layer.activation)
    return y + 0 * (sum(p.sum() for p in layer.parameters()) + x.sum()), units


def everything(y: Tensor, layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Output and all gradients."""
    grad = torch.randn(y.shape, dtype=double, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *(p for p in layer.parameters() if p.requires_grad)], grad)]


def clear(layer: Routed, x: Tensor, margin: float) -> Tensor:
    """Tokens none of whose choices is so near that two roundings may choose differently."""
    return x[(layer.route(x).scores > margin).flatten(1).all(1)]


def held_to_definition(layer: Routed, tokens: int, dtype: torch.dtype, tolerance: float) -> None:
    x = clear(layer.double(), torch.randn(tokens, layer.d_in, dtype=double), 1e-4)
    layer.to(dtype)
    x = x.to(dtype).requires_grad_()
    expected, units = definition(layer, x)
    for ours, theirs in zip(everything(layer(x), layer, x), everything(expected, layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    assert torch.equal(layer.route(x).units.sort(-1).values, units.sort(-1).values)


@pytest.mark.parametrize("dtype", [double, torch.float32])
@pytest.mark.parametrize("shape", MOES)
def test_a_mixture_equals_its_definition(shape: tuple, dtype: torch.dtype) -> None:
    for tokens in TOKENS:
        held_to_definition(a_moe(*shape), tokens, dtype, 1e-10 if dtype == double else 1e-4)


@pytest.mark.parametrize("dtype", [double, torch.float32])
@pytest.mark.parametrize("shape", PEERS)
def test_product_keys_equal_their_definition(shape: tuple, dtype: torch.dtype) -> None:
    for tokens in TOKENS:
        held_to_definition(a_peer(*shape), tokens, dtype, 1e-10 if dtype == double else 1e-4)


def test_both_ways_of_a_mixture_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests above compared: the grouped product, where it is, and our blocks."""
    asked: list[bool] = []
    monkeypatch.setattr(moe_module, "library_fits", lambda *args: asked.append(library_fits(*args)) or asked[-1])
    for shape, dtype in itertools.product(MOES[-2:], (double, torch.float32)):
        a_moe(*shape, dtype=dtype)(torch.randn(6, shape[3], dtype=dtype))
    has = hasattr(nn.functional, "grouped_mm")
    assert asked == [False, False, False, has]


@pytest.mark.parametrize("layer", [a_moe(*MOES[-1]), a_moe(*MOES[1]), a_peer(*PEERS[1])], ids=["moe", "blocks", "peer"])
def test_half_types_and_autocast_stay_near_float64(layer: Routed) -> None:
    layer = copy.deepcopy(layer)
    x = clear(layer, torch.randn(300, layer.d_in, dtype=double).bfloat16().double(), 0.02)
    half, single = copy.deepcopy(layer).bfloat16(), copy.deepcopy(layer).float()
    narrow = x.bfloat16().requires_grad_()
    wide = x.requires_grad_()
    expected = everything(definition(layer, wide)[0], layer, wide)
    for ours, theirs in zip(everything(half(narrow), half, narrow), expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.double(), theirs, atol=4e-2 * theirs.abs().max().item(), rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        x32 = x.detach().float().requires_grad_()
        y = single(x32)
    assert y.dtype == torch.bfloat16
    for ours, theirs in zip(everything(y, single, x32), expected, strict=True):
        torch.testing.assert_close(ours.double(), theirs, atol=4e-2 * theirs.abs().max().item(), rtol=0)
    assert torch.equal(single.route(x.detach().float()).units, layer.route(x.detach()).units)


@pytest.mark.parametrize("kind", ["moe", "peer"])
def test_layers_compile_to_one_graph(kind: str) -> None:
    torch._dynamo.reset()
    layer = a_moe(8, 16, 2, 16, 16, dtype=torch.float32) if kind == "moe" else a_peer(4, 3, 2, dtype=torch.float32)
    x = torch.randn(40, layer.d_in, requires_grad=True)
    other = copy.deepcopy(layer)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(everything(compiled(x), other, x), everything(layer(x), layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    if isinstance(layer, MoE) and isinstance(other, MoE):
        assert torch.equal(other.visits, layer.visits)
        assert layer.visits.sum() == 80


def test_row_operators_have_derivatives_of_every_order() -> None:
    torch.manual_seed(0)
    rows = torch.tensor([[0, 2], [2, 2], [1, 0]])
    x, w, c = (torch.randn(*shape, dtype=double, requires_grad=True) for shape in ((3, 4), (5, 4), (3, 2)))
    for function, operands in ((dots, (x, w)), (weighted, (c, w))):
        torch.autograd.gradcheck(lambda *given, f=function: f(*given, rows), operands)
        torch.autograd.gradgradcheck(lambda *given, f=function: f(*given, rows), operands)
        plain = torch.func.vmap(lambda *given, f=function: f(*given, rows))(*(o[None] for o in operands))[0]
        torch.testing.assert_close(function(*operands, rows), plain)


@pytest.mark.parametrize("layer", [a_moe(*MOES[1]), a_peer(*PEERS[1])], ids=["moe", "peer"])
def test_forward_mode_is_the_gradients_transpose(layer: Routed) -> None:
    x, v, u = torch.randn(6, 7, dtype=double), torch.randn(6, 7, dtype=double), torch.randn(6, 5, dtype=double)
    _, forward = torch.func.jvp(layer, (x,), (v,))
    (backward,) = torch.autograd.grad(layer(x.requires_grad_()), x, u)
    torch.testing.assert_close((forward * u).sum(), (backward * v).sum())


def test_the_memory_of_product_keys_is_that_of_inputs_outputs_and_scores() -> None:
    layer, tokens = a_peer(16, 4, 8, 16, torch.float32, 256, 256), 2000
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(tokens, 256, requires_grad=True))
    numbers = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in kept}.values())
    gathered = tokens * 32 * 256  # rows of all retrieved neurons
    assert numbers < gathered / 5


def test_retrieval_finds_the_largest_sums_of_all() -> None:
    first, second = torch.randn(20, 3, 9), torch.randn(20, 3, 9)
    for top in (1, 4, 9, 12):
        scores, units = retrieve(first, second, top)
        expected = (first[..., :, None] + second[..., None, :]).flatten(-2).topk(top, -1)
        assert torch.equal(scores, expected.values)
        assert torch.equal(units, expected.indices)


@pytest.mark.parametrize("layer", [a_moe(*MOES[1]), a_peer(*PEERS[2])], ids=["moe", "peer"])
def test_a_route_has_the_units_and_their_margins(layer: Routed) -> None:
    x = torch.randn(2, 9, 7, dtype=double)
    route = layer.route(x)
    assert torch.equal(route.flat().units, definition(layer, x.flatten(0, 1))[1])
    assert route.units.shape[:2] == (2, 9)
    assert (route.size, route.units.shape[2]) == (layer.units, layer.groups)
    assert (route.scores >= 0).all()
    assert not route.scores.requires_grad
    usage = measure(route)
    assert usage.counts.sum(-1).tolist() == [18 * route.units.shape[-1]] * layer.groups
    if isinstance(layer, MoE):
        s = torch.sigmoid(x[0, 0] @ layer.w_router.t()) + layer.b_balance
        best = s.sort(descending=True).values
        torch.testing.assert_close(route.scores[0, 0, 0], best[:2] - best[2])


def skewed(tokens: int) -> Tensor:
    """Tokens that share most of their content, so that a router sends most of them one way."""
    return torch.randn(7, dtype=double) + 0.3 * torch.randn(tokens, 7, dtype=double)


@pytest.mark.parametrize("top", [1, 2])
def test_balance_without_a_loss_spreads_skewed_tokens(top: int) -> None:
    layer = a_moe(8, 4, top, balance_rate=0.004)
    nn.init.zeros_(layer.b_balance)
    x = skewed(400)
    before = measure(layer.route(x))
    for _ in range(150):
        layer(x)
        rebalance(nn.Sequential(layer))
    after = measure(layer.route(x))
    assert before.dead.item() >= 3
    assert after.dead.item() == 0
    assert before.fullest.item() > 2.5 * top / 8
    assert after.fullest.item() < 1.4 * top / 8


def test_a_move_is_against_the_surplus_of_all_passes_of_a_step_and_all_processes() -> None:
    layer = a_moe(4, 2, 1, balance_rate=0.01)
    bias, x = layer.b_balance.clone(), torch.randn(41, 7, dtype=double)
    counts = torch.bincount(layer.route(x).units.flatten(), minlength=4)
    whole, parts, halves = (copy.deepcopy(layer) for _ in range(3))
    whole(x)
    for part in x.split(6):
        parts(part)
    assert torch.equal(whole.visits, counts)
    halves(x[:20])
    rebalance(halves, lambda own: own + torch.bincount(layer.route(x[20:]).units.flatten(), minlength=4))
    for each in (whole, parts):
        rebalance(each)
    assert torch.equal(whole.b_balance, bias - 0.01 * (4 * counts - 41).sign().double())
    assert torch.equal(whole.b_balance, parts.b_balance)
    assert torch.equal(whole.b_balance, halves.b_balance)
    assert not whole.visits.any()
    rebalance(whole)  # a step without tokens
    assert torch.equal(whole.b_balance, parts.b_balance)


def test_only_training_passes_count_and_they_can_be_forgotten() -> None:
    layer, x = a_moe(4, 2, 1), torch.randn(9, 7, dtype=double)
    with torch.no_grad():
        layer(x)
    layer.route(x)
    layer.eval()(x)
    assert not layer.visits.any()
    layer.train()(x)
    assert layer.visits.sum() == 9
    forget(layer)
    assert not layer.visits.any()


def test_the_bias_chooses_and_is_saved_but_neither_trained_nor_weighed() -> None:
    layer = a_moe(4, 2, 1).eval()
    x = torch.randn(9, 7, dtype=double)
    assert not layer.b_balance.requires_grad
    assert {name for name, p in layer.named_parameters() if decays(name, p)} == {"w_router", "w_in", "w_out"}
    assert list(layer.state_dict()) == ["w_router", "w_in", "w_out", "b_balance"]
    moved = copy.deepcopy(layer)
    with torch.no_grad():
        moved.b_balance += 3  # of all experts alike
    torch.testing.assert_close(moved(x), layer(x))
    with torch.no_grad():
        moved.b_balance[2] += 10
    assert (moved.route(x).units == 2).all()
    assert not torch.allclose(moved(x), layer(x))
    again = a_moe(4, 2, 1)
    again.load_state_dict(moved.state_dict())
    assert torch.equal(again.eval()(x), moved(x))
    layer.init_weights(0.02)
    assert not layer.b_balance.any()


def test_the_balance_loss_is_1_for_even_use_and_more_for_uneven() -> None:
    shares, everyone = torch.full((8, 4), 0.5), torch.arange(8)[:, None] % 4
    assert expert_balance_loss(shares, everyone).item() == pytest.approx(1)
    uneven = torch.tensor([0.9, 0.1, 0.1, 0.1]).repeat(8, 1).requires_grad_()
    loss = expert_balance_loss(uneven, torch.zeros(8, 1, dtype=torch.int64))
    assert loss.item() == pytest.approx(4 * 0.75)
    assert (torch.autograd.grad(loss, uneven)[0][:, 0] > 0).all()
    assert expert_balance_loss(torch.zeros(0, 4), torch.zeros(0, 1, dtype=torch.int64)).item() == 0


def test_the_balance_loss_is_computed_where_it_has_a_weight() -> None:
    x = torch.randn(30, 7, dtype=double)
    without, layer = a_moe(4, 2, 2), a_moe(4, 2, 2, expert_balance_weight=0.5)
    assert (without.losses, dict(without.loss_weights)) == ((), {EVEN: 0.0})
    assert (layer.losses, dict(layer.loss_weights)) == ((EVEN,), {EVEN: 0.5})
    assert without.forward_with_losses(x)[1] == {}
    y, losses = layer.forward_with_losses(x)
    assert torch.equal(y, layer(x))
    shares = torch.sigmoid(x @ layer.w_router.t())
    used = torch.bincount(layer.route(x).units.flatten(), minlength=4) / 60
    expected = 4 * (used * (shares / shares.sum(-1, keepdim=True)).mean(0)).sum()
    assert losses[EVEN].item() == pytest.approx(expected.item())
    assert losses[EVEN].dtype == torch.float32


def test_product_keys_flops_are_those_that_are_computed() -> None:
    layer = a_peer(8, 2, 5, 6, torch.float32)
    with FlopCounterMode(display=False) as counter:
        layer(torch.randn(11, 7))
    assert counter.get_total_flops() == 11 * layer.settings.flops(7, 5).used


@pytest.mark.parametrize("layer", [a_moe(*MOES[1]), a_peer(*PEERS[1])], ids=["moe", "peer"])
def test_inputs_that_do_not_fit_are_named(layer: Routed) -> None:
    for call in (layer, layer.route):
        with pytest.raises(ValueError, match="last dimension is 6, but the layer has d_in=7"):
            call(torch.randn(3, 6, dtype=double))
        with pytest.raises(ValueError, match=r"the input is torch.float32, but the layer's weights are torch.float64"):
            call(torch.randn(3, 7))


@pytest.mark.parametrize("layer", [a_moe(*MOES[-1]).float(), a_peer(*PEERS[1]).float()], ids=["moe", "peer"])
def test_an_exported_layer_takes_any_number_of_tokens(layer: Routed) -> None:
    layer = copy.deepcopy(layer).eval()
    with torch.no_grad():
        tokens = torch.export.Dim("tokens", min=2, max=4096)
        exported = torch.export.export(layer, (torch.randn(20, layer.d_in),), dynamic_shapes=({0: tokens},)).module()
        for count in (2, 3, 77, 500):
            x = torch.randn(count, layer.d_in)
            torch.testing.assert_close(exported(x), layer(x), atol=1e-5, rtol=1e-5)
