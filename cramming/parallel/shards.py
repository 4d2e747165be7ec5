"""A spread model on the disk: each process writes and reads its part of every tensor. Not when (train.checkpoint).

torch.distributed.checkpoint with safetensors files, which hold names, places and numbers and are never unpickled. They
are read by any number of processes, spread or not.
"""

import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException
from torch.distributed.fsdp import FSDPModule

from cramming.parallel.sharded import part_of


def named_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Every weight and what the optimiser keeps of it, by name: this process's own tensors, or its parts of them."""
    if isinstance(model, FSDPModule):
        model.reshard()  # after a pass of evaluation some of its weights are still whole
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    state = {f"model.{name}": parameter.detach() for parameter, name in names.items()}
    for parameter, kept in optimiser.state.items():
        state |= {f"optimiser.{names[parameter]}.{key}": value for key, value in kept.items()}
    return state


def write_shards(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, group: Any) -> Future[Any]:
    """Begin to write; done on the main process means written by all. What is written is the state of now.

    Args:
        group: of all processes, for this alone: it is met in by another thread.
    """
    state = named_state(model, optimiser)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        done = dcp.async_save(state, storage_writer=writer, process_group=group)
    assert isinstance(done, Future)
    return done


def written(done: Future[Any]) -> None:
    """Wait for what was begun; the system's error where writing failed in any process."""
    try:
        done.result()
    except CheckpointException as error:
        raise next((each for each, _ in error.failures.values() if isinstance(each, OSError)), error) from None


def read_shards(folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """Read weights and the optimiser's state into a model, spread over processes, which meet, or whole."""
    reader = dcp.HuggingFaceStorageReader(str(folder))
    there = reader.read_metadata().state_dict_metadata
    for name, parameter in model.named_parameters():
        prefix = f"optimiser.{name}."
        for key, found in there.items():
            if key.startswith(prefix):
                kept = optimiser.state[parameter]
                kept[key.removeprefix(prefix)] = _empty(found, parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # alone, that it is alone
        dcp.load(named_state(model, optimiser), storage_reader=reader, no_dist=not dist.is_initialized())


def _empty(found: Any, parameter: Tensor) -> Tensor:
    if found.size == parameter.shape:
        return torch.zeros_like(parameter).detach()
    return torch.zeros(found.size, dtype=found.properties.dtype, device=parameter.device)


@torch.no_grad()
def spread_state(
    model: nn.Module, optimiser: torch.optim.Optimizer, weights: dict[str, Tensor], kept: dict[str, Any]
) -> None:
    """Take up in a spread model what one process wrote: weights by name, and its optimiser's `state_dict()`."""
    names = dict(model.named_parameters(remove_duplicate=False))  # of what has two names the file has one
    for name, full in weights.items():
        names[name].copy_(part_of(full, names[name]))
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state = {
        number: {
            key: part_of(value, parameters[number]) if value.shape == parameters[number].shape else value
            for key, value in of_one.items()
        }
        for number, of_one in kept["state"].items()
    }
    optimiser.load_state_dict({"state": state, "param_groups": kept["param_groups"]})
