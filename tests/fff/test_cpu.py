"""Provider `cpu`: the C++ against the definition, its bits and its operators."""

import copy
import pickle
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from fff import LeafFFF, PathFFF
from fff.kernels import PathOperands, choose
from fff.kernels.cpu import operators as cpu
from fff.reference import leaf_fff, path_fff
from tests.helpers.process import in_a_new_process

CPU = torch.device("cpu")
if reason := cpu.available(CPU, torch.float32):
    pytest.skip(reason, allow_module_level=True)

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}  # of the largest entry
MARGIN = {torch.float32: 1e-5, torch.bfloat16: 1e-5}  # scores are float32 sums for both
# tokens, trees, depth, d_in, d_out: ragged on purpose
SHAPES = [
    *[(n, 1, d, 48, 40) for n in (1, 2, 3, 63, 500) for d in (0, 1, 4, 11)],
    *[(n, 3, d, 33, 17) for n in (1, 63, 300) for d in (0, 1, 4, 11)],
    *[(n, 128, d, 16, 24) for n in (1, 129) for d in (0, 1, 4)],
    (7, 1, 15, 5, 3),
    (40, 1, 15, 16, 16),
    (3000, 1, 6, 20, 31),  # several chunks, cut inside of subtrees
    (2100, 2, 3, 7, 100),  # several blocks of several trees
    (63, 2, 4, 200, 136),  # wider than a register block's columns, and not a multiple
]


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that is given out holds NaN until it is written."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def operands(tokens: int, trees: int, depth: int, d_in: int, d_out: int, dtype: torch.dtype) -> tuple:
    """x, w_in, b_in, w_out."""
    torch.manual_seed(tokens * 1000 + trees * 100 + depth)
    nodes = 2 ** (depth + 1) - 1
    x, w_in = torch.randn(tokens, d_in), torch.randn(trees, nodes, d_in) / d_in**0.5
    b_in, w_out = 0.3 * torch.randn(trees, nodes), torch.randn(trees, nodes, d_out)
    return tuple(t.to(dtype) for t in (x, w_in, b_in, w_out))


def near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> bool:
    """The largest error, relative to the largest entry; a NaN is not near."""
    if not theirs.numel():
        return ours.shape == theirs.shape
    return bool((ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-6))


def clear_tokens(values: tuple, dtype: torch.dtype, flips: torch.Tensor | None = None) -> tuple:
    """The tokens that two roundings cannot send two ways, and their flips."""
    scores = path_fff(*(v.double() for v in values), "gelu", flips).scores
    clear = (scores.abs() > MARGIN[dtype]).flatten(1).all(1)
    assert clear.float().mean() > 0.9 or len(clear) < 10 or values[1].shape[0] == 128
    return (values[0][clear], *values[1:]), None if flips is None else flips[clear]


def compare(values: tuple, activation: str, flips: torch.Tensor | None, temperature: float | None) -> None:
    """Outputs, nodes, scores and all gradients, from losses of outputs and scores."""
    dtype = values[0].dtype
    wide = [v.double().requires_grad_() for v in values]
    leaves = [v.clone().requires_grad_() for v in values]
    of = lambda dt: None if temperature is None else torch.tensor(temperature, dtype=dt)  # noqa: E731
    expected = path_fff(*wide, activation, flips, of(torch.float64))
    found = cpu.cpu(PathOperands(*leaves, activation, flips, of(torch.float32)))
    assert torch.equal(found.nodes, expected.nodes)
    assert found.scores.dtype == torch.float32
    assert near(found.scores.detach(), expected.scores.detach(), 2e-6)
    assert found.y.dtype == dtype
    assert near(found.y.detach(), expected.y.detach(), TOLERANCE[dtype])
    grads = torch.randn(found.y.shape).to(dtype), torch.randn(found.scores.shape)
    theirs = torch.autograd.grad((expected.y, expected.scores), wide, [g.double() for g in grads])
    for a, b in zip(torch.autograd.grad((found.y, found.scores), leaves, grads), theirs, strict=True):
        assert near(a, b, TOLERANCE[dtype])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_the_definitions(dtype: torch.dtype) -> None:
    for shape in SHAPES:
        values, _ = clear_tokens(operands(*shape, dtype), dtype)
        compare(values, "gelu", None, None)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"])
