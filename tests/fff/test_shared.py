"""Dense neurons beside a tree: the sum in outputs and all gradients, and the tree found inside by whoever needs one."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu
from torch.utils.flop_counter import FlopCounterMode

from fff.decay import decays, parameter_groups
from fff.feedforward import settings_from
from fff.hardening import hardenable, set_hardening, soft_evaluation
from fff.layers.base import Feedforward
from fff.layers.shared import SharedFF
from fff.reference import path_fff, soft_path_fff
from fff.regions import assign, edited_leaf, recorded_inputs, routed_layers
from fff.usage import measure

SHAPES = ((7,), (0, 7), (1, 7), (5, 7), (3, 11, 7), (2, 1, 63, 7))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}


def a_layer(dtype: torch.dtype = torch.float64, **keys) -> SharedFF:
    torch.manual_seed(0)
    settings = settings_from({"kind": "path", "trees": 2, "depth": 3, "shared": 5, **keys})
    layer = settings.build(7, 9, dtype=dtype)
    assert isinstance(layer, SharedFF)
    return layer


def definition(layer: SharedFF, x: Tensor) -> Tensor:
    """The tree's definition and two plain products."""
    tree, (w_in, w_out) = layer.tree, layer.shared.parameters()
    y = path_fff(x.reshape(-1, 7), tree.w_in, tree.b_in, tree.w_out, "gelu").y
    return y.view(*x.shape[:-1], 9) + gelu(x @ w_in.t()) @ w_out.t()


def everything(y: Tensor, layer: SharedFF, x: Tensor) -> list[Tensor]:
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_outputs_and_all_gradients_are_the_sums(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    layer, x = a_layer(dtype), torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()
    assert len(list(layer.parameters())) == 5
    for ours, theirs in zip(everything(layer(x), layer, x), everything(definition(layer, x), layer, x), strict=True):
        assert ours.dtype == dtype
        scale = max(1.0, theirs.abs().max().item()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours, theirs, atol=TOLERANCE[dtype] * scale, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), definition(layer, x), atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


def test_the_soft_form_and_its_losses_are_the_trees() -> None:
    layer, x = a_layer(), torch.randn(40, 7, dtype=torch.float64, requires_grad=True)
    set_hardening(layer, form="soft", temperature=0.5, losses=("entropy", "balance"))
    y, losses = layer.forward_with_losses(x)
    assert layer.losses == ("entropy", "balance")
    tree, (w_in, w_out) = layer.tree, layer.shared.parameters()
    soft = soft_path_fff(x, tree.w_in, tree.b_in, tree.w_out, "gelu", tree.temperature)
    expected = soft + gelu(x @ w_in.t()) @ w_out.t()
    for ours, theirs in zip(everything(y, layer, x), everything(expected, layer, x), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert losses == layer.tree.forward_with_losses(x)[1]
    with soft_evaluation(layer):
        torch.testing.assert_close(layer.eval()(x), y)


def test_the_tree_is_found_inside() -> None:
    layer, x = a_layer().eval(), torch.randn(40, 7, dtype=torch.float64)
    assert isinstance(layer, Feedforward)
    assert hardenable(layer) == [layer.tree]
    assert routed_layers(layer) == {"tree": layer.tree}
    with recorded_inputs(layer) as inputs:
        y = layer(x)
    assert torch.equal(inputs["tree"][0], x)
    leaves = assign(layer.tree, x)
    assert measure(layer.tree.route(x)).counts.sum().item() == 80
    with edited_leaf(layer.tree, int(leaves[0, 0])):
        changed = (layer(x) != y).any(-1)
    assert torch.equal(changed, leaves[:, 0] == leaves[0, 0])
    assert layer.tree.computed_by


def test_it_is_counted_and_weights_alone_decay() -> None:
    settings = settings_from({"kind": "path", "trees": 2, "depth": 3, "shared": 5, "provider": "reference"})
    with FlopCounterMode(display=False) as counter:
        a_layer().shared(torch.randn(40, 7, dtype=torch.float64))
    alone = settings_from({"kind": "path", "trees": 2, "depth": 3}).flops(7, 9)
    assert [round(a - b) * 40 for a, b in zip(settings.flops(7, 9), alone, strict=True)] == [
        counter.get_total_flops()
    ] * 2
    layer = a_layer()
    assert [name for name, p in layer.named_parameters() if not decays(name, p)] == ["tree.b_in"]
    decayed, others = parameter_groups(layer, 0.1)
    assert (len(decayed["params"]), len(others["params"])) == (4, 1)


def test_it_compiles_to_one_graph() -> None:
    torch._dynamo.reset()
    layer, x = a_layer(torch.float32), torch.randn(40, 7, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(everything(compiled(x), layer, x), everything(layer(x), layer, x), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="last dimension is 6, but the layer has d_in=7"):
        a_layer()(torch.randn(3, 6, dtype=torch.float64))
