"""Timings of this machine into results/bench: `python scripts/bench.py [--shapes 1x11 --tokens 128 ...]`.

Layers by provider as `python -m fff.bench`, the memory of a training step, then the whole encoder and its pretraining
step by feedforward; with --checkpoint and --text also a trained model's own layers on the inputs that they see. The
report is written after each part.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cramming.errors import UserError
from cramming.model.bench import run_models
from cramming.model.bench_trained import run_trained
from fff.bench import parser, run_layers, settings, write
from fff.bench_memory import run_memory


def main() -> None:
    options = parser()
    options.add_argument("--memory", type=int, default=2048, help="tokens of the step that is measured; 0 for none")
    options.add_argument("--batches", default="1,8", help="of the whole model, sequences of 128; empty for no model")
    options.add_argument("--layers", type=int, default=16, help="of the whole model")
    options.add_argument("--turns", type=int, default=3, help="timed turns of the whole model")
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
    if chosen.batches:
        report["models"] = run_models(threads, [int(b) for b in chosen.batches.split(",")], chosen.layers, chosen.turns)
        write(report, out)


if __name__ == "__main__":
    main()
