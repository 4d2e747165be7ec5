"""One part of the measurement in a process of its own: `python -m bench.check GIVEN.json FOUND.json` (run.py)."""

import json
import sys
from pathlib import Path

from bench.check.run import run_part
from cramming.files import write_atomic

if __name__ == "__main__":
    given, found = map(Path, sys.argv[1:])
    job = json.loads(given.read_text())
    run_part(job["name"], job["known"], job["small"], job["limit"], lambda part: write_atomic(found, json.dumps(part)))
