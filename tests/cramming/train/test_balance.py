"""When biases that balance move: after a step, by what all processes counted in it, and by nothing before."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from cramming.train.balance import Balance
from fff.rivals.moe import MoE, MoESettings


def test_a_steps_choices_move_the_bias_and_those_before_it_do_not() -> None:
    torch.manual_seed(0)
    layer = MoE(6, 6, MoESettings(experts=4, expert_width=2, top=1, balance_rate=0.5))
    other = torch.tensor([90, 0, 0, 0])  # of another process
    world = SimpleNamespace(of_step=lambda own: own + other, whole=lambda *_: nullcontext())
    trainer: Any = SimpleNamespace(parts=SimpleNamespace(model=nn.Sequential(layer)), world=world)
    layer(torch.randn(500, 6))  # warms up a compiler
    hook = Balance()
    hook.on_start(trainer)
    layer(torch.randn(10, 6))
    hook.on_step(trainer, None)  # type: ignore[arg-type]
    assert layer.b_balance.tolist() == [-0.5, 0.5, 0.5, 0.5]
    assert not layer.visits.any()
