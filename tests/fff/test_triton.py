"""Provider `triton` against the definition: compiled where there is a GPU, else in Triton's interpreter."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fff import PathFFF
from fff import testing as parity
from fff.kernels import PROVIDERS, PathOperands, choose
from fff.kernels.triton import operators as triton
from fff.reference import path_fff

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
if reason := triton.available(DEVICE, torch.float32):
    pytest.skip(f"provider triton: {reason}", allow_module_level=True)

from fff.kernels.triton import host  # noqa: E402, imports Triton

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}  # of the largest entry
# tokens, trees, depth, d_in, d_out: ragged on purpose, small for the interpreter
SHAPES = {
    "each": [(1, 1, 0, 16, 16), (63, 1, 1, 33, 17), (5, 3, 4, 20, 33)],
    "groups": [(1, 1, 0, 16, 16), (500, 1, 1, 33, 17), (63, 3, 4, 20, 33)],
    "small": [(1, 1, 0, 16, 16), (500, 1, 0, 7, 5), (63, 1, 1, 33, 17), (9, 2, 4, 20, 17)],
}
ops = torch.ops.fff


@pytest.fixture
def poisoned() -> Iterator[None]:
    """Memory that is given out holds NaN until it is written."""
    with parity.poisoned():
        yield


def take(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token by itself, tokens in groups, or in groups with bands and pieces so small that there are many."""
    monkeypatch.setattr(host, "GROUPED_FROM_BYTES", 2**60 if way == "each" else -1)
    # The interpreter takes long for float32's narrow bands: many groups.
    monkeypatch.setattr(host, "SINGLE", host.SINGLE._replace(levels=6))
    if way == "small":
        monkeypatch.setattr(host, "CHUNK", 1)
        for name in ("SINGLE", "HALF"):
            monkeypatch.setattr(host, name, getattr(host, name)._replace(levels=2, n=16, h=16, k=16))


def operands(tokens: int, trees: int, depth: int, d_in: int, d_out: int, dtype: torch.dtype) -> list[Tensor]:
    """x, w_in, b_in, w_out; of x the tokens that two roundings cannot send two ways."""
    torch.manual_seed(tokens * 1000 + trees * 100 + depth)
    nodes = 2 ** (depth + 1) - 1
    x, w_in = torch.randn(2 * tokens, d_in), torch.randn(trees, nodes, d_in) / d_in**0.5
    b_in, w_out = 0.3 * torch.randn(trees, nodes), torch.randn(trees, nodes, d_out)
    x, *weights = (t.to(DEVICE, dtype) for t in (x, w_in, b_in, w_out))
    scores = path_fff(x.double(), *(w.double() for w in weights), "gelu").scores
    clear = (scores.abs() > 1e-5).flatten(1).all(1)
    return [x[clear][:tokens], *weights]


