"""Trees of eight-bit integers: rows, every provider to the definition's last bit, layers and models made of them."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fff import PathFFF
from fff.activations import ACTIVATIONS
from fff.feedforward import settings_from
from fff.int8 import int8_path_fff, quantised
from fff.kernels import INT8, Int8Operands, choose
from fff.kernels.cpu import operators as cpu
from fff.layers.quantised import Quantised, QuantisedPath, quantise_trees
from fff.layers.shared import SharedFF
from fff.testing import poisoned
from fff.topology import child
from fff.usage import measure
from tests.helpers.process import on_another_machine

CPU = torch.device("cpu")
HERE = [name for name, provider in INT8.providers.items() if not provider.available(CPU, torch.float32)]
FAST = [name for name in HERE if name != "reference"]
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}  # of the largest output: one rounding of the dtype more
# tokens, trees, depth, d_in, d_out
SHAPES = [
    *[(n, trees, depth, 64, 40) for n in (0, 1, 5, 300) for trees in (1, 4) for depth in (0, 3, 11)],
    *[(5, 1, depth, d_in, 17) for depth in (0, 3, 11) for d_in in (1, 7, 768, 769)],
    *[(300, 4, 3, d_in, d_out) for d_in, d_out in ((1, 1), (7, 136), (63, 64), (65, 31), (768, 768), (769, 769))],
    (300, 1, 11, 769, 33),
    (2100, 1, 6, 48, 40),
    (2100, 3, 2, 65, 72),
    (4, 1, 2, 1041, 8),  # sums that float32 does not hold
    (3, 2, 1, 2**17, 3),
]


def weights(trees: int, depth: int, d_in: int, d_out: int) -> tuple[Tensor, ...]:
    """w_in, scale_in, b_in, w_out, scale_out; all of int8's numbers, -128 included."""
    nodes = 2 ** (depth + 1) - 1
    numbers = [torch.randint(-128, 128, (trees, nodes, width), dtype=torch.int8) for width in (d_in, d_out)]
    scales = [torch.rand(trees, nodes) / width**0.5 / 100 for width in (d_in, 1)]
    return numbers[0], scales[0], 0.3 * torch.randn(trees, nodes), numbers[1], scales[1]


def operands(tokens: int, *sizes: int, dtype: torch.dtype = torch.float32, activation: str = "gelu") -> Int8Operands:
    torch.manual_seed(tokens + sum(sizes))
    made = weights(*sizes)
    return Int8Operands(torch.randn(tokens, sizes[2]).to(dtype), *made, activation)


def held(provider: str, given: Int8Operands) -> None:
    """Nodes and scores are the definition's bits, in inference too; outputs near."""
    expected, computing = int8_path_fff(*given), INT8.providers[provider]
    with poisoned():
        found = computing.function(given)
        outputs = [found.y, computing.output(given)] if computing.output else [found.y]
    assert torch.equal(found.nodes, expected.nodes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0, equal_nan=True)
    for y in outputs:
        assert y.dtype == given.x.dtype
        assert y.shape == expected.y.shape
        scale = expected.y.nan_to_num(0, 0, 0).abs().max().item() if expected.y.numel() else 0.0
        torch.testing.assert_close(y, expected.y, rtol=0, atol=TOLERANCE[y.dtype] * scale, equal_nan=True)


