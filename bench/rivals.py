"""The rivals that a bench may time, each held to its definition first. Not trees, nor how they are timed."""

import copy

import torch
from torch import Tensor

from bench.options import Setting
from fff.reference import moe, peer
from fff.rivals.moe import MoE
from fff.rivals.peer import PEER

NAME = "torch"  # who computes them
CHECKED = 256  # tokens, spread over the timed ones: the definition goes token by token
# A choice nearer than this to another may be rounded to either; half types round the scores themselves.
MARGIN, HALF_MARGIN = 1e-4, 0.1
ERRORS = {torch.float32: 1e-5, torch.float64: 1e-5}  # of the largest output
HALF_ERROR = 3e-2

Rival = MoE | PEER


def rival_contenders(base: Rival, setting: Setting, x: Tensor) -> tuple[dict[str, Rival], dict[str, float]]:
    """A copy of the layer in the setting's dtype, and its error on x, which is what is timed.

    Raises:
        AssertionError: it computes something else than the definition; nothing is timed then.
    """
    if setting.providers and NAME not in setting.providers:
        return {}, {}
    layer = copy.deepcopy(base).to(x.device, setting.dtype)
    return {NAME: layer}, {NAME: check_rival(layer, x)}


@torch.no_grad()
def check_rival(layer: Rival, x: Tensor) -> float:
    """Largest error of the layer's output on x (N, d_in) against the float64 definition, relative to the largest.

    Raises:
        AssertionError: other units were chosen where every margin is clear, or the error is above what the dtype
            allows. The message begins with the layer's tag.
    """
    tag, wide, half = layer.settings.tag, copy.deepcopy(layer).double(), x.element_size() < 4
    places = torch.linspace(0, len(x) - 1, min(len(x), CHECKED), device=x.device).round().long()
    some = x[places].double()
    y, units = definition(wide, some)
    clear = (wide.route(some).scores > (HALF_MARGIN if half else MARGIN)).flatten(1).all(1)
    chosen = layer.route(x).units[places]
    same = (chosen.sort(-1).values == units.sort(-1).values).flatten(1).all(1)
    assert same[clear].all(), f"{tag}: other units than defined"
    errors, largest = (layer(x)[places].double() - y)[same].abs(), y.abs().max().item()
    worst = errors.max().item() if errors.numel() else 0.0
    allowed = ERRORS.get(x.dtype, HALF_ERROR)
    assert worst <= allowed * largest, f"{tag}: error {worst / largest:.1e} exceeds {allowed:.0e}"
    return worst / largest


def definition(layer: Rival, x: Tensor) -> tuple[Tensor, Tensor]:
    """Output (N, d_out) and units (N, groups, top) as they are defined, in the layer's dtype."""
    if isinstance(layer, MoE):
        weights = (layer.w_router, layer.b_balance, layer.w_in, layer.w_out)
        y, units = moe(x, *weights, layer.top, layer.activation)
        return y, units[:, None]
    return peer(x, layer.w_query, layer.w_key, layer.w_in, layer.w_out, layer.top, layer.activation)