def near(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    """The largest error, relative to the largest entry; a NaN is not near."""
    if not theirs.numel():
        return ours.shape == theirs.shape
    return bool((ours.double() - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-6))


def compare(
    values: list[Tensor], activation: str, flips: Tensor | None = None, temperature: float | None = None
) -> None:
    """Outputs, nodes, scores and all gradients, from losses of outputs and scores; off the path exact zeros."""
    dtype = values[0].dtype
    wide = [v.double().requires_grad_() for v in values]
    leaves = [v.clone().requires_grad_() for v in values]
    of = lambda dt: None if temperature is None else torch.tensor(temperature, dtype=dt, device=DEVICE)  # noqa: E731
    expected = path_fff(*wide, activation, flips, of(torch.float64))
    found = triton.triton(PathOperands(*leaves, activation, flips, of(torch.float32)))
    assert torch.equal(found.nodes, expected.nodes)
    assert found.scores.dtype == torch.float32
    assert near(found.scores.detach(), expected.scores.detach(), 2e-6)
    assert found.y.dtype == dtype
    assert near(found.y.detach(), expected.y.detach(), TOLERANCE[dtype])
    grads = torch.randn_like(found.y), torch.randn_like(found.scores)
    theirs = torch.autograd.grad((expected.y, expected.scores), wide, [g.double() for g in grads])
    for a, b in zip(torch.autograd.grad((found.y, found.scores), leaves, grads), theirs, strict=True):
        assert a.dtype == dtype
        assert near(a, b, TOLERANCE[dtype])
        assert not a[b == 0].any()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("way", SHAPES)
def test_outputs_and_gradients_are_the_definitions(way: str, dtype: torch.dtype, monkeypatch) -> None:
    take(way, monkeypatch)
    for shape in SHAPES[way]:
        compare(operands(*shape, dtype), "identity")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    ("way", "dtype", "shape"),
    [
        ("each", torch.float16, (7, 1, 11, 16, 24)),
        ("groups", torch.float32, (7, 1, 11, 16, 24)),
        ("groups", torch.bfloat16, (7, 1, 11, 16, 24)),
        ("each", torch.bfloat16, (1, 128, 1, 16, 8)),
        ("groups", torch.float32, (3, 128, 0, 16, 8)),
    ],
)
def test_depth_11_and_128_trees(way: str, dtype: torch.dtype, shape: tuple[int, ...], monkeypatch) -> None:
    take(way, monkeypatch)
    compare(operands(*shape, dtype), "gelu")


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"])
@pytest.mark.parametrize("way", ["each", "small"])
def test_every_activation_with_leak_and_straight_through_gradients(way: str, activation: str, monkeypatch) -> None:
    take(way, monkeypatch)
    values = operands(9, 2, 3, 16, 16, torch.float32)
    flips = torch.rand(9, 2, 3, device=DEVICE) < 0.3
    scores = path_fff(*(v.double() for v in values), "gelu", flips).scores
    assert scores.abs().min() > 1e-5
    compare(values, activation, flips, 0.7)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("way", ["each", "small"])
def test_far_scores_and_no_bias(way: str, monkeypatch) -> None:
    take(way, monkeypatch)
    x = torch.tensor([[s] for s in (-1e4, -90.0, -12.0, -3.0, -1e-3, 0.0, 1e-3, 3.0, 12.0, 90.0, 1e4)], device=DEVICE)
    one = torch.ones(1, 1, 1, device=DEVICE)
    for activation in ("gelu", "gelu_tanh", "relu", "silu", "tanh"):
        found = triton.triton(PathOperands(x, one, None, one, activation)).y
        assert near(found, path_fff(x.double(), one.double(), None, one.double(), activation).y, 1e-6)
        with torch.no_grad():  # small scores by themselves
            few = triton.output(PathOperands(x[4:7], one, None, one, activation))
        assert near(few, path_fff(x[4:7].double(), one.double(), None, one.double(), activation).y, 2e-4)


@pytest.mark.usefixtures("poisoned")
def test_a_crowded_group_is_summed_in_pieces_and_the_same_bits_come_twice(monkeypatch) -> None:
    take("groups", monkeypatch)
    monkeypatch.setattr(host, "CHUNK", 1)
    monkeypatch.setattr(host, "SINGLE", host.SINGLE._replace(levels=2, n=128))
    x, w_in, b_in, w_out = operands(600, 1, 3, 8, 8, torch.float32)
    b_in[:, :3] += 1.5  # of four groups one has more tokens than the 256 of a piece
    values = [v.requires_grad_() for v in (x, w_in, b_in, w_out)]

    def everything(function) -> list[Tensor]:
        result = function(PathOperands(*values, "gelu"))
        assert (result.nodes[:, 0, 2] == 6).sum() > host._chunk(host.Band(2, 2), 1)
        return [result.y, *torch.autograd.grad(result.y.square().sum(), values)]

    first, second, expected = map(everything, (triton.triton, triton.triton, lambda given: path_fff(*given)))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(near(a, b.double(), 1e-5) for a, b in zip(first, expected, strict=True))


