"""Draw results/figures from what `make tables` reads: `python scripts/figures.py`. See cramming/report."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

from pathlib import Path

from cramming.config import entry
from cramming.report.root import TablesRoot
from cramming.report.tables import write_figures


@entry("tables")
def main(root: TablesRoot) -> None:
    for path in write_figures(Path(root.results_dir)):
        print(f"written    {path}")


if __name__ == "__main__":
    main()
