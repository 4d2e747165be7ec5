"""A model spread over processes: each holds a part of every weight, gradient and moment (FSDP2). Not the processes."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

PARTS = ("encode",)  # passes of a part of a model, which begin and end as one of the whole does


def shard(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device, processes: int, dtype: Any) -> None:
    """Spread a model in place; a block's weights are whole while it computes, and the rest while the model does.

    Parameters that no gradient trains stay whole everywhere: layers move them by themselves.

    Args:
        dtype: weights travel in it and are computed with; gradients are summed, and weights kept, in float32.
    """
    mesh = init_device_mesh(device.type, (processes,))
    low = dtype if dtype in (torch.bfloat16, torch.float16) else None
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32, cast_forward_inputs=False)
    kept = {parameter for parameter in model.parameters() if not parameter.requires_grad}
    for module in (*blocks, model):
        fully_shard(
            module,
            mesh=mesh,
            mp_policy=policy,
            ignored_params=kept,
            shard_placement_fn=lambda parameter: Shard(dimension(parameter.shape, processes)),
        )
    for name in PARTS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


def dimension(shape: torch.Size, processes: int) -> int:
    """The dimension along which a weight is cut: the first if it can be cut evenly, else the longest that can.

    A single tree's (1, M, H) would lie in one process as a whole, and M is odd. What cannot be cut evenly at all, a
    few biases, is cut along the first.
    """
    even = [number for number, length in enumerate(shape) if length % processes == 0]
    return 0 if not even or even[0] == 0 else max(even, key=lambda number: shape[number])


def whole_tensor(tensor: Tensor) -> Tensor:
    """A norm or the like that is one number for all processes, which meet; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(full: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process has, cut as `like` is; the whole where that is none."""
    full = full.to(like.device)
    if not isinstance(like, DTensor):
        return full
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def all_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's state as one process has it, on the CPU of the main process; empty elsewhere. They meet."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))  # type: ignore[arg-type]


@contextmanager
def whole(modules: Iterable[nn.Module], prefix: str = "") -> Iterator[None]:
    """Inside, the modules' own parameters are plain and whole, and what all processes write there alike is kept.

    Args:
        prefix: of the names of those parameters that are needed.
    """
    opened: list[tuple[nn.Module, str, Any]] = []
    try:
        for module in modules:
            for name, parameter in list(module.named_parameters(recurse=False)):
                if name.startswith(prefix) and isinstance(parameter, DTensor):
                    opened.append((module, name, parameter))
                    module._parameters[name] = nn.Parameter(parameter.full_tensor(), requires_grad=False)
        yield
        with torch.no_grad():
            for module, name, parameter in opened:
                parameter.copy_(part_of(module._parameters[name].detach(), parameter))  # type: ignore[union-attr]
    finally:
        for module, name, parameter in opened:
            module._parameters[name] = parameter
