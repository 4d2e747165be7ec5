"""Layer timings on this machine: `python -m bench.layer`. Correct first, on the timed shape; then time. Not the model.

Providers and dense layers run in turn (A B C A B C ...) on rotating, written, random inputs; medians are compared. The
opponent is the fastest dense layer of as many neurons (or of the next multiple of 64, which suits products better), of
float32 and the layer's own type, plain and compiled; beside it the usual feedforward layer, 4 times as wide as the
model. A turn repeats quick calls, so that a layer is timed with its own weights in the caches. The first call of each
turn finds the other layers' weights in the caches instead; its time is reported beside as cold.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import WIDTH, Case, dense, training_step
from bench.contenders import Layer, contenders
from bench.options import Setting, check_out, name_of, parser, settings, thread_counts
from bench.rivals import Rival
from bench.rows import SpeedRow, stamp, write_rows
from bench.timing import figures, interleaved
from cramming.door import door
from cramming.machine import peaks, this_device
from fff.layers.leaf import LeafFFF
from fff.layers.path import PathFFF
from fff.testing import inputs
from fff.topology import trained_neurons, used_neurons

ALIGNED = 64
ROTATING = 4  # inputs of a case
Floors = dict[str, float]


def measure(setting: Setting, device: torch.device, known: Floors | None = None) -> list[SpeedRow]:
    """Rows of one setting, for a layer with random weights and inputs; `known` columns go into each."""
    torch.manual_seed(0)
    base = layer_of(setting)
    xs = inputs(setting.inputs, setting.tokens, WIDTH, ROTATING)
    return compare(base.to(device), [x.to(device) for x in xs], setting, known or {})


def layer_of(setting: Setting) -> Layer | Rival:
    """The setting's layer, with random weights."""
    if setting.rival is not None:
        rival = setting.rival.build(WIDTH, WIDTH)
        assert isinstance(rival, Rival)
        return rival
    if setting.leaf_width is not None:
        return LeafFFF(WIDTH, WIDTH, setting.depth, setting.leaf_width)
    return PathFFF(WIDTH, WIDTH, setting.depth, setting.trees)


