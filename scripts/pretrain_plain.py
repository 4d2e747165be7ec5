"""Pretrain without Hydra and network: `python scripts/pretrain_plain.py outputs/orders/RUN.json`.

scripts/prepare.py wrote that file; carry it along, and the prepared folder that it names. Nothing of this project need
be installed.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from cramming.errors import UserError
from cramming.train.order import read_order
from cramming.train.pretrain import pretrain


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        root, data = read_order(Path(sys.argv[1]))
        pretrain(root, data)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
