"""Layer timings on this machine: `python -m bench.layer`. Correct first, on the timed shape; then time. Not the model.

Providers and dense layers run in turn (A B C A B C ...) on rotating, written, random inputs; medians are compared. The
opponent is the fastest dense layer of as many neurons (or of the next multiple of 64, which suits products better), of
float32 and the layer's own type, plain and compiled; beside it the usual feedforward layer, 4 times as wide as the
model. A turn repeats quick calls, so that a layer is timed with its own weights in the caches; the first call of each
turn, which finds the others' there, is reported beside it as cold.
"""

import argparse
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import WIDTH, Case, check, dense, training_step
from bench.timing import figures, interleaved
from cramming.machine import describe, peaks, this_device
from fff.kernels import PROVIDERS
from fff.layers.path import PathFFF
from fff.testing import inputs
from fff.topology import trained_neurons, used_neurons

ALIGNED = 64
ROTATING = 4  # inputs of a case
# Above, the authors' form would take most of the time and memory of a run; a GPU's products are fast enough.
MASKED_MOST_TOKENS = {"cpu": 16384}


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
    providers: tuple[str, ...] = ()  # those that are timed; empty for all that can

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


def layers(base: PathFFF, setting: Setting, xs: list[Tensor]) -> tuple[dict[str, PathFFF], dict[str, float]]:
    """The layer's weights under every provider that can take them here, checked; and their errors."""
    found, errors = {}, {}
    for name, provider in PROVIDERS.items():
        if name == "reference" or provider.available(xs[0].device, setting.dtype):
            continue
        if name == "triton" and xs[0].device.type == "cpu":
            continue  # Triton's interpreter
        if setting.providers and name not in setting.providers:
            continue
        if name == "masked" and setting.tokens > MASKED_MOST_TOKENS.get(xs[0].device.type, setting.tokens):
            continue
        layer = PathFFF(
            base.d_in,
            base.d_out,
            base.depth,
            base.trees,
            bias=base.b_in is not None,
            activation=base.activation,
            provider=name,
        )
        layer = layer.to(xs[0].device, setting.dtype)
        layer.load_state_dict(base.state_dict())
        errors[name] = check(layer, xs[0])
        found[name] = layer
    return found, errors


def measure(setting: Setting, device: torch.device) -> list[dict[str, Any]]:
    """Rows of one setting, for a layer with random weights and inputs."""
    torch.manual_seed(0)
    base = PathFFF(WIDTH, WIDTH, setting.depth, setting.trees).to(device)
    return compare(base, [x.to(device) for x in inputs(setting.inputs, setting.tokens, WIDTH, ROTATING)], setting)


def compare(base: PathFFF, wide: list[Tensor], setting: Setting) -> list[dict[str, Any]]:
    """Rows of one setting on float32 inputs (N, d_in): a layer under every provider, and the dense layers."""
    xs = [x.to(setting.dtype) for x in wide]
    if setting.compiled:
        torch._dynamo.reset()  # beyond a number of layers of one class torch runs further ones uncompiled
    found, errors = layers(base, setting, xs)
    inference = setting.mode == "inference"
    run = nn.Module.__call__ if inference else training_step
    cases = {name: Case(run, layer, xs) for name, layer in found.items()}
    neurons = trained_neurons(base.trees, base.depth)
    equal, usual = (neurons, -neurons // ALIGNED * -ALIGNED), 4 * base.d_in
    # A CPU may do float32 faster than the layer's own type, a GPU never.
    on_cpu = wide[0].device.type == "cpu"
    for dtype in dict.fromkeys((torch.float32, setting.dtype) if on_cpu else (setting.dtype,)):
        for width in dict.fromkeys((*equal, usual)):
            name, module = f"dense {width} {str(dtype)[6:]}", dense(width, dtype, base.d_in).to(wide[0].device)
            cases[name] = Case(run, module, wide if dtype == torch.float32 else xs)
            if setting.compiled:
                cases[f"{name} compiled"] = Case(run, torch.compile(module), cases[name].inputs)  # type: ignore[arg-type]
    for case in cases.values():
        case.module.train(not inference)
    with torch.inference_mode(inference):  # once, because entering it takes a fifth of a call for one token
        timed = interleaved(cases, wide[0].device, setting.seconds)
    rows = {name: figures(samples) for name, samples in timed.items()}
    opponents = tuple(f"dense {width} " for width in equal)
    return [
        {
            **setting.title,
            "provider": name,
            **row,
            "times_faster_than_dense": fastest(rows, opponents, "median_s") / row["median_s"],
            "times_faster_than_usual": fastest(rows, (f"dense {usual} ",), "median_s") / row["median_s"],
            "times_faster_cold": fastest(rows, opponents, "cold_s") / row["cold_s"],
            "relative_error": errors.get(name),
        }
        for name, row in rows.items()
    ]


def fastest(rows: dict[str, dict[str, Any]], names: tuple[str, ...], key: str) -> float:
    """The least time of the cases whose names begin so."""
    return min(row[key] for name, row in rows.items() if name.startswith(names))


def floor(setting: Setting, peak: dict[str, float], size: int = WIDTH) -> dict[str, float]:
    """Seconds that the path's operations, or the bytes that must move, take at the machine's best."""
    used = used_neurons(setting.trees, setting.depth)
    passes = 1 if setting.mode == "inference" else 3
    item = torch.empty((), dtype=setting.dtype).element_size()
    flops = passes * 4 * size * used * setting.tokens
    rows = min(setting.trees * (2 ** (setting.depth + 1) - 1), used * setting.tokens)
    weights, tokens = 2 * rows * size * item, 2 * setting.tokens * size * item
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
            f"{row['times_faster_than_dense']:8.2f}x  {row['times_faster_than_usual']:8.2f}x of usual "
            f"{row['times_faster_cold']:8.2f}x cold"
        )
    print(
        f"  floors: operations {least['operations_s'] * 1e3:.3f} ms, bytes {least['bytes_s'] * 1e3:.3f} ms", flush=True
    )


