"""Layer timings on this machine: `python -m fff.bench`. Correct first, on the timed shape; then time. Not the model.

Providers and dense layers run in turn (A B C A B C ...) on rotating, written, random inputs; medians are compared.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fff.path import PathFFF
from fff.reference import path_fff

WIDTH = 768
DENSE_WIDTHS = (3072, 4095, 4096)
LEAST_SAMPLES = 5  # beside one to warm up
SECONDS_PER_CASE = 4.0
MARGIN = 1e-4  # a score nearer to 0 may be rounded to either side


def dense(width: int, dtype: torch.dtype) -> nn.Module:
    """The opponent: Linear, GELU, Linear without biases."""
    layers = (nn.Linear(WIDTH, width, bias=False), nn.GELU(), nn.Linear(width, WIDTH, bias=False))
    return nn.Sequential(*layers).to(dtype)


def check(layer: PathFFF, x: Tensor) -> float:
    """Largest error of the layer's output against the float64 definition, relative to the largest output.

    Raises:
        AssertionError: another node was visited where every margin is clear, or the error is above what the dtype
            allows; no time is reported then.
    """
    wide = [p.detach().double() if p is not None else None for p in (layer.w_in, layer.b_in, layer.w_out)]
    w_in, b_in, w_out = wide
    assert w_in is not None
    assert w_out is not None
    result = path_fff(x.double(), w_in, b_in, w_out, layer.activation)
    clear = (result.scores.abs() > MARGIN).flatten(1).all(1)
    nodes = layer.path(x)[0]
    assert torch.equal(nodes[clear], result.nodes[clear]), f"{layer.provider}: other nodes than the definition's"
    with torch.no_grad():
        error = (layer(x).double() - result.y)[clear].abs().max() / result.y.abs().max()
    allowed = 1e-5 if x.dtype == torch.float32 else 3e-2
    assert error <= allowed, f"{layer.provider}: error {error:.1e} exceeds {allowed:.0e}"
    return float(error)


def forward(module: nn.Module, x: Tensor) -> None:
    """Inference."""
    with torch.no_grad():
        module(x)


def training_step(module: nn.Module, x: Tensor) -> None:
    """Forward and backward, gradients written anew."""
    for parameter in module.parameters():
        parameter.grad = None
    module(x.requires_grad_()).square().mean().backward()


@dataclass(frozen=True)
class Case:
    """One thing that is timed."""

    run: Callable[[nn.Module, Tensor], None]
    module: nn.Module
    inputs: list[Tensor]

    def __call__(self, turn: int) -> None:
        """Run it once, on the turn's input."""
        self.run(self.module, self.inputs[turn % len(self.inputs)])


def interleaved(cases: dict[str, Case], device: torch.device) -> dict[str, list[float]]:
    """Seconds of each case, taken in turn until the time per case is used; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    turn, deadline = 0, time.perf_counter() + SECONDS_PER_CASE * len(cases)
    while turn <= LEAST_SAMPLES or (time.perf_counter() < deadline and turn < 200):
        for name, call in cases.items():
            started = time.perf_counter()
            call(turn)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
        turn += 1
    return {name: found[1:] for name, found in times.items()}


def measure(
    trees: int, depth: int, tokens: int, dtype: torch.dtype, mode: str, device: torch.device
) -> list[dict[str, Any]]:
    """Rows of one shape: every provider and every dense width."""
    torch.manual_seed(0)
    inputs = [torch.randn(tokens, WIDTH, device=device).to(dtype) for _ in range(4)]
    base = PathFFF(WIDTH, WIDTH, depth, trees).to(device, dtype)
    modules: dict[str, nn.Module] = {}
    errors: dict[str, float] = {}
    for provider in ("masked", "gather"):
        layer = PathFFF(WIDTH, WIDTH, depth, trees, provider=provider).to(device, dtype)
        layer.load_state_dict(base.state_dict())
        errors[provider] = check(layer, inputs[0])
        modules[provider] = layer
    modules |= {f"dense {width}": dense(width, dtype).to(device) for width in DENSE_WIDTHS}
    run = forward if mode == "inference" else training_step
    times = interleaved({name: Case(run, module, inputs) for name, module in modules.items()}, device)
    best = min(statistics.median(times[f"dense {width}"]) for width in (4095, 4096))
    rows = []
    for name, seconds in times.items():
        median = statistics.median(seconds)
        shape = {"shape": f"{trees}x{depth}", "tokens": tokens, "dtype": str(dtype)[6:], "mode": mode, "provider": name}
        figures = {"median_s": median, "min_s": min(seconds), "max_s": max(seconds), "n": len(seconds)}
        rows.append(shape | figures | {"times_faster_than_dense": best / median, "relative_error": errors.get(name)})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="fff.bench", description=__doc__)
    parser.add_argument("--shapes", default="1x11,32x6", help="trees x depth, comma-separated")
    parser.add_argument("--tokens", default="1,128,4096")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--modes", default="inference,training")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"layer width {WIDTH}, {device}, {options.threads} threads; ratio to the faster dense layer of 4095 and 4096")
    rows = []
    for shape in options.shapes.split(","):
        trees, depth = map(int, shape.split("x"))
        for tokens in map(int, options.tokens.split(",")):
            for dtype in options.dtypes.split(","):
                for mode in options.modes.split(","):
                    found = measure(trees, depth, tokens, getattr(torch, dtype), mode, device)
                    rows += found
                    show(found)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"machine": machine(options.threads), "rows": rows}, indent=2) + "\n")
        print(f"written    {options.out}")


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows of one shape."""
    first = rows[0]
    print(f"\n{first['shape']}  {first['tokens']} tokens  {first['dtype']}  {first['mode']}", flush=True)
    for row in rows:
        per_token = row["median_s"] / row["tokens"] * 1e6
        spread = f"[{row['min_s'] * 1e3:.2f}-{row['max_s'] * 1e3:.2f}]"
        print(
            f"  {row['provider']:<11} {row['median_s'] * 1e3:9.2f} ms {spread:<20} {per_token:8.2f} us/token "
            f"{row['times_faster_than_dense']:7.2f}x"
        )


def cpu_name() -> str:
    """The processor's model name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = info.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def machine(threads: int) -> dict[str, Any]:
    """What the figures were taken on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu_name(),
        "gpu": gpu,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    main()
