"""What the layers of an experiment's rows take in inference: `python -m bench.worth`. Not what they are worth (report).

Every distinct layer of configs/rows/<experiment>.yaml, dense widths and trees alike, at the experiment's hidden size,
in float32 and by the provider that inference would take; each is held to its definition on the timed shape. All layers
run in turn (bench.timing) on rotating random inputs, and weights are not trained: tokens take many routes. `inputs` of
a row says so ("iid").
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.cases import Case
from bench.contenders import Defined, check
from bench.layer import ROTATING
from bench.options import check_out, check_seconds, thread_counts, whole_numbers
from bench.rivals import Rival, check_rival
from bench.rows import SpeedRow, stamp, write_rows
from bench.timing import figures, interleaved
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.machine import this_device
from cramming.plan import planned
from cramming.record import computed_by, in_one_word
from fff.layers.base import Settings
from fff.rivals.fixed import FixedSettings
from fff.testing import inputs

INPUTS = "iid"
# Rows name no text; this one is never read.
TEXT = "data.files=[text.txt]"


def settings_of(experiment: str, rows: Sequence[str], overrides: Sequence[str]) -> tuple[int, dict[str, Settings]]:
    """Hidden size, and the settings of every distinct layer of an experiment's rows by their tags.

    Raises:
        UserError: no such rows, a wrong override, or rows that differ in what their layers' tags do not tell.
    """
    runs = planned(experiment, rows, [0], [TEXT, *overrides])
    found: dict[str, Settings] = {}
    for run in runs:
        settings = run.root.ffn.settings.in_inference
        if isinstance(settings, FixedSettings):  # a control: nobody would infer with it
            continue
        if found.setdefault(settings.tag, settings) != settings:
            raise UserError(f"row {run.row}: another row's layer is called {settings.tag} too and is not the same.")
    return runs[0].root.model.hidden_size, found


def layers_of(size: int, found: dict[str, Settings], device: torch.device) -> dict[str, Defined | Rival]:
    """The layers by tag, as a model infers with them; a kind that builds none is left out."""
    torch.manual_seed(0)
    built = {tag: settings.build(size, size, device=device) for tag, settings in found.items()}
    return {tag: layer.eval() for tag, layer in built.items() if layer is not None}  # type: ignore[misc]


def held(layer: Defined | Rival, x: Tensor, tag: str) -> float:
    """Its error on x, which is what is timed; AssertionError where it is another layer than defined."""
    return check_rival(layer, x) if isinstance(layer, Rival) else check(layer, x, tag)


def measure(
    size: int, found: dict[str, Settings], tokens: int, device: torch.device, *, seconds: float
) -> list[SpeedRow]:
    """A row for each layer at a number of tokens, timed in turn; says of each how it compares with its definition.

    Raises:
        AssertionError: a layer computes something else than its definition; nothing is timed then.
    """
    layers = layers_of(size, found, device)
    xs = [x.to(device) for x in inputs(INPUTS, tokens, size, ROTATING)]
    with torch.no_grad():  # once, because entering it takes a part of a call for one token
        errors = {}
        for tag, layer in layers.items():
            errors[tag] = held(layer, xs[0], tag)
            print(f"checked    {tag:<20} {tokens:>6,} tokens: off by {errors[tag]:.0e} of the largest", flush=True)
        cases = {tag: Case(nn.Module.__call__, layer, xs) for tag, layer in layers.items()}
        timed = interleaved(cases, device, seconds)
    same: dict[str, Any] = {"what": "layer", "width": size, "tokens": tokens, "dtype": "float32", "mode": "inference"}
    return [
        SpeedRow(
            name=tag,
            shape=tag,
            **same,
            inputs=INPUTS,
            provider=in_one_word(computed_by(layers[tag])),
            **figures(samples),
            relative_error=errors[tag],
            flops_per_token=found[tag].flops(size, size).used,
            **stamp(device, torch.get_num_threads()),
        )
        for tag, samples in timed.items()
    ]


def show(rows: Sequence[SpeedRow]) -> None:
    """A line for each layer."""
    for row in rows:
        by, spread = row.provider or "torch", f"({(row.q10 or 0) * 1e6:,.1f} to {(row.q90 or 0) * 1e6:,.1f})"
        took = f"{row.median * 1e6:>12,.1f} us {spread:<26} {row.median / row.tokens * 1e6:>10.3f} us/token"
        print(f"timed      {row.shape:<20} {row.tokens:>6,} tokens {took}  by {by}, n={row.n}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="bench.worth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. model.hidden_size=256")
    parser.add_argument("--experiment", default="micro", help="whose rows (default micro)")
    parser.add_argument("--rows", default="", help="names of rows, with commas between (default all)")
    parser.add_argument("--tokens", default="1,128,4096", help="of a call (default 1,128,4096)")
    parser.add_argument("--threads", default="1", help="of the host (default 1)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each layer at each number of tokens")
    parser.add_argument(
        "--out", type=path_argument, help="default results/bench/<experiment>-<hidden size>-layers.json"
    )
    options = parser.parse_intermixed_args(arguments)
    with door():
        counts, threads = whole_numbers("tokens", options.tokens), thread_counts(options.threads)
        check_seconds(options.seconds)
        wanted = [row for row in options.rows.split(",") if row]
        size, found = settings_of(options.experiment, wanted, options.overrides)
        out = options.out or Path(f"results/bench/{options.experiment}-{size}-layers.json")
        check_out(out)
        rows: list[SpeedRow] = []
        for number in threads:
            torch.set_num_threads(number)
            for tokens in counts:
                taken = measure(size, found, tokens, this_device(), seconds=options.seconds)
                show(taken)
                rows += taken
        write_rows(out, rows, {"experiment": options.experiment, "routes": "of untrained layers on random inputs"})
        print(f"written    {out}")


if __name__ == "__main__":
    main()
