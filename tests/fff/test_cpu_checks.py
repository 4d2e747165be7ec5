"""Provider `cpu`: what its operators refuse before they read or write, and what other threads may do meanwhile."""

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fff.kernels.cpu import operators as cpu

if reason := cpu.available(torch.device("cpu"), torch.float32):
    pytest.skip(reason, allow_module_level=True)

N, T, D, H, K, W = 5, 2, 3, 6, 4, 7
NODES, LEAVES = 2 ** (D + 1) - 1, 2**D
Change = Callable[[Tensor], Tensor]


def path_operands() -> dict[str, Tensor]:
    torch.manual_seed(0)
    sizes = {"x": (N, H), "w_in": (T, NODES, H), "b_in": (T, NODES), "w_out": (T, NODES, K)}
    return {name: torch.randn(size) for name, size in sizes.items()}


def leaf_operands() -> dict[str, Tensor]:
    torch.manual_seed(0)
    sizes = {"x": (N, H), "w_node": (LEAVES - 1, H), "b_node": (LEAVES - 1,), "w_in": (LEAVES, W, H)}
    sizes |= {"b_in": (LEAVES, W), "w_out": (LEAVES, W, K), "b_out": (LEAVES, K)}
    sizes |= {"w_value": (LEAVES, W, H), "b_value": (LEAVES, W)}
    return {name: torch.randn(size) for name, size in sizes.items()}


def int8_operands() -> dict[str, Tensor]:
    torch.manual_seed(0)
    rows = {"w_in": H, "w_out": K}
    made = {name: torch.randint(-127, 128, (T, NODES, width), dtype=torch.int8) for name, width in rows.items()}
    of_nodes = {name: torch.rand(T, NODES) for name in ("scale_in", "b_in", "scale_out")}
    names = ("w_in", "scale_in", "b_in", "w_out", "scale_out")
    return {"x": torch.randn(N, H), **{name: (made | of_nodes)[name] for name in names}}


def int8_infer(activation: int = 0, **given: Tensor) -> Tensor:
    return torch.ops.fff.cpu_int8_infer.default(*given.values(), activation)


def int8_forward(activation: int = 0, **given: Tensor) -> list:
    return list(torch.ops.fff.cpu_int8_forward.default(*given.values(), activation))


def infer(activation: int = 0, **given: Tensor) -> Tensor:
    return torch.ops.fff.cpu_infer.default(*given.values(), activation)


def leaf_infer(activation: int = 0, **given: Tensor) -> Tensor:
    return torch.ops.fff.cpu_leaf_infer.default(*given.values(), activation)


def forward(
    activation: int = 0, flips: Tensor | None = None, temperature: Tensor | None = None, **given: Tensor
) -> list:
    return list(torch.ops.fff.cpu_forward.default(*given.values(), activation, flips, temperature))


def kept() -> dict[str, Tensor | None]:
    """What the backward operator takes, in its order."""
    x, w_in, b_in, w_out = path_operands().values()
    _, leaf, scores = forward(x=x, w_in=w_in, b_in=b_in, w_out=w_out)
    grads = {"grad": torch.randn(N, K), "grad_of_scores": torch.randn(N, T, D + 1)}
    kept = {"leaf": leaf, "scores": scores, "temperature": torch.tensor(0.5)}
    return {**grads, "x": x, "w_in": w_in, "w_out": w_out, **kept}


def backward(activation: int = 0, **given: Tensor | None) -> list[Tensor]:
    return list(torch.ops.fff.cpu_backward.default(*given.values(), activation))


def leaf_forward(
    activation: int = 0, flips: Tensor | None = None, temperature: Tensor | None = None, **given: Tensor
) -> list:
    return list(torch.ops.fff.cpu_leaf_forward.default(*given.values(), activation, flips, temperature))


def leaf_kept() -> dict[str, Tensor | None]:
    """What LeafFFF's backward operator takes, in its order."""
    given = leaf_operands()
    _, leaf, scores, neurons = leaf_forward(**given)
    grads = {"grad": torch.randn(N, K), "grad_of_scores": torch.randn(N, D)}
    weights = {name: given[name] for name in ("x", "w_node", "w_in", "w_out", "b_out", "w_value")}
    return {**grads, **weights, "leaf": leaf, "scores": scores, "neurons": neurons, "temperature": torch.tensor(0.5)}


