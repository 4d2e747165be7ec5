"""PathFFF: the definition on a hand-made tree, and every provider against it."""

import subprocess
import sys

import pytest
import torch
from torch.nn.functional import gelu

from fff import PathFFF
from fff.kernels import PROVIDERS, choose
from fff.kernels.cpu import operators as cpu
from fff.reference import path_fff

HERE = [name for name in PROVIDERS if name != "triton"]  # test_fff_triton.py: it takes a GPU or an interpreter
FAST = [name for name in HERE if name != "reference"]
WIDE = [name for name in HERE if name != "cpu"]  # take float64


def pairs(*dtypes: torch.dtype) -> list:
    """Fast providers with each dtype that they take."""
    return [(name, dtype) for name in FAST for dtype in dtypes if name != "cpu" or dtype in cpu.DTYPES]


SHAPES = [
    (n, t, d) for n in (0, 1, 2, 63, 500) for t, d in ((1, 0), (3, 0), (1, 1), (3, 1), (32, 4), (3, 4), (1, 8), (1, 11))
]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}


def layer(depth: int, trees: int = 1, *, d_in: int = 24, d_out: int = 16, dtype=torch.float32, **options) -> PathFFF:
    torch.manual_seed(depth * 100 + trees)
    return PathFFF(d_in, d_out, depth, trees, **options).to(dtype)


def everything(module: PathFFF, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    """Output and all gradients."""
    leaf = x.detach().clone().requires_grad_()
    y = module(leaf)
    return [y, *torch.autograd.grad(y, [leaf, *module.parameters()], grad)]


def with_provider(module: PathFFF, provider: str) -> PathFFF:
    twin = PathFFF(
        module.d_in,
        module.d_out,
        module.depth,
        module.trees,
        bias=module.b_in is not None,
        activation=module.activation,
        provider=provider,
    ).to(module.w_in.dtype)
    twin.load_state_dict(module.state_dict())
    return twin


def test_a_tree_worked_out_by_hand() -> None:
    # Depth 1, width 2. Root: s = x0 - x1. Left child: s = x0 + 1. Right child: s = 2 x1.
    module = PathFFF(2, 1, 1)
    with torch.no_grad():
        module.w_in.copy_(torch.tensor([[[1.0, -1.0], [1.0, 0.0], [0.0, 2.0]]]))
        module.b_in.copy_(torch.tensor([[0.0, 1.0, 0.0]]))
        module.w_out.copy_(torch.tensor([[[1.0], [10.0], [100.0]]]))
    x = torch.tensor([[3.0, 1.0], [1.0, 3.0], [2.0, 2.0]])
    g = lambda s: gelu(torch.tensor(s)).item()  # noqa: E731
    expected = [g(2.0) + 100 * g(2.0), g(-2.0) + 10 * g(2.0), g(0.0) + 10 * g(3.0)]  # the tie goes left
    for provider in HERE:
        y = with_provider(module, provider)(x)
        torch.testing.assert_close(y[:, 0], torch.tensor(expected))
    nodes, scores = module.path(x)
    assert nodes.tolist() == [[[0, 2]], [[0, 1]], [[0, 1]]]
    assert scores.tolist() == [[[2.0, 2.0]], [[-2.0, 2.0]], [[0.0, 3.0]]]


@pytest.mark.parametrize(("provider", "dtype"), pairs(torch.float64, torch.float32))
@pytest.mark.parametrize("bias", [True, False])
def test_providers_equal_the_reference(provider: str, bias: bool, dtype: torch.dtype) -> None:
    for tokens, trees, depth in SHAPES:
        module = layer(depth, trees, dtype=dtype, bias=bias)
        x, grad = torch.randn(tokens, 24, dtype=dtype), torch.randn(tokens, 16, dtype=dtype)
        _, scores = module.double().path(x.double())
        clear = (scores.abs() > 1e-4).flatten(1).all(1)  # elsewhere two roundings may choose two paths
        x, grad, module = x[clear], grad[clear], module.to(dtype)
        expected = everything(with_provider(module, "reference"), x, grad)
        found = everything(with_provider(module, provider), x, grad)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize(("provider", "dtype"), pairs(torch.bfloat16, torch.float16))
def test_half_types_choose_float64s_nodes_and_stay_near_it(provider: str, dtype: torch.dtype) -> None:
    for trees, depth in ((1, 0), (3, 4), (1, 8)):
        module = layer(depth, trees, dtype=dtype)
        x, grad = torch.randn(300, 24, dtype=dtype), torch.randn(300, 16, dtype=dtype)
        wide = with_provider(module.double(), "reference")
        _, scores = wide.path(x.double())
        clear = (scores.abs() > 1e-3).flatten(1).all(1)
        x, grad = x[clear], grad[clear]
        expected = everything(wide, x.double(), grad.double())
        found = everything(with_provider(module.to(dtype), provider), x, grad)
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == dtype
            # Sums of terms rounded to the type: the error is relative to the largest entry.
            assert (ours.double() - theirs).abs().max() <= 0.02 * theirs.abs().max()


@pytest.mark.parametrize("provider", WIDE)
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "relu", "silu", "tanh", "identity"])
def test_gradcheck(provider: str, activation: str) -> None:
    module = layer(2, 2, d_in=5, d_out=3, dtype=torch.float64, activation=activation, provider=provider)
    x = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in module.named_parameters()]

    def call(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, dict(zip(names, weights, strict=True)), x)

    assert torch.autograd.gradcheck(call, (x, *(p.detach().requires_grad_() for p in module.parameters())))


