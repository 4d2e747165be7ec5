"""A model that computes in bfloat16 behind a float32 face, and a part that stays float32 in it. Not what is converted.

By hooks, so that a model's class, names and attributes stay. Tensors are converted in tuples, lists and mappings; other
objects, a cache of keys and values among them, pass as they are.
"""

import copy
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from fff.layers.int8_trees import Int8Trees

_HERE = threading.local()  # how many faces deep this thread is: a part's face is none inside the whole
LARGEST = torch.finfo(torch.bfloat16).max
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)  # with float32 weights they take both types


def narrow(model: nn.Module, stay: Sequence[nn.Module]) -> None:
    """Let a float32 model compute in bfloat16, in place, except the modules that stay; outside it is as it was.

    Norms' weights and tables that are not saved, as of rotations, stay float32, and whole numbers as they are.
    """
    if all(each.dtype == torch.bfloat16 for each in model.parameters()):
        return
    within = {each for module in stay for each in module.modules()}
    fixed = {id(each) for module in stay for each in module.parameters()}
    inner = {each for module in stay for each in module.modules() if each is not module}
    for module in model.modules():
        if module in within:
            if module not in inner:
                float32_inside(module)
        elif not isinstance(module, (*NORMS, Int8Trees)):
            _narrow_own(module, fixed)
    float32_outside(model)


def _narrow_own(module: nn.Module, fixed: set[int]) -> None:
    for parameter in module._parameters.values():
        if parameter is None:
            continue
        if id(parameter) not in fixed:
            parameter.data = parameter.data.to(torch.bfloat16)
        else:  # tied to one that stays, as an embedding to a head
            float32_inside(module)
    for name, buffer in module._buffers.items():
        saved = name not in module._non_persistent_buffers_set
        if buffer is not None and saved and buffer.dtype == torch.float32:
            module._buffers[name] = buffer.to(torch.bfloat16)


def float32_outside(model: nn.Module) -> None:
    """Let a bfloat16 model, and each of transformers' models in it, take and give float32 where it is called.

    A transformers model that is called by the one around it goes on in bfloat16. Values beyond bfloat16's largest, as
    masks have them, become that and not infinite: a row of them alone would make NaN.
    """
    for module in model.modules():
        if module is model or hasattr(type(module), "base_model_prefix"):
            part = module is not model
            module.register_forward_pre_hook(functools.partial(_enter, part), with_kwargs=True)
            module.register_forward_hook(functools.partial(_leave, part), always_call=True)


def float32_inside(module: nn.Module) -> None:
    """Let a float32 part of a bfloat16 model take and give bfloat16."""
    module.register_forward_pre_hook(_widen, with_kwargs=True)
    module.register_forward_hook(_narrow)


def _enter(part: bool, _: nn.Module, given: tuple, named: dict) -> Any:
    if is_compiling():  # the compiled module is the whole
        return None if part else converted((given, named), narrowed)
    _HERE.depth = getattr(_HERE, "depth", 0) + 1
    return converted((given, named), narrowed) if _HERE.depth == 1 else None


def _leave(part: bool, _: nn.Module, __: Any, found: Any) -> Any:
    if is_compiling():
        return None if part else converted(found, widened)
    _HERE.depth = max(0, getattr(_HERE, "depth", 0) - 1)
    return converted(found, widened) if _HERE.depth == 0 else None


def _widen(_: nn.Module, given: tuple, named: dict) -> Any:
    return converted((given, named), widened)


def _narrow(_: nn.Module, __: Any, found: Any) -> Any:
    return converted(found, narrowed)


def narrowed(x: Tensor) -> Tensor:
    """Float32 to bfloat16, finite values to finite ones; others stay."""
    if x.dtype != torch.float32:
        return x
    return torch.where(x.isinf(), x, x.clamp(-LARGEST, LARGEST)).to(torch.bfloat16)


def widened(x: Tensor) -> Tensor:
    """Bfloat16 to float32; others stay."""
    return x.float() if x.dtype == torch.bfloat16 else x


def converted(value: Any, convert: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with its tensors converted."""
    if isinstance(value, Tensor):
        return convert(value)
    if isinstance(value, Mapping):
        made: Any = copy.copy(value)
        for key, each in value.items():
            made[key] = converted(each, convert)
        return made
    if isinstance(value, tuple | list):
        parts = [converted(each, convert) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value
