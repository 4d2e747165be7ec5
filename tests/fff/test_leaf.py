"""LeafFFF against its definition in every form; chunks, blocks, the master leaf, limits, bad input."""

import itertools

import pytest
import torch
from torch.nn.functional import gelu, linear

import fff.layers.leaf
from fff import LeafFFF
from fff.hardening import set_hardening, soft_evaluation
from fff.kernels import LEAF
from fff.kernels.leaves import Leaves, one_leaf_each
from fff.layers.leaf import MASTER_VALUE, VALUE, LeafSettings
from fff.reference import leaf_fff, soft_leaf_fff, with_master_leaf

FORMS = ["hard", "soft", "straight_through"]
# Depth 5 decides by one product, depth 6 along the path; 700 tokens fill blocks, 3 do not.
SHAPES = list(itertools.product((0, 1, 3, 63, 700), ((0, 5), (1, 1), (3, 4), (5, 2), (6, 3))))
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
double = torch.float64


def layer(depth: int, leaf_width: int, *, form: str = "soft", dtype=double, **options) -> LeafFFF:
    torch.manual_seed(10 * depth + leaf_width)
    module = LeafFFF(7, 5, depth, leaf_width, **options).to(dtype)
    set_hardening(module, form=form, temperature=0.5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2)  # scores away from 0, where the forms differ
    return module