@pytest.mark.parametrize("provider", FAST)
def test_gradients_touch_path_nodes_alone(provider: str) -> None:
    module = layer(6, 2, provider=provider)
    x = torch.randn(3, 24)
    visited = torch.zeros(2, 127, dtype=torch.bool)
    nodes, _ = module.path(x)
    for tree in range(2):
        visited[tree, nodes[:, tree].flatten()] = True
    _, _, w_in, b_in, w_out = everything(module, x, torch.randn(3, 16))
    for gradient in (w_in, w_out, b_in[..., None]):
        assert not gradient[~visited].any()
        assert gradient[visited].any(-1).all()


@pytest.mark.parametrize("provider", HERE)
def test_nan_goes_left_and_comes_out(provider: str) -> None:
    module = layer(3, provider=provider)
    x = torch.randn(4, 24)
    x[1, 5] = float("nan")
    y = module(x)
    assert y[1].isnan().all()
    assert not y[[0, 2, 3]].isnan().any()
    assert module.path(x)[0][1, 0].tolist() == [0, 1, 3, 7]


@pytest.mark.parametrize("provider", FAST)
def test_shapes_strides_and_modes(provider: str) -> None:
    module = layer(4, 2, provider=provider)
    x = torch.randn(2, 3, 5, 24)
    flat = module(x.view(-1, 24))
    assert torch.equal(module(x), flat.view(2, 3, 5, 16))
    strided = torch.randn(24, 30).t()
    torch.testing.assert_close(module(strided), module(strided.contiguous()))
    module.eval()
    assert torch.equal(module(x).flatten(0, 2), flat)
    assert module(torch.empty(0, 4, 24)).shape == (0, 4, 16)


@pytest.mark.parametrize("provider", FAST)
def test_the_same_bits_on_every_run(provider: str) -> None:
    module = layer(8, 3, provider=provider)
    x, grad = torch.randn(700, 24), torch.randn(700, 16)
    first, second = everything(module, x, grad), everything(module, x, grad)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# Depth 0: one node that every token visits; sums by atomic additions differ from run to run here. 1500: long sums.
STEADY = [(0, 40_000, 24), (7, 40_000, 24), (0, 1, 24), (0, 500, 1500), (4, 63, 1500), (4, 1, 1500)]


