"""The compiled model of a run, made before its clock starts, and what CUDA graphs ask of the loop. Not the loop."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from cramming.errors import UserError
from cramming.train.checkpoint import rng_state, set_rng_state
from cramming.train.config import TrainConfig
from cramming.train.parts import Parts


def compile_blocks(blocks: Iterable[nn.Module], config: TrainConfig) -> None:
    """The training passes of each block of a model that is to be spread: its weights come and go between blocks.

    In evaluation blocks stay as they are: hooks look into them there, which a compiled pass would not call.
    """
    for block in blocks if config.compile else ():
        block.forward = _fast_in_training(block, block.forward, config)


def _fast_in_training(block: nn.Module, plain: Callable[..., Any], config: TrainConfig) -> Callable[..., Any]:
    fast = torch.compile(plain, dynamic=False, mode=config.compile_mode)
    return lambda *given, **named: (fast if block.training else plain)(*given, **named)


def compiled(model: nn.Module, config: TrainConfig) -> nn.Module:
    """The whole model through torch.compile, one graph per shape; or as it is without `config.compile`."""
    if not config.compile:
        return model
    # Shapes are static; a second one (the end of the validation set) is worth its own graph.
    return torch.compile(model, dynamic=False, mode=config.compile_mode)  # type: ignore[return-value]


def check_compiler(config: TrainConfig, device: torch.device) -> None:
    """Find before the data are made that torch.compile has no C++ compiler for a CPU's passes (UserError)."""
    if not config.compile or device.type != "cpu":
        return
    from torch._inductor import cpp_builder  # slow to import, and needed only here

    try:
        cpp_builder.get_cpp_compiler()
    except RuntimeError as error:
        raise UserError(
            f"train.compile is true, and torch.compile finds no C++ compiler ({error}); install one "
            "(Debian: apt install g++), set CXX to it, or set train.compile=false."
        ) from error


def uses_graphs(config: TrainConfig) -> bool:
    """Whether passes are replayed as CUDA graphs, in memory that each replay writes anew."""
    return config.compile and config.compile_mode == "reduce-overhead"


def begin_pass(config: TrainConfig) -> None:
    """Before each forward pass: what the last one returned may be overwritten."""
    if uses_graphs(config):
        torch.compiler.cudagraph_mark_step_begin()


def clear_gradients(model: nn.Module, optimiser: Any, config: TrainConfig) -> None:
    """Before each update: no gradients, or zeros in memory of their own where graphs would keep them in theirs.

    Without that, the sum over microbatches would be taken in memory that the next replay overwrites.
    """
    optimiser.zero_grad(set_to_none=not uses_graphs(config))
    if uses_graphs(config):
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)


def warm_up(parts: Parts, *, evaluation: bool = True) -> None:
    """Make a model's passes on a microbatch before the clock starts, so that the budget is not spent on compilers.

    Leaves weights, gradients and random numbers as they were. Only where somebody asked for compiling, or for hours,
    which the kernels' compilers must not use up: elsewhere the first step may as well do it.

    Args:
        evaluation: also the pass of the validation.
    """
    model, config, objective, generators = parts.wrapped, parts.config, parts.objective, rng_state()
    if not config.compile and config.budget_hours is None:
        return
    parts.hardening.apply(parts.state.progress)
    batch = objective.example(parts.data.train, config.microbatch).to(parts.world.device)
    # First the model without the compiler: its layers choose their providers and keep the choice. A choice made while
    # the compiled model runs would make torch compile that model again.
    with torch.no_grad(), parts.world.autocast():
        objective.sums(parts.model.eval(), batch.head(1))
    model.train()
    # CUDA graphs warm up in a first pass and record in a second; a third finds out whether they replay.
    for _ in range(3 if uses_graphs(config) else 1):
        clear_gradients(model, parts.optimiser, config)
        begin_pass(config)
        parts.world.backward(objective.losses(model, batch)[0])
    if evaluation:
        model.eval()
        begin_pass(config)
        objective.sums(model, batch)
    clear_gradients(model, parts.optimiser, config)
    if parts.world.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    set_rng_state(generators)
