"""Timings of this machine into results/bench: `python scripts/bench.py [--shapes 1x11 --tokens 128 ...]`.

Layers by provider as `python -m bench.layer`, the memory of a training step, then the whole encoder and its pretraining
step by feedforward; with --checkpoint and --text also a trained model's own layers on the inputs that they see. The
report, one flat row for each thing timed, is written after each part. With --aims it times on a CPU what
results/README.md has aims for, on one and on two threads (half an hour), and writes their table beside the JSON;
with --opponents it times trees against what people would run instead, in types and libraries (the extra
`opponents`), and nothing else: that is a part of the aims too.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # ahead of this file, which has the package's name

import cramming  # noqa: F401 (before torch: how its threads wait)

# isort: split

from bench import aims as bench_aims
from bench.encoder import FEEDFORWARDS, Scale, scale_here
from bench.layer import run_layers
from bench.memory import run_memory
from bench.model import run_models
from bench.opponents import Size, run_opponents
from bench.options import Shape, check_out, dtypes, names, parser, settings, shapes, thread_counts, whole_numbers
from bench.rows import SpeedRow, write_rows
from bench.trained import run_trained
from cramming.checks import number, one_of
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.files import write_atomic


def main() -> None:
    options = command_line().parse_args()
    with door():
        run(options)


def run(chosen: argparse.Namespace) -> None:
    """Time what the command line asks for, after all of it was checked."""
    if (chosen.checkpoint is None) != (chosen.text is None):
        raise UserError("--checkpoint and --text go together; give both, or none.")
    number("--memory", chosen.memory, least=0)
    threads, timed, scale = thread_counts(chosen.threads), settings(chosen), model_scale(chosen)
    memory = [shape for shape in shapes(chosen.shapes, empty=True) if not shape.leaf_width], chosen.memory
    if chosen.aims:
        timed, scale = bench_aims.settings(chosen.seconds), bench_aims.models(scale)
        memory = bench_aims.MEMORY_SHAPES, bench_aims.MEMORY_TOKENS
    against = opponents_size(chosen, scale)
    if chosen.opponents and not chosen.aims:
        timed, memory, scale = [], ([], 0), replace(scale, batches=())
    out = chosen.out or Path(f"results/bench/{datetime.now(UTC):%Y%m%d-%H%M%S}.json")
    check_out(out)
    rows: list[SpeedRow] = []

    def add(found: list[SpeedRow]) -> None:
        rows.extend(found)
        write_rows(out, rows)
        print(f"written    {out}")

    if chosen.checkpoint:
        add(run_trained(chosen.checkpoint, chosen.text, settings(chosen, [Shape(1, 0)]), threads))
    for count in threads if chosen.opponents or chosen.aims else ():
        add(run_opponents(count, against))
    for count in threads if timed else ():
        add(run_layers(timed, count))
    if all(memory):
        add(run_memory(*memory))
    for count in threads if scale.batches else ():
        add(run_models(count, scale))
    if chosen.aims or chosen.opponents:
        text = bench_aims.table(rows, threads)
        write_atomic(out.with_suffix(".md"), text)
        print(f"\n{text}\nwritten    {out.with_suffix('.md')}")


def command_line() -> argparse.ArgumentParser:
    """That of `bench.layer`, and what concerns whole models."""
    options = parser("bench.py", __doc__)
    options.add_argument("--memory", type=int, default=2048, help="tokens of the step that is measured; 0 for none")
    options.add_argument("--batches", help="of the whole model, sequences of 128; empty for no model")
    options.add_argument("--microbatch", type=int, help="of the whole model's pretraining step, sequences of 128")
    options.add_argument("--model-dtypes", help="of the whole model's weights in inference, e.g. float32,bfloat16")
    options.add_argument("--ffns", help='of the whole model, e.g. "dense 3072,1x11"')
    options.add_argument("--layers", type=int, help="of the whole model")
    options.add_argument("--turns", type=int, help="timed turns of the whole model")
    options.add_argument("--checkpoint", type=path_argument, help="a run's folder, or the model folder in it")
    options.add_argument("--text", type=path_argument, help="UTF-8 text for --checkpoint")
    options.add_argument("--aims", action="store_true", help="time what there are aims for, instead of the above")
    options.add_argument("--opponents", action="store_true", help="time trees against other types and libraries")
    return options


def opponents_size(chosen: argparse.Namespace, scale: Scale) -> Size:
    """What of it is timed: all, or less where --tokens, --batches or --layers say so."""
    whole = Size(seconds=chosen.seconds)
    given = {key: getattr(scale, key) for key in ("batches", "layers") if getattr(chosen, key) is not None}
    tokens = whole.tokens
    if chosen.tokens != command_line().get_default("tokens"):
        tokens = tuple(whole_numbers("tokens", chosen.tokens))
    return replace(whole, tokens=tokens, encoder=replace(whole.encoder, **given))


def model_scale(chosen: argparse.Namespace) -> Scale:
    """What of the whole model is timed: what the command line names, else what suits the device."""
    for key in ("microbatch", "layers", "turns"):
        number(f"--{key}", getattr(chosen, key), least=1)
    batches, types, ffns = chosen.batches, chosen.model_dtypes, chosen.ffns
    for name in () if ffns is None else names("ffns", ffns):
        one_of("--ffns", name, FEEDFORWARDS)
    return scale_here(
        batches=None if batches is None else tuple(whole_numbers("batches", batches, empty=True)),
        dtypes=None if types is None else tuple(dtypes("model-dtypes", types)),
        microbatch=chosen.microbatch,
        feedforwards=None if ffns is None else tuple(names("ffns", ffns)),
        layers=chosen.layers,
        turns=chosen.turns,
    )


if __name__ == "__main__":
    main()
