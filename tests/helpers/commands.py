"""Commands as a user starts them, in a process of their own or, faster, in this one. Not a test."""

import contextlib
import io
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock
from weakref import WeakSet

from hydra.core.global_hydra import GlobalHydra
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]


def command(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/<script>.py with one thread and no network."""
    settings = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments],
        cwd=ROOT,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def inline(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process: no second start of the interpreter. What is not caught there is raised here."""
    file = str(ROOT / "scripts" / f"{script}.py")
    out, err, code = io.StringIO(), io.StringIO(), 0
    GlobalHydra.instance().clear()
    tqdm._instances = WeakSet()  # bars that an interrupted test left open would share the command's terminal
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    with _signals(), mock.patch.object(sys, "argv", [file, *arguments]), streams[0], streams[1]:
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else int(left.code is not None)
    return subprocess.CompletedProcess([file, *arguments], code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