@pytest.mark.parametrize("way", ["each", "small"])
def test_nan_goes_left_and_comes_out_alone(way: str, monkeypatch) -> None:
    take(way, monkeypatch)
    values = operands(20, 2, 3, 16, 16, torch.float32)
    expected = triton.triton(PathOperands(*values, "relu"))
    values[0][3, 5] = float("nan")
    found = triton.triton(PathOperands(*values, "relu"))
    assert found.y[3].isnan().all()
    assert found.nodes[3].tolist() == [[0, 1, 3, 7]] * 2
    others = torch.arange(20, device=DEVICE) != 3
    torch.testing.assert_close(found.y[others], expected.y[others])


@pytest.mark.parametrize("way", ["each", "groups"])
def test_shapes_strides_inference_and_nothing(way: str, monkeypatch) -> None:
    take(way, monkeypatch)
    module = layer()
    x = torch.randn(2, 3, 5, 24, device=DEVICE)
    flat = module(x.view(-1, 24))
    assert torch.equal(module(x), flat.view(2, 3, 5, 16))
    strided = torch.randn(24, 30, device=DEVICE).t()
    assert torch.equal(module(strided), module(strided.contiguous()))
    module.eval()
    with torch.inference_mode():
        assert near(module(x).flatten(0, 2), flat, 1e-6)
    nothing = torch.empty(0, 4, 24, device=DEVICE, requires_grad=True)
    y = module(nothing)
    assert y.shape == (0, 4, 16)
    assert not any(g.any() for g in torch.autograd.grad(y.sum(), [nothing, *module.parameters()]))


