"""LeafFFF on eight-bit integers: packing, every provider to the definition's bits, layers and models made of them."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fff import LeafFFF
from fff.activations import ACTIVATIONS
from fff.int8 import quantised
from fff.int8_leaf import decision_levels, int8_leaf_fff
from fff.kernels import INT8_LEAF, Int8LeafOperands, choose
from fff.kernels.cpu import operators as cpu
from fff.kernels.int8_leaf import int8_leaf_definition, pack, pack_numbers, unpack, unpack_numbers
from fff.layers.quantised import quantise_trees
from fff.layers.quantised_leaf import MASTERS, NETWORK, NODES, QuantisedLeaf
from fff.testing import poisoned
from fff.usage import measure
from tests.helpers.process import on_another_machine

CPU = torch.device("cpu")
HERE = [name for name, provider in INT8_LEAF.providers.items() if not provider.available(CPU, torch.float32)]
FAST = [name for name in HERE if name not in ("reference", "aten")]
EXACT = ("relu", "identity")  # activations without roundings of their own
DTYPES = [torch.float32, torch.bfloat16]
NO_CPU = pytest.mark.skipif("cpu" not in HERE, reason="the C++ cannot be built")
# tokens, d_in, d_out, depth, leaf_width, master_width, gated
SHAPES = [
    *[(n, 33, 17, 3, 5, 0, False) for n in (0, 1, 3, 4, 15, 16, 17, 33, 300)],
    *[(n, 384, 384, 2, 192, 96, False) for n in (1, 40, 300)],
    *[
        (40, h, k, 2, w, m, gated)
        for h, k, w, m in ((1, 1, 1, 1), (64, 65, 64, 63), (65, 16, 66, 130))
        for gated in (0, 1)
    ],
    (200, 20, 16, 0, 40, 0, False),  # no decisions
    (200, 20, 16, 0, 40, 24, True),
    (700, 48, 40, 6, 3, 2, True),  # more than one part of a block
    (90, 769, 33, 9, 8, 0, False),  # most leaves without tokens
    (9, 1100, 20, 1, 1200, 0, False),  # sums that float32 does not hold
]


def layer(
    d_in: int, d_out: int, depth: int, leaf_width: int, master_width: int, gated: bool, activation: str = "relu"
) -> LeafFFF:
    torch.manual_seed(d_in + depth)
    sizes = {"master_width": master_width, "gated": bool(gated), "activation": activation}
    made = LeafFFF(d_in, d_out, depth, leaf_width, provider="gather", **sizes).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(2)
    return made


def operands(
    tokens: int, *sizes: int, dtype: torch.dtype = torch.float32, activation: str = "relu"
) -> Int8LeafOperands:
    quantised_layer = QuantisedLeaf.from_float(layer(*sizes, activation=activation), "reference")
    return quantised_layer._call(torch.randn(tokens, sizes[0]).to(dtype))[1]


def held(provider: str, given: Int8LeafOperands) -> None:
    """Nodes and scores are the definition's bits, in inference too; outputs the same where activations are exact.

    Others may round a neuron to the next of 127 levels: then an output moves by that level times a weight.
    """
    expected, computing = int8_leaf_definition(given), INT8_LEAF.providers[provider]
    with poisoned():
        found = computing.function(given)
        outputs = [found.y, computing.output(given)] if computing.output else [found.y]
    assert torch.equal(found.nodes, expected.nodes)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=0, equal_nan=True)
    largest = expected.y.nan_to_num(0, 0, 0).abs().max().item() if expected.y.numel() else 0.0
    for y in outputs:
        assert y.dtype == given.x.dtype
        if given.activation in EXACT:
            torch.testing.assert_close(y, expected.y, rtol=0, atol=0, equal_nan=True)
        else:
            apart = (y.float() - expected.y.float()).abs()
            assert apart.max() <= 2e-2 * largest
            assert (apart > (1e-5 if y.dtype == torch.float32 else 8e-3) * largest).float().mean() < 0.02


@pytest.mark.parametrize("provider", FAST)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_provider_has_the_definitions_bits(provider: str, dtype: torch.dtype) -> None:
    for shape in SHAPES:
        held(provider, operands(*shape, dtype=dtype))


@pytest.mark.parametrize("provider", FAST)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [False, True])
def test_every_activation(provider: str, activation: str, gated: bool) -> None:
    held(provider, operands(200, 70, 33, 3, 20, 6, gated, activation=activation))


@pytest.mark.parametrize("provider", FAST)
def test_extreme_tokens(provider: str) -> None:
    given = operands(40, 70, 33, 4, 20, 6, False)
    x = given.x
    x[0], x[1], x[2], x[3] = 0, 3e38, 1e-30, -3e38
    x[4, 1:], x[5, 1:], x[4, 0], x[5, 0] = 0, 0, 2.0**-50, 2.0**-51
    x[6], x[7, 2], x[8, 69] = torch.nan, torch.inf, -torch.inf
    held(provider, given)
    held(provider, given._replace(x=x.bfloat16()))
    found = INT8_LEAF.providers[provider].function(given)
    assert (found.nodes[6:9, 0] == torch.tensor([0, 1, 3, 7, 15])).all(), "they go left"
    assert found.y[6:9].isnan().all()
    assert found.y[9:].isfinite().all()
    # The largest numbers that there are: sums of the decisions' products end just below 2^31.
    w_node, scale, bias = given.nodes
    most = torch.full_like(w_node, given.sizes.levels)
    x = torch.ones(40, 70)
    x[1] = -1
    held(provider, given._replace(x=x, nodes=(most, scale, 0 * bias)))


@NO_CPU
def test_bits_depend_neither_on_company_nor_on_threads() -> None:
    for sizes in ((96, 72, 4, 40, 24, False), (33, 17, 7, 6, 0, True)):
        given = operands(1500, *sizes, activation="gelu")
        together, threads = cpu.int8_leaf_output(given), torch.get_num_threads()
        for start, end in ((0, 1), (1, 3), (7, 300), (900, 1500)):
            assert torch.equal(cpu.int8_leaf_output(given._replace(x=given.x[start:end])), together[start:end])
        try:
            for count in (2, 5):
                torch.set_num_threads(count)
                assert torch.equal(cpu.int8_leaf_output(given), together)
        finally:
            torch.set_num_threads(threads)


@NO_CPU
def test_the_operators_are_sound() -> None:
    given = cpu._given(operands(9, 24, 16, 3, 5, 2, True))
    for operator in (torch.ops.fff.cpu_int8_leaf_infer, torch.ops.fff.cpu_int8_leaf_forward):
        torch.library.opcheck(operator.default, given, test_utils=("test_schema", "test_faketensor"))


BROKEN = [
    (lambda g: g._replace(x=g.x[:, 1:]), "d_in=24"),
    (lambda g: g._replace(x=g.x.double()), "takes float32 and bfloat16"),
    (lambda g: g._replace(nodes=(g.nodes[0].int(), *g.nodes[1:])), "w_node is Int, but must be Short"),
    (lambda g: g._replace(nodes=(g.nodes[0][:6], *g.nodes[1:])), "w_node has 6 nodes"),
    (lambda g: g._replace(nodes=(*g.nodes[:2], g.nodes[2][:3])), "b_node must be"),
    (lambda g: g._replace(leaves=g.leaves._replace(w_in=g.leaves.w_in[:5])), "leaves.w_in must be"),
    (lambda g: g._replace(leaves=g.leaves._replace(w_in=g.leaves.w_in[:, :, :3])), "leaves.w_in has 3 quads"),
    (
        lambda g: g._replace(leaves=g.leaves._replace(w_in=g.leaves.w_in[:, :1].contiguous())),
        "leaves.w_in has 1 groups; gated",
    ),
    (lambda g: g._replace(leaves=g.leaves._replace(scale_in=g.leaves.scale_in[:, 1:])), "leaves.scale_in must be"),
    (lambda g: g._replace(leaves=g.leaves._replace(b_out=g.leaves.b_out.bfloat16())), "leaves.b_out is BFloat16"),
    (lambda g: g._replace(master=g.master._replace(w_out=g.master.w_out[:, 1:])), "master.w_out must be"),
    (lambda g: g._replace(sizes=g.sizes._replace(d_out=40)), "groups, which do not hold 40 outputs"),
    (lambda g: g._replace(sizes=g.sizes._replace(d_in=1)), "levels=32767 are no words"),
]


@NO_CPU
@pytest.mark.parametrize("number", range(len(BROKEN)))
def test_what_does_not_fit_is_refused_by_name(number: int) -> None:
    change, message = BROKEN[number]
    given = operands(9, 24, 16, 3, 5, 2, True)
    for call in (cpu.int8_leaf, cpu.int8_leaf_output):
        with pytest.raises(ValueError, match=message):
            call(change(given))


@pytest.mark.slow
@NO_CPU
@pytest.mark.parametrize("flags", ["-mno-amx-int8", "-mno-avx512vnni -mno-avxvnni -mno-amx-int8", "-mno-avx512f"])
def test_machines_without_the_instructions_have_the_same_bits(flags: str, tmp_path: Path) -> None:
    assert "right" in on_another_machine(__name__, flags, tmp_path)


def test_packed_rows_come_back_and_lie_as_tiles_do() -> None:
    for leaves, parts, rows, width in ((1, 1, 1, 1), (3, 2, 17, 65), (2, 1, 16, 64), (2, 2, 5, 33)):
        whole = torch.randint(-127, 128, (leaves, parts * rows, width), dtype=torch.int8)
        packed, numbers = pack(whole, parts), torch.randn(leaves, parts * rows)
        assert packed.shape[3:] == (16, 4)
        assert packed.is_contiguous()
        assert torch.equal(unpack(packed, rows, width, parts), whole)
        assert torch.equal(unpack_numbers(pack_numbers(numbers, parts), rows, parts), numbers)
        assert packed.int().sum() == whole.int().sum(), "the rest is zeros"
        last = packed[-1, 0, (width - 1) // 4, 0]  # the last quad of the first row
        assert last[(width - 1) % 4] == whole[-1, 0, -1]


def test_decisions_have_as_many_levels_as_sums_allow() -> None:
    for width in (1, 2, 384, 768, 4096, 2**17):
        levels = decision_levels(width)
        assert width * levels**2 < 2**31
        assert levels == 2**15 - 1 or width * (levels + 1) ** 2 >= 2**31
    whole, scale = quantised(torch.tensor([1.0, -0.5, 0.25]), 1000)
    assert (whole.tolist(), whole.dtype) == ([1000, -500, 250], torch.int16)
    assert scale.item() == pytest.approx(1e-3)


def test_fewer_decisions_turn_than_with_eight_bits_and_outputs_stay() -> None:
    torch.manual_seed(0)
    float_layer = LeafFFF(384, 384, 5, 64, master_width=32, provider="gather").eval()
    x = torch.randn(8000, 384)
    ours, theirs = QuantisedLeaf.from_float(float_layer), float_layer
    same = (ours.path(x)[0] == theirs.path(x)[0]).flatten(1).all(1)
    assert (~same).float().mean() < 0.003, "of five decisions; eight bits turn 0.27 % of each"
    with torch.no_grad():
        expected = theirs(x)
        error = (ours(x) - expected)[same]
        assert error.norm() < 0.02 * expected[same].norm()


@pytest.mark.parametrize("provider", HERE)
@pytest.mark.parametrize(("gated", "master", "depth"), [(False, 6, 3), (True, 0, 3), (True, 6, 0)])
def test_a_layer_is_the_definition_on_any_leading_shape(provider: str, gated: bool, master: int, depth: int) -> None:
    made = QuantisedLeaf.from_float(layer(24, 16, depth, 5, master, gated), provider)
    x = torch.randn(2, 3, 5, 24)
    expected = int8_leaf_definition(made._call(x)[1])
    assert torch.equal(made(x), expected.y.view(2, 3, 5, 16))
    assert torch.equal(made(x.transpose(0, 1)), made(x).transpose(0, 1))
    assert made(x[0, 0, 0]).shape == (16,)
    assert made(x[:0]).shape == (0, 3, 5, 16)
    assert made(x.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(x), made(x.bfloat16()))
    nodes, scores = made.path(x)
    assert torch.equal(nodes.flatten(0, 2), expected.nodes)
    assert torch.equal(scores.flatten(0, 2), expected.scores)
    assert measure(made.route(x)).counts.sum().item() == 30
    assert made.computed_by == {provider}


def test_the_definition_is_the_float_layer_but_for_rounding() -> None:
    float_layer = layer(64, 48, 3, 40, 24, True, activation="silu")
    made, x = QuantisedLeaf.from_float(float_layer), torch.randn(300, 64)
    same = (made.path(x)[0] == float_layer.path(x)[0]).flatten(1).all(1)
    assert same.float().mean() > 0.98
    with torch.no_grad():
        expected = float_layer(x)
        assert (made(x) - expected)[same].norm() < 0.03 * expected[same].norm()
    # The definition on rows that were never packed.
    w_node, scale_node = quantised(float_layer.w_node, decision_levels(64))
    plain = QuantisedLeaf.from_float(layer(64, 48, 3, 40, 0, False), "reference")
    networks = int8_leaf_fff(x, w_node, scale_node, float_layer.b_node, *_rows_of(plain), None, "relu")
    assert torch.equal(networks.nodes, made.path(x)[0])


def _rows_of(made: QuantisedLeaf) -> list:
    from fff.kernels.int8_leaf import _unpacked

    return [_unpacked(made._call(torch.zeros(1, made.sizes.d_in))[1])[0]]


def test_a_state_comes_back_whole(tmp_path: Path) -> None:
    made, x = QuantisedLeaf.from_float(layer(24, 16, 3, 5, 6, True)), torch.randn(9, 24)
    save_file(made.state_dict(), tmp_path / "model.safetensors")
    assert set(made.state_dict()) == {*NODES, *NETWORK, *MASTERS}
    other = QuantisedLeaf(24, 16, 3, 5, master_width=6, gated=True, activation="relu").eval()
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    for same in (other, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert torch.equal(same(x), made(x))
    assert not list(made.parameters())
    converted = copy.deepcopy(made).bfloat16().half().double()
    assert all(torch.equal(a, b) for a, b in zip(converted.buffers(), made.buffers(), strict=True))
    assert converted.scale_in.dtype == torch.float32
    assert made.to("meta")(x.to("meta")).shape == (9, 16)


def test_what_cannot_be_done_is_refused() -> None:
    made, x = QuantisedLeaf.from_float(layer(24, 16, 3, 5, 6, False)), torch.randn(3, 24)
    with pytest.raises(RuntimeError, match="no gradients"):
        made(x.clone().requires_grad_())
    with torch.no_grad():
        made(x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="inference alone"):
        copy.deepcopy(made).train()(x)
    with pytest.raises(ValueError, match="d_in=24"):
        made(x[:, 1:])
    with pytest.raises(ValueError, match=r"takes float32 and bfloat16, and the input is torch\.float64"):
        made(x.double())
    with pytest.raises(ValueError, match="provider='gather' is unknown; allowed: auto, reference, masked, aten, cpu"):
        QuantisedLeaf(4, 4, 1, 2, provider="gather")
    with pytest.raises(ValueError, match="leaf_width=131073 is too large"):
        QuantisedLeaf(4, 4, 1, 2**17 + 1)
    for name in ("w_node", "b_value", "master_w_out", "mix"):
        broken = layer(24, 16, 3, 5, 6, True)
        getattr(broken, name).data.view(-1)[-1] = float("nan")
        with pytest.raises(ValueError, match=f"{name} holds values that are not finite"):
            quantise_trees(nn.Sequential(broken))
    with pytest.raises(ValueError, match="LeafFFF cannot be replaced in itself"):
        quantise_trees(layer(24, 16, 3, 5, 6, True))


def test_every_leaf_layer_of_a_model_is_replaced() -> None:
    twice = layer(24, 24, 3, 5, 6, False)
    model = nn.Sequential(twice, nn.Linear(24, 24), twice).eval()
    report = quantise_trees(model)
    assert report.layers == 1
    assert isinstance(model[0], QuantisedLeaf)
    assert model[0] is model[2]


def test_without_a_compiler_plain_torch_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_ready", lambda: "there is no C++ compiler 'c++'")
    assert choose("auto", "auto", CPU, torch.float32, 1, 5, INT8_LEAF).name == "masked"
    made = QuantisedLeaf.from_float(layer(24, 16, 3, 5, 6, False))
    assert made(torch.randn(3, 24)).shape == (3, 16)
    assert made.computed_by == {"masked"}


def test_it_compiles_to_one_graph_of_any_number_of_tokens() -> None:
    torch._dynamo.reset()
    made = QuantisedLeaf.from_float(layer(24, 16, 3, 5, 6, True))
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch.no_grad():
        for tokens in (9, 70):
            x = torch.randn(tokens, 24)
            torch.testing.assert_close(compiled(x), made(x), rtol=0, atol=0)


@pytest.mark.parametrize("depth", [0, 3])
def test_it_is_exported_in_plain_operators(depth: int) -> None:
    from fff.export import program

    made = QuantisedLeaf.from_float(layer(24, 16, depth, 5, 6, True)).eval()
    exported = program(made, torch.randn(4, 24)).module()
    for tokens in (2, 70):
        x: Tensor = torch.randn(tokens, 24)
        with torch.no_grad():
            torch.testing.assert_close(exported(x), made(x), rtol=0, atol=0)
