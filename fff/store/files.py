"""The files of a store, in safetensors' format, written by blocks of rows. Not how they are read (maps.py).

w_in.safetensors has w_in (T, M, H) and, where there are biases, b_in (T, M); w_out.safetensors has w_out (T, M, K).
Both say in their metadata what wrote them, the activation, and a number that makes them a pair.
"""

import ctypes
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fff.activations import activation_named
from fff.beside import folder_beside
from fff.layers.path import PathFFF
from fff.topology import nodes_in_tree

Shapes = dict[str, tuple[int, ...]]  # of each tensor, by name
Block = tuple[Tensor | None, ...]  # w_in (n, H), b_in (n,) or None, w_out (n, K)

FORMAT = "fff.store 1"
FILES = ("w_in.safetensors", "w_out.safetensors")
ROWS = ("w_in", "b_in", "w_out")
DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
PAGE = 4096  # where numbers begin in a file, so that rows of whole pages lie in whole pages
DEEPEST = 29  # heap numbers of nodes are int32
BLOCK_BYTES = 2**24  # of a layer in memory, written at a time


def write(layer: PathFFF, folder: str | Path) -> None:
    """Write a layer's rows as they are, complete or not at all; `fff.store.open` opens them.

    Raises:
        ValueError: something is at `folder` already, or the layer is in a dtype that no file can have.
    """
    weights = (layer.w_in, layer.b_in, layer.w_out)
    rows = [None if weight is None else weight.detach().flatten(0, 1) for weight in weights]
    size = max(1, BLOCK_BYTES // ((layer.d_in + layer.d_out) * layer.w_in.element_size()))
    blocks = (
        tuple(None if weight is None else weight[start : start + size] for weight in rows)
        for start in range(0, layer.w_in.shape[0] * layer.w_in.shape[1], size)
    )
    write_blocks(
        blocks,
        folder,
        d_in=layer.d_in,
        d_out=layer.d_out,
        depth=layer.depth,
        trees=layer.trees,
        bias=layer.b_in is not None,
        activation=layer.activation,
        dtype=layer.w_in.dtype,
    )


def write_blocks(
    blocks: Iterable[Block],
    folder: str | Path,
    *,
    d_in: int,
    d_out: int,
    depth: int,
    trees: int = 1,
    bias: bool = True,
    activation: str = "gelu",
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a layer that need never be in memory as a whole, complete or not at all.

    Args:
        blocks: any number of rows at a time, (w_in (n, d_in), b_in (n,) or None, w_out (n, d_out)); together all
            nodes, tree after tree, in heap order.

    Raises:
        ValueError: something is at `folder` already; a size, dtype or activation that no store has; or blocks that are
            not the rows announced.
    """
    folder = Path(folder)
    _check_sizes(d_in, d_out, depth, trees)
    if dtype not in DTYPES.values():
        raise ValueError(f"dtype={dtype}; a store has float64, float32, bfloat16 or float16")
    activation_named(activation)
    if os.path.lexists(folder):
        raise ValueError(f"{folder} exists, and nothing is written over it; name another folder, or remove it")
    note = {"format": FORMAT, "activation": activation, "pair": secrets.token_hex(8)}
    nodes = nodes_in_tree(depth)
    shapes: Shapes = {"w_in": (trees, nodes, d_in), "b_in": (trees, nodes), "w_out": (trees, nodes, d_out)}
    if not bias:
        del shapes["b_in"]
    with folder_beside(folder) as beside:
        with open(beside / FILES[0], "wb") as first, open(beside / FILES[1], "wb") as second:
            places = _begin(first, {name: shapes[name] for name in shapes if name != "w_out"}, dtype, note)
            places |= _begin(second, {"w_out": shapes["w_out"]}, dtype, note)
            files = {name: second if name == "w_out" else first for name in shapes}
            _fill(blocks, files, places, shapes, dtype)
            for file in (first, second):
                file.flush()
                os.fsync(file.fileno())
        beside.rename(folder)


def _check_sizes(d_in: int, d_out: int, depth: int, trees: int) -> None:
    for name, value in (("d_in", d_in), ("d_out", d_out), ("trees", trees)):
        if value < 1:
            raise ValueError(f"{name}={value}; it must be 1 or more")
    if not 0 <= depth <= DEEPEST:
        raise ValueError(f"depth={depth}; it must be from 0 to {DEEPEST}")
    if (total := trees * nodes_in_tree(depth)) >= 2**31:
        raise ValueError(f"trees={trees} of depth={depth} have {total} nodes; at most 2^31 - 1 can be numbered")


def _begin(file: BinaryIO, shapes: Shapes, dtype: torch.dtype, note: dict[str, str]) -> dict[str, int]:
    """Write a file's header; returns where in it each tensor begins."""
    header: dict[str, Any] = {"__metadata__": note}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        kind = next(known for known, each in DTYPES.items() if each == dtype)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % PAGE)
    file.write(len(text).to_bytes(8, "little") + text)
    return {name: 8 + len(text) + header[name]["data_offsets"][0] for name in shapes}


def _fill(
    blocks: Iterable[Block],
    files: Mapping[str, BinaryIO],
    places: dict[str, int],
    shapes: Shapes,
    dtype: torch.dtype,
) -> None:
    total, done = shapes["w_in"][0] * shapes["w_in"][1], 0
    for number, block in enumerate(blocks):
        given = {name: tensor for name, tensor in zip(ROWS, block, strict=True) if tensor is not None}
        count = len(given["w_in"])
        expected = {name: (count, *shape[2:]) for name, shape in shapes.items()}
        found = {name: tuple(tensor.shape) for name, tensor in given.items()}
        if found != expected or any(tensor.dtype != dtype for tensor in given.values()) or done + count > total:
            kinds = sorted({str(tensor.dtype) for tensor in given.values()})
            raise ValueError(
                f"block {number} has {found} of {', '.join(kinds)}; {expected} of {dtype} are needed, "
                f"{total - done} rows at most"
            )
        for name, tensor in given.items():
            rows = tensor.detach().cpu().contiguous()
            files[name].seek(places[name] + done * rows[:1].nbytes)
            if rows.nbytes:
                files[name].write((ctypes.c_char * rows.nbytes).from_address(rows.data_ptr()))
        done += count
    if done != total:
        raise ValueError(f"the blocks have {done} rows together, and the layer has {total}")
