"""Seconds of training, without those in which the process was stopped. Not what a budget makes of them (budget.py)."""

import time
from collections.abc import Callable


class Stopwatch:
    """Measures spans of training.

    A budget in hours must not run while the process does not. A sleeping machine stops the monotonic clock by itself,
    but a process that SIGSTOP (Ctrl-Z, a batch system) halts finds the clock run on. It learns of that by SIGCONT
    (`continued`); the span in which it came counts with the processor time that it took, if that is less.

    Args:
        clock: monotonic seconds.
        processor: seconds of processor time of this process.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, processor: Callable[[], float] = time.process_time
    ) -> None:
        self.clock, self.processor = clock, processor
        self.uncounted = 0.0  # seconds that were left out
        self.start()

    def start(self) -> None:
        """A span begins here."""
        self._halted = False
        self._started, self._worked = self.clock(), self.processor()

    def lap(self) -> float:
        """Seconds that count since `start` or the last lap; the next span begins."""
        passed, worked = self.clock() - self._started, self.processor() - self._worked
        counted = min(passed, worked) if self._halted else passed
        self.uncounted += passed - counted
        self.start()
        return counted

    def continued(self) -> None:
        """The process was halted, and goes on."""
        self._halted = True
