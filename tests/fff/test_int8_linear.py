"""Int8Linear: its definition to the last bit, by both roads, for any company, shape, type and number of threads."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.backends import mkldnn
from torch.utils.flop_counter import FlopCounterMode

from fff.int8 import quantised
from fff.kernels import int8_linear
from fff.kernels.cpu import operators as cpu
from fff.kernels.int8_linear import BLOCK, FEW, Rows, unusable
from fff.layers.int8_linear import Int8Linear
from tests.helpers.process import in_a_new_process

if reason := unusable():
    pytest.skip(reason, allow_module_level=True)

CPU = torch.device("cpu")
SHAPES = [
    (0, 8, 5),
    (1, 1, 1),
    (1, 577, 1),
    (3, 64, 64),
    (7, 33, 65),
    (FEW, 100, 130),
    (FEW + 1, 100, 130),
    (5, 100, 33),
    (20, 64, 17),
]
needs_cpp = pytest.mark.skipif(cpu.available(CPU, torch.float32) is not None, reason="the C++ cannot be built here")


@pytest.fixture(params=["operator", "in parts", "oneDNN"])
def road(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Calls of few tokens by our operator, all by oneDNN between our operators, or between torch's."""
    if request.param == "in parts":  # our operators around oneDNN's product, for few tokens too
        monkeypatch.setattr(int8_linear, "BLOCKS", ())
    if request.param == "oneDNN":
        monkeypatch.setattr(cpu, "available", lambda *_: "it is not wanted")
    elif reason := cpu.available(CPU, torch.float32):
        pytest.skip(reason)
    before = torch.get_num_threads()
    yield request.param
    torch.set_num_threads(before)


def definition(linear: nn.Linear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """y = float32(q_x . q_w) * the row's scale * the token's + bias, each step rounded once, then to the dtype."""
    (whole, scale), (rows, row_scale) = quantised(x), quantised(linear.weight.detach())
    y = (whole.long() @ rows.long().T).float() * row_scale * scale[..., None]
    return (y if linear.bias is None else y + linear.bias.detach().float()).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("tokens", "d_in", "d_out"), [*SHAPES, (2100, 769, 40)])
def test_an_int8_linear_is_its_definition_to_the_last_bit(
    tokens: int, d_in: int, d_out: int, bias: bool, road: str
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(d_in, d_out, bias=bias)
    x = 3 * torch.randn(tokens, d_in)
    assert tokens < 2100 or tokens * d_in > BLOCK, "in more than one part"
    layer = Int8Linear(linear)
    with torch.no_grad():
        for given in (x, x.bfloat16(), x, x.bfloat16()):  # the second time past the dispatcher
            found = layer(given)
            assert torch.equal(found, definition(linear, given, given.dtype))
            assert found.dtype == given.dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(layer(x), definition(linear, x, torch.bfloat16))
            assert linear(x).dtype == torch.bfloat16
        with torch.autocast("cpu", dtype=torch.float16):
            assert torch.equal(layer(x.bfloat16()), definition(linear, x.bfloat16(), torch.float16))
    assert (layer._products.shortcut is not None) == (road == "operator")


def test_inputs_of_any_shape_and_stride(road: str) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(70, 90)
    layer, x = Int8Linear(linear), torch.randn(70, 2, 3)
    strided = torch.randn(5, 140)[:, ::2]
    with torch.no_grad():
        for _ in range(2):
            for given in (x.permute(1, 2, 0), x[:, 0, 0], torch.randn(2, 0, 70), torch.randn(2, 70).expand(3, 2, 70)):
                found = layer(given)
                assert found.shape == (*given.shape[:-1], 90)
                assert torch.equal(found, definition(linear, given, torch.float32))
            assert torch.equal(layer(strided), definition(linear, strided, torch.float32))
    assert torch.equal(layer(strided), definition(linear, strided, torch.float32)), "nothing wants gradients"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_does_not_depend_on_those_beside_it_nor_on_threads(dtype: torch.dtype, road: str) -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(576, 1000))
    x = torch.randn(128, 576)
    x[::3] *= 1000  # torch's dynamic quantisation has one scale for all
    x[4], x[5, 1:], x[6] = 0, 0, x[6] * 2.0**-60
    x = x.to(dtype)
    with torch.no_grad():
        together = layer(x)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for count in (1, 2, 3, 16, 17, 33, 128):
                for start in range(0, 9 if count < 128 else 1):
                    part = slice(start, start + count)
                    assert torch.equal(layer(x[part]), together[part])


