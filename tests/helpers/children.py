"""A function in a forked child, which may be killed. Not for commands (forked.py) nor for processes of one run."""

import os
import traceback
from collections.abc import Callable


def child(work: Callable[[], object]) -> int:
    """A process that does the work, and its number."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Its status when it has ended; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
