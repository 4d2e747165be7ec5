"""A copy of the dense model with something else in its blocks' places, each callable alone. Not what stands in them."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cramming.convert.pretrained.compute import device_of
from cramming.convert.pretrained.dense import Dense
from cramming.convert.pretrained.target import Target, refuse_unfit
from cramming.errors import UserError
from fff.activations import ACTIVATIONS
from fff.layers.base import Feedforward, Hardenable
from fff.surgery import replace_feedforward

# Where transformers' configurations have the number of neurons.
NEURONS = ("intermediate_size", "hidden_dim", "d_ff", "n_inner", "ffn_dim")


class Piece(nn.Module):
    """One block of a student: (N, H) -> (N, K), by the modules that stand in its place."""

    def __init__(self, model: nn.Module, dense: Dense, target: Target) -> None:
        super().__init__()
        block = dense.block
        self.dense = dense
        self.whole: nn.Module | None = None
        self.ins = nn.ModuleList()
        if block.whole and not target.in_place:
            self.whole = model.get_submodule(block.path)
        else:
            names = block.ins if target.in_place else block.ins[:1]
            self.ins = nn.ModuleList(model.get_submodule(name) for name in names)
            self.out = model.get_submodule(block.out)
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        if self.whole is not None:
            return self.whole(x)
        if not self.target.in_place:
            return self.out(self.ins[0](x))
        scores = [each(x) for each in self.ins]
        if self.dense.block.gated:
            first, second = scores if len(scores) == 2 else scores[0].chunk(2, -1)
            gate, value = (second, first) if self.dense.swapped else (first, second)
            return self.out(ACTIVATIONS[self.dense.activation].forward(gate) * value)
        return self.out(ACTIVATIONS[self.dense.activation].forward(scores[0]))

    @property
    def layer(self) -> Any:
        """The Feedforward layer; None in place."""
        return next((each for each in self.modules() if isinstance(each, Feedforward)), None)

    @property
    def bias(self) -> nn.Parameter | None:
        """The output's bias."""
        return self.whole.bias if self.whole is not None else self.out.bias  # type: ignore[return-value]


def refuse(denses: Sequence[Dense], target: Target, *, keep_gates: bool) -> None:
    """UserError where the target does not fit the blocks."""
    for dense in denses:
        refuse_unfit(
            target,
            dense.block.path,
            neurons=dense.block.neurons,
            activation=dense.activation,
            gated=dense.block.gated,
            keep_gates=keep_gates,
        )
    if len({(dense.activation, dense.block.gated) for dense in denses}) > 1:
        raise UserError(
            "distill.model: its blocks have different activations or gates, and all become one kind of layer."
        )


def student_of(model: Any, denses: Sequence[Dense], target: Target, seed: int) -> tuple[Any, list[Piece]]:
    """A copy of the model with new weights in the blocks' places, which the seed decides, and its pieces."""
    made = copy.deepcopy(model)
    device = device_of(model)
    with torch.random.fork_rng([] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        if target.in_place:
            for dense in denses:
                _narrow(made, dense, target.neurons)
            _note_neurons(made.config, denses[0].block.neurons, target.neurons)
        else:
            replace_feedforward(made, target.settings(denses[0].activation, denses[0].block.gated))
    for module in made.modules():
        if isinstance(module, Hardenable):
            module.form = "hard"
    made.to(device)
    return made.eval().requires_grad_(True), [Piece(made, dense, target) for dense in denses]


def _narrow(model: nn.Module, dense: Dense, neurons: int) -> None:
    block = dense.block
    for name in (*block.ins, block.out):
        old = model.get_submodule(name)
        parent, _, last = name.rpartition(".")
        fused = block.gated and len(block.ins) == 1
        sizes = (neurons, block.d_out) if name == block.out else (block.d_in, neurons * (2 if fused else 1))
        if isinstance(old, nn.Linear):
            new: nn.Module = nn.Linear(*sizes, bias=old.bias is not None)
        else:
            new = type(old)(sizes[1], sizes[0])  # transformers' Conv1D
        setattr(model.get_submodule(parent), last, new)


def _note_neurons(config: Any, before: int, after: int) -> None:
    """So that `from_pretrained` makes a model of the narrower width."""
    for key in NEURONS:
        if getattr(config, key, None) == before or (key == "n_inner" and hasattr(config, key)):
            setattr(config, key, after)
