"""The processes that were started together: how they find each other, wait and fail. Not what they compute (world.py).

What goes wrong in one of them ends all, and one line says it. None waits for ever: START_S for the others to come at
the beginning, `patience` for them in a meeting, PART_S for them to leave. A process that has ended is noticed at once
where its connections break (Gloo), and else by the launcher, which ends the others.
"""

import contextlib
import itertools
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from cramming.door import explained, tell
from cramming.errors import UserError, one_line

Value = TypeVar("Value")

START_S = 300.0
TELL_S = 5.0  # in which the main process tells what another one has to say
PART_S = 60.0  # in which the others leave after the main process's work is done
LOOK_S = 0.05  # between two looks whether the main process has made what the others wait for
LISTEN_S = 0.2  # between two looks whether one has
PATIENCE = timedelta(minutes=30)
NAMED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# How torch says that another process is not there any more, or does not come.
LOST = (
    "Connection closed by peer",
    "Connection reset",
    "Broken pipe",
    "Timed out waiting",
    "pair closure",
    "failed to recv",
)
# How it says that its port is another's.
TAKEN = ("EADDRINUSE", "address already in use")

_kept: list[Any] = []  # the store of this process's life: its port is bound once
_count = itertools.count()


@dataclass(frozen=True)
class Launched:
    """This process among those that were started together, `rank` of `size`; alone without a store."""

    rank: int = 0
    size: int = 1
    store: Any = None

    @property
    def main(self) -> bool:
        """Whether this one speaks for all."""
        return self.rank == 0

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What the main process makes, everywhere; a plain value. The others wait as long as it takes, or fails."""
        if self.size == 1:
            return make()
        key = f"made/{next(_count)}"
        if self.main:
            made = make()
            self.store.set(key, json.dumps(made))
            return made
        while not self.store.check([key]):  # its own wait would tell the user of each second
            if self.store.check(["told"]):
                raise SystemExit(2)
            time.sleep(LOOK_S)
        return json.loads(self.store.get(key))

    def same(self, gather: Callable[[], Mapping[str, Any]]) -> None:
        """Compare plain facts of all processes, by name; they meet. Alone, nothing is gathered.

        Raises:
            UserError: those of one differ from the main process's.
        """
        if self.size == 1:
            return
        facts = json.dumps(dict(gather()))
        self.store.set(f"facts/{self.rank}", json.dumps([socket.gethostname(), json.loads(facts)]))
        self.from_main(lambda: self._compare(json.loads(facts)))

    def _compare(self, ours: dict[str, Any]) -> None:
        for rank in range(1, self.size):
            host, theirs = json.loads(self.store.get(f"facts/{rank}"))
            for name in sorted(ours.keys() | theirs.keys()):
                if ours.get(name) != theirs.get(name):
                    raise UserError(
                        f"{name} is {theirs.get(name)!r} in process {rank} (on {host}) and {ours.get(name)!r} in the "
                        "main process; start all of them with the same code and the same command."
                    )

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Around a run: what ends one process ends all, and the main one says why in one line.

        Processes that have nothing to say leave with SystemExit. Alone, errors pass as they are.
        """
        if self.size == 1:
            yield
            return
        ears = _Ears(self) if self.main else None
        try:
            yield
            self._part()
        except Exception as error:
            if "FFF_TRACEBACK" in os.environ:
                raise
            self._end(error, ears)
            raise SystemExit(2) from error
        finally:
            if ears:
                ears.close()

    def _part(self) -> None:
        """Leave, the main process last: the store is in it, and others may not have read what it made."""
        if not self.main:
            self._note(f"left/{self.rank}")
            return
        with contextlib.suppress(dist.DistStoreError):  # one that ends otherwise says so itself, or its launcher does
            self.store.wait([f"left/{rank}" for rank in range(1, self.size)], timedelta(seconds=PART_S))

    def _end(self, error: Exception, ears: "_Ears | None") -> None:
        """Say what this process has to say; what is no matter of the user's is raised."""
        lost = is_lost(error)
        said = None if lost else explained(error)
        if ears:
            if lost and not ears.heard.wait(5 * LISTEN_S):  # who had something to say said it before it left
                said = f"another process of this run has ended or cannot be reached ({_short(error)}); {GO_ON}"
            if said and not ears.heard.is_set():
                tell(said)
            self._note("told")
        elif not lost:
            self._note("failed", f"process {self.rank}: {said or _short(error)}")
            if said and not self._told():
                tell(f"process {self.rank}: {said}")
            self._note(f"left/{self.rank}")
        if not (said or lost):
            raise error

    def _told(self) -> bool:
        """Whether the main process tells the user; a store that is gone went with it."""
        try:
            self.store.wait(["told"], timedelta(seconds=TELL_S))
        except dist.DistStoreError:
            return False
        except RuntimeError:
            pass
        return True

    def _note(self, key: str, text: str = "") -> None:
        with contextlib.suppress(RuntimeError):
            self.store.set(key, text)


