"""Checks and times a GPU machine in under 8 minutes: `python scripts/gpu_check.py FOLDER` writes FOLDER/gpu_check.json.

Correctness of every provider first; then the layer, the whole model and a minute of pretraining, path against dense.
Needs torch, transformers and accelerate, no network, and no installation of this project. The file is written after
every row, so that a run which is cut off keeps what it has.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cramming  # noqa: F401 (before torch: how its threads wait)

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from bench.check.parts import PARTS
from bench.check.run import check_machine
from bench.options import names
from cramming.checks import number, one_of
from cramming.door import door, path_argument
from cramming.errors import UserError
from cramming.files import check_writable


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("out", type=path_argument, help="folder of gpu_check.json")
    options.add_argument("--parts", default=",".join(PARTS), help="which, in this order")
    options.add_argument("--seconds", type=float, default=470.0, help="for all parts together")
    options.add_argument("--small", action="store_true", help="tiny shapes, to try it on a CPU")
    options.add_argument("--one-process", action="store_true", help="do not give each part a process of its own")
    chosen = options.parse_args()
    with door():
        parts = names("parts", chosen.parts)
        for name in parts:
            one_of("--parts", name, PARTS)
        number("--seconds", chosen.seconds, above=0)
        if not (chosen.small or torch.cuda.is_available()):
            raise UserError("There is no GPU; --small tries the script on a CPU.")
        check_writable(chosen.out, "out")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a part's process ends with this one
        isolated = not chosen.one_process
        report = check_machine(chosen.out, parts, small=chosen.small, seconds=chosen.seconds, isolated=isolated)
    sys.exit(0 if all(part["status"] == "done" for part in report.parts.values()) else 1)


if __name__ == "__main__":
    main()
