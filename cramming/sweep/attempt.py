"""One start of a run as a process, here or on a machine that a launcher picks. Not when; standard library alone."""

import os
import signal
import subprocess
from dataclasses import dataclass, field
from typing import Any

# What a cluster tells of a limit that comes near: it means who started the run, who then ends it with SIGTERM.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


@dataclass
class Attempt:
    """A command whose output goes to the end of a log; called, it waits for it and returns its status. Picklable.

    Attributes:
        folder: in which it is started.
        threads: that its libraries may use; None is the machine's.
    """

    command: list[str]
    log: str
    folder: str
    threads: int | None
    process: subprocess.Popen | None = field(default=None, repr=False)

    def start(self, *, unwarned: bool = False) -> subprocess.Popen:
        """The process. It hears no terminal, but who started it alone; `unwarned` no cluster's warnings either."""
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                self.command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}),
                process_group=0,
                preexec_fn=deaf if unwarned else None,
            )

    def __call__(self) -> int:
        """Its status; what interrupts the wait ends it after a checkpoint."""
        self.process = self.start(unwarned=True)
        try:
            return self.process.wait()
        finally:
            self.process.terminate()
            self.process.wait()

    def checkpoint(self) -> Any:
        """What submitit calls before a time limit, in a signal's handler: the run ends after a checkpoint of its own.

        Returns:
            what submitit shall call when the job is started again.
        """
        from submitit.helpers import DelayedSubmission

        if self.process is not None:
            self.process.terminate()
            os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)  # whom we interrupted holds Popen's own lock
        return DelayedSubmission(Attempt(self.command, self.log, self.folder, self.threads))


def deaf() -> None:
    """Let a process not end by the warnings."""
    for name in WARNINGS:
        signal.signal(name, signal.SIG_IGN)
