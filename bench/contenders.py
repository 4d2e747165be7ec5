"""The layers under every provider that a bench may time, each held to the definition first. Not how they are timed."""

from collections.abc import Callable

import torch
from torch import Tensor

from bench.options import Setting
from bench.rivals import Rival, rival_contenders
from fff.int8 import int8_path_fff
from fff.kernels import INT8, PROVIDERS
from fff.layers.dense import DenseFF
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.layers.quantised import QuantisedPath
from fff.layers.shared import SharedFF
from fff.reference import PathResult, leaf_fff, path_fff, with_master_leaf

MARGIN = 1e-4  # a score nearer to 0 may be rounded to either side
PART = 2048  # tokens; the definition's memory is not what is tested
ERRORS = {torch.float32: 1e-5, torch.float64: 1e-5}  # of the largest output; half types are allowed HALF_ERROR
HALF_ERROR = 3e-2
# Above, the authors' form would take most of the time and memory of a run; a GPU's products are fast enough.
MASKED_MOST_TOKENS = {"cpu": 16384}

Layer = PathFFF | LeafFFF
Defined = Layer | QuantisedPath | DenseFF | SharedFF
QUANTISED = "int8"  # the name of the layer's form on eight-bit integers
MASTER = "master_"  # how the names of a master leaf's weights begin


def contenders(
    base: Layer | Rival, setting: Setting, x: Tensor
) -> tuple[dict[str, Layer | QuantisedPath] | dict[str, Rival], dict[str, float]]:
    """Copies of the layer by provider, in the setting's dtype, and their errors on x, which is what is timed.

    In inference on a CPU also "int8", by its own provider cpu and held to its own definition.

    Raises:
        AssertionError: a provider computes something else than the definition; nothing is timed then.
    """
    if isinstance(base, Rival):
        return rival_contenders(base, setting, x)
    found: dict[str, Layer | QuantisedPath] = {}
    for name in usable(base, setting, x.device):
        layer = copy_of(base, name).to(x.device, setting.dtype)
        layer.load_state_dict(base.state_dict())
        found[name] = layer
    if isinstance(base, PathFFF) and takes_int8(setting, x.device):
        found[QUANTISED] = QuantisedPath.from_float(base, "cpu").eval()
    return found, {name: check(layer, x, name) for name, layer in found.items()}


def usable(base: Layer, setting: Setting, device: torch.device) -> list[str]:
    """The providers that can take the layer here and that the setting asks for."""
    names = []
    for name, provider in PROVIDERS.items():
        if not provider.timed or provider.available(device, setting.dtype):
            continue
        if name == "triton" and device.type == "cpu":
            continue  # Triton's interpreter
        if setting.providers and name not in setting.providers:
            continue
        if name == "masked" and setting.tokens > MASKED_MOST_TOKENS.get(device.type, setting.tokens):
            continue
        names.append(name)
    if isinstance(base, LeafFFF):
        names = [name for name in names if name in ("gather", "cpu")]
    return names


def takes_int8(setting: Setting, device: torch.device) -> bool:
    """Whether int8 trees are timed beside a PathFFF: the setting asks for them and the C++ is there."""
    asked = setting.mode == "inference" and (not setting.providers or QUANTISED in setting.providers)
    return asked and device.type == "cpu" and INT8.providers["cpu"].available(device, setting.dtype) is None


def copy_of(base: Layer, provider: str) -> Layer:
    """A layer of the same shape, computed by a provider."""
    if isinstance(base, LeafFFF):
        sizes = (base.d_in, base.d_out, base.depth, base.leaf_width)
        leaf = LeafFFF(*sizes, activation=base.activation, provider=provider)
        leaf.form = "hard"
        return leaf
    bias = base.b_in is not None
    return PathFFF(
        base.d_in, base.d_out, base.depth, base.trees, bias=bias, activation=base.activation, provider=provider
    )


