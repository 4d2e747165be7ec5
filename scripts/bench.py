"""Layer timings of this machine into results/bench: `python scripts/bench.py [--shapes 1x11 --tokens 128 ...]`."""

import sys
from datetime import UTC, datetime

from fff.bench import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "--out" not in arguments:
        arguments += ["--out", f"results/bench/layer-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"]
    main(arguments)
