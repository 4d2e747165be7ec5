"""Provider `cpu` of LeafFFF in training: the C++ against the definition, its bits, and what calls it."""

import pytest
import torch
from torch import Tensor

from fff import LeafFFF
from fff.hardening import set_hardening
from fff.kernels.cpu import operators as cpu
from fff.kernels.leaves import LeafOperands, Leaves, own_leaf
from fff.layers.leaf import VALUE, WEIGHTS
from fff.reference import leaf_fff
from fff.testing import inputs, poisoned
from fff.topology import first_node

if reason := cpu.available(torch.device("cpu"), torch.float32):
    pytest.skip(reason, allow_module_level=True)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}  # of the largest entry, as PathFFF's
GATED = pytest.mark.parametrize("gated", [False, True])
HALVES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
# tokens, depth, leaf_width, d_in, d_out: ragged on purpose
SHAPES = [
    *[(n, d, w, 33, 17) for n in (1, 63, 500) for d, w in ((1, 1), (4, 5), (7, 3))],
    (40, 11, 2, 48, 40),  # most leaves without tokens
    (700, 2, 35, 16, 24),  # several blocks of tokens in each leaf
    (90, 3, 4, 300, 530),  # several stripes of columns, and not a multiple
    (30, 1, 700, 130, 150),  # rows of a leaf that no cache holds at once
]


def operands(
    tokens: int,
    depth: int,
    leaf_width: int,
    d_in: int,
    d_out: int,
    dtype: torch.dtype,
    *,
    kind: str = "iid",
    gated: bool = False,
) -> list[Tensor]:
    """x, and the weights in the order of WEIGHTS, then of VALUE if `gated`.

    x is without tokens that two roundings cannot send one way.
    """
    torch.manual_seed(1000 * tokens + 10 * depth + leaf_width)
    layer = LeafFFF(d_in, d_out, depth, leaf_width, gated=gated).to(dtype)
    weights = [2 * getattr(layer, name).detach() for name in (*WEIGHTS, *(VALUE if gated else ()))]
    x = inputs(kind, tokens, d_in)[0].to(dtype)
    scores = leaf_fff(x.double(), *(weight.double() for weight in weights[:6]), "gelu").scores
    clear = (scores.abs() > 1e-5).flatten(1).all(1)
    assert tokens < 10 or clear.float().mean() > 0.9
    return [x[clear], *weights]


def given(values: list[Tensor], *, activation: str = "gelu", flips: Tensor | None = None, warmth: float | None = None):
    """LeafOperands; straight-through at the temperature `warmth`, or hard."""
    temperature = torch.tensor(1.0 if warmth is None else warmth)
    x, w_node, b_node, *leaves = values
    return LeafOperands(x, w_node, b_node, Leaves(*leaves), activation, flips, temperature, warmth is not None)


def near(ours: Tensor | None, theirs: Tensor | None, tolerance: float) -> bool:
    """The largest error, relative to the largest entry; a NaN is not near. Nothing stands for zeros."""
    assert ours is not None
    if theirs is None:
        return not ours.any()
    if not theirs.numel():
        return ours.shape == theirs.shape
    return bool((ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-6))


def compare(values: list[Tensor], activation: str, flips: Tensor | None, warmth: float | None, scored: bool) -> None:
    """Outputs, nodes, scores and all gradients, from losses of outputs and, if `scored`, of scores."""
    dtype = values[0].dtype
    wide = [value.double().requires_grad_() for value in values]
    ours = [value.clone().requires_grad_() for value in values]
    temperature = None if warmth is None else torch.tensor(warmth, dtype=torch.float64)
    values = dict(zip(VALUE, wide[7:], strict=False))
    expected = leaf_fff(*wide[:7], activation, flips, temperature=temperature, **values)
    with poisoned():
        found = cpu.leaf(given(ours, activation=activation, flips=flips, warmth=warmth))
        assert torch.equal(found.nodes, expected.nodes)
        assert (found.y.dtype, found.scores.dtype) == (dtype, torch.float32)
        assert near(found.scores, expected.scores, 2e-6)
        assert near(found.y, expected.y, TOLERANCE[dtype])
        grads = torch.randn(found.y.shape).to(dtype), torch.randn(found.scores.shape)
        count = 2 if scored else 1
        gradients = torch.autograd.grad((found.y, found.scores)[:count], ours, grads[:count])
    wide_grads = [grad.double() for grad in grads]
    theirs = torch.autograd.grad(
        (expected.y, expected.scores)[:count], wide, wide_grads[:count], allow_unused=warmth is None
    )
    for name, a, b in zip(("x", *WEIGHTS, *values), gradients, theirs, strict=True):
        assert near(a, b, TOLERANCE[dtype]), name


