"""Timings of this machine into results/bench: `python scripts/bench.py [--shapes 1x11 --tokens 128 ...]`.

Layers by provider as `python -m bench.layer`, the memory of a training step, then the whole encoder and its pretraining
step by feedforward; with --checkpoint and --text also a trained model's own layers on the inputs that they see. The
report is written after each part. With --aims it times on a CPU what results/README.md has aims for, on one and on two
threads (half an hour), and writes their table beside the JSON.
"""

import argparse
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ahead of this file, which has the package's name

from bench import aims as bench_aims
from bench.layer import dtype_named, parser, run_layers, settings, thread_counts, write
from bench.memory import run_memory
from bench.model import FEEDFORWARDS, Scale, run_models, scale_here
from bench.trained import run_trained
from cramming.errors import UserError


def main() -> None:
    options = command_line()
    chosen = options.parse_args()
    if (chosen.checkpoint is None) != (chosen.text is None):
        options.error("--checkpoint and --text go together")
    out = chosen.out or Path(f"results/bench/{datetime.now(UTC):%Y%m%d-%H%M%S}.json")
    threads, timed, scale = thread_counts(chosen), settings(chosen), model_scale(chosen)
    memory = chosen.shapes, chosen.memory
    if chosen.aims:
        timed, scale = bench_aims.settings(chosen.seconds), bench_aims.models(scale)
        memory = bench_aims.MEMORY_SHAPES, bench_aims.MEMORY_TOKENS
    report: dict[str, Any] = {}
    if chosen.checkpoint:
        try:
            report["trained"] = run_trained(chosen.checkpoint, chosen.text, settings(chosen, "1x0"), threads)
        except UserError as error:
            sys.exit(f"error: {error}")
        write(report, out)
    for count in threads:
        report.setdefault("layers", []).append(run_layers(timed, count))
        write(report, out)
    if all(memory):
        report["memory"] = run_memory(*memory)
        write(report, out)
    if scale.batches:
        for count in threads:
            report.setdefault("models", []).append(run_models(count, scale))
            write(report, out)
    if chosen.aims:
        text = bench_aims.table(report, threads)
        out.with_suffix(".md").write_text(text)
        print(f"\n{text}\nwritten    {out.with_suffix('.md')}")


def command_line() -> argparse.ArgumentParser:
    """That of `bench.layer`, and what concerns whole models."""
    options = parser()
    options.add_argument("--memory", type=int, default=2048, help="tokens of the step that is measured; 0 for none")
    options.add_argument("--batches", help="of the whole model, sequences of 128; empty for no model")
    options.add_argument("--microbatch", type=int, help="of the whole model's pretraining step, sequences of 128")
    options.add_argument("--model-dtypes", help="of the whole model's weights in inference, e.g. float32,bfloat16")
    options.add_argument("--ffns", help='of the whole model, e.g. "dense 3072,1x11"')
    options.add_argument("--layers", type=int, help="of the whole model")
    options.add_argument("--turns", type=int, help="timed turns of the whole model")
    options.add_argument("--checkpoint", type=Path, help="a run's folder, or the model folder in it")
    options.add_argument("--text", type=Path, help="UTF-8 text for --checkpoint")
    options.add_argument("--aims", action="store_true", help="time what there are aims for, instead of the above")
    return options


def model_scale(chosen: argparse.Namespace) -> Scale:
    """What of the whole model is timed: what the command line names, else what suits the device."""
    scale = scale_here(
        batches=None if chosen.batches is None else tuple(map(int, filter(None, chosen.batches.split(",")))),
        dtypes=None if chosen.model_dtypes is None else tuple(map(dtype_named, chosen.model_dtypes.split(","))),
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
