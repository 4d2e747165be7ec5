"""The first paper's experiment, Table 1 of 2308.14711: `python scripts/images.py images=digits`. See configs/images."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import sys

from cramming.config import entry
from cramming.images.root import ImagesRoot
from cramming.images.suite import run_images


@entry("images")
def main(root: ImagesRoot) -> None:
    records = run_images(root)
    bad = [record["name"] for record in records if record["status"] != "finished"]
    print(f"records    {len(records) - len(bad)} finished of {len(records)}, in {root.results_dir}/runs")
    print("next       make tables")
    if bad:
        print(f"not finished, and in no number: {', '.join(bad)}; the same command tries them again")
        sys.exit(1)


if __name__ == "__main__":
    main()