@pytest.mark.parametrize("tokens", [4, 40, 100])
@pytest.mark.parametrize("odd", [torch.nan, torch.inf, -torch.inf])
def test_a_token_that_is_not_finite_comes_out_so_alone(odd: float, tokens: int, road: str) -> None:
    torch.manual_seed(0)
    layer, x = Int8Linear(nn.Linear(64, 96)), torch.randn(tokens, 64)
    with torch.no_grad():
        expected = layer(x)
        x[2, 3] = odd
        for _ in range(2):
            found = layer(x)
            assert found[2].isnan().all()
            assert torch.equal(found[:2], expected[:2])
            assert torch.equal(found[3:], expected[3:])


@needs_cpp
@pytest.mark.parametrize("block", [16, 32, 48, 64])
def test_the_operator_reads_any_block_that_onednn_may_choose(block: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(100, 130)
    rows, scale = quantised(linear.weight.detach())
    blocks = -(-130 // block)
    padded = torch.zeros(blocks * block, 128, dtype=torch.int8)
    padded[:130, :100] = rows
    lines = padded.view(blocks, block, 32, 4).transpose(1, 2).reshape(-1)
    for tokens in (1, 4, 7, 16, 33, 70):
        x = torch.randn(tokens, 100)
        y = torch.ops.fff.cpu_int8_linear(x, lines, scale, linear.bias.detach(), 100, block)
        assert torch.equal(y, definition(linear, x, torch.float32))


def test_one_copy_of_the_weights_is_kept_and_counted() -> None:
    rows = Rows(torch.randint(-127, 128, (90, 70), dtype=torch.int8))
    layer = Int8Linear(nn.Linear(70, 90))
    if rows.block is None or rows.bytes is None:
        pytest.skip("oneDNN packs in another way here")
    assert rows.bytes.data_ptr() == torch.ops.mkldnn.data_ptr(rows.packed)
    blocks = -(-90 // rows.block) * rows.block
    assert rows.nbytes >= blocks * 128
    assert layer.nbytes == layer._products.rows.nbytes + 4 * 90 + 4 * 90


@needs_cpp
def test_rows_that_are_packed_otherwise_are_left_to_onednn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    int8_linear._say.cache_clear()
    torch.manual_seed(0)
    linear, x = nn.Linear(64, 96), torch.randn(2, 64)
    monkeypatch.setattr(int8_linear, "BLOCKS", (80,))
    layer = Int8Linear(linear)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(layer(x), definition(linear, x, torch.float32))
    (record,) = caplog.records
    assert "packs rows on this processor in a way that is not known" in record.getMessage()
    assert layer._products.shortcut is None


WITHOUT = """
import torch
from fff.layers.int8_linear import Int8Linear
torch.manual_seed(0)
layer, x = Int8Linear(torch.nn.Linear(64, 96)), torch.randn(100, 64)
with torch.no_grad():
    print(all(torch.equal(layer(x[:n]), layer(x)[:n]) for n in (1, 2, 1)))
"""


def test_without_a_compiler_onednn_does_all_and_it_is_said_once(tmp_path) -> None:
    said = in_a_new_process(WITHOUT, CXX="no-such-compiler", FFF_CACHE=str(tmp_path))
    assert said.count("there is no C++ compiler 'no-such-compiler'; install one") == 1
    assert "True" in said


@needs_cpp
def test_operations_of_few_tokens_are_counted_as_by_hand() -> None:
    layer, x = Int8Linear(nn.Linear(70, 90)), torch.randn(2, 3, 70)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
        layer(x)
    assert counter.get_total_flops() == 2 * 2 * 6 * 70 * 90


@needs_cpp
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 69)}, "last dimension is 69, but the layer has d_in=70"),
        ({"x": torch.zeros(2, 70).double()}, "x is Double"),
        ({"rows": torch.zeros(100, dtype=torch.int8)}, "rows must be"),
        ({"rows": torch.zeros(128 * 64, dtype=torch.int8)}, "hold d_in=70"),
        ({"rows": torch.zeros(128 * 128)}, "rows is Float"),
        ({"scale": torch.zeros(90).double()}, "scale is Double"),
        ({"scale": torch.zeros(0)}, "scale must be .d_out,., contiguous"),
        ({"bias": torch.zeros(91)}, "bias must be .d_out,. = .90."),
        ({"d_in": 0}, "d_in must be from 1"),
        ({"d_in": 2**17 + 1}, "d_in must be from 1"),
        ({"block": 24}, "block must be a multiple of 16, got 24"),
        ({"block": 0}, "block must be a multiple of 16, got 0"),
    ],
)
def test_the_operator_refuses_what_does_not_fit(change: dict, words: str) -> None:
    given = {"x": torch.zeros(2, 70), "rows": torch.zeros(128 * 128, dtype=torch.int8), "scale": torch.ones(90)}
    given |= {"bias": torch.zeros(90), "d_in": 70, "block": 64}
    assert torch.ops.fff.cpu_int8_linear(*given.values()).shape == (2, 90)
    with pytest.raises(ValueError, match=words):
        torch.ops.fff.cpu_int8_linear(*(given | change).values())