def test_every_activation_with_leak_and_straight_through_gradients(dtype: torch.dtype, activation: str) -> None:
    values = operands(200, 2, 4, 40, 24, dtype)
    values, flips = clear_tokens(values, dtype, torch.rand(200, 2, 4) < 0.3)
    compare(values, activation, flips, 0.7)


def test_activations_far_from_zero() -> None:
    for activation in cpu.ACTIVATION_IDS:
        x = torch.tensor([[s] for s in (-1e4, -90.0, -12.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 12.0, 90.0, 1e4)])
        one = torch.ones(1, 1, 1)
        compare((x, one, torch.zeros(1, 1), one), activation, None, None)


def test_inference_has_the_bits_of_training_without_its_record() -> None:
    for shape in SHAPES:
        values = operands(*shape, torch.float32)
        training = cpu.cpu(PathOperands(*values, "gelu")).y
        with torch.no_grad():
            assert torch.equal(cpu.output(PathOperands(*values, "gelu")), training)


def test_a_tokens_bits_do_not_depend_on_its_company() -> None:
    for trees, depth in ((1, 7), (3, 4)):
        x, *weights = operands(2500, trees, depth, 40, 136, torch.float32)
        with torch.no_grad():
            together = cpu.output(PathOperands(x, *weights, "gelu"))
            for start, end in ((0, 1), (1, 3), (7, 300), (900, 2500)):
                assert torch.equal(cpu.output(PathOperands(x[start:end], *weights, "gelu")), together[start:end])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_for_any_number_of_threads(dtype: torch.dtype) -> None:
    # the second has one chunk of tokens: a second thread goes the way of many trees there
    for shape in ((5000, 1, 9, 64, 48), (200, 1, 5, 768, 48), (2500, 5, 4, 64, 144)):
        values = [v.requires_grad_() for v in operands(*shape, dtype)]
        grad = torch.randn(shape[0], shape[4]).to(dtype)

        def everything(values=values, grad=grad) -> list[torch.Tensor]:
            y = cpu.output(PathOperands(*values, "gelu"))
            return [y, *torch.autograd.grad(y, values, grad)]

        expected, threads = everything(), torch.get_num_threads()
        try:
            for count in (1, 2, 5):
                torch.set_num_threads(count)
                assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))
        finally:
            torch.set_num_threads(threads)