def leaf_backward(activation: int = 0, **given: Tensor | None) -> list[Tensor]:
    return list(torch.ops.fff.cpu_leaf_backward.default(*given.values(), activation))


def with_number(at: tuple[int, ...], number: int) -> Change:
    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t[at] = number
        return t

    return change


def emptied(t: Tensor) -> Tensor:
    """Its storage is taken away, as sharding does."""
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


first, last = LEAVES - 1, 2 * (LEAVES - 1)
OF_ALL = [
    ("x", lambda t: t.double(), "x is Double; provider 'cpu' takes float32 and bfloat16"),
    ("x", lambda t: t[:, 1:], "last dimension is 5, but the layer has d_in=6"),
    ("x", lambda t: t.sum(), "last dimension is 0, but the layer has d_in=6"),
    ("x", emptied, r"x is \[5, 6\], but its storage was resized to 0 bytes"),
    ("w_in", lambda t: t.half(), "w_in is Half, but x is Float"),
    ("w_in", lambda t: t[0], r"w_in must be .*got \[\d+, 6\]"),
    ("w_in", emptied, "w_in is .*storage was resized to 0 bytes"),
    ("w_out", lambda t: t[:, :-1], r"w_out must be .*got \[\d, \d+, 4\]"),
    ("w_out", lambda t: t[..., :0], "w_out must be .*1 or more"),
]
OF_PATHS = [
    ("w_in", lambda t: t[:, :4], r"w_in has 4 nodes; a complete tree has 2 \*\* \(depth \+ 1\) - 1"),
    ("w_in", lambda t: t[:, :0], "w_in has 0 nodes"),
    ("w_in", lambda t: t[:0], "w_in must be .*none of them 0"),
    ("w_out", lambda t: t[:1], r"w_out must be .*= \[2, 15, 1 or more\], got \[1, 15, 4\]"),
]
OF_BIAS = [
    ("b_in", lambda t: t[:, 1:], r"b_in must be \(trees, nodes\) = \[2, 15\], got \[2, 14\]"),
    ("b_in", lambda t: t.t(), r"b_in must be .*got \[15, 2\]"),
    ("b_in", lambda t: t.bfloat16(), "b_in is BFloat16, but x is Float"),
]
OF_LEAVES = [
    ("w_in", lambda t: t[:5], r"w_in has 5 leaves; a tree has 2 \*\* depth"),
    ("w_in", lambda t: t[:1], "w_in has 1 leaves"),
    ("w_in", lambda t: t[:0], "w_in has 0 leaves"),
    ("w_in", lambda t: t[:, :0], "w_in must be .*none of them 0"),
    ("w_node", lambda t: t[1:], r"w_node must be .*= \[7, 6\], got \[6, 6\]"),
    ("w_node", lambda t: t.double(), "w_node is Double, but x is Float"),
    ("b_node", lambda t: t[None], r"b_node must be .*= \[7\], got \[1, 7\]"),
    ("b_in", lambda t: t.flatten(), r"b_in must be .*= \[8, 7\], got \[56\]"),
    ("b_out", lambda t: t[:1], r"b_out must be .*= \[8, 4\], got \[1, 4\]"),
    ("w_value", lambda t: t[:, 1:], r"w_value must be .*= \[8, 7, 6\], got \[8, 6, 6\]"),
    ("w_value", lambda t: t.bfloat16(), "w_value is BFloat16, but x is Float"),
    ("w_value", emptied, "w_value is .*storage was resized to 0 bytes"),
    ("b_value", lambda t: t[1:], r"b_value must be .*= \[8, 7\], got \[7, 7\]"),
    ("b_value", lambda t: None, "w_value and b_value come together, but b_value is missing"),
    ("w_value", lambda t: None, "w_value and b_value come together, but w_value is missing"),
]
OF_BACKWARD = [
    ("leaf", with_number((0, 0), 2**30), f"leaf must hold .* from {first} to {last} at depth 3, got 1073741824 for"),
    ("leaf", with_number((0, 0), -(2**30)), "got -1073741824 for token 0"),
    ("leaf", with_number((3, 1), last + 1), f"got {last + 1} for token 3"),
    ("leaf", with_number((4, 0), first - 1), f"got {first - 1} for token 4"),
    ("leaf", with_number((2, 1), 0), "got 0 for token 2"),
    ("leaf", with_number((2, 1), -1), "got -1 for token 2"),
    ("leaf", lambda t: t.long(), "leaf is Long, but must be Int"),
    ("leaf", lambda t: t[:, :1], r"leaf must be \(tokens, trees\) = \[5, 2\], got \[5, 1\]"),
    ("leaf", lambda t: t.t(), r"leaf must be .*got \[2, 5\]"),
    ("leaf", lambda t: t[:0], r"leaf must be .*got \[0, 2\]"),
    ("leaf", emptied, "leaf is .*storage was resized to 0 bytes"),
    ("scores", lambda t: t[..., 1:], r"scores must be \(tokens, trees, depth \+ 1\) = \[5, 2, 4\], got \[5, 2, 3\]"),
    ("scores", lambda t: t.flatten(1), r"scores must be .*got \[5, 8\]"),
    ("scores", lambda t: t.bfloat16(), "scores is BFloat16, but must be Float"),
    ("grad", lambda t: t[:1], r"grad must be \(tokens, d_out\) = \[5, 4\], got \[1, 4\]"),
    ("grad", lambda t: t[:, :2], r"grad must be .*got \[5, 2\]"),
    ("grad", lambda t: t.bfloat16(), "grad is BFloat16, but x is Float"),
    ("grad_of_scores", lambda t: t[:1, :1, :1], r"grad_of_scores must be .*= \[5, 2, 4\], got \[1, 1, 1\]"),
    ("grad_of_scores", lambda t: t.sum(), r"grad_of_scores must be .*got \[\]"),
    ("grad_of_scores", lambda t: t[:0], r"grad_of_scores must be .*got \[0, 2, 4\]"),
    ("grad_of_scores", lambda t: t.double(), "grad_of_scores is Double, but must be Float"),
    ("x", lambda t: t[:, None], r"x must be \(tokens, d_in\), got \[5, 1, 6\]"),
    ("x", lambda t: t[:3], r"grad must be .*= \[3, 4\], got \[5, 4\]"),
]
OF_TEMPERATURE = [
    ("temperature", lambda t: t.expand(2), r"temperature must be one floating-point number, got Float \[2\]"),
    ("temperature", lambda t: t.new_empty(0), r"temperature must be one .*got Float \[0\]"),
    ("temperature", lambda t: t.int(), "temperature must be one floating-point number, got Int"),
    *[
        (
            "temperature",
            lambda t, value=value: t.new_tensor(value),
            f"temperature must be finite and above 0, got {said}",
        )
        for value, said in ((0.0, "0"), (-1.0, "-1"), (float("nan"), "nan"), (float("inf"), "inf"))
    ],
]
OF_FORWARD = [
    ("x", lambda t: t[None], r"x must be \(tokens, d_in\), got \[1, 5, 6\]"),
    ("flips", lambda t: t.flatten(), r"flips must be \(tokens, trees, depth\) = \[5, 2, 3\], got \[30\]"),
    ("flips", lambda t: t[:1], r"flips must be .*got \[1, 2, 3\]"),
    ("flips", lambda t: t.int(), "flips is Int, but must be Bool"),
]


