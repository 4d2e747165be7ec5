"""Decoding one text with a cache, token by token: `python -m bench.decode`. Not of any worth: weights are random.

A decoder of SmolLM2-135M's shape (30 layers, 576 wide, 1536 gated neurons, 9 heads, vocabulary 49152) with its own
feedforward blocks, with trees in their place, and with none, which is the bound; in float32, bfloat16 and int8. Each is
first held to transformers' own passes. Then all run in turn: a call reads the prompt once, and decodes the new tokens,
which is what is timed. Tokens are given, random ones. Beside the time stand the bytes of weights that a token reads,
counted while it is decoded: linears whole, one row of the embedding, of trees the rows of the visited nodes.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from bench.decoder import (
    DENSE,
    INT8,
    INT8_BY_TORCH,
    NONE,
    Size,
    Step,
    by_transformers,
    check,
    in_type,
    logits_of,
    with_feedforward,
)
from bench.options import DEEPEST, check_out, names, thread_counts, whole_numbers
from bench.rows import SpeedRow, stamp, write_rows
from bench.timing import Sample, figures
from bench.touched import bytes_touched
from cramming.checks import number, one_of
from cramming.door import door, path_argument
from fff.layers.path import PathFFF
from fff.layers.quantised import QuantisedPath

CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16", "int8")
BY_TRANSFORMERS = ", transformers"  # of a row that is timed through transformers' own forward


@dataclass(frozen=True)
class Plan:
    """What is decoded, by what, and how often."""

    size: Size = Size()  # noqa: RUF009 (frozen)
    depths: tuple[int, ...] = (7, 10)
    dtypes: tuple[str, ...] = DTYPES
    prompt: int = 16
    new: int = 64
    turns: int = 7
    transformers: bool = False  # also by transformers' own forward

    @property
    def room(self) -> int:
        """Tokens of a whole text."""
        return self.prompt + self.new

    @property
    def feedforwards(self) -> tuple[str, ...]:
        """Dense, trees, none."""
        return (DENSE, *(f"1x{depth}" for depth in self.depths), NONE)

    def types_of(self, feedforward: str) -> tuple[str, ...]:
        """In which a feedforward is timed: dense in int8 as torch does it too, which is what there was before."""
        more = (INT8_BY_TORCH,) if feedforward == DENSE and INT8 in self.dtypes else ()
        return (*self.dtypes, *more)


@dataclass
class Contender:
    """One decoder as it is timed."""

    feedforward: str
    dtype: str
    step: Callable[[Tensor, int], Tensor]
    bytes_per_token: int
    relative_error: float  # largest distance from the float32 logits of the same feedforward, to the largest of them
    provider: str | None
    suffix: str = ""

    @property
    def name(self) -> str:
        """Of its row."""
        return f"{self.feedforward} {self.dtype}{self.suffix}"


def contenders(plan: Plan) -> list[Contender]:
    """Every decoder, checked and counted.

    Raises:
        AssertionError: one computes something else than transformers does; nothing is timed then.
    """
    tokens, found = plan.size.tokens(plan.prompt), []
    for feedforward in tqdm(plan.feedforwards, desc="making models", unit="feedforward", leave=False):
        wide = with_feedforward(plan.size, feedforward, plan.room)
        exact = logits_of(Step(wide, plan.prompt), tokens)
        for dtype in plan.types_of(feedforward):
            model = in_type(wide, dtype)
            step = Step(model, plan.room)
            check(model, step, tokens, dtype, f"{feedforward} {dtype}")
            error = ((logits_of(step, tokens) - exact).abs().max() / exact.abs().max()).item()
            read = bytes_touched(model, partial(model, input_ids=tokens[:1][None], use_cache=False))
            made = Contender(feedforward, dtype, step, read, error, provider_of(model))
            found.append(made)
            if plan.transformers:
                steps = by_transformers(model)
                logits_of(steps, tokens)
                found.append(Contender(feedforward, dtype, steps, read, error, made.provider, BY_TRANSFORMERS))
    return found


def provider_of(model: torch.nn.Module) -> str | None:
    """Who has computed the trees; None where there are none."""
    layers = [module for module in model.modules() if isinstance(module, PathFFF | QuantisedPath)]
    return " ".join(sorted(set().union(*(layer.computed_by for layer in layers)))) or None


def decode(contender: Contender, plan: Plan, tokens: Tensor) -> float:
    """Seconds of the new tokens, after the prompt; what comes most likely next is asked for each time, as in use."""
    for place in range(plan.prompt):
        contender.step(tokens[place : place + 1], place)
    started = time.perf_counter()
    for place in range(plan.prompt, plan.room):
        contender.step(tokens[place : place + 1], place).argmax()
    return time.perf_counter() - started


def measure(plan: Plan) -> list[SpeedRow]:
    """A row for each decoder at the present number of threads."""
    found, tokens = contenders(plan), plan.size.tokens(plan.room)
    seconds: dict[str, list[float]] = {each.name: [] for each in found}
    with torch.inference_mode(), tqdm(total=(plan.turns + 1) * len(found), desc="decoding", unit="text") as bar:
        for turn in range(plan.turns + 1):  # the first is for caches and memory
            for each in found:
                taken = decode(each, plan, tokens)
                seconds[each.name] += [taken] if turn else []
                bar.set_postfix_str(f"{each.name} {plan.new / taken:.1f} tokens/s", refresh=False)
                bar.update()
    return rows_of(plan, found, {name: figures([Sample(s, s) for s in mine]) for name, mine in seconds.items()})


def rows_of(plan: Plan, found: Sequence[Contender], timed: dict[str, dict[str, Any]]) -> list[SpeedRow]:
    """The rows: each beside the dense decoder of its type, and beside the fastest dense one."""
    medians = {name: row["median"] for name, row in timed.items()}
    dense = [name for name in medians if name.startswith(f"{DENSE} ")]
    best = min(dense, key=medians.__getitem__)
    size = plan.size
    same: dict[str, Any] = {"what": "decode", "width": size.width, "layers": size.layers, "tokens": plan.new}
    same |= {"vocab_size": size.vocab_size, "sequences": 1, "mode": "inference", "inputs": f"prompt {plan.prompt}"}
    return [
        SpeedRow(
            name=each.name,
            shape=f"{DENSE} {size.neurons}" if each.feedforward == DENSE else each.feedforward,
            dtype=each.dtype,
            provider=each.provider,
            tokens_per_s=plan.new / medians[each.name],
            bytes_per_token=each.bytes_per_token,
            relative_error=each.relative_error,
            opponent=(opponent := f"{DENSE} {each.dtype}{each.suffix}"),
            ratio=medians[opponent] / medians[each.name],
            second=best,
            ratio_second=medians[best] / medians[each.name],
            **same,
            **timed[each.name],
            **stamp(CPU, torch.get_num_threads()),
        )
        for each in found
    ]


def show(row: SpeedRow) -> None:
    """Print a row."""
    read = row.bytes_per_token or 0
    rate = read * (row.tokens_per_s or 0) / 1e9
    print(
        f"  {row.name:<28} {row.tokens_per_s:8.1f} tokens/s  {row.median / row.tokens * 1e3:7.2f} ms a token  "
        f"{read / 1e6:7.1f} MB of weights, {rate:5.1f} GB/s  {row.ratio:5.2f}x of {row.opponent}  "
        f"{row.ratio_second:5.2f}x of {row.second}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    size = Size()
    parser = argparse.ArgumentParser(prog="bench.decode", description=__doc__)
    parser.add_argument("--depths", default="7,10", help="of the trees, one in each layer")
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--prompt", type=int, default=16, help="tokens")
    parser.add_argument("--new", type=int, default=64, help="tokens")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="e.g. 1,2")
    parser.add_argument("--layers", type=int, default=size.layers)
    parser.add_argument("--vocabulary", type=int, default=size.vocab_size, help="tokens")
    parser.add_argument("--transformers", action="store_true", help="time transformers' own forward too")
    parser.add_argument("--out", type=path_argument, help="JSON file to write")
    options = parser.parse_args(arguments)
    with door():
        for key in ("prompt", "new", "turns", "layers"):
            number(f"--{key}", getattr(options, key), least=1)
        number("--vocabulary", options.vocabulary, least=16)
        types = tuple(names("dtypes", options.dtypes))
        for dtype in types:
            one_of("--dtypes", dtype, DTYPES)
        counts = thread_counts(options.threads)
        check_out(options.out)
        plan = Plan(
            size=Size(layers=options.layers, vocab_size=options.vocabulary),
            depths=tuple(whole_numbers("depths", options.depths, most=DEEPEST)),
            dtypes=types,
            prompt=options.prompt,
            new=options.new,
            turns=options.turns,
            transformers=options.transformers,
        )
        rows = []
        for count in counts:
            torch.set_num_threads(count)
            shape = f"{plan.size.layers} layers x {plan.size.width}, batch 1"
            print(f"\n{shape}, {plan.new} tokens after {plan.prompt}, {count} threads", flush=True)
            found = measure(plan)
            for row in found:
                show(row)
            rows += found
        if options.out:
            write_rows(options.out, rows)
            print(f"written    {options.out}")


if __name__ == "__main__":
    main()
