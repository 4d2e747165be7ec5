"""Dense to tree by distillation, and controls: `python scripts/distill.py distill.model=ID`. See configs/distill."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

from cramming.config import entry
from cramming.convert.pretrained.config import DistillRoot
from cramming.convert.pretrained.convert import distill
from cramming.report.distill import distill_markdown


@entry("distill")
def main(root: DistillRoot) -> None:
    records = distill(root)
    print(distill_markdown(records))
    print(f"records    {len(records)}, in {root.results_dir}/runs")
    print("next       make tables")


if __name__ == "__main__":
    main()