OF_LEAF_FORWARD = [
    OF_FORWARD[0],
    ("flips", lambda t: t.flatten(), r"flips must be \(tokens, depth\) = \[5, 3\], got \[15\]"),
    ("flips", lambda t: t[:1], r"flips must be .*got \[1, 3\]"),
    ("flips", lambda t: t.int(), "flips is Int, but must be Bool"),
]
OF_LEAF_BACKWARD = [
    ("leaf", with_number((0,), 2**30), f"leaf must hold .* from {first} to {last} at depth 3, got 1073741824 for"),
    ("leaf", with_number((4,), first - 1), f"got {first - 1} for token 4"),
    ("leaf", with_number((3,), last + 1), f"got {last + 1} for token 3"),
    ("leaf", lambda t: t.long(), "leaf is Long, but must be Int"),
    ("leaf", lambda t: t[:, None], r"leaf must be \(tokens,\) = \[5\], got \[5, 1\]"),
    ("leaf", emptied, "leaf is .*storage was resized to 0 bytes"),
    *[
        (name, change, f"{name} {message}")
        for name, sizes in (
            ("scores", r"\(tokens, depth\) = \[5, 3\]"),
            ("neurons", r"\(tokens, leaf_width; gated, twice that\) = \[5, 14\]"),
        )
        for change, message in (
            (lambda t: t[:, 1:], f"must be {sizes}, got"),
            (lambda t: t[:3], r"must be .*got \[3, "),
            (lambda t: t.bfloat16(), "is BFloat16, but must be Float"),
            (emptied, "is .*storage was resized to 0 bytes"),
        )
    ],
    ("grad", lambda t: t[:1], r"grad must be \(tokens, d_out\) = \[5, 4\], got \[1, 4\]"),
    ("grad", lambda t: t.bfloat16(), "grad is BFloat16, but x is Float"),
    ("grad_of_scores", lambda t: t[:, :1], r"grad_of_scores must be \(tokens, depth\) = \[5, 3\], got \[5, 1\]"),
    ("grad_of_scores", lambda t: t.double(), "grad_of_scores is Double, but must be Float"),
    ("x", lambda t: t[:, None], r"x must be \(tokens, d_in\), got \[5, 1, 6\]"),
    ("x", lambda t: t[:3], r"grad must be .*= \[3, 4\], got \[5, 4\]"),
]
# Of OF_LEAVES, all but the biases that a backward pass has no use for.
OF_LEAVES_BACKWARD = [
    *(case for case in OF_LEAVES[:-2] if case[0] not in ("b_node", "b_in", "b_value")),
    ("w_value", lambda t: None, r"neurons must be .*= \[5, 7\], got \[5, 14\]"),
]


