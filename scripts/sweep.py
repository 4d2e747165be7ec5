"""Train what is missing of a sweep, then make the tables: `python scripts/sweep.py ffn.depth=3,5 seed=0,1 any.key=a,b`.

Each combination is one run of scripts/pretrain.py in a process of its own, started here or by joblib, submitit (SLURM)
or ray. Finished runs are recognised and interrupted ones go on; several machines that share the folders may run the
same command. At the end each run has a line: finished with its loss, failed with the reason, running, or missing.
"""

import signal

signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C while libraries load ends without a traceback

import argparse
import sys

from cramming.door import door
from cramming.plan import points
from cramming.record import git_state
from cramming.sweep.command import add_options, check_options, complete


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    arguments = parser.parse_intermixed_args()
    with door():
        check_options(arguments)
        git_state()  # now, not when the tables are written
        whole = complete(points(arguments.overrides), arguments)
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    main()
