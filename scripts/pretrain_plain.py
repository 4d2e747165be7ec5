"""Pretrain without Hydra and network: `python scripts/pretrain_plain.py outputs/orders/RUN.json`.

scripts/prepare.py wrote that file; carry it along, and the prepared folder that it names. Nothing of this project need
be installed.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cramming.door import door
from cramming.train.order import read_order
from cramming.train.pretrain import pretrain


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with door():
        root, data = read_order(Path(sys.argv[1]))
        pretrain(root, data)


if __name__ == "__main__":
    main()