@pytest.mark.parametrize(("depth", "tokens", "width"), STEADY)
@pytest.mark.parametrize("provider", ["gather", "cpu"])
def test_the_same_bits_for_any_number_of_threads(provider: str, depth: int, tokens: int, width: int) -> None:
    module = layer(depth, d_in=width, provider=provider)
    x, grad = torch.randn(tokens, width), torch.randn(tokens, 16)
    expected = everything(module, x, grad)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(everything(module, x, grad), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("provider", FAST)
def test_a_layer_built_on_meta_runs_there_and_after_initialisation(provider: str) -> None:
    with torch.device("meta"):
        module = PathFFF(24, 16, 8, 2, provider=provider)
    assert module(torch.empty(5, 24, device="meta")).shape == (5, 16)
    module = module.to_empty(device="cpu")
    module.reset_parameters()
    assert module(torch.randn(5, 24)).isfinite().all()


@pytest.mark.parametrize("provider", FAST)
def test_autocast_computes_in_the_autocast_type(provider: str) -> None:
    module = layer(3, 2, provider=provider)
    x = torch.randn(50, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, with_provider(module.bfloat16(), provider)(x.bfloat16()))


def test_gather_is_a_sound_torch_operator() -> None:
    module = layer(6, 2)
    x = torch.randn(9, 24, requires_grad=True)
    operands = (x, module.w_in, module.b_in, module.w_out, "gelu")
    torch.library.opcheck(torch.ops.fff.gather_forward.default, (*operands, None, None))
    flips = torch.rand(9, 2, 6) < 0.3
    torch.library.opcheck(torch.ops.fff.gather_forward.default, (*operands, flips, torch.tensor(0.5)))


@pytest.mark.parametrize("provider", FAST)
def test_export_with_any_number_of_tokens(provider: str) -> None:
    module = layer(6, 2, provider=provider)
    exported = torch.export.export(
        module, (torch.randn(8, 24),), dynamic_shapes=({0: torch.export.Dim("tokens", min=2, max=4096)},)
    )
    x = torch.randn(33, 24)
    torch.testing.assert_close(exported.module()(x), module(x))


@pytest.mark.parametrize("provider", FAST)
def test_compiles_as_one_graph(provider: str) -> None:
    module = layer(6, 2, provider=provider)
    x, grad = torch.randn(40, 24), torch.randn(40, 16)
    expected = everything(module, x, grad)
    module.compile(fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(everything(module, x, grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_auto_is_conditional_only_where_it_pays(monkeypatch) -> None:
    def auto(trees: int, depth: int, execution: str = "auto") -> str:
        return choose(execution, "auto", torch.device("cpu"), torch.float32, trees, depth).name

    assert [auto(3072, 0), auto(1536, 1)] == ["masked"] * 2
    assert [auto(256, 3), auto(128, 4), auto(32, 6), auto(16, 7), auto(1, 11)] == ["cpu"] * 5
    assert auto(3072, 0, "conditional") == "cpu"
    assert auto(1, 11, "masked") == "masked"
    monkeypatch.setattr(cpu, "_ready", lambda: "there is no compiler")
    assert [auto(3072, 0), auto(512, 2)] == ["masked"] * 2
    assert [auto(128, 4), auto(32, 6), auto(16, 7), auto(1, 11)] == ["gather"] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": -1}, "depth=-1"),
        ({"trees": 0}, "trees=0"),
        ({"d_in": 0}, "d_in=0"),
        ({"activation": "sine"}, "activation='sine' is unknown; allowed: gelu"),
        ({"provider": "magic"}, "provider='magic' is unknown; allowed: auto, reference"),
        ({"execution": "fast"}, "execution='fast' is unknown"),
        ({"execution": "conditional", "provider": "masked"}, "provider='masked' computes masked"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        PathFFF(**{"d_in": 4, "d_out": 4, "depth": 2, **arguments})


def test_bad_inputs_are_named() -> None:
    module = layer(2)
    with pytest.raises(ValueError, match="last dimension is 5, but the layer has d_in=24"):
        module(torch.zeros(3, 5))
    with pytest.raises(ValueError, match="last dimension is missing"):
        module(torch.tensor(1.0))
    with pytest.raises(ValueError, match="weights are"):
        module(torch.zeros(3, 24, dtype=torch.float64))
    with pytest.raises(ValueError, match="on meta"):
        module(torch.zeros(3, 24, device="meta"))
    with pytest.raises(RuntimeError, match="not available: dtype"):
        choose("auto", "gather", torch.device("cpu"), torch.int64, 1, 1)


def test_initialisation_and_names() -> None:
    module = PathFFF(100, 50, 3, 2)
    assert list(module.state_dict()) == ["w_in", "b_in", "w_out"]
    assert [tuple(p.shape) for p in module.parameters()] == [(2, 15, 100), (2, 15), (2, 15, 50)]
    assert 0.09 < module.w_in.abs().max() <= 0.1
    assert 0.33 < module.w_out.abs().max() <= 8**-0.5
    assert PathFFF(4, 4, 1, bias=False).b_in is None
    assert "8 of 30 neurons" in repr(module)


def test_fff_needs_torch_alone() -> None:
    code = (
        "import sys\nimport torch\nbefore = set(sys.modules)\nimport fff\n"
        "loaded = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "allowed = set(sys.stdlib_module_names) | {'fff', 'torch'}\nprint(sorted(loaded - allowed))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_reference_reports_what_it_visits() -> None:
    module = layer(5, 3, dtype=torch.float64)
    x = torch.randn(20, 24, dtype=torch.float64)
    result = path_fff(x, module.w_in, module.b_in, module.w_out, "gelu")
    rows = module.w_in[torch.arange(3)[:, None], result.nodes]
    scores = (rows * x[:, None, None]).sum(-1) + module.b_in[torch.arange(3)[:, None], result.nodes]
    torch.testing.assert_close(result.scores, scores)
    assert (result.nodes[..., 1:] == 2 * result.nodes[..., :-1] + 1 + (result.scores[..., :-1] > 0)).all()