def compare(base: Layer | Rival, wide: list[Tensor], setting: Setting, known: dict[str, Any]) -> list[SpeedRow]:
    """Rows of one setting on float32 inputs (N, d_in): a layer under every provider, and the dense layers."""
    device, inference = wide[0].device, setting.mode == "inference"
    if setting.compiled:
        torch._dynamo.reset()  # beyond a number of layers of one class torch runs further ones uncompiled
    xs = [x.to(setting.dtype) for x in wide]
    found, errors = contenders(base, setting, xs[0])
    run = nn.Module.__call__ if inference else training_step
    neurons = trained(base)
    equal, usual = (neurons, -neurons // ALIGNED * -ALIGNED), 4 * base.d_in
    cases = {name: Case(run, layer, xs) for name, layer in found.items()}
    cases |= dense_cases(run, dict.fromkeys((*equal, usual)), wide, xs, setting.compiled)
    for case in cases.values():
        case.module.train(not inference)
    with torch.inference_mode(inference):  # once, because entering it takes a fifth of a call for one token
        timed = interleaved(cases, device, setting.seconds)
    rows = {name: figures(samples) for name, samples in timed.items()}
    opponent, second = fastest(rows, equal, "median"), fastest(rows, (usual,), "median")
    cold = rows[fastest(rows, equal, "cold")]["cold"]
    same = {"what": "layer", "width": base.d_in, **setting.title, **stamp(device, torch.get_num_threads()), **known}
    return [
        SpeedRow(
            name=name,
            provider=name if name in found else None,
            **same,
            **row,
            opponent=opponent,
            ratio=rows[opponent]["median"] / row["median"],
            ratio_cold=cold / row["cold"],
            second=second,
            ratio_second=rows[second]["median"] / row["median"],
            relative_error=errors.get(name),
        )
        for name, row in rows.items()
    ]


def trained(base: Layer | Rival) -> int:
    """Neurons that a layer has: those of a dense layer of its size."""
    if isinstance(base, Rival):
        return base.settings.neurons_trained
    if isinstance(base, LeafFFF):
        return 2**base.depth * base.leaf_width
    return trained_neurons(base.trees, base.depth)


def dense_cases(
    run: Any, widths: dict[int, None], wide: list[Tensor], xs: list[Tensor], compiled: bool
) -> dict[str, Case]:
    """Dense layers by name, "dense 4096 float32": of the layer's own type, and of float32 where that may be faster."""
    device, found = wide[0].device, {}
    # A CPU may do float32 faster than the layer's own type, a GPU never.
    for dtype in dict.fromkeys((torch.float32, xs[0].dtype) if device.type == "cpu" else (xs[0].dtype,)):
        for width in widths:
            name, module = f"dense {width} {name_of(dtype)}", dense(width, dtype, wide[0].shape[1]).to(device)
            found[name] = Case(run, module, wide if dtype == torch.float32 else xs)
            if compiled:
                found[f"{name} compiled"] = Case(run, torch.compile(module), found[name].inputs)  # type: ignore[arg-type]
    return found


def fastest(rows: dict[str, dict[str, Any]], widths: Sequence[int], key: str) -> str:
    """The name of the dense row of these widths whose time is the least."""
    beginnings = tuple(f"dense {width} " for width in widths)
    return min((name for name in rows if name.startswith(beginnings)), key=lambda name: rows[name][key])


def floors(setting: Setting, peak: dict[str, float], size: int = WIDTH) -> Floors:
    """Columns: seconds that the path's operations, or the bytes that must move, take at the machine's best."""
    passes = 1 if setting.mode == "inference" else 3
    item = torch.empty((), dtype=setting.dtype).element_size()
    used: float = used_neurons(setting.trees, setting.depth)
    neurons: float = trained_neurons(setting.trees, setting.depth)
    if setting.leaf_width is not None:  # a decision has one row where a neuron has two
        used, neurons = setting.leaf_width + setting.depth / 2, 2**setting.depth * (setting.leaf_width + 0.5)
    if setting.rival is not None:  # routing as the neurons that cost as much
        used, neurons = (count / (4 * size) for count in setting.rival.flops(size, size))
    rows = min(neurons, used * setting.tokens)
    weights, tokens = 2 * rows * size * item, 2 * setting.tokens * size * item
    return {
        "floor_operations_s": passes * 4 * size * used * setting.tokens / peak["gflops"] / 1e9,
        "floor_bytes_s": passes * (tokens / peak["memory_gb_per_s"] + weights / peak["cache_gb_per_s"]) / 1e9,
        **{f"peak_{name}": value for name, value in peak.items()},
    }


def show(setting: Setting, rows: list[SpeedRow]) -> None:
    """Print the rows of one setting."""
    print("\n" + "  ".join(str(value) for value in setting.title.values()), flush=True)
    for row in rows:
        assert row.least is not None
        assert row.most is not None
        spread = f"[{row.least * 1e3:.3f}-{row.most * 1e3:.3f}]"
        print(
            f"  {row.name:<28} {row.median * 1e3:10.3f} ms {spread:<24} {row.median / row.tokens * 1e6:9.3f} us/token "
            f"{row.ratio:8.2f}x  {row.ratio_second:8.2f}x of usual {row.ratio_cold:8.2f}x cold"
        )
    least = rows[0]
    if least.floor_operations_s is not None and least.floor_bytes_s is not None:
        operations, moved = least.floor_operations_s * 1e3, least.floor_bytes_s * 1e3
        print(f"  floors: operations {operations:.3f} ms, bytes {moved:.3f} ms", flush=True)


def run_layers(chosen: Sequence[Setting], threads: int) -> list[SpeedRow]:
    """Rows of all settings at one number of threads, printed as they are found."""
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
        found = measure(setting, device, floors(setting, peak))
        show(setting, found)
        rows += found
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    options = parser("bench.layer", __doc__).parse_args(arguments)
    with door():
        chosen, counts = settings(options), thread_counts(options.threads)
        check_out(options.out)
        rows = [row for threads in counts for row in run_layers(chosen, threads)]
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


if __name__ == "__main__":
    main()