def test_the_operators_are_sound() -> None:
    x, w_in, b_in, w_out = (v.requires_grad_() for v in operands(9, 2, 5, 24, 16, torch.float32))
    ops = torch.ops.fff
    torch.library.opcheck(ops.cpu_forward.default, (x, w_in, b_in, w_out, 0, None, None))
    torch.library.opcheck(
        ops.cpu_forward.default, (x, w_in, None, w_out, 0, torch.rand(9, 2, 5) < 0.3, torch.tensor(0.5))
    )
    plain = [v.detach() for v in (x, w_in, b_in, w_out)]
    torch.library.opcheck(ops.cpu_infer.default, (*plain, 0))
    _, leaf, scores = ops.cpu_forward.default(*plain, 0, None, None)
    torch.library.opcheck(
        ops.cpu_backward.default,
        (torch.randn(9, 16), None, plain[0], plain[1], plain[3], leaf, scores, None, 0),
    )


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_leaf_fff_infers_as_the_definition_says(dtype: torch.dtype) -> None:
    for tokens, depth, leaf_width, d_in, d_out in (
        (1, 1, 1, 16, 16),
        (63, 4, 5, 24, 40),
        (500, 7, 8, 33, 17),
        (900, 2, 3, 8, 8),
    ):
        torch.manual_seed(tokens)
        layer = LeafFFF(d_in, d_out, depth, leaf_width).to(dtype).eval()
        x = torch.randn(tokens, d_in, dtype=dtype)
        weights = [getattr(layer, name).double() for name in ("w_node", "b_node", "w_in", "b_in", "w_out", "b_out")]
        expected = leaf_fff(x.double(), *weights, "gelu")
        clear = (expected.scores.abs() > 1e-5).flatten(1).all(1)
        assert clear.float().mean() > 0.9
        with torch.no_grad():
            assert layer._provider_for(x).name == "cpu"
            y = layer(x)
            assert torch.equal(layer(x[tokens // 2 :]), y[tokens // 2 :])
        assert near(y[clear], expected.y[clear], TOLERANCE[dtype])


def test_leaf_fff_with_a_master_leaf_is_the_same_in_either_way() -> None:
    layer, x = LeafFFF(24, 16, 3, 4, master_width=6).eval(), torch.randn(5, 7, 24)
    with torch.no_grad():
        compiled = layer(x)
    layer.provider = "gather"
    torch.testing.assert_close(compiled, layer(x).detach())


def test_any_leading_shape_and_strides_in_inference() -> None:
    layer = PathFFF(24, 16, 5, 2, provider="cpu").eval()
    x = torch.randn(2, 3, 5, 24)
    with torch.inference_mode():
        flat = layer(x.flatten(0, 2))
        assert torch.equal(layer(x), flat.view(2, 3, 5, 16))
        assert torch.equal(layer(x.transpose(0, 1)), layer(x).transpose(0, 1))
        assert layer(x[0, 0, 0]).shape == (16,)
        assert layer(torch.empty(0, 4, 24)).shape == (0, 4, 16)


class Seen(TorchDispatchMode):
    """The operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
def test_the_shortcut_has_the_operators_bits(dtype: torch.dtype, bias: bool) -> None:
    x, w_in, b_in, w_out = operands(5, 2, 4, 48, 40, dtype)
    given = (x, w_in, b_in if bias else None, w_out)
    for number, activation in enumerate(cpu.ACTIVATION_IDS):
        with torch.no_grad():
            y = cpu.shortcut(activation)(x, dict(zip(("w_in", "b_in", "w_out"), given[1:], strict=True)))
        assert y is not None
        assert torch.equal(y, torch.ops.fff.cpu_infer.default(*given, number))


def test_the_shortcut_leaves_to_the_operator_what_is_not_plain() -> None:
    layer = PathFFF(48, 48, 4, provider="cpu").eval()
    infer, weights = cpu.shortcut("gelu"), layer._parameters
    x = torch.randn(3, 48)
    assert infer(x, weights) is None, "gradients are wanted"
    with torch.no_grad():
        assert infer(x, weights) is not None
        assert infer(x.double(), weights) is None
        assert infer(x.bfloat16(), weights) is None
        assert infer(x.to("meta"), weights) is None
        assert infer(FakeTensorMode().from_tensor(x), weights) is None
        assert infer(x.as_subclass(type("Sub", (torch.Tensor,), {})), weights) is None
        assert infer([1.0], weights) is None  # type: ignore[arg-type]
        assert infer(x, {"w_in": layer.w_in, "w_out": layer.w_out}) is None
        with torch.autocast("cpu"):
            assert infer(x, weights) is None
        with torch.device("meta"):
            assert infer(x, weights) is None
    with torch.no_grad(), Seen() as seen:
        layer(x)
    assert "fff.cpu_infer.default" in seen.names
    with torch.no_grad(), torch.profiler.profile() as profile:
        layer(x)
    assert "fff::cpu_infer" in {event.name for event in profile.events()}


def test_a_layer_follows_what_is_set_on_it_after_its_first_call() -> None:
    layer = PathFFF(48, 48, 4, provider="cpu").eval()
    x = torch.randn(3, 48)
    with torch.no_grad():
        hard = layer(x)
        layer.activation = "relu"
        relu = layer(x)
        layer.provider = "masked"
        assert torch.allclose(layer(x), relu, atol=1e-6)
        assert not torch.allclose(hard, relu, atol=1e-3)
        layer.evaluation_form = "soft"
        assert not torch.allclose(layer(x), relu, atol=1e-3)
        with pytest.raises(ValueError, match="d_in=48"):
            PathFFF(48, 48, 4, provider="cpu").eval()(torch.randn(3, 47))


def test_a_layer_that_was_used_can_be_copied_and_saved() -> None:
    layer = PathFFF(48, 48, 4, provider="cpu", bias=False).eval()
    x = torch.randn(3, 48)
    with torch.no_grad():
        y = layer(x)
        for same in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(same(x), y)
        parametrize.register_parametrization(layer, "w_in", torch.nn.Identity())
        assert torch.equal(layer(x), y)


def test_weights_that_infer_lie_in_huge_pages_with_the_bits_they_had() -> None:
    code = """
import re
import torch
from fff import PathFFF
from fff.layers.quantised import QuantisedPath
def huge(address):
    inside = False
    for line in open("/proc/self/smaps"):
        if area := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(area[1], 16) <= address < int(area[2], 16)
        elif inside and line.startswith("AnonHugePages"):
            return int(line.split()[1])
layer, x = PathFFF(768, 768, 13, provider="cpu").eval(), torch.randn(3, 768)
quantised = QuantisedPath.from_float(layer, "cpu").eval()  # 12 MB: huge pages lie around its middle wherever it begins
for module in (layer, quantised):
    middle = module.w_in.data_ptr() + module.w_in.nbytes // 2
    before, kept, at = huge(middle), module.w_in.clone(), module.w_in.data_ptr()
    with torch.no_grad():
        y = module(x)
        assert torch.equal(y, module(x))
    assert torch.equal(module.w_in, kept)
    assert module.w_in.data_ptr() == at
    assert before == 0
    print("in huge pages" if huge(middle) >= module.w_in.nbytes // 2**21 * 1024 else "not", huge(middle))
"""
    enabled = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not enabled.exists() or "[never]" in enabled.read_text() or not collapses():
        pytest.skip("this system has no huge pages to ask for")
    assert in_a_new_process(code).count("in huge pages") == 2


def collapses() -> bool:
    """Whether Linux is of 6.1 or later."""
    system, *release = platform.uname()[0], *platform.release().split(".")[:2]
    return system == "Linux" and tuple(map(int, release)) >= (6, 1)


def test_memory_of_large_results_is_used_again_when_they_are_gone() -> None:
    layer = PathFFF(64, 2**16, 0, provider="cpu").eval()
    x = torch.randn(32, 64)
    with torch.no_grad():
        first, second = layer(x), layer(x)
        assert first.data_ptr() != second.data_ptr(), "both are in use"
        expected, place = first.clone(), first.data_ptr()
        second.zero_()
        assert torch.equal(first, expected)
        del first
        third = layer(x)
        assert third.data_ptr() == place
        assert torch.equal(third, expected)
        third.resize_(2**22)  # as any tensor's memory


def test_memory_that_is_not_to_be_kept_is_given_back() -> None:
    code = """
import torch
from fff import PathFFF
layer, x = PathFFF(64, 2**16, 0, provider="cpu").eval(), torch.randn(1024, 64)
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
with torch.no_grad():
    layer(x[:1])
    before = resident()
    layer(x)
print(resident() - before)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("there is no /proc/self/statm")
    kept = int(in_a_new_process(code, FFF_KEEP_MB="300").split()[-1])
    given_back = int(in_a_new_process(code, FFF_KEEP_MB="200").split()[-1])
    assert kept >= 256, f"{kept} MB"
    assert given_back < 64, f"{given_back} MB"


def test_a_wrong_limit_of_memory_is_named() -> None:
    code = """
import torch
from fff import PathFFF
try:
    PathFFF(64, 2**16, 0, provider="cpu")(torch.randn(32, 64))
except ValueError as error:
    print(error)
"""
    assert "FFF_KEEP_MB=lots is not a number of megabytes" in in_a_new_process(code, FFF_KEEP_MB="lots")


def test_what_does_not_fit_is_named() -> None:
    x, w_in, b_in, w_out = operands(4, 1, 3, 8, 8, torch.float32)
    for arguments, message in (
        ((x.double(), w_in, b_in, w_out), "provider 'cpu' takes float32 and bfloat16"),
        ((x, w_in.bfloat16(), b_in, w_out), "w_in is .*BFloat16"),
        ((x[:, :5], w_in, b_in, w_out), "last dimension is 5, but the layer has d_in=8"),
        ((x, w_in[:, :4], b_in[:, :4], w_out[:, :4]), "complete tree"),
        ((x, w_in, b_in[:, :4], w_out), "b_in must be"),
    ):
        with pytest.raises(ValueError, match=message):
            cpu.output(PathOperands(*arguments, "gelu"))
    with pytest.raises(RuntimeError, match=r"takes float32 and bfloat16, not torch\.float16"):
        choose("auto", "cpu", CPU, torch.float16, 1, 8)
    with pytest.raises(RuntimeError, match="tensors are on cuda"):
        choose("auto", "cpu", torch.device("cuda"), torch.float32, 1, 8)
