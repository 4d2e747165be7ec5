"""Layer timings on this machine: `python -m fff.bench`. Correct first, on the timed shape; then time. Not the model.

Providers and dense layers run in turn (A B C A B C ...) on rotating, written, random inputs; medians are compared. The
opponent is the fastest dense layer of 4095 and 4096 neurons, of float32 and the layer's own type, plain and compiled.
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fff.kernels import PROVIDERS
from fff.machine import describe, peaks
from fff.path import PathFFF
from fff.reference import path_fff
from fff.topology import used_neurons

WIDTH = 768
DENSE_WIDTHS = (3072, 4095, 4096)
EQUAL_WIDTHS = (4095, 4096)  # as many neurons as the trees have; 4096 suits products better, so it is the fair one
CLUSTERS = 32  # of skewed inputs, visited by Zipf's law
MARGIN = 1e-4  # a score nearer to 0 may be rounded to either side
MASKED_MOST_TOKENS = 4096  # above, the authors' form would take most of the time of a run


def dense(width: int, dtype: torch.dtype) -> nn.Module:
    """The opponent: Linear, GELU, Linear without biases."""
    layers = (nn.Linear(WIDTH, width, bias=False), nn.GELU(), nn.Linear(width, WIDTH, bias=False))
    return nn.Sequential(*layers).to(dtype)


def inputs(kind: str, tokens: int, count: int = 4) -> list[Tensor]:
    """Rotating inputs (tokens, 768): "iid" visits all leaves, "skewed" is near one of 32 points, few of them often."""
    if kind == "iid":
        return [torch.randn(tokens, WIDTH) for _ in range(count)]
    share = 1 / torch.arange(1, CLUSTERS + 1)
    centres = torch.randn(CLUSTERS, WIDTH)
    return [
        centres[torch.multinomial(share, tokens, replacement=True)] + 0.1 * torch.randn(tokens, WIDTH)
        for _ in range(count)
    ]


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
    largest, worst = 0.0, 0.0
    for part in x.split(2048):  # the definition's memory is not what is tested
        result = path_fff(part.double(), w_in, b_in, w_out, layer.activation)
        clear = (result.scores.abs() > MARGIN).flatten(1).all(1)
        nodes = layer.path(part)[0]
        assert torch.equal(nodes[clear], result.nodes[clear]), f"{layer.provider}: other nodes than the definition's"
        with torch.no_grad():
            errors = (layer(part).double() - result.y)[clear].abs()
        worst = max(worst, errors.max().item() if errors.numel() else 0.0)
        largest = max(largest, result.y.abs().max().item())
    with torch.no_grad():  # the shape that is timed, which may be computed in other blocks
        whole, last = layer(x), layer(part)
    assert torch.allclose(whole[-len(part) :], last, rtol=0, atol=1e-2 * largest), f"{layer.provider}: differs by shape"
    allowed = 1e-5 if x.dtype == torch.float32 else 3e-2
    assert worst <= allowed * largest, f"{layer.provider}: error {worst / largest:.1e} exceeds {allowed:.0e}"
    return worst / largest


def forward(module: nn.Module, x: Tensor) -> None:
    """Inference."""
    with torch.inference_mode():
        module(x)


def training_step(module: nn.Module, x: Tensor) -> None:
    """Forward and backward, gradients written anew."""
    for parameter in module.parameters():
        parameter.grad = None
    x.grad = None
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


def interleaved(cases: dict[str, Case], device: torch.device, seconds_per_case: float) -> dict[str, list[float]]:
    """Seconds of each case, taken in turn until the time is used, at least three times; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    turn, deadline = 0, time.perf_counter() + seconds_per_case * len(cases)
    while turn <= 3 or (time.perf_counter() < deadline and turn < 400):
        for name, call in cases.items():
            started = time.perf_counter()
            call(turn)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - started)
        turn += 1
    return {name: found[1:] for name, found in times.items()}


@dataclass(frozen=True)
class Setting:
    """What a group of rows has in common."""

    trees: int
    depth: int
    tokens: int
    dtype: torch.dtype
    mode: str  # inference | training
    inputs: str = "iid"
    compiled: bool = False  # dense layers also through torch.compile
    seconds: float = 2.0  # for each case

    @property
    def title(self) -> dict[str, Any]:
        """The row's first columns."""
        return {
            "shape": f"{self.trees}x{self.depth}",
            "tokens": self.tokens,
            "dtype": str(self.dtype)[6:],
            "mode": self.mode,
            "inputs": self.inputs,
        }


def layers(setting: Setting, device: torch.device, xs: list[Tensor]) -> tuple[dict[str, PathFFF], dict[str, float]]:
    """One layer's weights under every provider that can take them here, checked; and their errors."""
    base = PathFFF(WIDTH, WIDTH, setting.depth, setting.trees).to(device, setting.dtype)
    found, errors = {}, {}
    for name, provider in PROVIDERS.items():
        if name == "reference" or provider.available(device, setting.dtype):
            continue
        if name == "masked" and setting.tokens > MASKED_MOST_TOKENS:
            continue
        layer = PathFFF(WIDTH, WIDTH, setting.depth, setting.trees, provider=name).to(device, setting.dtype)
        layer.load_state_dict(base.state_dict())
        errors[name] = check(layer, xs[0])
        found[name] = layer
    return found, errors


