"""What training steps take in memory: `python -m bench.memory`. Not how long they take (bench.py)."""

import argparse
import multiprocessing
import os
from typing import Any

import torch
from torch import nn

from bench.cases import WIDTH, dense, training_step
from cramming.machine import extra_memory_mb, this_device
from fff.kernels import PROVIDERS
from fff.layers.path import PathFFF

DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


def training_memory(provider: str, trees: int, depth: int, tokens: int) -> float:
    """MB that one training step takes beside parameters and input: output, gradients, and what is kept for them."""
    os.environ["FFF_KEEP_MB"] = "0"  # what the first step leaves is not to count as there before
    torch.manual_seed(0)
    device = this_device()
    dtype = DTYPES[device.type]
    layer: nn.Module = (
        dense(int(provider[6:]), dtype)
        if provider.startswith("dense")
        else PathFFF(WIDTH, WIDTH, depth, trees, provider=provider)
    )
    layer.to(device, dtype)
    training_step(layer, torch.randn(256, WIDTH).to(device, dtype))
    for parameter in layer.parameters():
        parameter.grad = None
    x = torch.randn(tokens, WIDTH).to(device, dtype)
    return extra_memory_mb(lambda: training_step(layer, x), device)


def run_memory(shapes: str, tokens: int) -> list[dict[str, Any]]:
    """Rows of what training takes, each measured in a process of its own."""
    rows, device = [], this_device()
    dtype = DTYPES[device.type]
    names = [n for n, p in PROVIDERS.items() if n != "reference" and p.available(device, dtype) is None]
    for shape in filter(None, shapes.split(",")):
        trees, depth = map(int, shape.split("x"))
        for name in (*names, "dense 4096", "dense 3072"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                mb = pool.apply(training_memory, (name, trees, depth, tokens))
            rows.append({"shape": shape, "tokens": tokens, "provider": name, "mb": mb})
            print(f"  training memory {shape} {tokens} tokens {str(dtype)[6:]}  {name:<12} {mb:8.1f} MB", flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="bench.memory", description=__doc__)
    parser.add_argument("--shapes", default="1x11", help="trees x depth, comma-separated")
    parser.add_argument("--tokens", type=int, default=16384)
    options = parser.parse_args()
    run_memory(options.shapes, options.tokens)
