"""Finetune and score a pretrained model: `python scripts/glue.py experiment=quickstart glue=mini`. See configs/glue."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import sys

from cramming.config import entry
from cramming.glue.evaluate import evaluate_run
from cramming.glue.root import GlueRoot


@entry("glue")
def main(root: GlueRoot) -> None:
    if evaluate_run(root):
        sys.exit(1)


if __name__ == "__main__":
    main()
