"""Our torch operators as others meet them: wrong operands, counters, traces, exports. Not what they compute."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from fff import LeafFFF, PathFFF
from fff.kernels.triton import operators as triton

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NO_TRITON = triton.available(DEVICE, torch.float32)
TRITON = pytest.param("triton", marks=pytest.mark.skipif(NO_TRITON is not None, reason=f"provider triton: {NO_TRITON}"))
N, T, D, H, K = 6, 2, 3, 8, 5
L, M = D + 1, 2 ** (D + 1) - 1
ops = torch.ops.fff


def forward_operands() -> dict:
    torch.manual_seed(0)
    return {
        "x": torch.randn(N, H, device=DEVICE),
        "w_in": torch.randn(T, M, H, device=DEVICE),
        "b_in": torch.randn(T, M, device=DEVICE),
        "w_out": torch.randn(T, M, K, device=DEVICE),
        "activation": "gelu",
        "flips": None,
        "temperature": None,
    }


def backward_operands(provider: str) -> dict:
    given = forward_operands()
    y, places, scores = getattr(ops, f"{provider}_forward")(*given.values())
    return {
        "grad": torch.randn_like(y),
        "grad_of_scores": torch.randn_like(scores),
        **{name: given[name] for name in ("x", "w_in", "w_out")},
        "places": places,
        "scores": scores,
        "temperature": None,
        "activation": "gelu",
    }


Change = Callable[[dict], dict]
WRONG_BACKWARD: list[tuple[Change, str]] = [
    (lambda g: {"grad": g["grad"][:1]}, r"grad must be \(N, K\) = \(6, 5\), got \(1, 5\)"),
    (lambda g: {"grad": g["grad"].double()}, "grad is torch.float64, but x is torch.float32"),
    (
        lambda g: {"grad_of_scores": g["grad_of_scores"].flatten()[:1]},
        r"grad_of_scores must be \(N, T, L\).* \(1,\)",
    ),
    (lambda g: {"grad_of_scores": g["grad_of_scores"].int()}, "grad_of_scores is torch.int32; it must be floats"),
    (lambda g: {"scores": g["scores"][..., :-1]}, r"scores must be \(N, T, L\) = \(6, 2, 4\), got \(6, 2, 3\)"),
    (lambda g: {"scores": g["scores"].double()}, "scores is torch.float64; it must be torch.float32"),
    (lambda g: {"w_out": g["w_out"][:, :7]}, r"w_out must be \(2, 15, K\)"),
    (lambda g: {"w_in": g["w_in"][:, :4]}, "complete tree"),
    (lambda g: {"x": g["x"][:, :3]}, r"x must be \(N, H\)"),
    (lambda g: {"x": g["x"][:3]}, r"grad must be \(N, K\) = \(3, 5\)"),
    (lambda g: {"places": g["places"].long()}, "places is torch.int64; it must be torch.int32"),
    (lambda g: {"places": g["places"][:3]}, r"(leaf|rows) must be \(N, T"),
    (lambda g: {"places": g["places"] + 10**6}, "(leaf|rows) must be .*; got 100"),
    (lambda g: {"places": g["places"] - 10**6}, "(leaf|rows) must be .*; got -"),
    (lambda g: {"places": torch.zeros_like(g["places"])}, "(leaf|rows) must be .*; got 0"),
    (lambda g: {"temperature": torch.ones(2, device=DEVICE)}, r"temperature must be one number, got \(2,\)"),
    (lambda g: {"activation": "sine"}, "activation='sine' is unknown"),
]


@pytest.mark.parametrize("number", range(len(WRONG_BACKWARD)))
@pytest.mark.parametrize("provider", ["gather", TRITON])
def test_a_backward_operator_refuses_what_does_not_fit(provider: str, number: int) -> None:
    change, message = WRONG_BACKWARD[number]
    given = backward_operands(provider)
    operator = getattr(ops, f"{provider}_backward").default
    assert all(gradient.isfinite().all() for gradient in operator(*given.values()))
    if DEVICE.type == "cuda" and "; got" in message:
        pytest.skip("on a GPU torch asserts on the device, which ends the process")
    with pytest.raises(ValueError, match=message):
        operator(*(given | change(given)).values())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(N, H, dtype=torch.int64), "takes float.*, and x is torch.int64"),
        ("x", torch.zeros(N, H - 1), r"x must be \(N, H\)"),
        ("w_in", torch.zeros(T, M - 1, H), "complete tree"),
        ("w_in", torch.zeros(T, M, H, dtype=torch.float64), "w_in is torch.float64, but x is torch.float32"),
        ("b_in", torch.zeros(T, 3), r"b_in must be \(2, 15\), got \(2, 3\)"),
        ("w_out", torch.zeros(T, 3, K), r"w_out must be \(2, 15, K\)"),
        ("flips", torch.zeros(N, T, D + 1, dtype=torch.bool), r"flips must be bool \(N, 2, 3\)"),
        ("flips", torch.zeros(N, T, D), "flips must be bool"),
        ("activation", "sine", "activation='sine' is unknown"),
        ("temperature", torch.ones(3), "temperature must be one number"),
    ],
)
@pytest.mark.parametrize("provider", ["gather", TRITON])
def test_a_forward_operator_refuses_what_does_not_fit(provider: str, name: str, value: object, message: str) -> None:
    value = value.to(DEVICE) if isinstance(value, Tensor) else value
    with pytest.raises(ValueError, match=message):
        getattr(ops, f"{provider}_forward")(*(forward_operands() | {name: value}).values())


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


@pytest.mark.parametrize("provider", ["gather", "cpu", TRITON])
def test_operations_are_counted_as_by_hand(provider: str) -> None:
    layer, x = PathFFF(H, K, D, T, provider=provider).to(DEVICE), torch.randn(2, 3, H, device=DEVICE)
    # 6 tokens, 2 trees, 4 nodes each: a row of 8 in, a row of 5 out; a multiplication and a sum for each number.
    forward = 2 * 6 * 2 * 4 * (8 + 5)
    assert counted(lambda: layer(x)) == forward
    # Backward, for each row: its own gradient, and that of what it was multiplied with.
    assert counted(lambda: layer(x).sum().backward()) == 3 * forward
    layer.eval()
    with torch.no_grad():
        assert counted(lambda: layer(x)) == forward
        assert counted(lambda: layer(x)) == forward, "the short way of inference too"


@pytest.mark.parametrize(("gated", "rows"), [(False, 1), (True, 2)])
def test_operations_of_leaf_inference_are_counted_as_by_hand(gated: bool, rows: int) -> None:
    layer = LeafFFF(H, K, D, 4, provider="cpu", gated=gated).eval()
    with torch.no_grad():
        # 6 tokens: 3 decisions of 8 numbers, 4 neurons with 8 in, gated twice, and 5 out.
        assert counted(lambda: layer(torch.randn(6, H))) == 2 * 6 * (3 * 8 + 4 * (rows * 8 + 5))


@pytest.mark.parametrize(("gated", "rows"), [(False, 1), (True, 2)])
def test_operations_of_leaf_training_are_counted_as_by_hand(gated: bool, rows: int) -> None:
    layer, x = LeafFFF(H, K, D, 4, provider="cpu", gated=gated), torch.randn(6, H)
    decisions, leaf = 2 * 6 * 3 * 8, 2 * 6 * 4 * (rows * 8 + 5)
    layer.form = "hard"
    assert counted(lambda: layer(x)) == decisions + leaf
    assert counted(lambda: layer(x).sum().backward()) == decisions + 3 * leaf, "hard decisions have no gradients"
    layer.form = "straight_through"
    assert counted(lambda: layer(x).sum().backward()) == 3 * (decisions + leaf)


def test_a_counter_that_was_made_before_a_call_counts_too() -> None:
    counter = FlopCounterMode(display=False)
    layer = PathFFF(H, K, D, T, provider="gather")
    with counter:
        layer(torch.randn(6, H))
    assert counter.get_total_flops() > 0


def forms(kind: str) -> list[nn.Module]:
    """A layer in every form, in training and inference."""
    found: list[nn.Module] = []
    for form, training in (("hard", True), ("hard", False), ("soft", True), ("straight_through", True)):
        torch.manual_seed(0)
        layer: PathFFF | LeafFFF
        layer = PathFFF(16, 12, 4, 2) if kind == "path" else LeafFFF(16, 12, int(kind[4:]), 3, master_width=2)
        layer.form = form
        found.append(layer.train(training))
    return found


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("kind", ["path", "leaf3", "leaf6"])
@pytest.mark.parametrize("provider", ["auto", "gather", "masked"])
def test_traced_and_exported_for_any_number_of_tokens(provider: str, kind: str, gradients: bool) -> None:
    tokens = ({0: Dim("tokens", min=2, max=4096)},)
    with torch.set_grad_enabled(gradients), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of sizes that weights have
        for layer in forms(kind):
            if getattr(layer, "form", None) == "soft" and kind == "path" and provider == "gather":
                continue  # it needs all nodes
            layer.provider = provider  # type: ignore[assignment]
            x = torch.randn(40, 16)
            written = [torch.jit.trace(layer, (x,)), torch.export.export(layer, (x,), dynamic_shapes=tokens).module()]
            for count in (2, 7, 300):
                x = torch.randn(count, 16)
                for other in written:
                    torch.testing.assert_close(other(x), layer(x), rtol=1e-4, atol=1e-5)


def test_an_exported_leaf_layer_has_the_gradients_of_the_layer() -> None:
    layer, x = LeafFFF(16, 12, 3, 4, provider="gather"), torch.randn(50, 16)
    layer.form = "hard"
    exported = torch.export.export(layer, (x[:8],), dynamic_shapes=({0: Dim("tokens", min=2, max=99)},)).module()
    expected = torch.autograd.grad(layer(x).square().sum(), [layer.w_in, layer.w_out])
    weights = dict(exported.named_parameters())
    found = torch.autograd.grad(exported(x).square().sum(), [weights["w_in"], weights["w_out"]])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("provider", ["auto", "gather", "cpu", "masked"])
@pytest.mark.parametrize("kind", ["path", "leaf3"])
def test_onnx_names_the_way_that_there_is(kind: str, provider: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = forms(kind)[1], torch.randn(4, 16)
    layer.provider = provider  # type: ignore[assignment]
    target = tmp_path / "layer.onnx"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if provider == "masked":
            try:
                torch.onnx.export(layer, (x,), target, dynamo=False)
            except torch.onnx.OnnxExporterError as error:  # the graph was made, and only its file cannot be written
                assert "onnx is not installed" in str(error)  # noqa: PT017
            return
        with pytest.raises(RuntimeError, match=r"set layer.provider = 'masked', .* and export again"):
            torch.onnx.export(layer, (x,), target, dynamo=False)
        assert not target.exists()
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)  # as where onnxscript is installed
        with pytest.raises(Exception, match=r"set layer.provider = 'masked'"):
            torch.export.export(layer, (x,), strict=False)