@HALVES
@GATED
@pytest.mark.parametrize("warmth", [None, 0.7])
def test_outputs_and_gradients_are_the_definitions(dtype: torch.dtype, gated: bool, warmth: float | None) -> None:
    for shape in SHAPES:
        for scored in (False, True):
            compare(operands(*shape, dtype, gated=gated), "gelu", None, warmth, scored)


@HALVES
@GATED
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"])
def test_every_activation_with_leak_and_straight_through_gradients(
    dtype: torch.dtype, gated: bool, activation: str
) -> None:
    values = operands(200, 4, 5, 40, 24, dtype, gated=gated)
    compare(values, activation, torch.rand(len(values[0]), 4) < 0.3, 0.7, scored=True)


@HALVES
@GATED
def test_skewed_tokens_and_empty_leaves(dtype: torch.dtype, gated: bool) -> None:
    values = operands(900, 6, 4, 32, 24, dtype, kind="skewed", gated=gated)
    with torch.no_grad():
        leaf = cpu.leaf(given(values)).nodes[:, 0, -1] - first_node(6)
    counts = torch.bincount(leaf, minlength=2**6)
    assert (counts == 0).sum() > 20
    assert counts.max() > 100
    compare(values, "gelu", None, 0.7, scored=True)
    everywhere = [values[0], 0 * values[1], 0 * values[2], *values[3:]]  # a tie goes left: one leaf has all tokens
    compare(everywhere, "gelu", None, None, scored=False)


@HALVES
@GATED
@pytest.mark.parametrize("warmth", [None, 0.7])
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype, gated: bool, warmth: float | None) -> None:
    for shape in ((4000, 6, 9, 64, 300), (2500, 2, 33, 64, 48)):
        values = [value.requires_grad_() for value in operands(*shape, dtype, gated=gated)]
        grad = torch.randn(len(values[0]), shape[-1]).to(dtype)

        def everything(values=values, grad=grad) -> list[Tensor]:
            y = cpu.leaf(given(values, warmth=warmth)).y
            return [y, *torch.autograd.grad(y, values, grad)]

        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            expected = everything()
            for count in (2, 5):
                torch.set_num_threads(count)
                assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))
        finally:
            torch.set_num_threads(threads)


@HALVES
@GATED
def test_a_tokens_bits_do_not_depend_on_its_company_nor_on_training(dtype: torch.dtype, gated: bool) -> None:
    x, *weights = operands(1500, 4, 6, 40, 136, dtype, gated=gated)
    x.requires_grad_()
    grad = torch.randn(len(x), 136).to(dtype)

    def both(part: slice) -> tuple[Tensor, Tensor]:
        y = cpu.leaf(given([x[part], *weights], warmth=0.7)).y
        return y, torch.autograd.grad(y, x, grad[part])[0][part]

    y, grad_x = both(slice(None))
    with torch.no_grad():
        assert torch.equal(cpu.leaf_output(given([x, *weights])), y)
    for part in (slice(0, 1), slice(1, 3), slice(7, 300), slice(900, None)):
        alone, grad_alone = both(part)
        assert torch.equal(alone, y[part])
        assert torch.equal(grad_alone, grad_x[part])


def called(module: LeafFFF, x: Tensor) -> set[str]:
    """Operators that a training step calls."""
    with torch.profiler.profile() as profile:
        module(x).float().sum().backward()
    return {event.name for event in profile.events() if event.name.startswith("fff::")}