def test_the_backward_takes_any_strides() -> None:
    x, w_in, b_in, w_out = operands(9, 2, 3, 16, 16, torch.float32)
    y, leaf, scores = ops.triton_forward.default(x, w_in, b_in, w_out, "gelu", None, None)

    def backward(change) -> list[Tensor]:
        tensors = [change(t) for t in (torch.ones_like(y), torch.ones_like(scores), x, w_in, w_out, leaf, scores)]
        return ops.triton_backward.default(*tensors, None, "gelu")

    strided = backward(lambda t: t.transpose(0, -1).contiguous().transpose(0, -1))
    assert all(torch.equal(a, b) for a, b in zip(strided, backward(lambda t: t), strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_the_short_way_of_inference_is_the_usual_one(bias: bool, monkeypatch) -> None:
    module, x = layer(bias=bias).eval(), torch.randn(2, 5, 24, device=DEVICE)
    with torch.no_grad():
        first = module(x)  # the usual way, which finds the short one
        called: list[Tensor] = []
        usual = module._call
        monkeypatch.setattr(module, "_call", lambda x: called.append(x) or usual(x))
        assert torch.equal(module(x), first)
        assert torch.equal(module(x[0]), first[0])
        assert module(x[:0]).shape == (0, 5, 16)
        assert not called
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
            assert module(x).dtype == torch.bfloat16
        assert len(called) == 1
        for wrong, message in ((x[..., 1:], "d_in=24"), (x.double(), r"torch\.float64"), (x.to("meta"), "on meta")):
            with pytest.raises(ValueError, match=message):
                module(wrong)
    assert module(x).requires_grad


def test_a_short_way_that_comes_and_goes_does_not_compile_anew() -> None:
    torch._dynamo.reset()  # layers of other tests were compiled from the same code
    module, x = layer().eval(), torch.randn(5, 24, device=DEVICE)
    with torch.no_grad():
        module(x)
    assert module._chooser.shortcut is not None
    model = torch.compile(module.train(), backend="eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        model(x)
        module.evaluation_form = "soft"
        module.evaluation_form = "hard"
        assert module._chooser.shortcut is None
        model(x)


def layer(depth: int = 4, **options) -> PathFFF:
    torch.manual_seed(0)
    return PathFFF(24, 16, depth, 2, provider="triton", **options).to(DEVICE)


@pytest.mark.parametrize("way", ["each", "groups"])
def test_the_operators_are_sound(way: str, monkeypatch) -> None:
    take(way, monkeypatch)
    x, w_in, b_in, w_out = (v.requires_grad_() for v in operands(3, 2, 2, 8, 8, torch.float32))
    flips = torch.rand(3, 2, 2, device=DEVICE) < 0.3
    torch.library.opcheck(ops.triton_forward.default, (x, w_in, b_in, w_out, "gelu", None, None))
    torch.library.opcheck(
        ops.triton_forward.default, (x, w_in, None, w_out, "gelu", flips, torch.tensor(0.5, device=DEVICE))
    )
    plain = [v.detach() for v in (x, w_in, b_in, w_out)]
    torch.library.opcheck(ops.triton_infer.default, (*plain, "gelu"))
    y, leaf, scores = ops.triton_forward.default(*plain, "gelu", None, None)
    torch.library.opcheck(
        ops.triton_backward.default,
        (torch.randn_like(y), None, plain[0], plain[1], plain[3], leaf, scores, None, "gelu"),
    )


def step(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """Output and gradients of the parameters."""
    y = module(x)
    return [y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))]


def test_compiles_and_exports_as_one_graph() -> None:
    module, x = layer(), torch.randn(20, 24, device=DEVICE)
    expected = step(module, x)
    exported = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("tokens", min=2, max=4096)},))
    assert torch.equal(exported.module()(x[:7]), module(x[:7]))
    module.compile(fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(step(module, x), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_autocast_computes_in_the_autocast_type() -> None:
    module, x = layer(), torch.randn(20, 24, device=DEVICE)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, layer().bfloat16()(x.bfloat16()))


def test_distributed_data_parallel_has_the_same_gradients(tmp_path: Path) -> None:
    module, x = layer(), torch.randn(20, 24, device=DEVICE)
    expected = step(module, x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        DistributedDataParallel(module)(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    assert all(torch.equal(p.grad, g) for p, g in zip(module.parameters(), expected[1:], strict=True))


def test_a_layer_on_meta_has_shapes() -> None:
    with torch.device("meta"):
        module = PathFFF(24, 16, 8, 2, provider="triton")
    assert module(torch.empty(5, 24, device="meta")).shape == (5, 16)


def test_training_keeps_inputs_leaves_and_scores() -> None:
    kept: dict[int, int] = {}
    module, x = layer(), torch.randn(7, 24, device=DEVICE, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.update({t.data_ptr(): t.nbytes}) or t, lambda t: t):
        module(x)
    weights = module.w_in.nbytes + module.w_out.nbytes
    assert sum(kept.values()) == weights + x.nbytes + 7 * 2 * 4 + 7 * 2 * 5 * 4


def test_bands_cover_the_levels_evenly() -> None:
    assert [list(b) for b in host.bands_of(11, 7)] == [[0, 6], [6, 6]]
    assert [list(b) for b in host.bands_of(15, 7)] == [[0, 5], [5, 5], [10, 6]]
    assert [list(b) for b in host.bands_of(0, 7)] == [[0, 1]]


def test_what_does_not_fit_is_named() -> None:
    x, w_in, b_in, w_out = operands(4, 1, 3, 8, 8, torch.float32)
    deep = torch.empty(1, 2**17 - 1, 8, device=DEVICE)
    for arguments, message in (
        ((x.double(), w_in, b_in, w_out), r"provider 'triton' takes float32.*x is torch\.float64"),
        ((x, w_in.bfloat16(), b_in, w_out), r"w_in is torch\.bfloat16, but x is torch\.float32"),
        ((x, w_in, b_in, w_out.to("meta")), "w_out is on meta, but x is on"),
        ((x[:, :5], w_in, b_in, w_out), r"x must be \(N, H\)"),
        ((x, w_in[:, :4], b_in[:, :4], w_out[:, :4]), "complete tree"),
        ((x, w_in, b_in[:, :4], w_out), r"b_in must be \(1, 15\)"),
        ((x, w_in, b_in, w_out[:, :7]), r"w_out must be \(1, 15, K\)"),
        ((x, deep, None, deep), "depth up to 15, and w_in has 1 of depth 16; take provider 'gather'"),
    ):
        with pytest.raises(ValueError, match=message):
            triton.output(PathOperands(*arguments, "gelu"))
    with pytest.raises(ValueError, match=r"flips must be bool"):
        triton.output(PathOperands(x, w_in, b_in, w_out, "gelu", torch.zeros(4, 1, 2, dtype=torch.bool, device=DEVICE)))
    with pytest.raises(RuntimeError, match=r"takes float32, bfloat16 and float16, not torch\.float64"):
        choose("auto", "triton", DEVICE, torch.float64, 1, 8)


def test_where_it_is_not_available_the_reason_is_given(monkeypatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(RuntimeError, match=r"the tensors are on the CPU; move layer and input with \.to\('cuda'\)"):
        choose("auto", "triton", cpu, torch.float32, 1, 11)
    with pytest.raises(ValueError, match=r"not available: .* on the CPU"):
        ops.triton_infer.default(*(v.cpu() for v in operands(4, 1, 1, 8, 8, torch.float32)), "gelu")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="torch finds none here"):
            choose("auto", "triton", torch.device("cuda"), torch.float32, 1, 11)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"Triton is not installed; `pip install 'fff-cramming\[triton\]'`"):
        choose("auto", "triton", DEVICE, torch.float32, 1, 11)


def test_auto_takes_it_on_a_gpu_alone(monkeypatch) -> None:
    able = dataclasses.replace(PROVIDERS["triton"], available=lambda device, dtype: None)
    monkeypatch.setitem(PROVIDERS, "triton", able)

    def auto(device: str, depth: int, execution: str = "auto", dtype: torch.dtype = torch.bfloat16) -> str:
        return choose(execution, "auto", torch.device(device), dtype, 1, depth).name

    assert [auto("cuda", 11), auto("cuda", 15), auto("cuda", 3, "conditional")] == ["triton"] * 3
    assert [auto("cuda", 16), auto("cuda", 3)] == ["gather", "masked"]
    assert {auto("cpu", 11), auto("cpu", 11, "conditional")} <= {"cpu", "gather"}
    assert auto("cpu", 11, "conditional", torch.float16) == "gather"


def test_fff_does_not_load_triton() -> None:
    code = (
        "import sys\nimport torch\nbefore = 'triton' in sys.modules\nfrom fff import PathFFF\n"
        "PathFFF(8, 8, 11)(torch.zeros(2, 8))\nprint(before or 'triton' not in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True"


def test_the_kernels_need_no_numpy_outside_the_interpreter() -> None:
    code = "import sys\nimport fff.kernels.triton.host\nprint('triton.runtime.interpreter' in sys.modules)"
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "False"


def compiled(tmp_path: Path, *shapes: str) -> str:
    """What compiling for an H100 says of the kernels of these shapes."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    script = Path(__file__).parents[1] / "helpers/triton_compile.py"
    done = subprocess.run(
        [sys.executable, script, *shapes], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_kernels_of_1x11_compile_for_an_h100_without_spilling(tmp_path: Path) -> None:
    said = compiled(tmp_path, "1x11:bfloat16").splitlines()
    assert said[-1].startswith("compiled ")
    assert all(line.endswith("stack 0") for line in said[:-1])


@pytest.mark.slow
def test_the_kernels_of_other_shapes_compile_too(tmp_path: Path) -> None:
    assert "compiled " in compiled(tmp_path, "1x11", "1x15", "3x8", "32x6", "128x4", "3072x0")
