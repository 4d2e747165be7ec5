"""Read prepared data as a whole and compare every hash: `make verify`, or ARGS="FOLDER or s3://bucket/FOLDER ..."."""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
from pathlib import Path

from cramming.checks import at_home
from cramming.data.shards import MANIFEST
from cramming.data.stored import verify
from cramming.door import door
from cramming.errors import UserError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", help="of prepared data, here or at an address; default outputs/data/*")
    asked = parser.parse_args()
    with door():
        places = [at_home(place, "the folder") for place in asked.folders]
        places = places or sorted(str(path.parent) for path in Path("outputs", "data").glob(f"*/{MANIFEST}"))
        if not places:
            raise UserError(f"nothing is prepared in {Path('outputs', 'data').absolute()}; name the folders.")
        for place in places:
            manifest = verify(place.rstrip("/"))
            size = sum(entry["bytes"] for entry in manifest["files"].values())
            print(f"whole      {place}, {len(manifest['files'])} files, {size / 1e6:,.1f} MB", flush=True)


if __name__ == "__main__":
    main()
