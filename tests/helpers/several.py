"""Several processes of one run, forked from this one as a launcher would start them. Not a test.

They need no start of an interpreter, so that many cases can have processes of their own.
"""

import contextlib
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState

from cramming.door import door
from cramming.parallel import launch

PATIENCE_S = 300.0  # with all of them; who is not there then is ended, and the test fails


@dataclass(frozen=True)
class Ended:
    """One process after its end: exit status (negative: the signal), what it printed, what its work returned."""

    status: int
    printed: str
    value: Any


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def several(work: Callable[..., Any], folder: Path, *arguments: Any, size: int = 2, **environment: str) -> list[Ended]:
    """`work(*arguments)` in each of the processes, behind a command's door; all have ended when this returns.

    One alone is not told of any others.

    Args:
        folder: for what they print and return.
        arguments: callables among them are called with the rank first, for what differs between processes.
        environment: variables other than the launcher's; "RANK_1_X" is X of process 1 alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size), **environment}
    sys.stdout.flush()
    children = []
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            try:
                _child(rank, size, variables, folder, work, arguments)
            finally:
                os._exit(70)
        children.append(pid)
    statuses = _wait(children)
    return [
        Ended(status, (folder / f"{rank}.txt").read_text(), _value(folder / f"{rank}.pickle"))
        for rank, status in enumerate(statuses)
    ]


def _child(
    rank: int, size: int, variables: dict[str, str], folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    launch._kept.clear()
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background has it ignored
    own = f"RANK_{rank}_"
    if size > 1:
        os.environ.update({"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size), **variables})
    os.environ.update({name.removeprefix(own): value for name, value in variables.items() if name.startswith(own)})
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    status = 1
    log = os.open(folder / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    try:
        with door():
            value = work(*(each(rank) if callable(each) else each for each in arguments))
            (folder / f"{rank}.pickle").write_bytes(pickle.dumps(value))
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _wait(children: list[int]) -> list[int]:
    found: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE_S
    while len(found) < len(children) and time.monotonic() < deadline:
        for pid in children:
            if pid not in found:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    found[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    for pid in children:
        if pid not in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert len(found) == len(children), f"{len(children) - len(found)} of {len(children)} hung for {PATIENCE_S} s"
    return [found[pid] for pid in children]


def _value(path: Path) -> Any:
    return pickle.loads(path.read_bytes()) if path.exists() else None
