"""Commands in children of this process: real processes without the start of an interpreter. Not a test.

A command in a Python of its own imports its libraries for longer than a tiny run lasts. A child can be killed, locks
files and waits for its own children like any other process.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cramming.sweep.attempt import Attempt
from tests.helpers.commands import inline


class Forked:
    """scripts/<script>.py in a child, with what a sweep uses of a Popen; a log gets what it printed."""

    def __init__(self, script: str, arguments: Sequence[str], log: Path, *, session: bool = False) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        self.returncode: int | None = None
        self.reaping = threading.Lock()  # a thread may wait for it while another one asks
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                status = self._child(script, arguments, log, session)
            finally:
                os._exit(status)

    @staticmethod
    def _child(script: str, arguments: Sequence[str], log: Path, session: bool) -> int:
        if session:
            os.setsid()
        for name in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a child cannot use CUDA where its parent has looked for it
        torch.set_num_threads(1)
        with log.open("a") as file:
            try:
                done = inline(script, *arguments)
                file.write(done.stdout + done.stderr)
                return done.returncode
            except BaseException:
                traceback.print_exc(file=file)
                return 1

    def poll(self) -> int | None:
        """Its status, or None."""
        with self.reaping:
            if self.returncode is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.returncode = os.waitstatus_to_exitcode(status) if pid else None
            return self.returncode

    def wait(self) -> int:
        """Its status, when it has ended."""
        while (status := self.poll()) is None:
            with contextlib.suppress(ChildProcessError):  # another thread was faster
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        return status

    def terminate(self) -> None:
        """SIGTERM, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGTERM)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a sweep of this process start its runs so."""
    if torch.cuda.is_initialized():
        pytest.skip("a process that has used CUDA cannot be forked")

    def start(attempt: Attempt) -> Forked:
        return Forked("pretrain", attempt.command[2:], Path(attempt.log))

    monkeypatch.setattr(Attempt, "start", start)