@pytest.mark.parametrize("provider", FAST)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_provider_has_the_definitions_decisions_and_scores(provider: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        if provider == "cpu" or shape[0] * shape[1] * 2 ** shape[2] < 50000:  # it computes all nodes
            held(provider, operands(*shape, dtype=dtype))


@pytest.mark.parametrize("provider", FAST)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_with_and_without_biases(provider: str, activation: str) -> None:
    given = operands(70, 2, 4, 33, 24, activation=activation)
    held(provider, given)
    held(provider, given._replace(b_in=None))


@pytest.mark.parametrize("provider", HERE)
def test_sums_of_products_are_exact_whole_numbers(provider: str) -> None:
    for width in (1, 7, 64, 65, 769):
        torch.manual_seed(width)
        w_in = torch.randint(-128, 128, (2, 7, width), dtype=torch.int8)
        x = torch.randint(-127, 128, (9, width)).float()
        x[:, 0] = 127  # so that a token's scale is 1
        x[0], x[1], w_in[0, 0], w_in[0, 1] = 127, -127, -128, 127
        ones, zeros = torch.ones(2, 7), torch.zeros(2, 7)
        given = Int8Operands(x, w_in, ones, zeros, torch.ones(2, 7, 3, dtype=torch.int8), ones, "identity")
        result = INT8.providers[provider].function(given)
        dots = torch.einsum("nh,tmh->ntm", x.long(), w_in.long())
        assert torch.equal(result.scores.long(), dots.gather(-1, result.nodes))
        assert torch.equal(result.nodes[..., 1:], child(result.nodes, result.scores)[..., :-1])


@pytest.mark.parametrize("provider", FAST)
def test_extreme_tokens_and_rows(provider: str) -> None:
    given = operands(40, 2, 4, 70, 33)
    x, least = given.x, 2.0**-50
    x[0], x[1], x[2], x[3] = 0, 3e38, 1e-30, -3e38
    x[4, 1:], x[5, 1:], x[4, 0], x[5, 0] = 0, 0, least, torch.tensor(least).nextafter(torch.tensor(0.0))
    x[6] = torch.full((70,), 1e-38)
    x[6, 3] = 1.0
    x[7] = 2.5 * torch.arange(70) / 127  # numbers in the middle between two
    x[7, -1] = 127.0
    for change in ({}, {"scale_in": 0 * given.scale_in, "b_in": 0 * given.scale_in}, {"w_in": 0 * given.w_in}):
        held(provider, given._replace(**change))
        held(provider, given._replace(x=x.bfloat16(), **change))
    whole, scale = quantised(x)
    assert whole.any(-1)[:7].tolist() == [False, True, False, True, True, False, True]
    assert (scale > 0)[:7].tolist() == [False, True, False, True, True, False, True]


@pytest.mark.parametrize("provider", HERE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_token_that_is_not_finite_goes_left_and_comes_out_nan_alone(provider: str, value: float) -> None:
    given = operands(40, 2, 4, 70, 33)
    expected = INT8.providers[provider].function(given)
    for at in (0, 69):
        x = given.x.clone()
        x[3, at] = value
        found = INT8.providers[provider].function(given._replace(x=x))
        assert (found.nodes[3] == torch.tensor([0, 1, 3, 7, 15])).all()
        assert found.y[3].isnan().all()
        others = torch.arange(40) != 3
        torch.testing.assert_close(found.y[others], expected.y[others])
        assert torch.equal(found.nodes[others], expected.nodes[others])


@pytest.mark.skipif("cpu" not in HERE, reason="the C++ cannot be built")
def test_bits_depend_neither_on_company_nor_on_threads() -> None:
    for sizes in ((1, 7, 200, 136), (3, 4, 65, 40)):
        given = operands(2500, *sizes)
        together, threads = cpu.int8_output(given), torch.get_num_threads()
        for start, end in ((0, 1), (1, 3), (7, 300), (900, 2500)):
            assert torch.equal(cpu.int8_output(given._replace(x=given.x[start:end])), together[start:end])
        try:
            for count in (2, 5):
                torch.set_num_threads(count)
                assert torch.equal(cpu.int8_output(given), together)
        finally:
            torch.set_num_threads(threads)


@pytest.mark.skipif("cpu" not in HERE, reason="the C++ cannot be built")
def test_the_operators_are_sound() -> None:
    *tensors, _ = operands(9, 2, 5, 24, 16)
    for operator in (torch.ops.fff.cpu_int8_infer, torch.ops.fff.cpu_int8_forward):
        torch.library.opcheck(operator.default, (*tensors, 0), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.skipif("cpu" not in HERE, reason="the C++ cannot be built")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bias", [True, False])
def test_the_shortcut_has_the_operators_bits(dtype: torch.dtype, bias: bool) -> None:
    *tensors, _ = operands(5, 2, 4, 48, 40, dtype=dtype)
    if not bias:
        tensors[3] = None
    named = dict(zip(("w_in", "scale_in", "b_in", "w_out", "scale_out"), tensors[1:], strict=True))
    for number, activation in enumerate(ACTIVATIONS):
        with torch.no_grad():
            y = cpu.int8_shortcut(activation)(tensors[0], named)
        assert y is not None
        assert torch.equal(y, torch.ops.fff.cpu_int8_infer.default(*tensors, number))


@pytest.mark.skipif("cpu" not in HERE, reason="the C++ cannot be built")
def test_a_layer_goes_the_short_way_where_a_call_is_plain_and_follows_what_is_set_on_it() -> None:
    layer, x = QuantisedPath.from_float(a_layer(), "cpu"), torch.randn(3, 24)
    infer, named = cpu.int8_shortcut("gelu"), layer._buffers
    assert infer(x, named) is None, "gradients may be wanted"
    with torch.no_grad():
        expected = layer(x)
        assert layer._chooser.shortcut is infer
        for given in (x.double(), x.to("meta"), x.as_subclass(type("Sub", (Tensor,), {})), [1.0]):
            assert infer(given, named) is None
        assert infer(x, {name: named[name] for name in ("w_in", "b_in", "w_out")}) is None
        with torch.autocast("cpu", torch.bfloat16):
            assert infer(x, named) is None
            assert torch.equal(layer(x), layer(x.bfloat16()))
        with pytest.raises(ValueError, match="d_in=24"):
            infer(x[:, 1:], named)
        with torch.profiler.profile() as profile:
            assert torch.equal(layer(x), expected)
        assert "fff::cpu_int8_infer" in {event.name for event in profile.events()}
        layer.activation = "relu"
        assert not torch.allclose(layer(x), expected, atol=1e-3)
        assert torch.equal(layer(x), layer(x))
        with pytest.raises(RuntimeError, match="inference alone"):
            copy.deepcopy(layer).train()(x)


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in HERE, reason="the C++ cannot be built")
@pytest.mark.parametrize("flags", ["-mno-avx512vnni -mno-avxvnni", "-mno-avx512f"])
def test_machines_without_the_instructions_have_the_same_bits(flags: str, tmp_path: Path) -> None:
    assert "right" in on_another_machine(__name__, flags, tmp_path)


def test_a_rows_error_is_half_a_step_at_most() -> None:
    torch.manual_seed(0)
    for rows in (torch.randn(50, 97), torch.rand(4, 3, 768) - 0.5, torch.randn(9, 1), 1e-12 * torch.randn(5, 20)):
        whole, scale = quantised(rows)
        assert whole.dtype == torch.int8
        assert scale.dtype == torch.float32
        assert whole.abs().amax(-1).eq(127).all()
        torch.testing.assert_close(scale * 127, rows.abs().amax(-1))
        errors = (whole.double() * scale.double()[..., None] - rows.double()).abs().amax(-1)
        assert (errors <= 0.5 * scale.double() * (1 + 1e-5)).all()
    for odd, expected in ((0.0, 0.0), (1e-20, 0.0), (torch.inf, torch.nan), (torch.nan, torch.nan)):
        whole, scale = quantised(torch.tensor([odd, 0.0]))
        assert not whole.any()
        torch.testing.assert_close(scale, torch.tensor(expected), equal_nan=True)


def a_layer(**keys) -> PathFFF:
    torch.manual_seed(0)
    return PathFFF(24, 16, 6, 2, **keys).eval()


@pytest.mark.parametrize("depth", [0, 5, 11])
def test_few_decisions_turn_at_any_depth_and_outputs_stay(depth: int) -> None:
    # A token's numbers have an error of m / 127 / sqrt(12) = 0.75 % of their deviation where the largest of 768 is 3.3
    # of them, a uniform row's 0.4 %: scores 0.85 %, so that 0.27 % of the decisions turn.
    torch.manual_seed(depth)
    layer, x = PathFFF(768, 768, depth).eval(), torch.randn(4000, 768)
    ours, theirs = QuantisedPath.from_float(layer).path(x)[0][:, 0], layer.path(x)[0][:, 0]
    turned = 0
    for level in range(depth):
        together = ours[:, level] == theirs[:, level]
        share = (ours[together, level + 1] != theirs[together, level + 1]).float().mean().item()
        assert share < 0.0075, f"{share:.2%} at level {level}"
        turned += int((ours[together, level + 1] != theirs[together, level + 1]).sum())
    assert turned > 0 or depth == 0
    assert turned < 0.0035 * depth * 4000 or depth == 0
    same = ours[:, -1] == theirs[:, -1]
    with torch.no_grad():
        error = (QuantisedPath.from_float(layer)(x) - layer(x))[same]
        assert error.norm() < 0.02 * layer(x)[same].norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("provider", HERE)
def test_a_layer_is_the_definition_on_any_leading_shape(provider: str, bias: bool) -> None:
    layer = QuantisedPath.from_float(a_layer(bias=bias), provider)
    x = torch.randn(2, 3, 5, 24)
    assert (layer.b_in is None) == (not bias)
    tensors = (layer.w_in, layer.scale_in, layer.b_in, layer.w_out, layer.scale_out)
    expected = int8_path_fff(x.flatten(0, 2), *tensors, "gelu")
    torch.testing.assert_close(layer(x), expected.y.view(2, 3, 5, 16))
    torch.testing.assert_close(layer(x.transpose(0, 1)), layer(x).transpose(0, 1))
    assert layer(x[0, 0, 0]).shape == (16,)
    assert layer(x[:0]).shape == (0, 3, 5, 16)
    assert layer(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), layer(x.bfloat16()))
    nodes, scores = layer.path(x)
    assert torch.equal(nodes.flatten(0, 2), expected.nodes)
    assert torch.equal(scores.flatten(0, 2), expected.scores)
    assert measure(layer.route(x)).counts.sum().item() == 60
    assert layer.computed_by == {provider}


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    layer, x = QuantisedPath.from_float(a_layer()), torch.randn(9, 24)
    save_file(layer.state_dict(), tmp_path / "model.safetensors")
    other = QuantisedPath(24, 16, 6, 2).eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for same in (other, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(same(x), layer(x))
    assert not list(layer.parameters())
    converted = copy.deepcopy(layer).bfloat16().half().double()
    assert all(torch.equal(a, b) for a, b in zip(converted.buffers(), layer.buffers(), strict=True))
    assert converted.scale_in.dtype == torch.float32
    assert layer.to("meta")(x.to("meta")).shape == (9, 16)


def test_every_tree_of_a_model_is_replaced() -> None:
    torch.manual_seed(0)
    shared = settings_from({"kind": "path", "trees": 2, "depth": 3, "shared": 5}).build(24, 24)
    twice = PathFFF(24, 24, 5, bias=False)
    model = nn.Sequential(twice, nn.Sequential(shared, nn.Linear(24, 24)), twice).eval()
    x, before = torch.randn(40, 24), copy.deepcopy(model)
    report = quantise_trees(model)
    nodes = 2 * 15 + 63
    assert report == Quantised(2, 4 * (nodes * 48 + 30), nodes * 48 + 4 * (2 * nodes + 30))
    assert isinstance(model[0], QuantisedPath)
    assert model[0] is model[2]
    assert isinstance(model[1][0], SharedFF)
    assert isinstance(model[1][0].tree, QuantisedPath)
    assert not any(isinstance(module, PathFFF) for module in model.modules())
    with torch.no_grad():
        error = model(x) - before(x)
        assert error.norm() < 0.1 * before(x).norm()
    assert quantise_trees(model) == Quantised(0, 0, 0)


def test_what_cannot_be_done_is_refused() -> None:
    layer, x = QuantisedPath.from_float(a_layer()), torch.randn(3, 24)
    with pytest.raises(RuntimeError, match="no gradients"):
        layer(x.clone().requires_grad_())
    with torch.no_grad():
        layer(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="inference alone"):
        copy.deepcopy(layer).train()(x)
    with pytest.raises(ValueError, match="d_in=24"):
        layer(x[:, 1:])
    with pytest.raises(ValueError, match=r"takes float32 and bfloat16, and the input is torch\.float64"):
        layer(x.double())
    with pytest.raises(ValueError, match="provider='gather' is unknown; allowed: auto, reference, masked, aten, cpu"):
        QuantisedPath(4, 4, 1, provider="gather")
    with pytest.raises(ValueError, match="d_in=131073 is too large"):
        QuantisedPath(2**17 + 1, 4, 0)
    broken = a_layer()
    broken.w_out.data[1, 3, 5] = float("nan")
    model = nn.Sequential(a_layer(), broken)
    with pytest.raises(ValueError, match="w_out holds values that are not finite"):
        quantise_trees(model)
    assert isinstance(model[0], PathFFF), "all or none"
    with pytest.raises(ValueError, match="cannot be replaced in itself"):
        quantise_trees(broken)


def test_without_a_compiler_plain_torch_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_ready", lambda: "there is no C++ compiler 'c++'")
    assert choose("auto", "auto", CPU, torch.float32, 1, 11, INT8).name == "masked"
    layer = QuantisedPath.from_float(a_layer())
    assert layer(torch.randn(3, 24)).shape == (3, 16)
    assert layer.computed_by == {"masked"}
    layer.provider = "cpu"
    with pytest.raises(RuntimeError, match="provider='cpu' is not available: there is no C"):
        layer(torch.randn(3, 24))


def test_it_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    layer, x = QuantisedPath.from_float(a_layer()), torch.randn(9, 24)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