class _Ears:
    """A thread of the main process that tells what another one ended with, while the main one may be in a meeting."""

    def __init__(self, launch: Launched) -> None:
        self.launch, self.heard, self._closed = launch, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        store = self.launch.store
        with contextlib.suppress(RuntimeError):
            while not self._closed.wait(LISTEN_S):
                if store.check(["failed"]) and not store.check(["told"]):
                    tell(store.get("failed").decode())
                    self.heard.set()
                    store.set("told", "")
                    return

    def close(self) -> None:
        """Stop, and wait for it: a thread that is inside torch when Python ends would abort the process."""
        self._closed.set()
        self._thread.join()


GO_ON = "see what it said. The same command goes on from the last checkpoint."


def launched(*, cpu: bool, patience: timedelta = PATIENCE) -> Launched:
    """Meet the others, if a launcher started this process: torchrun, accelerate, or RANK and its like in a script.

    Args:
        cpu: compute on CPUs, with Gloo; else on GPUs, with NCCL.
        patience: how long one process waits for the others in a meeting.

    Raises:
        UserError: they do not come, the port is taken, the variables are incomplete, or torch lacks the backend.
    """
    if "RANK" not in os.environ and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Launched()
    check_backend(cpu)
    rank, size = int(os.environ.get("RANK", "-1")), int(os.environ.get("WORLD_SIZE", "-1"))
    if dist.is_initialized():
        return Launched(dist.get_rank(), dist.get_world_size(), _kept[-1])
    try:
        base = _kept[0] if _kept else _meet()
        store = dist.PrefixStore(f"run-{next(_count)}", base)
        _kept[:] = [base, store]
        backend = "gloo" if cpu else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError, TimeoutError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        if any(words in str(error) for words in TAKEN):
            mend = "set MASTER_PORT to a free one."
            raise UserError(f"The port of {where} is taken on this machine; {mend}") from error
        raise UserError(
            f"The {size} processes did not all meet at {where} within {start_s():g} s ({_short(error)}); see whether "
            "all were started, with the same MASTER_ADDR and MASTER_PORT, and whether the network lets them."
        ) from error
    return Launched(rank, size, store)


def start_s() -> float:
    """Seconds in which all processes have to come: START_S, unless FFF_START_S in the environment is another number."""
    return float(os.environ.get("FFF_START_S", START_S))


def _meet() -> Any:
    """The store that all processes share, when all have come. In a thread, because torch waits for a foreign listener
    at the port for ever.
    """
    if missing := [name for name in NAMED if not os.environ.get(name)]:
        raise UserError(
            f"{', '.join(missing)} is not set, and {NAMED[0]} or {NAMED[1]} is; start all processes with torchrun or "
            "accelerate, or set all of " + ", ".join(NAMED) + "."
        )
    met: Future[Any] = Future()

    def meet() -> None:
        try:
            met.set_result(next(iter(dist.rendezvous("env://", timeout=timedelta(seconds=start_s()))))[0])
        except BaseException as error:
            met.set_exception(error)

    threading.Thread(target=meet, daemon=True).start()
    return met.result(timeout=start_s() + 1)


def check_backend(cpu: bool) -> None:
    """Refuse several processes where torch was built without what they talk by (UserError)."""
    if not dist.is_available():
        raise UserError("Several processes were started, and this torch has no torch.distributed; install another one.")
    if not dist.is_gloo_available():
        raise UserError("Several processes were started, and this torch has no Gloo; install another one.")
    if not cpu and not dist.is_nccl_available():
        raise UserError(
            "Several processes were started on GPUs, and this torch has no NCCL; install another one, start one "
            "process, or hide the GPUs (CUDA_VISIBLE_DEVICES=)."
        )


def is_lost(error: BaseException) -> bool:
    """Whether an error says that another process is not there any more."""
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(words in str(error) for words in LOST)
    )


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
