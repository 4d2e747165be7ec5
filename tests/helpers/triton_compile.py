"""Compiles every kernel that provider `triton` would launch, for a GPU that need not be here. Prints what they need.

`python tests/helpers/triton_compile.py TREESxDEPTH[:DTYPE] ...`: the host code runs on the CPU with launches replaced
by compilations, so its results mean nothing. A kernel that does not fit, or spills registers, is reported as such.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fff.kernels.operands import PathGradients, PathOperands
from fff.kernels.triton import host as triton_host
from fff.kernels.triton import kernels as triton_kernels

TARGET = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 227 * 1024  # what a program may have on an H100
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.uint8: "*u8",
}
seen: dict[str, str] = {}


def source(function: triton.JITFunction, args: tuple, constants: dict) -> ASTSource:
    """The source with the types and the divisibilities that a launch with these arguments has."""
    signature, constexprs, attributes = {}, dict(constants), {}
    for number, (name, value) in enumerate(zip(function.arg_names, args, strict=False)):
        plain = name in function.do_not_specialize
        if value is None or (isinstance(value, int) and value == 1 and not plain):
            signature[name], constexprs[name] = "constexpr", value
        else:
            signature[name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else "i32"
            if isinstance(value, torch.Tensor) or (value % 16 == 0 and not plain):
                attributes[(number,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(constants, "constexpr")
    return ASTSource(function, signature, constexprs, attributes)


def registers(cubin: bytes) -> str:
    """Registers and bytes of stack (spills) of a program's threads."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", said.stdout)
    return f"registers {found[1]} stack {found[2]}" if found else said.stdout


def compile_launch(function: triton.JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> None:
    """In the place of a launch."""
    settings = {key: options.pop(key) for key in ("num_warps", "num_stages") if key in options}
    key = f"{function.__name__} {options} {settings} {[str(getattr(a, 'dtype', a)) for a in args]}"
    if key in seen:
        return
    made = triton.compile(source(function, args, options), target=TARGET, options=settings)
    assert made.metadata.shared <= SHARED_BYTES, f"{key}: shared memory of {made.metadata.shared} bytes"
    seen[key] = f"shared {made.metadata.shared} {registers(made.asm['cubin'])}"
    where = f"level {options.get('LEVEL')} levels {options.get('LEVELS')}"
    kind = next(str(a.dtype)[6:] for a in args if isinstance(a, torch.Tensor) and a.is_floating_point())
    print(f"{function.__name__:<14} {kind:<9} {where:<20} {seen[key]}", flush=True)


def compile_all(trees: int, depth: int, dtype: torch.dtype, width: int, tokens: int) -> None:
    """Everything that inference and training of one shape launch."""
    nodes = 2 ** (depth + 1) - 1
    x, w = torch.zeros(tokens, width, dtype=dtype), torch.zeros(trees, nodes, width, dtype=dtype)
    bias, flips = torch.zeros(trees, nodes, dtype=dtype), torch.zeros(tokens, trees, depth, dtype=torch.bool)
    for least in (10**12, 0):
        triton_host.GROUPED_FROM_BYTES = least
        triton_host.forward(PathOperands(x, w, None, w, "gelu"), save=False)
        _, leaf, scores = triton_host.forward(PathOperands(x, w, bias, w, "gelu", flips), save=True)
    leaf = torch.full_like(leaf, 2**depth - 1)
    triton_host.backward(PathGradients(x, None, x, w, w, leaf, scores, None, "gelu"))


if __name__ == "__main__":
    triton.JITFunction.run = compile_launch  # type: ignore[method-assign]
    assert not triton_kernels.INTERPRETED
    for argument in sys.argv[1:]:
        shape, _, name = argument.partition(":")
        for kind in [getattr(torch, name)] if name else [torch.bfloat16, torch.float32, torch.float16]:
            compile_all(*map(int, shape.split("x")), kind, 768, 3000)
    print(f"compiled {len(seen)} kernels")