@GATED
@pytest.mark.parametrize("form", ["hard", "straight_through"])
def test_auto_trains_by_the_operators(form: str, gated: bool) -> None:
    step = {"fff::cpu_leaf_forward", "fff::cpu_leaf_backward"}
    module, x = LeafFFF(16, 12, 3, 4, master_width=2, gated=gated), torch.randn(30, 16)
    set_hardening(module, form=form)
    assert called(module, x) == step
    assert module.computed_by == {"cpu"}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert called(module, x) == step
    module.eval()
    assert called(module, x) == step, "gradients are wanted in evaluation, too"
    with torch.no_grad(), torch.profiler.profile() as profile:
        module(x)
    assert {event.name for event in profile.events() if event.name.startswith("fff::")} == {"fff::cpu_leaf_infer"}
    module.train().dropout = 0.5
    assert not called(module, x), "plain torch draws what is dropped"
    for other in (LeafFFF(16, 12, 0, 4), LeafFFF(16, 12, 3, 4).double()):
        set_hardening(other, form=form)
        assert not called(other, x.to(other.w_in.dtype))


@GATED
@pytest.mark.parametrize("form", ["hard", "straight_through"])
@pytest.mark.parametrize("tokens", [0, 1, 90])
def test_a_training_step_is_that_of_gather(form: str, tokens: int, gated: bool) -> None:
    found = {}
    for provider in ("cpu", "gather"):
        torch.manual_seed(3)
        module = LeafFFF(24, 16, 4, 5, master_width=3, gated=gated, provider=provider)
        set_hardening(module, form=form, temperature=0.6, losses=("entropy", "balance"))
        x = torch.randn(2, tokens, 24, requires_grad=True)
        y, losses = module.forward_with_losses(x)
        loss = y.square().sum() + (sum(losses.values()) if tokens else 0)
        found[provider] = [y, *torch.autograd.grad(loss, [x, *module.parameters()])]
    for ours, theirs in zip(found["cpu"], found["gather"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_autocast_has_the_bits_of_bfloat16_weights() -> None:
    torch.manual_seed(0)
    module, x = LeafFFF(24, 16, 4, 5, provider="cpu"), torch.randn(60, 24)
    set_hardening(module, form="straight_through")
    grad = torch.randn(60, 16).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    gradients = torch.autograd.grad(y, list(module.parameters()), grad)
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    module.bfloat16()
    same = module(x.bfloat16())
    assert torch.equal(same, y)
    for ours, theirs in zip(gradients, torch.autograd.grad(same, list(module.parameters()), grad), strict=True):
        assert torch.equal(ours, theirs.float())


def test_a_token_that_is_not_finite_stays_alone() -> None:
    x, *weights = operands(60, 3, 4, 16, 12, torch.float32)
    x[5, 3] = float("nan")
    found, expected = cpu.leaf(given([x, *weights])), own_leaf(given([x, *weights]))
    assert found.nodes[5, 0].tolist() == [0, 1, 3, 7], "it goes left"
    assert found.y[5].isnan().all()
    others = torch.arange(len(x)) != 5
    torch.testing.assert_close(found.y[others], expected.y[others])


@GATED
def test_the_operators_are_sound(gated: bool) -> None:
    values = [value.requires_grad_() for value in operands(9, 3, 4, 24, 16, torch.float32, gated=gated)]
    values += [None] * (9 - len(values))
    forward, backward = torch.ops.fff.cpu_leaf_forward.default, torch.ops.fff.cpu_leaf_backward.default
    flips, warmth = torch.rand(len(values[0]), 3) < 0.3, torch.tensor(0.5)
    torch.library.opcheck(forward, (*values, 0, None, None))
    torch.library.opcheck(forward, (*values, 0, flips, warmth))
    x, w_node, _, w_in, _, w_out, b_out, w_value, _ = plain = [
        value if value is None else value.detach() for value in values
    ]
    y, *kept = forward(*plain, 0, None, None)
    weights = (x, w_node, w_in, w_out, b_out, w_value)
    torch.library.opcheck(backward, (torch.randn_like(y), None, *weights, *kept, warmth, 0))
    torch.library.opcheck(backward, (torch.randn_like(y), torch.randn_like(kept[1]), *weights, *kept, None, 0))
