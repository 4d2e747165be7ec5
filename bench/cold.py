"""Timings of layers whose weights are in no cache: `python -m bench.cold`. Not those of a layer called again and again.

A deep model calls one layer after another, and each finds the caches full of the others' weights. So there are many
copies of every layer, together larger than the last-level cache, trees and dense layers in turn, one call of each: all
in equal conditions. Beside it the same layers warm, as bench.layer times them.
"""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from bench.cases import WIDTH, Case
from bench.contenders import contenders
from bench.layer import ALIGNED, dense_cases, fastest, layer_of, trained
from bench.options import Setting, check_out, parser, settings, thread_counts
from bench.rows import SpeedRow, stamp, write_rows
from bench.timing import figures, interleaved
from cramming.door import door
from cramming.errors import UserError
from cramming.machine import this_device
from fff.testing import inputs

TIMES_CACHE = 1.5  # bytes of each layer's copies, in last-level caches
CACHE = Path("/sys/devices/system/cpu/cpu0/cache")
UNKNOWN_CACHE = 64 << 20
MOST_COPIES = 64
ROTATING, LONG = 64, 2048  # inputs of few tokens, whose paths must differ too; of so many tokens a few suffice
LEAST_TURNS = 2


@dataclass(frozen=True)
class Turns:
    """One kind of layer: copies of it with memory of their own."""

    run: Callable[[nn.Module, torch.Tensor], object]
    modules: list[nn.Module]
    inputs: list[torch.Tensor]

    def seconds(self, turn: int) -> float:
        """Of one call of the turn's copy on the turn's input."""
        module, x = self.modules[turn % len(self.modules)], self.inputs[turn % len(self.inputs)]
        started = time.perf_counter()
        self.run(module, x)
        return time.perf_counter() - started


def last_level_cache() -> int:
    """Bytes of this machine's largest cache."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    texts = [path.read_text(encoding="ascii").strip() for path in CACHE.glob("index*/size")]
    return max((int(text[:-1]) * units[text[-1]] for text in texts if text[-1:] in units), default=UNKNOWN_CACHE)


def size_of(module: nn.Module) -> int:
    """Bytes of a layer's weights."""
    return sum(tensor.nbytes for tensors in (module.parameters(), module.buffers()) for tensor in tensors)


def copies(case: Case, bytes_wanted: float) -> Turns:
    """The case's layer and copies of it, together at least so large."""
    count = min(MOST_COPIES, max(2, int(bytes_wanted / size_of(case.module)) + 1))
    more = [copy.deepcopy(case.module) for _ in range(count - 1)]
    return Turns(case.run, [case.module, *more], case.inputs)


def measure(setting: Setting) -> list[SpeedRow]:
    """Rows of one setting on the CPU: `median` and `ratio` warm, `cold` and `ratio_cold` of calls in turn."""
    torch.manual_seed(0)
    base, device = layer_of(setting), torch.device("cpu")
    wide = inputs(setting.inputs, setting.tokens, WIDTH, ROTATING if setting.tokens < LONG else 4)
    xs = [x.to(setting.dtype) for x in wide]
    found, errors = contenders(base, replace(setting, providers=setting.providers or ("cpu", "int8")), xs[0])
    run, neurons = nn.Module.__call__, trained(base)
    equal = (neurons // -ALIGNED * -ALIGNED,)
    cases = {name: Case(run, layer.eval(), xs) for name, layer in found.items()}
    cases |= dense_cases(run, dict.fromkeys(equal), wide, xs, compiled=False)
    with torch.inference_mode():
        warm = {name: figures(samples) for name, samples in interleaved(cases, device, setting.seconds).items()}
        cold = in_turn({name: copies(case, _share(cases)) for name, case in cases.items()}, setting.seconds)
    rows = {name: warm[name] | {"cold": statistics.median(times)} for name, times in cold.items()}
    opponent, cold_opponent = fastest(rows, equal, "median"), fastest(rows, equal, "cold")
    same = {"what": "cold calls", "width": WIDTH, **setting.title, **stamp(device, torch.get_num_threads())}
    return [
        SpeedRow(
            name=name,
            provider=name if name in found else None,
            **same,
            **row,
            opponent=opponent,
            ratio=rows[opponent]["median"] / row["median"],
            ratio_cold=rows[cold_opponent]["cold"] / row["cold"],
            relative_error=errors.get(name),
        )
        for name, row in rows.items()
    ]


def _share(cases: dict[str, Case]) -> float:
    """Bytes of each layer's copies: all layers' together are to exceed the cache."""
    return TIMES_CACHE * last_level_cache() / len(cases)


def in_turn(layers: dict[str, Turns], seconds_per_layer: float) -> dict[str, list[float]]:
    """Seconds of single calls, one of each layer after another; every copy is called once before that counts."""
    copies_of_one = max(len(turns.modules) for turns in layers.values())
    times: dict[str, list[float]] = {name: [] for name in layers}
    turn, deadline = 0, time.perf_counter() + seconds_per_layer * len(layers)
    while turn < (1 + LEAST_TURNS) * copies_of_one or time.perf_counter() < deadline:
        for name, turns in layers.items():
            taken = turns.seconds(turn)
            if turn >= copies_of_one:
                times[name].append(taken)
        turn += 1
    return times


def show(setting: Setting, rows: list[SpeedRow]) -> None:
    """Print the rows of one setting."""
    print("\n" + "  ".join(str(value) for value in setting.title.values()), flush=True)
    for row in rows:
        assert row.cold is not None
        warm, cold = (seconds / row.tokens * 1e6 for seconds in (row.median, row.cold))
        print(
            f"  {row.name:<24} warm {warm:10.3f} us/token {row.ratio:8.2f}x    "
            f"cold {cold:10.3f} us/token {row.ratio_cold:8.2f}x",
            flush=True,
        )


def check(setting: Setting) -> Setting:
    """The setting, if cold calls are timed of it; UserError where they are not."""
    if setting.mode != "inference" or setting.rival is not None:
        raise UserError("bench.cold times trees in inference; give --modes inference and shapes of trees, e.g. 1x11.")
    return setting


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    found = parser("bench.cold", __doc__)
    found.set_defaults(shapes="1x11", tokens="1,128", dtypes="float32,bfloat16", modes="inference", seconds=2.0)
    options = found.parse_args(arguments)
    with door():
        if this_device().type != "cpu":
            raise UserError("bench.cold times the CPU's caches, and there is a GPU; CUDA_VISIBLE_DEVICES= hides it.")
        chosen, counts = [check(setting) for setting in settings(options)], thread_counts(options.threads)
        check_out(options.out)
        print(f"last-level cache {last_level_cache() >> 20} MB; copies of all layers together {TIMES_CACHE} times that")
        rows = []
        for threads in counts:
            torch.set_num_threads(threads)
            for setting in chosen:
                rows += (timed := measure(setting))
                show(setting, timed)
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


if __name__ == "__main__":
    main()