# Of OF_ALL, all but the weights' types.
OF_INT8 = [case for case in OF_ALL if case[2] != "w_in is Half, but x is Float"] + [
    ("x", lambda t: t.half(), "x is Half; provider 'cpu' takes float32 and bfloat16"),
    ("x", lambda t: t.char(), "x is Char; provider 'cpu' takes"),
    ("w_in", lambda t: t.float(), "w_in is Float, but must be Char"),
    ("w_in", lambda t: t.byte(), "w_in is Byte, but must be Char"),
    ("w_out", lambda t: t.float(), "w_out is Float, but must be Char"),
    ("w_out", emptied, "w_out is .*storage was resized to 0 bytes"),
    ("b_in", lambda t: t[:, 1:], r"b_in must be \(trees, nodes\) = \[2, 15\], got \[2, 14\]"),
    ("b_in", lambda t: t.char(), "b_in is Char, but must be Float"),
    *[
        (name, change, f"{name} {message}")
        for name in ("scale_in", "scale_out")
        for change, message in (
            (lambda t: t[:1], r"must be \(trees, nodes\) = \[2, 15\], got \[1, 15\]"),
            (lambda t: t.flatten(), r"must be .*got \[30\]"),
            (lambda t: t[..., None], r"must be .*got \[2, 15, 1\]"),
            (lambda t: t.bfloat16(), "is BFloat16, but must be Float"),
            (emptied, "is .*storage was resized to 0 bytes"),
        )
    ],
]


def forward_operands() -> dict[str, Tensor]:
    return {**path_operands(), "flips": torch.rand(N, T, D) < 0.3, "temperature": torch.tensor(0.5)}


def leaf_forward_operands() -> dict[str, Tensor]:
    return {**leaf_operands(), "flips": torch.rand(N, D) < 0.3, "temperature": torch.tensor(0.5)}


