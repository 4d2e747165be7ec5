"""What this machine is and what it can do at most, for records and for the floors of benchmarks. Not their timings."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

CPU = torch.device("cpu")
# By a part of the name that torch gives. Other forms of the H100 (PCIe, NVL) have other peaks.
PEAK_TFLOPS = {"H200": 989.0, "H100 80GB HBM3": 989.0, "H100 SXM": 989.0, "A100": 312.0}


def cpu_name() -> str:
    """The processor's model name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text("utf-8", "replace").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def this_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def peaks(device: torch.device = CPU) -> dict[str, float]:
    """The best of a few tries at the present number of threads: GFLOP/s of a product, GB/s of memory and of a cache.

    A layer cannot be faster than its operations at the first and its bytes at the others. A GPU multiplies bfloat16,
    and its cache the one that all of it shares (L2).
    """
    gpu = device.type == "cuda"
    size, floats, cached = (8192, 2**28, 2**22) if gpu else (1024, 2**24, 2**20)
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if gpu else torch.float32)
    large, small = torch.randn(floats, device=device), torch.randn(cached, device=device)
    out = torch.empty_like(large)
    return {
        "gflops": 2 * size**3 / _best(lambda: a @ a, device) / 1e9,
        "memory_gb_per_s": 2 * 4 * floats / _best(lambda: out.copy_(large), device) / 1e9,
        "cache_gb_per_s": 4 * cached / _best(small.sum, device) / 1e9,
    }


def _best(call: Callable[[], object], device: torch.device, tries: int = 10) -> float:
    """Seconds of the fastest call; on a GPU of ten at a time, because a launch alone takes microseconds."""
    seconds, calls = [], 10 if device.type == "cuda" else 1
    for _ in range(tries):
        synchronise(device)
        started = time.perf_counter()
        for _ in range(calls):
            call()
        synchronise(device)
        seconds.append((time.perf_counter() - started) / calls)
    return min(seconds)


def synchronise(device: torch.device) -> None:
    """Wait for a GPU; nothing on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def resident_mb(key: str) -> float:
    """VmRSS (now) or VmHWM (at most) of this process in MB, from Linux's /proc.

    Raises:
        OSError: this system has no /proc.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) * 1024 / 1e6


def extra_memory_mb(call: Callable[[], object], device: torch.device = CPU) -> float:
    """How far the memory rises above what it is, at most, during a call, in MB (1e6 bytes).

    The process's, or on a GPU what torch has allocated there.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        allocated = torch.cuda.memory_allocated(device)
        call()
        synchronise(device)
        return (torch.cuda.max_memory_allocated(device) - allocated) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what there is
    before = resident_mb("VmRSS")
    call()
    return resident_mb("VmHWM") - before
