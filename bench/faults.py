"""Workers that are killed and come back: how long the others stand still, and what it does to the loss. A log.

`python -m bench.faults --kills 10 --record NAME key=value ...` trains experiment=apart with three workers that meet by
a lighthouse (needs torchft): once for each seed undisturbed, and once with kill -9 of one of them at random moments,
which is started again. `key=value` goes to scripts/pretrain.py, as data.files=[...].
"""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Iterator

WORKERS = 3
SILENT_S, LATE_S = 5.0, 10.0  # after which a worker is thought dead; for which a meeting waits for one that is alive
ANSWER_S = 30.0  # cramming.parallel.elastic.ANSWER: of one message
BOUND_S = SILENT_S + LATE_S + ANSWER_S
PAUSE_S = (2.0, 15.0)  # from a worker's return to the next kill, drawn evenly
START_S = 600.0  # in which a worker has to be there
LIGHTHOUSE = (
    "import signal, sys; from torchft.coordination import LighthouseServer; bind, least, late, silent = sys.argv[1:]; "
    "kept = LighthouseServer(bind=bind, min_replicas=int(least), join_timeout_ms=int(late), "
    "heartbeat_timeout_ms=int(silent)); print('ready', flush=True); signal.pause()"
)


@contextlib.contextmanager
def lighthouse(least: int, *, silent_s: float = SILENT_S, late_s: float = LATE_S) -> Iterator[str]:
    """Address of one in a process of its own, which calls a meeting of as many workers at least."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    options = [f"[::]:{port}", str(least), f"{late_s * 1000:.0f}", f"{silent_s * 1000:.0f}"]
    command = [sys.executable, "-c", LIGHTHOUSE, *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"http://localhost:{port}"
    finally:
        process.kill()
        process.wait()