def measure(setting: Setting, device: torch.device) -> list[dict[str, Any]]:
    """Rows of one setting: every provider and every dense layer."""
    torch.manual_seed(0)
    wide = [x.to(device) for x in inputs(setting.inputs, setting.tokens)]
    xs = [x.to(setting.dtype) for x in wide]
    found, errors = layers(setting, device, xs)
    run = forward if setting.mode == "inference" else training_step
    cases = {name: Case(run, layer, xs) for name, layer in found.items()}
    for dtype in dict.fromkeys((torch.float32, setting.dtype)):
        for width in DENSE_WIDTHS:
            name, module = f"dense {width} {str(dtype)[6:]}", dense(width, dtype).to(device)
            cases[name] = Case(run, module, wide if dtype == torch.float32 else xs)
            if setting.compiled:
                cases[f"{name} compiled"] = Case(run, torch.compile(module), cases[name].inputs)  # type: ignore[arg-type]
    times = interleaved(cases, device, setting.seconds)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    equal = min(
        median for name, median in medians.items() if name.startswith(tuple(f"dense {w}" for w in EQUAL_WIDTHS))
    )
    small = min(median for name, median in medians.items() if name.startswith("dense 3072"))
    rows = []
    for name, seconds in times.items():
        figures = {"median_s": medians[name], "min_s": min(seconds), "max_s": max(seconds), "n": len(seconds)}
        ratios = {"times_faster_than_dense": equal / medians[name], "times_faster_than_3072": small / medians[name]}
        rows.append({**setting.title, "provider": name, **figures, **ratios, "relative_error": errors.get(name)})
    return rows


def floor(setting: Setting, peak: dict[str, float]) -> dict[str, float]:
    """Seconds that the path's operations, or the bytes that must move, take at the machine's best."""
    used = used_neurons(setting.trees, setting.depth)
    passes = 1 if setting.mode == "inference" else 3
    size = torch.empty((), dtype=setting.dtype).element_size()
    flops = passes * 4 * WIDTH * used * setting.tokens
    rows = min(setting.trees * (2 ** (setting.depth + 1) - 1), used * setting.tokens)
    weights, tokens = 2 * rows * WIDTH * size, 2 * setting.tokens * WIDTH * size
    return {
        "operations_s": flops / peak["gflops"] / 1e9,
        "bytes_s": passes * (tokens / peak["memory_gb_per_s"] + weights / peak["cache_gb_per_s"]) / 1e9,
    }


def show(setting: Setting, rows: list[dict[str, Any]], least: dict[str, float]) -> None:
    """Print the rows of one setting."""
    print("\n" + "  ".join(str(value) for value in setting.title.values()), flush=True)
    for row in rows:
        per_token = row["median_s"] / row["tokens"] * 1e6
        spread = f"[{row['min_s'] * 1e3:.3f}-{row['max_s'] * 1e3:.3f}]"
        print(
            f"  {row['provider']:<28} {row['median_s'] * 1e3:10.3f} ms {spread:<24} {per_token:9.3f} us/token "
            f"{row['times_faster_than_dense']:8.2f}x  {row['times_faster_than_3072']:8.2f}x of 3072"
        )
    print(
        f"  floors: operations {least['operations_s'] * 1e3:.3f} ms, bytes {least['bytes_s'] * 1e3:.3f} ms", flush=True
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="fff.bench", description=__doc__)
    found.add_argument("--shapes", default="1x11,32x6", help="trees x depth, comma-separated; empty for no layers")
    found.add_argument("--tokens", default="1,128,2048")
    found.add_argument("--dtypes", default="float32")
    found.add_argument("--modes", default="inference,training")
    found.add_argument("--inputs", default="iid", help="iid, skewed")
    found.add_argument("--threads", default=str(torch.get_num_threads()), help="e.g. 1,2")
    found.add_argument("--seconds", type=float, default=2.0, help="for each case")
    found.add_argument("--compiled", action="store_true", help="time dense layers through torch.compile too")
    found.add_argument("--out", type=Path, help="JSON file to write")
    return found


def settings(options: argparse.Namespace) -> list[Setting]:
    """Every combination of what the command line names."""
    lists = (options.shapes, options.tokens, options.dtypes, options.modes, options.inputs)
    found = []
    for shape, tokens, dtype, mode, kind in itertools.product(*(filter(None, each.split(",")) for each in lists)):
        trees, depth = map(int, shape.split("x"))
        found.append(
            Setting(trees, depth, int(tokens), getattr(torch, dtype), mode, kind, options.compiled, options.seconds)
        )
    return found


def run_layers(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One part of the report for each number of threads: machine, peaks, rows."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = []
    for threads in map(int, options.threads.split(",")):
        torch.set_num_threads(threads)
        peak = peaks()
        print(
            f"layer width {WIDTH}, {device}, {threads} threads: {peak['gflops']:.0f} GFLOP/s, memory "
            f"{peak['memory_gb_per_s']:.0f} GB/s, cache {peak['cache_gb_per_s']:.0f} GB/s; ratio to the fastest dense "
            "layer of 4095 or 4096 neurons"
        )
        rows = []
        for setting in settings(options):
            found, least = measure(setting, device), floor(setting, peak)
            rows += [{**row, "floor": least} for row in found]
            show(setting, found, least)
        parts.append({"machine": describe(threads), "peaks": peak, "rows": rows})
    return parts


def write(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written    {path}")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    report = {"layers": run_layers(options)}
    if options.out:
        write(report, options.out)


if __name__ == "__main__":
    main()
