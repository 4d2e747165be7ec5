"""What training steps take in memory: `python -m bench.memory`. Not how long they take (layer.py)."""

import argparse
import multiprocessing
import os
from typing import Any

import torch
from torch import nn

from bench.cases import WIDTH, dense, training_step
from bench.options import Shape, check_out, name_of, shapes
from bench.rows import SpeedRow, stamp, write_rows
from cramming.checks import number
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.machine import extra_memory_mb, this_device
from fff.kernels import PROVIDERS
from fff.layers.path import PathFFF

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}
DENSE = ("dense 4096", "dense 3072")


def training_memory(name: str, trees: int, depth: int, tokens: int) -> float:
    """MB that one training step takes beside parameters and input: output, gradients, and what is kept for them."""
    os.environ["FFF_KEEP_MB"] = "0"  # what the first step leaves is not to count as there before
    torch.manual_seed(0)
    device = this_device()
    dtype = DTYPES[device.type]
    layer: nn.Module = (
        dense(int(name.removeprefix("dense ")), dtype)
        if name in DENSE
        else PathFFF(WIDTH, WIDTH, depth, trees, provider=name)
    )
    layer.to(device, dtype)
    training_step(layer, torch.randn(256, WIDTH).to(device, dtype))
    for parameter in layer.parameters():
        parameter.grad = None
    x = torch.randn(tokens, WIDTH).to(device, dtype)
    return extra_memory_mb(lambda: training_step(layer, x), device)


def run_memory(chosen: list[Shape], tokens: int) -> list[SpeedRow]:
    """Rows of what training takes, each measured in a process of its own; against dense layers of 4096 and 3072."""
    rows, device = [], this_device()
    dtype = DTYPES[device.type]
    names = [n for n, p in PROVIDERS.items() if p.timed and p.available(device, dtype) is None]
    for shape in chosen:
        found = {}
        for name in (*names, *DENSE):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found[name] = pool.apply(training_memory, (name, shape.trees, shape.depth, tokens))
            print(
                f"  training memory {shape} {tokens} tokens {name_of(dtype)}  {name:<12} {found[name]:8.1f} MB",
                flush=True,
            )
        rows += [memory_row(name, found, shape, tokens, device) for name in found]
    return rows


def memory_row(name: str, found: dict[str, float], shape: Shape, tokens: int, device: torch.device) -> SpeedRow:
    """The row of one layer, compared with both dense layers."""
    compared: dict[str, Any] = {}
    if found[name] > 0:  # else nothing rose above what the step before had left
        opponent, second = DENSE
        compared = {"opponent": opponent, "ratio": found[opponent] / found[name]}
        compared |= {"second": second, "ratio_second": found[second] / found[name]}
    return SpeedRow(
        what="training memory",
        name=name,
        provider=None if name in DENSE else name,
        shape=str(shape),
        width=WIDTH,
        tokens=tokens,
        dtype=name_of(DTYPES[device.type]),
        mode="training",
        inputs="iid",
        unit="MB",
        median=found[name],
        n=1,
        **compared,
        **stamp(device, torch.get_num_threads()),
    )


def memory_shapes(text: str, *, empty: bool = False) -> list[Shape]:
    """The shapes that this measures, those of PathFFF; UserError for others."""
    found = shapes(text, empty=empty)
    if others := [shape for shape in found if shape.leaf_width or shape.rival]:
        raise UserError(f"--shapes names {others[0]}; memory is measured of trees x depth alone, e.g. 1x11.")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__)
    parser.add_argument("--shapes", default="1x11", help="trees x depth, comma-separated")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--out", type=path_argument, help="JSON file to write")
    options = parser.parse_args(arguments)
    with door():
        number("--tokens", options.tokens, least=1)
        check_out(options.out)
        rows = run_memory(memory_shapes(options.shapes), options.tokens)
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


if __name__ == "__main__":
    main()
