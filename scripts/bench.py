"""Timings of this machine into results/bench: `python scripts/bench.py [--shapes 1x11 --tokens 128 ...]`.

Layers by provider as `python -m fff.bench`, the memory of a training step, then the whole encoder and its pretraining
step by feedforward; with --checkpoint and --text also a trained model's own layers on the inputs that they see. The
report is written after each part.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.model.bench import FEEDFORWARDS, Scale, run_models, scale_here
from cramming.model.bench_trained import run_trained
from fff.bench import parser, run_layers, settings, write
from fff.bench_memory import run_memory


def main() -> None:
    options = parser()
    options.add_argument("--memory", type=int, default=2048, help="tokens of the step that is measured; 0 for none")
    options.add_argument("--batches", help="of the whole model, sequences of 128; empty for no model")
    options.add_argument("--microbatch", type=int, help="of the whole model's pretraining step, sequences of 128")
    options.add_argument("--ffns", help='of the whole model, e.g. "dense 3072,1x11"')
    options.add_argument("--layers", type=int, help="of the whole model")
    options.add_argument("--turns", type=int, help="timed turns of the whole model")
    options.add_argument("--checkpoint", type=Path, help="a run's folder, or the model folder in it")
    options.add_argument("--text", type=Path, help="UTF-8 text for --checkpoint")
    chosen = options.parse_args()
    if (chosen.checkpoint is None) != (chosen.text is None):
        options.error("--checkpoint and --text go together")
    out = chosen.out or Path(f"results/bench/{datetime.now(UTC):%Y%m%d-%H%M%S}.json")
    threads = [int(count) for count in chosen.threads.split(",")]
    report: dict[str, Any] = {}
    if chosen.checkpoint:
        try:
            report["trained"] = run_trained(chosen.checkpoint, chosen.text, settings(chosen, "1x0"), threads)
        except UserError as error:
            sys.exit(f"error: {error}")
        write(report, out)
    report["layers"] = run_layers(chosen)
    write(report, out)
    if chosen.memory and chosen.shapes:
        report["memory"] = run_memory(chosen.shapes, chosen.memory)
        write(report, out)
    if chosen.batches != "":
        report["models"] = run_models(threads, model_scale(chosen))
        write(report, out)


def model_scale(chosen: argparse.Namespace) -> Scale:
    """What of the whole model is timed: what the command line names, else what suits the device."""
    batches = None if chosen.batches is None else tuple(int(batch) for batch in chosen.batches.split(","))
    scale = scale_here(
        batches=batches,
        microbatch=chosen.microbatch,
        feedforwards=None if chosen.ffns is None else tuple(chosen.ffns.split(",")),
        layers=chosen.layers,
        turns=chosen.turns,
    )
    if unknown := [name for name in scale.feedforwards if name not in FEEDFORWARDS]:
        sys.exit(f"error: --ffns names {', '.join(unknown)}; there are {', '.join(FEEDFORWARDS)}")
    return scale


if __name__ == "__main__":
    main()