CALLS: dict[str, tuple] = {
    "infer": (infer, path_operands, [*OF_ALL, *OF_PATHS, *OF_BIAS]),
    "leaf_infer": (leaf_infer, leaf_operands, [*OF_ALL, *OF_LEAVES]),
    "forward": (forward, forward_operands, [*OF_ALL, *OF_PATHS, *OF_BIAS, *OF_TEMPERATURE, *OF_FORWARD]),
    "leaf_forward": (leaf_forward, leaf_forward_operands, [*OF_ALL, *OF_LEAVES, *OF_TEMPERATURE, *OF_LEAF_FORWARD]),
    "leaf_backward": (
        leaf_backward,
        leaf_kept,
        [*OF_ALL, *OF_LEAVES_BACKWARD, *OF_TEMPERATURE, *OF_LEAF_BACKWARD],
    ),
    "int8_infer": (int8_infer, int8_operands, [*OF_INT8, *OF_PATHS]),
    "int8_forward": (int8_forward, int8_operands, [*OF_INT8, *OF_PATHS, OF_FORWARD[0]]),
    "backward": (backward, kept, [*OF_ALL, *OF_PATHS, *OF_TEMPERATURE, *OF_BACKWARD]),
}
REFUSED = [
    pytest.param(call, operands, *case, id=f"{name}-{case[0]}-{number}")
    for name, (call, operands, cases) in CALLS.items()
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize(("call", "operands", "name", "change", "message"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    call: Callable, operands: Callable, name: str, change: Change, message: str
) -> None:
    given = operands()
    given[name] = change(given[name])
    with pytest.raises(ValueError, match=message):
        call(**given)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("number", [-1, 6, 2**40])
@pytest.mark.parametrize("tokens", [0, N])
def test_an_unknown_activation_is_refused_whatever_there_is_to_compute(name: str, number: int, tokens: int) -> None:
    call, operands, _ = CALLS[name]
    of_tokens = ("x", "grad", "grad_of_scores", "leaf", "scores", "neurons", "flips")
    given = {key: value[:tokens] if key in of_tokens else value for key, value in operands().items()}
    with pytest.raises(ValueError, match=f"activation must be from 0 to 5, got {number}"):
        call(activation=number, **given)


@pytest.mark.parametrize("name", CALLS)
def test_another_layout_is_refused(name: str) -> None:
    call, operands, _ = CALLS[name]
    for argument in ("x", "w_in", "w_out"):
        given = operands()
        given[argument] = given[argument].to_sparse()
        with pytest.raises(NotImplementedError, match="Sparse"):
            call(**given)


@pytest.mark.parametrize("name", CALLS)
def test_no_tokens_and_any_strides_are_taken(name: str) -> None:
    call, operands, _ = CALLS[name]
    given = operands()
    spread = {key: torch.stack((value, value), -1)[..., 0] for key, value in given.items()}
    found, expected = (value if isinstance(value, list) else [value] for value in (call(**spread), call(**given)))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    of_tokens = ("x", "grad", "grad_of_scores", "leaf", "scores", "neurons", "flips")
    empty = call(**{key: value[:0] if key in of_tokens else value for key, value in given.items()})
    if name == "backward":
        assert [t.shape for t in empty] == [(0, H), (T, NODES, H), (T, NODES), (T, NODES, K)]
        assert all(not t.any() for t in empty)
    elif name == "leaf_backward":
        rows = [(LEAVES - 1, H), (LEAVES - 1,), (LEAVES, W, H), (LEAVES, W), (LEAVES, W, K), (LEAVES, K)]
        rows += rows[2:4]
        assert [t.shape for t in empty] == [(0, H), *rows]
        assert all(not t.any() for t in empty)
    else:
        assert (empty[0] if isinstance(empty, list) else empty).shape == (0, K)


def test_rows_too_wide_for_exact_sums_are_refused() -> None:
    given = int8_operands()
    given |= {"x": torch.zeros(1, 2**17 + 1), "w_in": torch.zeros(T, NODES, 2**17 + 1, dtype=torch.int8)}
    for call in (int8_infer, int8_forward):
        with pytest.raises(ValueError, match="the layer has d_in=131073; int8 dots are exact up to 131072"):
            call(**given)


ASSIGN = """
import sys, threading, torch
from torch import nn
from fff import PathFFF
torch.set_num_threads(1)
sys.setswitchinterval(1e-5)
layer = PathFFF(512, 512, 8, provider="cpu").eval()
x = torch.randn(256, 512)
with torch.no_grad():
    expected = layer(x)
equal = []

def infer():
    with torch.no_grad():
        for _ in range(60):
            equal.append(torch.equal(layer(x), expected))

readers = [threading.Thread(target=infer) for _ in range(2)]
for reader in readers:
    reader.start()
while any(reader.is_alive() for reader in readers):
    CHANGE
assert len(equal) == 120 and all(equal), equal
"""
NEW_PARAMETERS = (
    "for name, p in dict(layer.named_parameters()).items(): setattr(layer, name, nn.Parameter(p.detach().clone()))"
)
NEW_MEMORY = "for p in layer.parameters(): p.data = p.detach().clone()"


@pytest.mark.parametrize("change", [NEW_PARAMETERS, NEW_MEMORY])
def test_weights_may_be_assigned_while_another_thread_infers(change: str) -> None:
    code = ASSIGN.replace("CHANGE", change)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
