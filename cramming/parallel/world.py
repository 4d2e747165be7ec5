"""The one way to make an Accelerator for a configured precision. Not the loops that use it."""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs

from cramming.errors import UserError


def make_accelerator(key: str, precision: str, *, cpu: bool = False) -> Accelerator:
    """The accelerator for "fp32", "bf16" or "fp16"; UserError names `key` when the device cannot do it.

    Args:
        key: the configuration key that holds the precision, e.g. "train.precision".
        cpu: stay on the CPU, also where accelerate would find another device.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError(f"{key} is fp16, which needs a GPU; use bf16 or fp32.")
    AcceleratorState._reset_state()  # one process may run several configurations, each with its own precision
    # Buffers follow from configuration and progress. To broadcast them would make every forward pass a meeting of all
    # processes, and one without a share of the validation set would not come.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    return Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=cpu, kwargs_handlers=[parallel])