def check(layer: Defined, x: Tensor, name: str) -> float:
    """Largest error of the layer's output against the float64 definition, relative to the largest output.

    Raises:
        AssertionError: another node was visited where every margin is clear, or the error is above what the dtype
            allows; no time is reported then. The message begins with the name.
    """
    defined = definition(layer)
    largest, worst = 0.0, 0.0
    for part in x.split(PART):
        result = defined(part.double())
        clear = (result.scores.abs() > MARGIN).flatten(1).all(1)
        with torch.no_grad():
            nodes = visited(layer, part)
            errors = (layer(part).double() - result.y)[clear].abs()
        assert torch.equal(nodes[clear], result.nodes[clear]), f"{name}: other nodes than defined"
        worst = max(worst, errors.max().item() if errors.numel() else 0.0)
        largest = max(largest, result.y.abs().max().item())
    with torch.no_grad():  # the shape that is timed, which may be computed in other blocks
        whole, last = layer(x)[-len(part) :][clear], layer(part)[clear]
    assert torch.allclose(whole, last, rtol=0, atol=1e-2 * largest), f"{name}: differs by shape"
    allowed = ERRORS.get(x.dtype, HALF_ERROR)
    assert worst <= allowed * largest, f"{name}: error {worst / largest:.1e} exceeds {allowed:.0e}"
    return worst / largest


def visited(layer: Defined, x: Tensor) -> Tensor:
    """Nodes that the layer visits, (N, T, L) in heap order; (N, 0, 0) of one without trees."""
    if isinstance(layer, SharedFF):
        return visited(tree_of(layer), x)
    return no_nodes(x) if isinstance(layer, DenseFF) else layer.path(x)[0]


def tree_of(layer: SharedFF) -> Layer:
    """The trees beside the shared neurons."""
    assert isinstance(layer.tree, Layer)
    return layer.tree


def no_nodes(x: Tensor) -> Tensor:
    """Nodes (N, 0, 0): none."""
    return torch.zeros(len(x), 0, 0, dtype=torch.int64, device=x.device)


def definition(layer: Defined) -> Callable[[Tensor], PathResult]:
    """The layer as it is defined, on float64 inputs (N, d_in)."""
    if isinstance(layer, SharedFF):
        tree, shared = definition(tree_of(layer)), definition(layer.shared)
        return lambda x: (found := tree(x))._replace(y=found.y + shared(x).y)
    wide = {name: parameter.detach().double() for name, parameter in layer.named_parameters()}
    if isinstance(layer, QuantisedPath):
        rows = (layer.w_in, layer.scale_in, layer.b_in, layer.w_out, layer.scale_out)
        return lambda x: int8_path_fff(x.float(), *rows, layer.activation)
    if isinstance(layer, DenseFF):
        return lambda x: PathResult(_dense(layer.gated, x, *wide.values()), no_nodes(x), no_nodes(x).double())
    if isinstance(layer, LeafFFF):
        return _leaf(layer, wide)
    return lambda x: path_fff(x, wide["w_in"], wide.get("b_in"), wide["w_out"], layer.activation)


def _dense(gated: bool, x: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    neurons = x @ w_in.T
    value, gate = neurons.chunk(2, -1) if gated else (1.0, neurons)
    return value * gate * torch.special.ndtr(gate) @ w_out.T


def _leaf(layer: LeafFFF, wide: dict[str, Tensor]) -> Callable[[Tensor], PathResult]:
    # A layer of depth 0 has no decisions.
    leaves = {"w_node": wide["w_in"].new_zeros(0, layer.d_in), "b_node": wide["w_in"].new_zeros(0)}
    leaves |= {name: weight for name, weight in wide.items() if not name.startswith(MASTER) and name != "mix"}
    master = {name.removeprefix(MASTER): weight for name, weight in wide.items() if name.startswith(MASTER)}

    def result(x: Tensor) -> PathResult:
        found = leaf_fff(x, **leaves, activation=layer.activation)
        if not master:
            return found
        mixed = with_master_leaf(found.y, x, **master, mix=wide["mix"], activation=layer.activation)
        return found._replace(y=mixed)

    return result