def everything(y: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and all gradients."""
    grad = torch.randn(y.shape, dtype=double, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y, *torch.autograd.grad(y, inputs, grad)]


def defined(module: LeafFFF, x: torch.Tensor, form: str, **options) -> torch.Tensor:
    """The definition's output; zero gradients stand where it has none."""
    nodes = [module.w_node, module.b_node] if module.depth else [x.new_zeros(0, 7), x.new_zeros(0)]
    weights = [*nodes, module.w_in, module.b_in, module.w_out, module.b_out]
    options |= {name: getattr(module, name) for name in VALUE}
    if form == "soft":
        y = soft_leaf_fff(x, *weights, module.activation, module.temperature, **options)
    else:
        temperature = module.temperature if form == "straight_through" else None
        y = leaf_fff(x, *weights, module.activation, temperature=temperature, **options).y
    if module.mix is not None:
        master = [getattr(module, name) for name in fff.layers.leaf.MASTER]
        values = [getattr(module, name) for name in MASTER_VALUE]
        y = with_master_leaf(y, x, *master, module.mix, module.activation, *values)
    return y + 0 * sum(parameter.sum() for parameter in module.parameters()) + 0 * x.sum()


def clear_tokens(module: LeafFFF, x: torch.Tensor) -> torch.Tensor:
    """Tokens none of whose decisions is so near that two roundings may choose two paths."""
    _, scores = module.double().path(x.double())
    return x[(scores.abs() > 1e-4).flatten(1).all(1)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_equals_its_definition(form: str, dtype: torch.dtype) -> None:
    for tokens, (depth, width) in SHAPES:
        module = layer(depth, width, form=form)
        x = clear_tokens(module, torch.randn(tokens, 7, dtype=dtype)).requires_grad_()
        module.to(dtype)
        inputs = [x, *module.parameters()]
        expected = everything(defined(module, x, form), inputs)
        for ours, theirs in zip(everything(module(x), inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("provider", LEAF.providers)
@pytest.mark.parametrize("form", FORMS)
def test_gated_leaves_equal_their_definition_whoever_computes(form: str, provider: str) -> None:
    dtype = torch.float32 if provider == "cpu" else double
    close = {"atol": TOLERANCE[dtype], "rtol": TOLERANCE[dtype]}
    for tokens, (depth, width), master in ((9, (0, 5), 0), (9, (2, 3), 4), (300, (3, 4), 0), (40, (6, 3), 2)):
        settings = {"gated": True, "master_width": master, "activation": "silu"}
        module = layer(depth, width, form=form, **settings)
        x = clear_tokens(module, torch.randn(tokens, 7, dtype=dtype)).requires_grad_()
        module.to(dtype).provider = provider
        inputs = [x, *module.parameters()]
        expected = everything(defined(module, x, form), inputs)
        for ours, theirs in zip(everything(module(x), inputs), expected, strict=True):
            torch.testing.assert_close(ours, theirs, **close)
        with torch.no_grad():
            torch.testing.assert_close(module.eval()(x), defined(module, x, "hard"), **close)


def test_a_gate_costs_a_row_in() -> None:
    plain, gated = (LeafSettings(2, 4, 3, gated=each) for each in (False, True))
    assert (plain.tag, gated.tag) == ("leaf4x2+m3", "gated-leaf4x2+m3")
    for settings in (plain, gated):
        assert (settings.neurons_used, settings.neurons_trained) == (7, 19)
    more = [theirs - ours for ours, theirs in zip(plain.flops(10, 6), gated.flops(10, 6), strict=True)]
    assert more == [2 * 10 * 7, 2 * 10 * 19]
    names = {name for name, _ in gated.build(10, 6).named_parameters()}
    assert names - {name for name, _ in plain.build(10, 6).named_parameters()} == {*VALUE, *MASTER_VALUE}
    with pytest.raises(ValueError, match=r"`gated` is 1; set it to true or false"):
        LeafSettings(2, 4, gated=1)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [0, 3, 6])
def test_half_types_stay_near_float64(form: str, depth: int) -> None:
    module = layer(depth, 4, form=form, dtype=torch.bfloat16, master_width=3)
    x = torch.randn(300, 7).bfloat16()
    _, scores = module.double().path(x.double())
    x = x[(scores.abs() > 0.05).flatten(1).all(1)].requires_grad_()
    wide = x.detach().double().requires_grad_()
    expected = everything(defined(module, wide, form), [wide, *module.parameters()])
    module.bfloat16()
    found = everything(module(x), [x, *module.parameters()])
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        assert (ours.double() - theirs).abs().max() <= 0.05 * theirs.abs().max() + 1e-12


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
@pytest.mark.parametrize("form", ["hard", "soft"])
def test_gradcheck(form: str, activation: str) -> None:
    for master in (0, 2):
        module = layer(2, 2, form=form, activation=activation, master_width=master, chunk_neurons=24)
        names = [name for name, _ in module.named_parameters()]

        def call(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), x)  # noqa: B023

        weights = [parameter.detach().requires_grad_() for parameter in module.parameters()]
        assert torch.autograd.gradcheck(call, (torch.randn(5, 7, dtype=double, requires_grad=True), *weights))


def test_straight_through_has_the_gradient_of_the_gated_leaf() -> None:
    # gradcheck cannot see it: the forward is flat in the decisions. What the gradient stands for is not.
    module = layer(3, 4, form="straight_through")
    x = torch.randn(9, 7, dtype=double)
    nodes, scores = (part[:, 0] for part in module.path(x))
    fixed = [module.w_in, module.b_in, module.w_out, module.b_out]
    y = one_leaf_each(x, nodes[:, -1] - 7, Leaves(*fixed), "gelu", 0.0).detach()
    signs = 2.0 * (nodes[:, 1:] % 2 == 0) - 1

    def gated(w_node: torch.Tensor, b_node: torch.Tensor) -> torch.Tensor:
        found = (w_node[nodes[:, :-1]] * x[:, None]).sum(-1) + b_node[nodes[:, :-1]]
        p = torch.sigmoid(signs * found / module.temperature)
        value = torch.sigmoid(signs * scores / module.temperature)
        # The product's gradient with every other factor at 1, as each factor p stands for 1 in the forward pass.
        return y * (1 + (p - value).sum(-1, keepdim=True))

    decisions = [module.w_node, module.b_node]
    assert torch.autograd.gradcheck(gated, decisions)
    for ours, theirs in zip(everything(module(x), decisions), everything(gated(*decisions), decisions), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_soft_tends_to_hard_as_the_temperature_falls() -> None:
    module = layer(4, 3).eval()
    x = torch.randn(200, 7, dtype=double)
    hard, gaps = module(x), []
    for temperature in (1.0, 0.1, 0.01, 1e-4, 1e-7):
        module.temperature.fill_(temperature)
        with soft_evaluation(module):
            gaps.append((module(x) - hard).abs().max().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert gaps[-1] < 1e-6
    assert torch.equal(module(x), hard)


@pytest.mark.parametrize("form", FORMS)
def test_depth_0_is_the_dense_network_exactly(form: str) -> None:
    module = layer(0, 6, form=form, dtype=torch.float32)
    x = torch.randn(50, 7)
    expected = linear(gelu(linear(x, module.w_in[0], module.b_in[0])), module.w_out[0].t(), module.b_out[0])
    assert torch.equal(module(x), expected)
    assert torch.equal(module.eval()(x), expected)
    assert (module.w_node, module.b_node) == (None, None)
    assert [tuple(part.shape) for part in module.path(x)] == [(50, 1, 1), (50, 1, 0)]


def test_a_tie_goes_left_and_a_nan_too() -> None:
    module = layer(1, 2, form="hard")
    with torch.no_grad():
        module.w_node.zero_()
        module.b_node.zero_()
    x = torch.randn(3, 7, dtype=double)
    x[1, 0] = float("nan")
    y = module(x)
    assert module.path(x)[0][:, 0, -1].tolist() == [1, 1, 1]
    left = linear(gelu(linear(x, module.w_in[0], module.b_in[0])), module.w_out[0].t(), module.b_out[0])
    torch.testing.assert_close(y[[0, 2]], left[[0, 2]])
    assert y[1].isnan().all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [2, 6])
def test_region_leak_turns_decisions_round(form: str, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    module = layer(depth, 3, form=form)
    module.region_leak = 0.3
    x = torch.randn(80, 7, dtype=double)
    flips = torch.rand(80, 2**depth - 1 if form == "soft" else depth) < 0.3
    monkeypatch.setattr(module, "leak", lambda *shape: flips)
    inputs = list(module.parameters())
    expected = everything(defined(module, x, form, flips=flips), inputs)
    for ours, theirs in zip(everything(module(x), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    monkeypatch.undo()
    hard = module.eval()(x)
    module.region_leak = 0.0
    assert torch.equal(module(x), hard)


@pytest.mark.parametrize("losses", [(), ("entropy", "balance")])
def test_chunks_change_nothing(losses: tuple[str, ...]) -> None:
    found = []
    for chunk in (2**23, 500):
        module = layer(4, 3, chunk_neurons=chunk, master_width=2)
        set_hardening(module, form="soft", losses=losses)
        x = torch.randn(47, 7, dtype=double, requires_grad=True, generator=torch.Generator().manual_seed(0))
        y, parts = module.forward_with_losses(x)
        assert tuple(parts) == losses
        loss = y.square().sum() + sum(parts.values())
        found.append([y, loss, *torch.autograd.grad(loss, [x, *module.parameters()])])
    for whole, chunked in zip(*found, strict=True):
        torch.testing.assert_close(chunked, whole, atol=1e-12, rtol=1e-9)


def test_chunks_hold_less() -> None:
    def held(chunk: int) -> int:
        """Numbers that autograd keeps for the backward pass, weights aside."""
        module = LeafFFF(8, 8, 6, 4, chunk_neurons=chunk)
        kept = 0

        def count(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += tensor.numel() if tensor.shape[:1] in ((1000,), (64,)) and tensor.ndim > 1 else 0
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            module(torch.randn(1000, 8))
        return kept

    assert held(2**23) > 1000 * 64 * 4
    assert held(64 * 4 * 50) < 1000 * 64


def test_dropout_in_training_alone() -> None:
    x = torch.randn(400, 7, dtype=double)
    for form in FORMS:
        module = layer(2, 8, form=form, dropout=0.5)
        assert not torch.allclose(module(x), module(x))
        with torch.no_grad():
            mean = torch.stack([module(x) for _ in range(300)]).mean(0)
        module.dropout = 0.0
        assert (mean - module(x)).abs().max() < 1.5
        module.dropout = 0.5
        module.eval()
        assert torch.equal(module(x), module(x))


@pytest.mark.parametrize("form", FORMS)
def test_the_master_leaf_is_mixed_in(form: str) -> None:
    module = layer(3, 2, form=form, master_width=4)
    x = torch.randn(30, 7, dtype=double, requires_grad=True)
    inputs = [x, *module.parameters()]
    expected = everything(defined(module, x, form), inputs)
    for ours, theirs in zip(everything(module(x), inputs), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert LeafFFF(7, 5, 3, 2, master_width=4).mix.item() == 0.5
    assert not any(name.startswith("master") for name in layer(3, 2).state_dict())


def test_blocks_under_any_load() -> None:
    weights = Leaves(*(torch.randn(shape, dtype=double) for shape in ((8, 3, 7), (8, 3), (8, 3, 5), (8, 5))))
    loads = [torch.zeros(100).long(), torch.full((100,), 7), torch.arange(100) % 8, torch.tensor([5]), torch.arange(8)]
    for leaf in [*loads, torch.cat([torch.zeros(993).long(), torch.arange(1, 8)])]:
        x = torch.randn(len(leaf), 7, dtype=double)
        hidden = gelu((weights.w_in[leaf] @ x[:, :, None])[..., 0] + weights.b_in[leaf])
        expected = (hidden[:, None] @ weights.w_out[leaf])[:, 0] + weights.b_out[leaf]
        torch.testing.assert_close(one_leaf_each(x, leaf, weights, "gelu", 0.0), expected)


@pytest.mark.parametrize("form", FORMS)
def test_shapes_modes_and_the_same_bits(form: str) -> None:
    module = layer(3, 4, form=form, dtype=torch.float32)
    x = torch.randn(2, 3, 4, 7)
    torch.testing.assert_close(module(x), module(x.view(-1, 7)).view(2, 3, 4, 5))
    assert module(torch.empty(0, 4, 7)).shape == (0, 4, 5)
    nodes, scores = module.path(x)
    assert (nodes.shape, scores.shape) == ((2, 3, 4, 1, 4), (2, 3, 4, 1, 3))
    assert (nodes[..., 1:] == 2 * nodes[..., :-1] + 1 + (scores > 0)).all()
    inputs = list(module.parameters())
    first, second = everything(module(x), inputs), everything(module(x), inputs)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    strided = torch.randn(7, 30).t()
    torch.testing.assert_close(module(strided), module(strided.contiguous()))


def test_hard_decisions_have_zero_gradients_that_exist() -> None:
    for depth in (2, 6):
        module = layer(depth, 3, form="hard")
        module(torch.randn(20, 7, dtype=double)).sum().backward()
        assert not module.w_node.grad.any()
        assert not module.b_node.grad.any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [3, 6])
def test_every_form_compiles_once_for_all_temperatures(form: str, depth: int) -> None:
    module = layer(depth, 4, dtype=torch.float32, master_width=2)
    set_hardening(module, form=form, losses=("entropy", "balance"))
    x, count = torch.randn(50, 7), 0

    def backend(graph, inputs):
        nonlocal count
        count += 1
        return graph.forward

    compiled = torch.compile(module.forward_with_losses, fullgraph=True, backend=backend)
    for temperature in (1.0, 0.5):
        module.temperature.fill_(temperature)
        torch.testing.assert_close(compiled(x), module.forward_with_losses(x))
    assert count == 1


def test_autocast_and_meta() -> None:
    for form in FORMS:
        module = layer(3, 4, form=form, dtype=torch.float32, master_width=2)
        x = torch.randn(50, 7)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = module(x)
            y.sum().backward()
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, module.bfloat16()(x.bfloat16()))
        with torch.device("meta"):
            built = LeafFFF(7, 5, 6, 4)
        set_hardening(built, form=form)
        assert built(torch.empty(9, 7, device="meta")).shape == (9, 5)
        built = built.to_empty(device="cpu")
        built.reset_parameters()
        assert built.temperature.item() == 1
        assert built(torch.randn(9, 7)).isfinite().all()


def test_initialisation_and_names() -> None:
    module = LeafFFF(100, 50, 3, 4, master_width=16)
    assert list(module.state_dict()) == [*fff.layers.leaf.WEIGHTS, *fff.layers.leaf.MASTER, "mix"]
    assert (module.form, module.region_leak) == ("soft", 0.0)
    for parameter, bound in (
        (module.w_node, 0.1),
        (module.w_out, 0.5),
        (module.b_out, 0.5),
        (module.master_w_out, 0.25),
    ):
        assert 0.9 * bound < parameter.abs().max() <= bound
    assert "8 leaves of 4 neurons" in repr(module)
    assert "master_width=16" in repr(module)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"d_in": 0}, "d_in=0"),
        ({"depth": -1}, "depth=-1"),
        ({"leaf_width": 0}, "leaf_width=0"),
        ({"master_width": -1}, "master_width=-1"),
        ({"chunk_neurons": 0}, "chunk_neurons=0"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"region_leak": 0.6}, "region_leak=0.6"),
        ({"activation": "sine"}, "activation='sine' is unknown; allowed: gelu"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LeafFFF(**{"d_in": 4, "d_out": 4, "depth": 2, "leaf_width": 3, **arguments})


def test_bad_inputs_are_named() -> None:
    module = layer(2, 3)
    with pytest.raises(ValueError, match="last dimension is 5, but the layer has d_in=7"):
        module(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="last dimension is missing"):
        module(torch.tensor(1.0))
    with pytest.raises(ValueError, match="weights are"):
        module(torch.zeros(3, 7))
    with pytest.raises(ValueError, match="on meta"):
        module(torch.zeros(3, 7, device="meta"))
