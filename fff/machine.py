"""What this machine is and what it can do at most, for records and for the floors of benchmarks. Not their timings."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# By a part of the name that torch gives. Other forms of the H100 (PCIe, NVL) have other peaks.
PEAK_TFLOPS = {"H200": 989.0, "H100 80GB HBM3": 989.0, "H100 SXM": 989.0, "A100": 312.0}


def cpu_name() -> str:
    """The processor's model name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of dense bfloat16 products that the maker gives for a device; None for a CPU and where it is unknown."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for part, tflops in PEAK_TFLOPS.items() if part in name), None)


def describe(threads: int) -> dict[str, Any]:
    """What figures were taken on."""
    return {
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def peaks() -> dict[str, float]:
    """The best of a few tries at the present number of threads: GFLOP/s of a product, GB/s of memory and of a cache.

    A layer cannot be faster than its operations at the first and its bytes at the others.
    """
    a = torch.randn(1024, 1024)
    large, small, out = torch.randn(2**24), torch.randn(2**20), torch.empty(2**24)
    return {
        "gflops": 2 * 1024**3 / _best(lambda: a @ a) / 1e9,
        "memory_gb_per_s": 2 * 4 * 2**24 / _best(lambda: out.copy_(large)) / 1e9,
        "cache_gb_per_s": 4 * 2**20 / _best(small.sum) / 1e9,
    }


def _best(call: Callable[[], object], tries: int = 10) -> float:
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def resident_mb(key: str) -> float:
    """VmRSS (now) or VmHWM (at most) of this process in MB, from Linux's /proc.

    Raises:
        OSError: this system has no /proc.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / 1e6


def extra_memory_mb(call: Callable[[], object]) -> float:
    """How far the process's memory rises above what it has, at most, during a call, in MB (1e6 bytes)."""
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what there is
    before = resident_mb("VmRSS")
    call()
    return resident_mb("VmHWM") - before
