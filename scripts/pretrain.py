"""Pretrain a crammed BERT: `python scripts/pretrain.py experiment=quickstart seed=0 any.key=value`. See configs/."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

from cramming.config import entry
from cramming.train.pretrain import pretrain
from cramming.train.root import PretrainRoot


@entry("pretrain")
def main(root: PretrainRoot) -> None:
    pretrain(root)


if __name__ == "__main__":
    main()
