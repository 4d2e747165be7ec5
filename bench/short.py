"""Below how many tokens a call int8 linears are faster than bfloat16: `python -m bench.short`. What `tokens=` goes by.

Encoders with dense feedforward layers and random weights, of MiniLM's shape and of BERT's, made fast by
`fff.optimise.optimise_for_cpu` with either kind of linears, and in float32, all in turn. Prints a table in Markdown:
medians in ms, and how many times as fast as bfloat16 int8 is, the median over turns and its middle half.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bench.encoder import Scale, encoder, microbatch
from bench.timing import interleaved
from cramming.checks import number
from cramming.door import door
from cramming.report.markup import markdown_table
from fff.optimise import optimise_for_cpu

CPU = torch.device("cpu")
ENCODERS = {"6 x 384": (6, 384, "dense 1536"), "12 x 768": (12, 768, "dense 3072")}
CALLS = ((1, 1), (1, 8), (1, 16), (1, 32), (1, 64), (1, 128), (4, 64), (16, 64))  # sequences and their tokens
FORMS = ("keep", "bfloat16", "int8")
HEADER = ("encoder", "sequences x tokens", "float32 [ms]", "bfloat16 [ms]", "int8 [ms]", "int8 against bfloat16", "n")


@dataclass(frozen=True)
class Plan:
    """What is timed, and for how many seconds each form of a call."""

    calls: Sequence[tuple[int, int]] = CALLS
    seconds: float = 5.0
    vocab_size: int = 4096
    least: int = 5  # turns


def rows(name: str, plan: Plan) -> list[list[str]]:
    """A row for each call of one encoder."""
    layers, width, feedforward = ENCODERS[name]
    most = max(length for _, length in plan.calls)
    scale = Scale(CPU, hidden_size=width, heads=12, layers=layers, vocab_size=plan.vocab_size, length=most)
    whole: Any = encoder(feedforward, scale).eval()
    models = {form: copy.deepcopy(whole.model) for form in FORMS}
    for form in FORMS[1:]:
        optimise_for_cpu(models[form], linears=form)
    found = []
    for sequences, length in plan.calls:
        ids = microbatch(scale, sequences).input_ids[:, :length].contiguous()
        cases = {form: lambda _, form=form, ids=ids: models[form](ids) for form in FORMS}
        with torch.inference_mode():
            samples = interleaved(cases, CPU, plan.seconds, plan.least)
        seconds = {form: np.array([each.steady for each in mine]) for form, mine in samples.items()}
        quarters = np.percentile(seconds["bfloat16"] / seconds["int8"], (25, 50, 75))
        times = [f"{1e3 * np.median(seconds[form]):.2f}" for form in FORMS]
        ratio = f"{quarters[1]:.2f} ({quarters[0]:.2f}-{quarters[2]:.2f})"
        found.append([name, f"{sequences} x {length}", *times, ratio, str(len(seconds["int8"]))])
        print("  ".join(found[-1]), flush=True)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="bench.short", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="of each form of a call")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    with door():
        number("--seconds", options.seconds, least=0)
        number("--threads", options.threads, least=1)
        torch.set_num_threads(options.threads)
        plan = Plan(seconds=options.seconds)
        print(markdown_table(HEADER, [row for name in ENCODERS for row in rows(name, plan)]))


if __name__ == "__main__":
    main()
