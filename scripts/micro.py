"""Train what is missing of an experiment's rows, then make the tables and figures: `python scripts/micro.py`.

Rows stand in configs/rows/<experiment>.yaml; each row and seed is one run of scripts/pretrain.py in a process of one
thread. Finished runs are recognised and interrupted ones go on, so that the same command is started until all is there.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
import sys

from cramming.door import door
from cramming.plan import planned
from cramming.record import git_state
from cramming.sweep.command import add_options, check_options, complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--experiment", default="micro", help="whose rows (default micro)")
    parser.add_argument("--rows", type=words, default=[], help="names of rows, with commas between (default all)")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2], help="with commas between (default 0,1,2)")
    arguments = parser.parse_intermixed_args()
    with door():
        check_options(arguments)
        git_state()  # now, not when the tables are written
        runs = planned(arguments.experiment, arguments.rows, arguments.seeds, arguments.overrides)
        whole = complete(runs, arguments, threads=1)
    sys.exit(0 if whole else 1)


def words(text: str) -> list[str]:
    """A list with commas."""
    return [word for word in text.split(",") if word]


def numbers(text: str) -> list[int]:
    """A list of seeds with commas, one at least."""
    found = [int(word) for word in words(text)]
    if not found:
        raise ValueError
    return found


if __name__ == "__main__":
    main()