def parser() -> argparse.ArgumentParser:
    """The command line; its defaults are fit for the device that is there."""
    gpu = torch.cuda.is_available()
    found = argparse.ArgumentParser(prog="bench.layer", description=__doc__)
    shapes = "1x11,32x6,128x4" if gpu else "1x11,32x6"
    found.add_argument("--shapes", default=shapes, help="trees x depth, comma-separated; empty for no layers")
    found.add_argument("--tokens", default="128,16384" if gpu else "1,128,2048")
    found.add_argument("--dtypes", default="bfloat16" if gpu else "float32")
    found.add_argument("--modes", default="inference,training")
    found.add_argument("--inputs", default="iid", help="iid, skewed")
    found.add_argument("--threads", default=str(torch.get_num_threads()), help="of the host, e.g. 1,2")
    found.add_argument("--seconds", type=float, default=1.0, help="for each case")
    compiled = argparse.BooleanOptionalAction
    found.add_argument("--compiled", action=compiled, default=gpu, help="time dense layers through torch.compile too")
    found.add_argument("--out", type=Path, help="JSON file to write")
    return found


def dtype_named(name: str) -> torch.dtype:
    """float32 and so on; an error of the command line for another name."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise SystemExit(f"error: dtype {name!r} is unknown; there are float32, bfloat16, float16 and float64")
    return dtype


def settings(options: argparse.Namespace, shapes: str | None = None) -> list[Setting]:
    """Every combination of what the command line names; of other shapes where they are given."""
    lists = (
        options.shapes if shapes is None else shapes,
        options.tokens,
        options.dtypes,
        options.modes,
        options.inputs,
    )
    found = []
    for shape, tokens, dtype, mode, kind in itertools.product(*(filter(None, each.split(",")) for each in lists)):
        trees, depth = map(int, shape.split("x"))
        found.append(
            Setting(trees, depth, int(tokens), dtype_named(dtype), mode, kind, options.compiled, options.seconds)
        )
    return found


def thread_counts(options: argparse.Namespace) -> list[int]:
    """Those that the command line names."""
    return [int(count) for count in options.threads.split(",")]


def run_layers(chosen: Sequence[Setting], threads: int) -> dict[str, Any]:
    """The report's part of one number of threads: machine, peaks, rows."""
    device = this_device()
    torch.set_num_threads(threads)
    peak = peaks(device)
    print(
        f"layer width {WIDTH}, {device}, {threads} threads: {peak['gflops']:.0f} GFLOP/s, memory "
        f"{peak['memory_gb_per_s']:.0f} GB/s, cache {peak['cache_gb_per_s']:.0f} GB/s; ratios to the fastest dense "
        "layer of as many neurons, and to the usual one"
    )
    rows = []
    for setting in chosen:
        found, least = measure(setting, device), floor(setting, peak)
        rows += [{**row, "floor": least} for row in found]
        show(setting, found, least)
    return {"machine": describe(threads), "peaks": peak, "rows": rows}


def write(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"written    {path}")


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser().parse_args(arguments)
    report = {"layers": [run_layers(settings(options), threads) for threads in thread_counts(options)]}
    if options.out:
        write(report, options.out)


if __name__ == "__main__":
    main()
