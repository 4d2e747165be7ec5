"""How far a run uses its device: MFU and peak memory, for the rows of its history. Not the rows (hooks.py)."""

import torch

from cramming.machine import cpu_name, peak_flops
from cramming.model.flops import ModelFlops


class Meter:
    """Called with tokens per second, gives a row's figures; none on a CPU.

    `train/mfu` and `train/mfu_dense_equivalent` (see `cramming.model.flops.ModelFlops`) where the device's peak is
    known, `device/peak_memory_gb` (1e9 bytes that torch has allocated at most, on the main process's device).
    """

    def __init__(self, flops: ModelFlops, device: torch.device, processes: int = 1) -> None:
        self.flops, self.device = flops, device
        peak = peak_flops(device)
        self.peak = None if peak is None else peak * processes  # FLOP/s of all processes' devices
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
        self.name = device_name if processes == 1 else f"{processes} x {device_name}"

    def __call__(self, tokens_per_s: float) -> dict[str, float]:
        """The figures."""
        row: dict[str, float] = {}
        if self.peak is not None:
            row |= {f"train/{name}": value for name, value in self.flops.utilisation(tokens_per_s, self.peak).items()}
        if self.device.type == "cuda":
            row["device/peak_memory_gb"] = torch.cuda.max_memory_allocated(self.device) / 1e9
        return row