@pytest.mark.parametrize("d_out", [64, 192, 576])
def test_a_lone_token_is_not_left_to_reference_code(
    d_out: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "available", lambda *_: "it is not wanted")
    layer, slow = Int8Linear(nn.Linear(576, d_out, bias=False)), []
    for tokens in (2, 1):
        with torch.no_grad(), mkldnn.verbose(mkldnn.VERBOSE_ON):
            layer(torch.randn(tokens, 576))
        told = capfd.readouterr().out
        assert "matmul" in told
        slow.append(",ref_int8:" in told)
    assert slow[1] == slow[0]


def test_an_int8_linear_is_copied_but_neither_saved_nor_trained() -> None:
    layer, x = Int8Linear(nn.Linear(64, 96)), torch.randn(5, 64)
    with torch.no_grad():
        assert layer(x).isfinite().all()
        for other in (
            copy.deepcopy(layer),
            pickle.loads(pickle.dumps(layer)),
            copy.deepcopy(layer).bfloat16(),
            copy.deepcopy(layer).half(),
        ):
            assert torch.equal(other(x), layer(x))
    for saved in (nn.Sequential(layer).state_dict, lambda: nn.Sequential(layer).load_state_dict({})):
        with pytest.raises(RuntimeError, match="save the float model, and call optimise_for_cpu after loading"):
            saved()
    with pytest.raises(RuntimeError, match="no gradients"):
        layer(x.requires_grad_())
    with pytest.raises(RuntimeError, match="inference alone"):
        copy.deepcopy(layer).train()(x.detach())
    for wrong, words in ((x.detach().double(), "float64"), (torch.randn(5, 63), "last dimension is 63")):
        with pytest.raises(ValueError, match=words):
            layer(wrong)
    assert (layer.weight.dtype, layer.weight.device.type) == (torch.int8, "cpu")  # what models ask of a weight


@needs_cpp
def test_what_stands_around_onednn_refuses_what_does_not_fit() -> None:
    tokens, scaled = torch.ops.fff.cpu_int8_tokens, torch.ops.fff.cpu_int8_scaled
    for wrong in (torch.zeros(3), torch.zeros(2, 0), torch.zeros(2, 3).double()):
        with pytest.raises(ValueError, match=r"x (must be|is Double)"):
            tokens(wrong)
    y, scale, bias = torch.ones(2, 3), torch.full((2,), 2.0), torch.ones(3)
    for given, words in (
        ((y.double(), scale, bias, y), "y is Double"),
        ((y, scale[:1], bias, y), "scale must be .tokens,."),
        ((y, scale, bias[:2], y), "bias must be .d_out,."),
        ((y, scale, bias, y[:1]), "out must be as y"),
        ((y, scale, bias, y.half()), "out is Half"),
        ((y, scale, bias, torch.ones(3, 2).T), "out and scale must be contiguous"),
    ):
        with pytest.raises(ValueError, match=words):
            scaled(*given)
    assert torch.equal(y, torch.ones(2, 3))
    scaled(y, scale, bias, y)
    assert torch.equal(y, torch.full((2, 3), 3.0))
