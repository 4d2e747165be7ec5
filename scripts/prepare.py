"""Prepare the text of a pretraining run: `python scripts/prepare.py experiment=quickstart`. See configs/data.

It also writes the run's configuration as scripts/pretrain_plain.py reads it, for a machine without Hydra.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

from pathlib import Path

from cramming.config import entry
from cramming.data.prepare import prepare
from cramming.data.stored import put_prepared
from cramming.files import check_writable
from cramming.train.order import write_order
from cramming.train.root import PretrainRoot


@entry("pretrain")
def main(root: PretrainRoot) -> None:
    check_writable(Path(root.output_dir), "output_dir")
    data = prepare(root.data, Path(root.output_dir))
    counts = data.manifest["counts"]
    held_out = f"{counts['documents_held_out']:,} held out"
    print(f"documents  {counts['documents']:,} ({counts['bytes'] / 1e6:.1f} MB), {held_out}")
    print(f"tokens     {counts['train_tokens']:,} in sequences of {data.seq_len}, vocabulary {data.vocab_size:,}")
    print(f"written    {data.folder} (fingerprint {data.fingerprint})")
    print(f"written    {write_order(root, data.folder, Path(root.output_dir) / 'orders')}")
    if root.data.remote is not None:
        print(f"put        {put_prepared(data.folder, root.data.remote)}")
    print("next       make pretrain, with the same data settings")


if __name__ == "__main__":
    main()
